package fleet_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

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

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	partitions = 8
	// patience is how long a test waits for what must come; nothing passes or fails by taking less.
	patience = 30 * time.Second
)

func etcd(t *testing.T) *embedded.Server {
	t.Helper()
	server, err := embedded.Start(embedded.Config{Dir: t.TempDir(), Volatile: true, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return server
}

// replica is one control plane: a store, a fleet, and its service.
type replica struct {
	store *store.Store
	fleet *fleet.Fleet
	conn  *grpc.ClientConn
	leads chan struct{} // closed once it was elected
	stop  func()

	followed atomic.Int32 // streams on which others asked it for cells
}

// start runs a replica that stands for election. The installation is an hour old, so that debounces hold.
func start(t *testing.T, server *embedded.Server, name string, change ...func(*fleet.Config)) *replica {
	t.Helper()
	return startOf(t, partitions, server, name, change...)
}

// startOf is start for an installation of so many partitions.
func startOf(t *testing.T, partitions uint32, server *embedded.Server, name string, change ...func(*fleet.Config)) *replica {
	t.Helper()
	return startWith(t, store.Config{Partitions: partitions}, server, name, change...)
}

// startWith is start with a store that is configured so.
func startWith(t *testing.T, config store.Config, server *embedded.Server, name string, change ...func(*fleet.Config)) *replica {
	t.Helper()
	client, err := server.Client()
	if err != nil {
		t.Fatal(err)
	}
	quiet := slog.New(slog.DiscardHandler)
	config.Client, config.Name, config.LeaderTTL, config.Log = client, name, time.Second, quiet
	config.Now = func() time.Time { return time.Now().Add(-time.Hour) }
	s, err := store.New(config)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg := fleet.Config{
		Store: s, Tracker: push.NewTracker(), Owners: 2, Lease: time.Second, MoveDeadline: time.Hour, Logger: quiet,
		Replica: &recordv1.Replica{Id: name, FleetAddress: listener.Addr().String()},
	}
	for _, c := range change {
		c(&cfg)
	}
	f, err := fleet.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r := &replica{store: s, fleet: f}
	g := grpc.NewServer(grpc.MaxConcurrentStreams(64), grpc.StreamInterceptor(
		func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
			if info.FullMethod == controlv1.FleetService_FollowCells_FullMethodName {
				r.followed.Add(1)
			}
			return handler(srv, stream)
		}))
	f.Register(g)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { s.Run(ctx) })
	running.Go(func() { f.Run(ctx) })
	leads := make(chan struct{})
	elected := sync.OnceFunc(func() { close(leads) })
	running.Go(func() {
		s.Lead(ctx, func(ctx context.Context) error {
			elected()
			return f.Place(ctx)
		})
	})
	running.Go(func() { g.Serve(listener) })
	conn, err := grpc.NewClient("passthrough:///"+listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	r.conn, r.leads = conn, leads
	r.stop = sync.OnceFunc(func() {
		conn.Close()
		cancel()
		g.Stop()
		running.Wait()
		client.Close()
	})
	t.Cleanup(r.stop)
	moved, stopWatch := s.Watch()
	defer stopWatch()
	for s.Head() == nil {
		wait(t, moved, "the store is loaded")
	}
	changed, stopFleet := s.WatchFleet()
	defer stopFleet()
	for !slices.ContainsFunc(s.Replicas(), func(r *recordv1.Replica) bool { return r.GetId() == cfg.Replica.GetId() }) {
		wait(t, changed, "the replica is known")
	}
	return r
}

func wait(t *testing.T, signal <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-signal:
	case <-time.After(patience):
		t.Fatalf("%s: never", what)
	}
}

// proxy reports to a replica in every heartbeat interval, until it dies.
type proxy struct {
	t      *testing.T
	member *configv1.Member
	die    func()

	mu     sync.Mutex // guards the stream's sending side
	stream controlv1.FleetService_ReportClient
}

func join(t *testing.T, r *replica, id string) *proxy {
	t.Helper()
	return joinAs(t, r, id, id+":8980")
}

// joinAs is join of a proxy at that address.
func joinAs(t *testing.T, r *replica, id, address string) *proxy {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := controlv1.NewFleetServiceClient(r.conn).Report(ctx, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{t: t, member: &configv1.Member{Id: id, Address: address}, stream: stream}
	p.send()
	first, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	var beating sync.WaitGroup
	beating.Go(func() {
		beat := time.NewTicker(first.GetHeartbeat().AsDuration())
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
	p.die = sync.OnceFunc(func() {
		cancel()
		beating.Wait()
	})
	t.Cleanup(p.die)
	return p
}

// send reports the cells given, which are all in effect.
func (p *proxy) send(cells ...*controlv1.CellReport) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stream.Send(&controlv1.ReportRequest{Member: p.member, Build: "build-1", Ready: true, Cells: cells}) // fails when the stream is gone, as it may be
}

// leave is a stop in good order.
func (p *proxy) leave() {
	p.mu.Lock()
	p.member = &configv1.Member{Id: p.member.GetId(), Address: p.member.GetAddress(), Draining: true}
	p.mu.Unlock()
	p.send()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stream.CloseSend() // fails when the stream is gone
}

// serve reports that everything of a tree is served.
func (p *proxy) serve(tree *snapshot.Tree, change ...func(*controlv1.CellReport)) {
	var cells []*controlv1.CellReport
	for i := range ident.Partition(tree.Partitions()) {
		cell := &controlv1.CellReport{Partition: uint32(i), Root: tree.Collection(i).Root().Bytes(), SnapshotVersion: tree.Version()}
		for _, c := range change {
			c(cell)
		}
		cells = append(cells, cell)
	}
	p.send(cells...)
}

// until waits until the assignment of a replica is as wanted.
func (r *replica) until(t *testing.T, what string, holds func(*configv1.Assignment) bool) *configv1.Assignment {
	t.Helper()
	changed, stop := r.fleet.WatchAssignment()
	defer stop()
	deadline := time.After(patience)
	for {
		if a := r.fleet.Assignment(); a != nil && holds(a) {
			return a
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("%s: never; the assignment is %v", what, r.fleet.Assignment())
		}
	}
}

func (r *replica) untilMembers(t *testing.T, ids ...string) {
	t.Helper()
	changed, stop := r.store.WatchFleet()
	defer stop()
	for {
		var have []string
		for _, m := range r.store.Members() {
			have = append(have, m.GetMember().GetId())
		}
		if slices.Equal(have, ids) {
			return
		}
		wait(t, changed, fmt.Sprintf("members %v, have %v", ids, have))
	}
}

// untilMember waits until the member of an id is at that address.
func (r *replica) untilMember(t *testing.T, id, address string) {
	t.Helper()
	changed, stop := r.store.WatchFleet()
	defer stop()
	for r.store.Member(id).GetMember().GetAddress() != address {
		wait(t, changed, fmt.Sprintf("%s at %s, have %v", id, address, r.store.Member(id)))
	}
}

// fleetOf tells who owns and who loads anything.
func fleetOf(a *configv1.Assignment) (owning, loading []string) {
	owns, loads := map[uint32]bool{}, map[uint32]bool{}
	for _, p := range a.GetPartitions() {
		for _, o := range p.GetOwners() {
			owns[o] = true
		}
		for _, l := range p.GetLoading() {
			loads[l] = true
		}
	}
	for i, m := range a.GetMembers() {
		if owns[uint32(i)] {
			owning = append(owning, m.GetId())
		}
		if loads[uint32(i)] {
			loading = append(loading, m.GetId())
		}
	}
	return owning, loading
}

func settled(ids ...string) func(*configv1.Assignment) bool {
	return func(a *configv1.Assignment) bool {
		owning, loading := fleetOf(a)
		return slices.Equal(owning, ids) && len(loading) == 0
	}
}

func commit(t *testing.T, r *replica, namespaces ...string) *snapshot.Tree {
	t.Helper()
	c, err := r.store.Commit(t.Context(), release.Order{}, func(base *snapshot.Tree, version uint64) ([]snapshot.Set, error) {
		var sets []snapshot.Set
		for _, namespace := range namespaces {
			data, err := proto.Marshal(&configv1.NamespaceConfig{Namespace: namespace, StoragePrefix: fmt.Sprint(version)})
			if err != nil {
				return nil, err
			}
			sets = append(sets, snapshot.Set{Name: "ns/" + namespace, Data: data})
		}
		return sets, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return c.Tree
}

func TestPartitionsMoveAfterTheyAreLoaded(t *testing.T) {
	r := start(t, etcd(t), "replica-1")
	tree := commit(t, r, "alpha", "beta", "gamma", "delta", "epsilon")
	a, b := join(t, r, "a"), join(t, r, "b")
	serveAll := func(proxies ...*proxy) {
		for _, p := range proxies {
			p.serve(tree)
		}
	}
	serveAll(a, b)
	r.until(t, "two own everything", settled("a", "b"))

	c := join(t, r, "c")
	moving := r.until(t, "the third loads", func(a *configv1.Assignment) bool {
		_, loading := fleetOf(a)
		return slices.Equal(loading, []string{"c"})
	})
	for p, entry := range moving.GetPartitions() {
		if len(entry.GetOwners()) != 2 {
			t.Errorf("partition %d has %d owners while it moves", p, len(entry.GetOwners()))
		}
	}
	c.serve(tree)
	three := r.until(t, "the third owns", settled("a", "b", "c"))
	if three.GetEpoch() <= moving.GetEpoch() {
		t.Errorf("epoch %d after %d", three.GetEpoch(), moving.GetEpoch())
	}

	a.send(&controlv1.CellReport{Partition: 0}) // serves an older state of one
	c.die()
	left := r.until(t, "the others load what it had", func(a *configv1.Assignment) bool {
		owning, loading := fleetOf(a)
		return slices.Equal(owning, []string{"a", "b"}) && len(a.GetMembers()) == 2 || len(loading) > 0 && len(a.GetMembers()) == 2
	})
	for p, entry := range left.GetPartitions() {
		if len(entry.GetOwners()) == 0 {
			t.Errorf("nobody owns partition %d although one of its owners lives", p)
		}
	}
	serveAll(a, b)
	r.until(t, "two own everything again", settled("a", "b"))

	c = join(t, r, "c")
	c.serve(tree)
	r.until(t, "it comes back", settled("a", "b", "c"))

	// One that says that it leaves keeps its partitions until they are loaded elsewhere.
	for _, p := range []*proxy{a, b} { // forget what they served
		p.mu.Lock()
		var dropped []uint32
		for i := range uint32(partitions) {
			dropped = append(dropped, i)
		}
		p.stream.Send(&controlv1.ReportRequest{Member: p.member, Dropped: dropped})
		p.mu.Unlock()
	}
	c.mu.Lock()
	c.member = &configv1.Member{Id: "c", Address: "c:8980", Draining: true}
	c.mu.Unlock()
	c.send()
	r.until(t, "it owns while others load", func(a *configv1.Assignment) bool {
		owning, loading := fleetOf(a)
		return slices.Contains(owning, "c") && len(loading) > 0 && !slices.Contains(loading, "c")
	})
	serveAll(a, b)
	r.until(t, "it is let go", settled("a", "b"))
}

func TestRestartMovesNothing(t *testing.T) {
	r := start(t, etcd(t), "replica-1", func(c *fleet.Config) { c.Debounce = time.Hour })
	a := join(t, r, "a")
	before := r.until(t, "the first owns everything", settled("a"))
	b := join(t, r, "b")
	r.untilMembers(t, "a", "b")
	b.die()
	r.untilMembers(t, "a") // its lease has run out
	a.die()
	r.untilMembers(t)
	a = join(t, r, "a")
	r.untilMembers(t, "a")
	// A new address is no move, and is told at once. Any move would have come before it.
	a.mu.Lock()
	a.member = &configv1.Member{Id: "a", Address: "elsewhere:8980"}
	a.mu.Unlock()
	a.send()
	after := r.until(t, "the new address", func(x *configv1.Assignment) bool {
		return len(x.GetMembers()) == 1 && x.GetMembers()[0].GetAddress() == "elsewhere:8980"
	})
	if after.GetEpoch() != before.GetEpoch()+1 {
		t.Errorf("epoch %d after %d", after.GetEpoch(), before.GetEpoch())
	}
}

func TestDeadlineEndsAMove(t *testing.T) {
	r := start(t, etcd(t), "replica-1", func(c *fleet.Config) { c.MoveDeadline = 100 * time.Millisecond })
	commit(t, r, "alpha", "beta", "gamma", "delta", "epsilon")
	join(t, r, "a")
	r.until(t, "the first owns everything", settled("a"))
	join(t, r, "b") // never serves
	r.until(t, "the second owns all the same", settled("a", "b"))
}

func TestAnotherReplicaLeads(t *testing.T) {
	server := etcd(t)
	first, second := start(t, server, "replica-1"), start(t, server, "replica-2")
	leader, follower := first, second
	select {
	case <-first.leads:
	case <-second.leads:
		leader, follower = second, first
	case <-time.After(patience):
		t.Fatal("nobody leads")
	}
	join(t, follower, "a") // reports to the one that does not lead
	follower.until(t, "one owns everything", settled("a"))
	leader.stop()
	join(t, follower, "b").serve(follower.store.Head())
	follower.until(t, "the new leader moves", settled("a", "b"))
}

func TestProxies(t *testing.T) {
	r := start(t, etcd(t), "replica-1")
	tree := commit(t, r, "alpha")
	a := join(t, r, "a")
	r.until(t, "one owns everything", settled("a"))
	a.serve(tree, func(c *controlv1.CellReport) {
		c.Rejections = []*configv1.Rejection{{Resource: "ns/alpha", Reason: "refused"}}
	})
	heard := func(s *configv1.NamespaceStatus) bool {
		return s.GetOwners()[0].GetStage() == configv1.Stage_STAGE_REJECTED
	}
	if err := r.fleet.WatchStatus(t.Context(), "alpha", heard); err != nil {
		t.Fatal(err)
	}
	proxies, _ := r.fleet.Proxies(t.Context(), "", 10)
	if len(proxies) != 1 {
		t.Fatalf("proxies %v", proxies)
	}
	if p := proxies[0]; p.GetMember().GetId() != "a" || !p.GetReady() || p.GetOwned() != partitions || p.GetRejected() != 1 ||
		p.GetCurrent() != partitions || p.GetBuild() != "build-1" || p.GetReplica() != "replica-1" || p.GetLastSeen() == nil {
		t.Errorf("proxy %v", p)
	}
	_, list, ok := r.fleet.Proxy(t.Context(), "a")
	if !ok || len(list) != partitions {
		t.Fatalf("%d partitions, %v", len(list), ok)
	}
	for _, p := range list {
		if p.GetWantRoot() != p.GetServingRoot() || p.GetLoading() || len(p.GetRejections()) != 1 {
			t.Errorf("partition %v", p)
		}
	}
	if _, _, ok := r.fleet.Proxy(t.Context(), "b"); ok {
		t.Error("there is a proxy that never was")
	}
	if owners, loading, epoch := r.fleet.Owners(3); len(owners) != 1 || len(loading) != 0 || epoch == 0 {
		t.Errorf("owners %v, loading %v, epoch %d", owners, loading, epoch)
	}
}

func TestTheReportOfAnotherInstallationsProxyIsRefused(t *testing.T) {
	r := start(t, etcd(t), "a")
	for id, want := range map[string]bool{"somebody-else's": false, r.store.Installation().GetId(): true} {
		ctx := metadata.AppendToOutgoingContext(t.Context(), "prism-installation", id)
		stream, err := controlv1.NewFleetServiceClient(r.conn).Report(ctx, grpc.WaitForReady(true))
		if err != nil {
			t.Fatal(err)
		}
		_ = stream.Send(&controlv1.ReportRequest{Member: &configv1.Member{Id: "a", Address: "a:8980"}, Build: "build-1", Ready: true}) // Recv says why not
		if _, err = stream.Recv(); (err == nil) != want {
			t.Errorf("%s: %v", id, err)
		}
	}
}

// TestTwoProxiesOfOneID has a second take the place of the first and leave in good order. The first, which was told nothing of
// that, comes back: by the same stream where the second was at another replica, else by a new one.
func TestTwoProxiesOfOneID(t *testing.T) {
	for name, elsewhere := range map[string]bool{"at one replica": false, "at two replicas": true} {
		t.Run(name, func(t *testing.T) {
			server := etcd(t)
			said := make(chan struct{}, 100)
			r := start(t, server, "replica-1", func(c *fleet.Config) { c.Logger = slog.New(errorSignal{slog.DiscardHandler, said}) })
			other := r
			if elsewhere {
				other = start(t, server, "replica-2")
			}
			first := join(t, r, "a")
			r.untilMember(t, "a", "a:8980")
			second := joinAs(t, other, "a", "b:8980")
			r.untilMember(t, "a", "b:8980")
			wait(t, said, "an error tells of it")
			second.leave()
			if !elsewhere {
				for {
					if _, err := first.stream.Recv(); err != nil {
						if !strings.Contains(err.Error(), "report anew") {
							t.Fatalf("the first is told %v", err)
						}
						break
					}
				}
				join(t, r, "a")
			}
			r.untilMember(t, "a", "a:8980")
		})
	}
}

func TestTwoReplicasOfOneID(t *testing.T) {
	server := etcd(t)
	said := make(chan struct{}, 100)
	r := start(t, server, "replica-1", func(c *fleet.Config) { c.Logger = slog.New(errorSignal{slog.DiscardHandler, said}) })
	address := r.store.Replicas()[0].GetFleetAddress()
	until := func(what string, holds func(string) bool) {
		t.Helper()
		changed, stop := r.store.WatchFleet()
		defer stop()
		for {
			if all := r.store.Replicas(); len(all) == 1 && holds(all[0].GetFleetAddress()) {
				return
			}
			wait(t, changed, what)
		}
	}
	second := start(t, server, "replica-1")
	until("the second takes its place", func(now string) bool { return now != address })
	wait(t, said, "an error tells of it")
	second.stop()
	until("the first is known again", func(now string) bool { return now == address })
}

// errorSignal tells of each error that is logged.
type errorSignal struct {
	slog.Handler
	logged chan<- struct{}
}

func (errorSignal) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelError }

func (h errorSignal) Handle(context.Context, slog.Record) error {
	h.logged <- struct{}{}
	return nil
}
