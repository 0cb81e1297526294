package fleet_test

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"

	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"

	"github.com/prism-gateway/prism/controlplane/fleet"
	"github.com/prism-gateway/prism/controlplane/push"
	"github.com/prism-gateway/prism/shared/ident"
)

// asked is a tracker that tells when it is asked of a partition: as the leader asks who follows when partitions move.
type asked struct {
	*push.Tracker
	once chan struct{}
}

func (a asked) Cells(p ident.Partition) []*controlv1.CellState {
	select {
	case a.once <- struct{}{}:
	default:
	}
	return a.Tracker.Cells(p)
}

func TestAMoveThatIsOvertakenSettles(t *testing.T) {
	server := etcd(t)
	tracker := asked{push.NewTracker(), make(chan struct{}, 1)}
	leader := start(t, server, "replica-1")
	wait(t, leader.leads, "the first leads")
	followers := []*replica{
		start(t, server, "replica-2", func(c *fleet.Config) { c.Tracker = tracker }), start(t, server, "replica-3"),
	}
	tree := commit(t, leader, "alpha", "beta", "gamma", "delta", "epsilon")
	join(t, followers[0], "a").serve(tree)
	leader.until(t, "one owns everything", settled("a"))

	b := join(t, followers[1], "b") // and serves nothing yet
	leader.until(t, "the second loads", func(a *configv1.Assignment) bool {
		_, loading := fleetOf(a)
		return slices.Equal(loading, []string{"b"})
	})
	wait(t, tracker.once, "the leader asks the others")
	c := join(t, followers[0], "c")
	leader.until(t, "the third loads as well", func(a *configv1.Assignment) bool {
		_, loading := fleetOf(a)
		return slices.Equal(loading, []string{"b", "c"})
	})
	for _, f := range followers {
		for f.store.Head().Version() != tree.Version() {
			moved, stop := f.store.Watch()
			wait(t, moved, "the followers have the tree")
			stop()
		}
	}
	b.serve(tree)
	c.serve(tree)
	for _, r := range append(followers, leader) {
		r.until(t, "all own", settled("a", "b", "c"))
	}
}

func TestALargeInstallationMoves(t *testing.T) {
	const many = 3000
	server := etcd(t)
	leader := startOf(t, many, server, "replica-1")
	wait(t, leader.leads, "the first leads")
	follower := startOf(t, many, server, "replica-2")
	tree := commit(t, leader, "alpha")
	join(t, follower, "a").serve(tree)
	leader.until(t, "one owns everything", settled("a"))
	join(t, follower, "b").serve(tree)
	leader.until(t, "both own everything", settled("a", "b"))
}

func TestFollowCells(t *testing.T) {
	r := startOf(t, 3000, etcd(t), "replica-1")
	client := controlv1.NewFleetServiceClient(r.conn)
	follow := func(t *testing.T, partitions ...uint32) controlv1.FleetService_FollowCellsClient {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		t.Cleanup(cancel)
		stream, err := client.FollowCells(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&controlv1.FollowCellsRequest{Add: partitions}); err != nil {
			t.Fatal(err)
		}
		return stream
	}
	t.Run("a partition that there is not is refused", func(t *testing.T) {
		if _, err := follow(t, 3000).Recv(); status.Code(err) == codes.Unavailable || err == nil {
			t.Errorf("got %v", err)
		}
	})
	t.Run("who goes on reporting the same is no silent proxy", func(t *testing.T) {
		join(t, r, "a").serve(commit(t, r, "alpha"))
		stream := follow(t, 1)
		var seen time.Time
		for later := 0; later < 3; {
			out, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range out.GetCells() {
				if last := c.GetLastSeen().AsTime(); last.After(seen) {
					seen = last
					later++
				}
			}
		}
	})
}

func TestReplicasTellTheSameOfProxies(t *testing.T) {
	server := etcd(t)
	lease := func(c *fleet.Config) { c.Lease = time.Hour }
	first, second := start(t, server, "replica-1", lease), start(t, server, "replica-2", lease)
	tree := commit(t, first, "alpha", "beta")
	a, b := join(t, first, "a"), join(t, second, "b")
	a.serve(tree)
	b.serve(tree, func(c *controlv1.CellReport) {
		c.Rejections = []*configv1.Rejection{{Resource: "ns/alpha", Reason: "refused"}}
	})
	for _, r := range []*replica{first, second} {
		r.until(t, "both own everything", settled("a", "b"))
		for r.store.Head().Version() != tree.Version() {
			moved, stop := r.store.Watch()
			wait(t, moved, "the tree")
			stop()
		}
	}
	told := func(r *replica) []*adminv1.Proxy {
		r.untilMembers(t, "a", "b")
		all, _ := r.fleet.Proxies(t.Context(), "", 10)
		return all
	}
	for _, r := range []*replica{first, second} {
		for i, want := range []*adminv1.Proxy{{Replica: "replica-1"}, {Replica: "replica-2", Rejected: 1}} {
			got := told(r)[i]
			if !got.GetReady() || got.GetReplica() != want.GetReplica() || got.GetRejected() != want.GetRejected() || got.GetCurrent() != partitions || got.GetReasons() != nil {
				t.Errorf("%v", got)
			}
		}
		_, list, _ := r.fleet.Proxy(t.Context(), "b")
		for _, p := range list {
			if p.GetServingRoot() != p.GetWantRoot() || len(p.GetRejections()) != 1 {
				t.Errorf("partition %v", p)
			}
		}
		if len(list) != partitions {
			t.Errorf("%d partitions", len(list))
		}
	}
	if diff := cmp.Diff(told(first), told(second), protocmp.Transform()); diff != "" {
		t.Error(diff)
	}

	second.stop()
	changed, stop := first.store.WatchFleet()
	defer stop()
	for len(first.store.Replicas()) > 1 {
		wait(t, changed, "the second is gone")
	}
	left := told(first)
	if p := left[1]; p.GetReady() || fmt.Sprint(p.GetReasons()) != "[reports to replica-2, which does not answer]" || !left[0].GetReady() {
		t.Errorf("%v", left)
	}
}

// older is a replica of a build whose proxies cannot be asked for.
type older struct {
	controlv1.UnimplementedFleetServiceServer
}

// TestReplicaOfAnotherBuild is about an upgrade: replicas of two builds run beside each other.
func TestReplicaOfAnotherBuild(t *testing.T) {
	asked := start(t, etcd(t), "replica-1", func(c *fleet.Config) { c.Lease = time.Hour })
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	controlv1.RegisterFleetServiceServer(g, older{})
	var running sync.WaitGroup
	running.Go(func() { g.Serve(listener) })
	t.Cleanup(running.Wait)
	t.Cleanup(g.Stop)
	if _, _, err := asked.store.PutReplica(t.Context(), &recordv1.Replica{
		Id: "replica-0", FleetAddress: listener.Addr().String(), Build: "v0",
	}, time.Hour); err != nil {
		t.Fatal(err)
	}
	if _, _, err := asked.store.PutMember(t.Context(), &recordv1.MemberLease{
		Member: &configv1.Member{Id: "a", Address: "a:8980"}, Replica: "replica-0",
	}, time.Hour); err != nil {
		t.Fatal(err)
	}
	commit(t, asked, "orders")
	asked.until(t, "one owns everything", func(a *configv1.Assignment) bool {
		owning, _ := fleetOf(a)
		return slices.Equal(owning, []string{"a"})
	})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	want := "a reports to replica-0, which is of another build (v0) and cannot be asked: how far it is, is unknown"
	var last string
	if err := asked.fleet.WatchStatus(ctx, "orders", func(s *configv1.NamespaceStatus) bool {
		last = s.GetOwners()[0].GetReason()
		return last == want
	}); err != nil {
		t.Errorf("%v; the reason is %q", err, last)
	}
}
