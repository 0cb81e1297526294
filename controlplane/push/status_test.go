package push_test

import (
	"context"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"

	"github.com/prism-gateway/prism/controlplane/fleet"
	"github.com/prism-gateway/prism/controlplane/push"
	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	"github.com/prism-gateway/prism/controlplane/store"
	"github.com/prism-gateway/prism/controlplane/store/embedded"
	"github.com/prism-gateway/prism/shared/ident"
)

// A commit goes by etcd to the proxy, and what the proxy answers is the namespace's status: sent, refused, accepted,
// serving.
func TestCommitToStatus(t *testing.T) {
	etcd, err := embedded.Start(embedded.Config{Dir: t.TempDir(), Volatile: true, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { etcd.Close() })
	client, err := etcd.Client()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	quiet := slog.New(slog.DiscardHandler)
	kept, err := store.New(store.Config{Client: client, Name: "replica-1", Partitions: partitions, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tracker := push.NewTracker()
	proxies, err := fleet.New(fleet.Config{
		Store: kept, Tracker: tracker, Logger: quiet, Replica: &recordv1.Replica{Id: "replica-1", FleetAddress: listener.Addr().String()},
	})
	if err != nil {
		t.Fatal(err)
	}
	server, err := push.New(push.Config{Store: kept, Fleet: proxies, Tracker: tracker, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(push.ServerOptions()...)
	server.Register(g)
	proxies.Register(g)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { kept.Run(ctx) })
	running.Go(func() { kept.Lead(ctx, proxies.Place) })
	running.Go(func() { proxies.Run(ctx) })
	running.Go(func() { server.Run(ctx) })
	running.Go(func() { g.Serve(listener) })
	t.Cleanup(func() {
		cancel()
		g.Stop()
		running.Wait()
	})
	loaded, stop := kept.Watch()
	defer stop()
	<-loaded

	change := func(content string) *snapshot.Tree {
		c, err := kept.Commit(t.Context(), release.Order{}, func(*snapshot.Tree, uint64) ([]snapshot.Set, error) {
			return []snapshot.Set{{Name: "ns/orders", Data: object(t, "ns/orders", content)}}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return c.Tree
	}
	change("one")
	conn := dial(t, listener.Addr().String())
	report, err := controlv1.NewFleetServiceClient(conn).Report(t.Context(), grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	member := &configv1.Member{Id: "proxy-1", Address: "proxy-1:8980"}
	if err := report.Send(&controlv1.ReportRequest{Member: member, Build: "1.2.3"}); err != nil {
		t.Fatal(err)
	}
	p := connectUntilTaken(t, conn)
	assignment := &configv1.Assignment{}
	for len(assignment.GetMembers()) == 0 {
		for _, resource := range p.next().GetResources() {
			if resource.GetName() == "fleet" {
				if err := proto.Unmarshal(resource.GetResource().GetValue(), assignment); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if m := assignment.GetMembers()[0]; m.GetId() != "proxy-1" || m.GetAddress() != member.GetAddress() {
		t.Errorf("the assignment's member is %v", m)
	}

	partition := ident.PartitionOf("orders", partitions)
	p.subscribe(push.NamespaceType, nil, partition.String())
	told := make(chan *configv1.NamespaceStatus, 64)
	watching := make(chan error, 1)
	go func() {
		watching <- proxies.WatchStatus(ctx, "orders", func(s *configv1.NamespaceStatus) bool {
			told <- s
			return s.GetLive()
		})
	}()
	until := func(stage configv1.Stage, reason string) {
		t.Helper()
		for s := range told {
			if o := s.GetOwners()[0]; o.GetStage() == stage {
				if !strings.Contains(o.GetReason(), reason) {
					t.Errorf("%s because %q, want %q", stage, o.GetReason(), reason)
				}
				return
			}
		}
	}
	first := p.receive()
	p.apply(first)
	until(configv1.Stage_STAGE_SENT, "has not acknowledged it")
	p.nack(first, "1 refused", &configv1.Rejection{
		Resource: "ns/orders", Version: first.GetResources()[0].GetVersion(), Field: "patterns[0]", Reason: "of a later build",
	})
	until(configv1.Stage_STAGE_REJECTED, "proxy-1 refused ns/orders: patterns[0]: of a later build")

	tree := change("two")
	p.next()
	until(configv1.Stage_STAGE_ACCEPTED, "does not report that it serves it")
	if err := report.Send(&controlv1.ReportRequest{Member: member, Ready: true, Cells: []*controlv1.CellReport{{
		Partition: uint32(partition), Root: tree.Collection(partition).Root().Bytes(), SnapshotVersion: tree.Version(),
	}}}); err != nil {
		t.Fatal(err)
	}
	until(configv1.Stage_STAGE_SERVING, "")
	if err := <-watching; err != nil {
		t.Error(err)
	}
}

// connectUntilTaken subscribes to the assignment as a proxy does that comes while the replica starts: it comes again.
func connectUntilTaken(t *testing.T, conn *grpc.ClientConn) *proxy {
	t.Helper()
	for {
		p := connectVia(t, conn)
		p.stream.Send(&discoveryv3.DeltaDiscoveryRequest{ // the answer tells whether it was taken
			Node: node("proxy-1", 0), TypeUrl: push.AssignmentType, ResourceNamesSubscribe: []string{"fleet"},
		})
		if r, err := p.stream.Recv(); err == nil {
			p.ack(r)
			for _, resource := range r.GetResources() { // it may hold the assignment already: ask for it again
				p.subscribe(push.AssignmentType, nil, resource.GetName())
			}
			return p
		} else if t.Context().Err() != nil {
			t.Fatal(err)
		}
		p.cancel()
	}
}
