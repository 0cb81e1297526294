package adminapi_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	"github.com/prism-gateway/prism/controlplane/adminapi"
	"github.com/prism-gateway/prism/controlplane/fleet"
	"github.com/prism-gateway/prism/controlplane/push"
	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	"github.com/prism-gateway/prism/controlplane/store"
	"github.com/prism-gateway/prism/controlplane/store/embedded"
	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/fault/faultgrpc"
	"github.com/prism-gateway/prism/shared/ident"
)

const (
	partitions = 8
	// patience is how long a test waits for what must come; nothing passes or fails by taking less.
	patience = 30 * time.Second
)

// etcd serves all tests of the package, each under its own prefix.
var etcd *embedded.Server

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "prism-adminapi")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	if etcd, err = embedded.Start(embedded.Config{Dir: dir, Volatile: true, Log: quiet()}); err != nil {
		panic(err)
	}
	defer etcd.Close()
	return m.Run()
}

var (
	runs     atomic.Int64
	prefixes sync.Map // of running tests, so that all replicas of one share a store
)

// prefix is for all replicas of one run of one test.
func prefix(t *testing.T) string {
	p, there := prefixes.LoadOrStore(t, fmt.Sprintf("%s-%d", t.Name(), runs.Add(1)))
	if !there {
		t.Cleanup(func() { prefixes.Delete(t) })
	}
	return p.(string)
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// replica is one control plane with everything but the push of configuration.
type replica struct {
	controlv1.ControlPlaneClient
	adminv1.AdminServiceClient
	fleet controlv1.FleetServiceClient
	store *store.Store
	api   *adminapi.Server
}

// start runs a replica on the shared etcd and returns when it has loaded.
func start(t *testing.T, change ...func(*adminapi.Config)) *replica {
	t.Helper()
	return startUnder(t, release.Policies{}, change...)
}

// startUnder is start with policies for releases, which nobody brings forward.
func startUnder(t *testing.T, policies release.Policies, change ...func(*adminapi.Config)) *replica {
	t.Helper()
	client, err := etcd.Client()
	if err != nil {
		t.Fatal(err)
	}
	s, err := store.New(store.Config{
		Client: client, Prefix: prefix(t), Name: fmt.Sprint("replica-", runs.Add(1)), Partitions: partitions, LeaderTTL: time.Second, Policies: policies, Log: quiet(),
	})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f, err := fleet.New(fleet.Config{
		Store: s, Tracker: push.NewTracker(), Owners: 2, Logger: quiet(),
		Replica: &recordv1.Replica{Id: "replica", FleetAddress: listener.Addr().String()},
	})
	if err != nil {
		t.Fatal(err)
	}
	cfg := adminapi.Config{
		Store: s, Fleet: f, Policies: policies, Log: quiet(), Observe: func(partitions ...ident.Partition) adminapi.Observation { return f.Observe(partitions...) },
	}
	for _, c := range change {
		c(&cfg)
	}
	api, err := adminapi.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(grpc.UnaryInterceptor(faultgrpc.Unary(quiet())), grpc.StreamInterceptor(faultgrpc.Stream(quiet())))
	controlv1.RegisterControlPlaneServer(g, api)
	adminv1.RegisterAdminServiceServer(g, api)
	f.Register(g)
	conn, err := grpc.NewClient("passthrough:///"+listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { s.Run(ctx) })
	running.Go(func() { f.Run(ctx) })
	running.Go(func() { api.Run(ctx) })
	running.Go(func() { s.Lead(ctx, f.Place) })
	running.Go(func() { g.Serve(listener) })
	t.Cleanup(func() {
		conn.Close()
		cancel()
		g.Stop()
		running.Wait()
		client.Close()
	})
	moved, stop := s.Watch()
	defer stop()
	for s.Head() == nil {
		select {
		case <-moved:
		case <-time.After(patience):
			t.Fatal("the store never loaded")
		}
	}
	return &replica{
		ControlPlaneClient: controlv1.NewControlPlaneClient(conn), AdminServiceClient: adminv1.NewAdminServiceClient(conn),
		fleet: controlv1.NewFleetServiceClient(conn), store: s, api: api,
	}
}

// seeded is a replica with backends: two Redis, one SQLite, one memory.
func seeded(t *testing.T, change ...func(*adminapi.Config)) *replica {
	t.Helper()
	r := start(t, change...)
	r.backends(t,
		&configv1.Backend{Name: "cache-a", Type: "redis", Endpoints: []string{"a.example.org:6379"}, Capacity: &configv1.Capacity{ReadRps: 1000}},
		&configv1.Backend{Name: "cache-b", Type: "redis", Endpoints: []string{"b.example.org:6379"}, Capacity: &configv1.Capacity{ReadRps: 1000}},
		&configv1.Backend{Name: "disk", Type: "sqlite", Endpoints: []string{"/var/lib/prism/disk.db"}},
		&configv1.Backend{Name: "scratch", Type: "memory"},
	)
	return r
}

func (r *replica) backends(t *testing.T, list ...*configv1.Backend) *adminv1.ApplyBackendsResponse {
	t.Helper()
	in := &adminv1.ApplyBackendsRequest{Note: note("operator", "test backends")}
	for _, b := range list {
		in.Changes = append(in.Changes, &adminv1.BackendChange{Backend: b})
	}
	out, err := r.ApplyBackends(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func note(author, message string) *controlv1.ChangeNote {
	return &controlv1.ChangeNote{Author: author, Message: message}
}

// request is a guided request that Redis can serve.
func request(name string, change ...func(*configv1.Needs)) *configv1.NamespaceRequest {
	r := &configv1.NamespaceRequest{
		Namespace: name, Team: "payments", Pattern: "keyvalue", Needs: &configv1.Needs{Durability: configv1.Durability_DURABILITY_RELAXED},
	}
	for _, c := range change {
		c(r.Needs)
	}
	return r
}

func reads(n uint32) func(*configv1.Needs) { return func(needs *configv1.Needs) { needs.ReadRps = n } }

func (r *replica) create(t *testing.T, req *configv1.NamespaceRequest) *configv1.NamespaceResponse {
	t.Helper()
	out, err := r.CreateNamespace(t.Context(), &controlv1.CreateNamespaceRequest{Request: req, Note: note("alice", "needs it")})
	if err != nil {
		t.Fatal(err)
	}
	return out.Namespace
}

func (r *replica) update(t *testing.T, req *configv1.NamespaceRequest, version string) *configv1.NamespaceResponse {
	t.Helper()
	out, err := r.UpdateNamespace(t.Context(), &controlv1.UpdateNamespaceRequest{Request: req, Version: version})
	if err != nil {
		t.Fatal(err)
	}
	return out.Namespace
}

func (r *replica) get(t *testing.T, name string) *configv1.NamespaceResponse {
	t.Helper()
	out, err := r.GetNamespace(t.Context(), &controlv1.GetNamespaceRequest{Namespace: name})
	if err != nil {
		t.Fatal(err)
	}
	return out.Namespace
}

// config is what is stored of a namespace.
func (r *replica) config(t *testing.T, name string) *configv1.NamespaceConfig {
	t.Helper()
	o, ok := r.store.Head().Namespace(name)
	if !ok {
		t.Fatalf("there is no namespace %s", name)
	}
	c := new(configv1.NamespaceConfig)
	if err := proto.Unmarshal(o.Data, c); err != nil {
		t.Fatal(err)
	}
	return c
}

// refused holds an error against a code and a reason, and returns the fault as a client sees it.
func refused(t *testing.T, err error, code fault.Code, reason fault.Reason) *fault.Fault {
	t.Helper()
	f := faultgrpc.FromStatus(err)
	if f == nil {
		t.Fatalf("not refused, want %s", reason)
	}
	if f.Code != code || f.Reason != reason {
		t.Fatalf("refused with %d %s: %s; want %d %s", f.Code, f.Reason, f.Text, code, reason)
	}
	return f
}

func fields(f *fault.Fault) []string {
	var out []string
	for _, v := range f.Violations {
		out = append(out, v.Field)
	}
	slices.Sort(out)
	return out
}

// proxy is a member of the fleet that reports what it is told to.
type proxy struct {
	t      *testing.T
	member *configv1.Member

	mu     sync.Mutex // guards the sending side of the stream
	stream controlv1.FleetService_ReportClient
}

// join makes a proxy, the only one, and returns when it owns every partition.
func (r *replica) join(t *testing.T, id string) *proxy {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := r.fleet.Report(ctx, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{t: t, member: &configv1.Member{Id: id, Address: id + ":8980"}, stream: stream}
	p.send()
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	var beating sync.WaitGroup
	beating.Go(func() {
		beat := time.NewTicker(time.Second)
		defer beat.Stop()
		for {
			select {
			case <-beat.C:
				p.send()
			case <-ctx.Done():
				return
			}
		}
	})
	t.Cleanup(func() { cancel(); beating.Wait() })
	for end := time.After(patience); ; {
		out, err := r.GetOwners(t.Context(), &adminv1.GetOwnersRequest{Namespace: "any"})
		if err != nil {
			t.Fatal(err)
		}
		if len(out.Owners) > 0 {
			return p
		}
		select {
		case <-end:
			t.Fatal("the proxy never became an owner")
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (p *proxy) send(cells ...*controlv1.CellReport) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stream.Send(&controlv1.ReportRequest{Member: p.member, Ready: true, Cells: cells}) // fails when the test is over
}

// serve reports that everything of a tree is in effect.
func (p *proxy) serve(tree *snapshot.Tree) {
	var cells []*controlv1.CellReport
	for i := range ident.Partition(partitions) {
		cells = append(cells, &controlv1.CellReport{Partition: uint32(i), Root: tree.Collection(i).Root().Bytes(), SnapshotVersion: tree.Version()})
	}
	p.send(cells...)
}

// follow serves every tree as soon as it is head, until the test ends.
func (p *proxy) follow(s *store.Store) {
	moved, stop := s.Watch()
	done := make(chan struct{})
	var following sync.WaitGroup
	following.Go(func() {
		for {
			select {
			case <-moved:
				p.serve(s.Head())
			case <-done:
				return
			}
		}
	})
	p.t.Cleanup(func() { close(done); following.Wait(); stop() })
}
