package push_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"go.uber.org/goleak"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"

	"github.com/prism-gateway/prism/controlplane/push"
	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	"github.com/prism-gateway/prism/shared/ident"
	"github.com/prism-gateway/prism/shared/manifest"
)

func TestMain(m *testing.M) {
	if what := os.Getenv(crowdAddress); what != "" {
		if err := runCrowd(what); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// patience is how long a test waits for what must come; nothing passes or fails by taking less.
const patience = 20 * time.Second

// source holds the trees that are pushed. Its edits move the head, as commits do.
type source struct {
	mu         sync.Mutex
	tree       *snapshot.Tree
	released   *release.State // of tree; settled while it is of another
	record     *recordv1.Snapshot
	revision   int64
	assignment *configv1.Assignment
	forgetful  bool // old manifests are gone, as after a sweep
	past       map[ident.Hash]*manifest.Manifest
	watchers   map[chan struct{}]bool
	trouble    error // what Ready says
}

func newSource(partitions uint32) *source {
	return &source{
		tree: snapshot.New(partitions), revision: 1,
		past: map[ident.Hash]*manifest.Manifest{}, watchers: map[chan struct{}]bool{},
	}
}

func (s *source) Head() *snapshot.Tree {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tree
}

func (s *source) Released() *release.State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.releasedLocked()
}

func (s *source) releasedLocked() *release.State {
	if s.tree == nil {
		return nil
	}
	if s.released == nil || s.released.Head() != s.tree {
		s.released = release.Settled(s.tree)
	}
	return s.released
}

func (s *source) Ready() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.trouble
}

func (s *source) Revision() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.revision
}

func (s *source) Recorded() *recordv1.Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.record != nil && s.record.GetVersion() == s.tree.Version() {
		return s.record
	}
	return &recordv1.Snapshot{Version: s.tree.Version(), RecordedAt: timestamppb.New(time.Unix(1, 0))}
}

func (s *source) Installation() *recordv1.Installation { return &recordv1.Installation{Id: "test"} }

func (s *source) Manifest(_ context.Context, root ident.Hash) (*manifest.Manifest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m, ok := s.past[root]; ok && !s.forgetful {
		return m, nil
	}
	return nil, errors.New("no such manifest")
}

func (s *source) Assignment() *configv1.Assignment {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.assignment
}

func (s *source) WatchAssignment() (<-chan struct{}, func()) { return s.Watch() }

func (s *source) Watch() (<-chan struct{}, func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := make(chan struct{}, 1)
	s.watchers[c] = true
	return c, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.watchers, c)
	}
}

func (s *source) moved(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
	for c := range s.watchers {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// set makes one snapshot of pairs of name and content; empty content deletes.
func (s *source) set(t testing.TB, pairs ...string) *snapshot.Tree {
	t.Helper()
	var sets []snapshot.Set
	for i := 0; i < len(pairs); i += 2 {
		sets = append(sets, snapshot.Set{Name: pairs[i], Data: object(t, pairs[i], pairs[i+1])})
	}
	return s.edit(t, sets)
}

func (s *source) edit(t testing.TB, sets []snapshot.Set) *snapshot.Tree {
	t.Helper()
	before := s.Head()
	tree, _, err := before.With(before.Version()+1, sets)
	if err != nil {
		t.Fatal(err)
	}
	s.show(tree)
	return tree
}

func (s *source) show(tree *snapshot.Tree) {
	s.moved(func() {
		s.rememberLocked(s.tree)
		s.tree = tree
		s.revision++
	})
}

// owned makes an assignment of a fleet in which proxies own every partition, by rank.
func owned(epoch uint64, partitions uint32, members []*configv1.Member, owners ...uint32) *configv1.Assignment {
	a := &configv1.Assignment{Epoch: epoch, Members: members}
	for range partitions {
		a.Partitions = append(a.Partitions, &configv1.PartitionOwners{Owners: owners})
	}
	return a
}

// inWaves are policies under which nothing goes at once.
func inWaves() release.Policies {
	p := &configv1.ReleasePolicy{FirstPercent: 5}
	return release.Policies{Additive: p, Scoped: p, Shared: p, Rollback: p}
}

// release records a change as its policies and order say.
func (s *source) release(policies release.Policies, order release.Order, sets []snapshot.Set) (uint64, error) {
	before := s.Released()
	draft, changes, err := before.Draft(time.Unix(1, 0)).With(order, policies, sets)
	if err != nil || len(changes) == 0 {
		return 0, err
	}
	done, err := draft.Done()
	if err != nil {
		return 0, err
	}
	s.come(done, changes)
	return draft.Version(), nil
}

// step makes a step of a release.
func (s *source) step(step release.Step) error {
	done, err := s.Released().Apply(step, time.Unix(2, 0))
	if err == nil {
		s.come(done, done.Changes)
	}
	return err
}

// come shows what a transition leads to.
func (s *source) come(to release.Transition, changes []*recordv1.Change) {
	s.moved(func() {
		for _, tree := range []*snapshot.Tree{s.releasedLocked().Head(), s.releasedLocked().Stable()} {
			s.rememberLocked(tree)
		}
		s.released, s.tree = to.State, to.State.Head()
		if len(changes) > 0 {
			s.record = &recordv1.Snapshot{Version: s.tree.Version(), RecordedAt: timestamppb.New(time.Unix(1, 0)), Changes: changes}
		}
		s.revision++
	})
}

func (s *source) rememberLocked(tree *snapshot.Tree) {
	s.past[tree.Shared().Root()] = tree.Shared().Manifest()
	for p := range ident.Partition(tree.Partitions()) {
		m := tree.Collection(p).Manifest()
		s.past[m.Root()] = m
	}
}

func object(t testing.TB, name, content string) []byte {
	if content == "" {
		return nil
	}
	var m proto.Message
	if namespace, ok := strings.CutPrefix(name, "ns/"); ok {
		m = &configv1.NamespaceConfig{Namespace: namespace, StoragePrefix: content}
	} else {
		m = &configv1.Backend{Name: strings.TrimPrefix(name, "backend/"), Type: "redis", Endpoints: []string{content}}
	}
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// inPartition returns n names of namespaces of one partition.
func inPartition(p ident.Partition, partitions uint32, n int) []string {
	var names []string
	for i := 0; len(names) < n; i++ {
		if name := fmt.Sprintf("team-%d", i); ident.PartitionOf(name, partitions) == p {
			names = append(names, "ns/"+name)
		}
	}
	slices.Sort(names)
	return names
}

// replica is a running push server.
type replica struct {
	source  *source
	server  *push.Server
	tracker *push.Tracker
	address string
	quit    func() // ends Run, and leaves the gRPC server to itself
	stop    func()

	graceful func() // stops the gRPC server when its streams have ended
}

func start(t testing.TB, s *source, change ...func(*push.Config)) *replica {
	t.Helper()
	r := &replica{source: s, tracker: push.NewTracker()}
	cfg := push.Config{Store: s, Fleet: s, Tracker: r.tracker, Logger: slog.New(slog.DiscardHandler)}
	for _, c := range change {
		c(&cfg)
	}
	server, err := push.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.server, r.address = server, listener.Addr().String()
	listener = server.Listener(listener)
	g := grpc.NewServer(push.ServerOptions()...)
	server.Register(g)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { server.Run(ctx) })
	running.Go(func() { g.Serve(listener) })
	r.quit, r.graceful = cancel, g.GracefulStop
	r.stop = sync.OnceFunc(func() {
		cancel()
		g.Stop()
		running.Wait()
	})
	t.Cleanup(r.stop)
	return r
}

// proxy is a raw delta ADS client that keeps what it is told and says what it is told to say.
type proxy struct {
	t      testing.TB
	stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	cancel func()
	state  map[string]map[string]string // collection to member to version
	staged map[string]map[string]string
	ends   map[string]*configv1.Sentinel // by collection

	sets  []string                         // the roots of the last shared sets, newest last
	check func(string, *configv1.Sentinel) // called with each sentinel, before it is taken in; nil checks nothing
}

type request = discoveryv3.DeltaDiscoveryRequest

func dial(t testing.TB, address string, options ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+address, append(options, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func connect(t testing.TB, r *replica) *proxy {
	t.Helper()
	return connectVia(t, dial(t, r.address))
}

func connectVia(t testing.TB, conn *grpc.ClientConn) *proxy {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cancel)
	return &proxy{
		t: t, stream: stream, cancel: cancel,
		state: map[string]map[string]string{}, staged: map[string]map[string]string{}, ends: map[string]*configv1.Sentinel{},
	}
}

func node(id string, revision int64) *corev3.Node {
	return &corev3.Node{
		Id: id, UserAgentVersionType: &corev3.Node_UserAgentVersion{UserAgentVersion: "build-" + id},
		Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{
			"prism.store_revision": structpb.NewStringValue(fmt.Sprint(revision)),
		}},
	}
}

// request sends one; the node goes with each, as xDS permits.
func (p *proxy) request(r *discoveryv3.DeltaDiscoveryRequest) {
	p.t.Helper()
	if r.Node == nil {
		r.Node = node("proxy-1", 0)
	}
	if err := p.stream.Send(r); err != nil {
		p.t.Fatal(err)
	}
}

func (p *proxy) subscribe(typeURL string, initial map[string]string, names ...string) {
	p.t.Helper()
	p.request(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeURL, ResourceNamesSubscribe: names, InitialResourceVersions: initial})
}

// receive returns the next response without acknowledging it.
func (p *proxy) receive() *discoveryv3.DeltaDiscoveryResponse {
	p.t.Helper()
	r, err := p.stream.Recv()
	if err != nil {
		p.t.Fatal(err)
	}
	return r
}

func (p *proxy) ack(r *discoveryv3.DeltaDiscoveryResponse) {
	p.t.Helper()
	p.request(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()})
}

func (p *proxy) nack(r *discoveryv3.DeltaDiscoveryResponse, message string, rejections ...*configv1.Rejection) {
	p.t.Helper()
	detail := &statuspb.Status{Code: 3, Message: message}
	for _, rejection := range rejections {
		packed, err := anypb.New(rejection)
		if err != nil {
			p.t.Fatal(err)
		}
		detail.Details = append(detail.Details, packed)
	}
	p.request(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce(), ErrorDetail: detail})
}

// next receives a response, applies it and acknowledges it.
func (p *proxy) next() *discoveryv3.DeltaDiscoveryResponse {
	p.t.Helper()
	r := p.receive()
	p.apply(r)
	p.ack(r)
	return r
}

// until goes on with next until the collection has the root.
func (p *proxy) until(collection string, root ident.Hash) (responses int) {
	p.t.Helper()
	for responses = 1; ; responses++ {
		p.next()
		if s := p.ends[collection]; s != nil && string(s.GetRoot()) == string(root.Bytes()) && len(p.staged) == 0 {
			return responses
		}
	}
}

// apply takes in a response and verifies what sentinels say.
func (p *proxy) apply(r *discoveryv3.DeltaDiscoveryResponse) {
	p.t.Helper()
	stage := func(collection, name, version string) {
		if p.staged[collection] == nil {
			p.staged[collection] = map[string]string{}
		}
		p.staged[collection][name] = version
	}
	for _, name := range r.GetRemovedResources() {
		for collection, members := range p.state {
			if _, ok := members[name]; ok {
				stage(collection, name, "")
			}
		}
		for _, members := range p.staged {
			if _, ok := members[name]; ok {
				members[name] = ""
			}
		}
	}
	for _, resource := range r.GetResources() {
		collection := strings.Join(resource.GetAliases(), ",")
		if resource.GetResource().GetTypeUrl() != push.SentinelType {
			if ident.HashOf(resource.GetResource().GetValue()).String() != resource.GetVersion() {
				p.t.Fatalf("%s: the version is not the hash of the bytes", resource.GetName())
			}
			stage(collection, resource.GetName(), resource.GetVersion())
			continue
		}
		sentinel := &configv1.Sentinel{}
		if err := resource.GetResource().UnmarshalTo(sentinel); err != nil {
			p.t.Fatal(err)
		}
		p.complete(resource.GetName(), sentinel)
		if root, _ := ident.HashFrom(sentinel.GetRoot()); resource.GetVersion() != root.String() {
			p.t.Fatalf("%s: version %q, root %q", resource.GetName(), resource.GetVersion(), root)
		}
	}
}

func (p *proxy) complete(collection string, sentinel *configv1.Sentinel) {
	p.t.Helper()
	if p.state[collection] == nil || sentinel.GetFull() {
		p.state[collection] = map[string]string{}
	}
	for name, version := range p.staged[collection] {
		if version == "" {
			delete(p.state[collection], name)
		} else {
			p.state[collection][name] = version
		}
	}
	delete(p.staged, collection)
	if p.check != nil {
		p.check(collection, sentinel)
	}
	p.ends[collection] = sentinel
	if collection == "shared" {
		p.sets = append(p.sets, string(sentinel.GetRoot()))
		p.sets = p.sets[max(0, len(p.sets)-8):]
	}
	if got := p.root(collection); string(got.Bytes()) != string(sentinel.GetRoot()) {
		p.t.Fatalf("%s: the %d members have root %q, the sentinel says %x", collection, len(p.state[collection]), got, sentinel.GetRoot())
	}
	if int(sentinel.GetCount()) != len(p.state[collection]) {
		p.t.Fatalf("%s: %d members, the sentinel says %d", collection, len(p.state[collection]), sentinel.GetCount())
	}
}

// root is the root of what the proxy has of a collection.
func (p *proxy) root(collection string) ident.Hash {
	p.t.Helper()
	var entries []manifest.Entry
	for name, version := range p.state[collection] {
		hash, err := ident.ParseHash(version)
		if err != nil {
			p.t.Fatal(err)
		}
		entries = append(entries, manifest.Entry{Name: name, Hash: hash})
	}
	m, err := manifest.New(entries)
	if err != nil {
		p.t.Fatal(err)
	}
	return m.Root()
}

func names(r *discoveryv3.DeltaDiscoveryResponse) []string {
	var list []string
	for _, resource := range r.GetResources() {
		list = append(list, resource.GetName())
	}
	return list
}

// ends reads the stream to its end, which must come.
func (p *proxy) end() error {
	p.t.Helper()
	for {
		if _, err := p.stream.Recv(); err != nil {
			if errors.Is(err, io.EOF) {
				p.t.Fatal("the stream ended without an error")
			}
			return err
		}
	}
}

// listen signals after something about a partition has changed in the tracker, until another listens.
func (r *replica) listen(p ident.Partition) <-chan struct{} {
	signal := make(chan struct{}, 1)
	r.tracker.Listen(func(changed ident.Partition) {
		if changed != p {
			return
		}
		select {
		case signal <- struct{}{}:
		default: // a signal waits already
		}
	})
	return signal
}

// await waits until the tracker says so of a partition.
func (r *replica) await(t testing.TB, p ident.Partition, what string, holds func(map[string]cellState) bool) {
	t.Helper()
	signal := r.listen(p)
	timeout := time.After(patience)
	for {
		cells := map[string]cellState{}
		for _, c := range r.tracker.Cells(p) {
			cells[c.GetProxy()] = c
		}
		if holds(cells) {
			return
		}
		select {
		case <-signal:
		case <-timeout:
			t.Fatalf("%s: never; the tracker has %v", what, slices.Collect(maps.Values(cells)))
		}
	}
}
