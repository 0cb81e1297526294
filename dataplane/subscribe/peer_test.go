package subscribe_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/prism-gateway/prism/dataplane/subscribe"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	"github.com/prism-gateway/prism/shared/ident"
	"github.com/prism-gateway/prism/shared/manifest"
)

const partitions = 4

type (
	request  = discoveryv3.DeltaDiscoveryRequest
	response = discoveryv3.DeltaDiscoveryResponse
	members  = map[string]string // a collection: names and values
)

// peer is a control plane that does what the test says.
type peer struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	controlv1.UnimplementedFleetServiceServer
	mu           sync.Mutex // guards installation and serve once proxies connect
	installation string
	serve        func(discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error // in place of streams
	listener     *bufconn.Listener
	serveReport  func(controlv1.FleetService_ReportServer) error // in place of reports
	streams      chan *adsStream
	reports      chan *reportStream
}

// adsStream is one stream of a proxy.
type adsStream struct {
	t        testing.TB
	requests chan *request
	do       chan func(discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error
	ended    <-chan struct{}
	nonce    int
}

type reportStream struct {
	requests chan *controlv1.ReportRequest
	ended    error // why requests is closed
	do       chan func(controlv1.FleetService_ReportServer) error
}

func newPeer(t testing.TB, installation string) *peer {
	p := &peer{
		installation: installation, listener: bufconn.Listen(1 << 20),
		streams: make(chan *adsStream, 100), reports: make(chan *reportStream, 100),
	}
	server := grpc.NewServer(grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}))
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(server, p)
	controlv1.RegisterFleetServiceServer(server, p)
	var serving sync.WaitGroup
	serving.Go(func() { server.Serve(p.listener) })
	t.Cleanup(func() { server.Stop(); serving.Wait() })
	return p
}

func (p *peer) DeltaAggregatedResources(s discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	p.mu.Lock()
	installation, serve := p.installation, p.serve
	p.mu.Unlock()
	if installation != "" {
		s.SetHeader(metadata.Pairs("prism-installation", installation))
	}
	if serve != nil {
		return serve(s)
	}
	a := &adsStream{
		requests: make(chan *request, 10_000), ended: s.Context().Done(),
		do: make(chan func(discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error),
	}
	go func() {
		defer close(a.requests)
		for {
			r, err := s.Recv()
			if err != nil {
				return
			}
			a.requests <- r
		}
	}()
	p.streams <- a
	for {
		select {
		case f := <-a.do:
			if err := f(s); err != nil {
				return err
			}
		case <-s.Context().Done():
			return s.Context().Err()
		}
	}
}

func (p *peer) Report(s controlv1.FleetService_ReportServer) error {
	if p.serveReport != nil {
		return p.serveReport(s)
	}
	r := &reportStream{requests: make(chan *controlv1.ReportRequest, 10_000), do: make(chan func(controlv1.FleetService_ReportServer) error)}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer close(r.requests)
		for {
			m, err := s.Recv()
			if err != nil {
				r.ended = err
				return
			}
			r.requests <- m
		}
	}()
	p.reports <- r
	for {
		select {
		case f := <-r.do:
			if err := f(s); err != nil {
				return err
			}
		case <-ended:
			return nil
		case <-s.Context().Done():
			return s.Context().Err()
		}
	}
}

// become changes what the control plane is, while proxies connect.
func (p *peer) become(installation string, serve func(discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.installation, p.serve = installation, serve
}

func (p *peer) accept(t testing.TB) *adsStream {
	t.Helper()
	s := receive(t, p.streams, "a stream")
	s.t = t
	return s
}

// receive waits for a minute of the bubble's clock, which passes at once.
func receive[T any](t testing.TB, from <-chan T, what string) T {
	t.Helper()
	select {
	case v, ok := <-from:
		if !ok {
			t.Fatalf("%s: the stream ended", what)
		}
		return v
	case <-time.After(time.Minute):
		t.Fatalf("%s did not come", what)
	}
	panic("unreachable")
}

func (s *adsStream) next() *request {
	s.t.Helper()
	return receive(s.t, s.requests, "a request")
}

// none fails when there is a request that the test has not looked at.
func (s *adsStream) none(why string) {
	s.t.Helper()
	synctest.Wait()
	select {
	case r, ok := <-s.requests:
		if ok {
			s.t.Fatalf("%s, but there is a request: %v", why, r)
		}
	default:
	}
}

// send sends one response and returns its nonce.
func (s *adsStream) send(typeURL string, resources []*discoveryv3.Resource, removed ...string) string {
	s.t.Helper()
	s.nonce++
	r := &response{TypeUrl: typeURL, Nonce: fmt.Sprint("nonce-", s.nonce), Resources: resources, RemovedResources: removed}
	s.end(func(g discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error { return g.Send(r) })
	return r.Nonce
}

func (s *adsStream) fail(err error) {
	s.end(func(discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error { return err })
}

func (s *adsStream) end(f func(discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error) {
	select {
	case s.do <- f:
	case <-s.ended:
	}
}

// ack expects the acknowledgement of a nonce.
func (s *adsStream) ack(nonce string) {
	s.t.Helper()
	if r := s.next(); r.GetResponseNonce() != nonce || r.GetErrorDetail() != nil || r.Node != nil || len(r.ResourceNamesSubscribe) > 0 {
		s.t.Fatalf("want the acknowledgement of %s, got %v", nonce, r)
	}
}

// nack expects the refusal of a nonce and returns what is refused.
func (s *adsStream) nack(nonce string) (out []*configv1.Rejection) {
	s.t.Helper()
	r := s.next()
	if r.GetResponseNonce() != nonce || r.GetErrorDetail() == nil {
		s.t.Fatalf("want the refusal of %s, got %v", nonce, r)
	}
	for _, detail := range r.GetErrorDetail().GetDetails() {
		rejection := &configv1.Rejection{}
		if err := detail.UnmarshalTo(rejection); err != nil {
			s.t.Fatal(err)
		}
		out = append(out, rejection)
	}
	return out
}

// handshake takes the first requests and gives an assignment and a shared set.
func (s *adsStream) handshake(owned []ident.Partition, shared members) {
	s.t.Helper()
	for _, want := range []string{subscribe.AssignmentType, subscribe.SharedType} {
		if r := s.next(); r.GetTypeUrl() != want {
			s.t.Fatalf("want the first request of %s, got %v", want, r)
		}
	}
	n := s.send(subscribe.AssignmentType, assignment(1, owned...))
	if r := s.next(); r.GetTypeUrl() != subscribe.NamespaceType || !slices.Equal(r.GetResourceNamesSubscribe(), names(owned)) || len(r.InitialResourceVersions) > 0 {
		s.t.Fatalf("want a subscription of %v, got %v", owned, r)
	}
	s.ack(n)
	s.ack(s.send(subscribe.SharedType, content("shared", nil, shared, nil)))
}

func names(ps []ident.Partition) (out []string) {
	for _, p := range ps {
		out = append(out, p.String())
	}
	return out
}

// assignment is one in which proxy-1 owns the partitions and proxy-2 the others.
func assignment(epoch uint64, owned ...ident.Partition) []*discoveryv3.Resource {
	m := &configv1.Assignment{Epoch: epoch, Members: []*configv1.Member{{Id: "proxy-1"}, {Id: "proxy-2"}}}
	for p := range ident.Partition(partitions) {
		owners := []uint32{1}
		if slices.Contains(owned, p) {
			owners = []uint32{0}
		}
		m.Partitions = append(m.Partitions, &configv1.PartitionOwners{Owners: owners})
	}
	return []*discoveryv3.Resource{fleet(m)}
}

func fleet(m *configv1.Assignment) *discoveryv3.Resource {
	return resource("fleet", subscribe.AssignmentType, m, "")
}

func resource(name, typeURL string, m proto.Message, alias string) *discoveryv3.Resource {
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic(err)
	}
	r := &discoveryv3.Resource{Name: name, Version: ident.HashOf(data).String(), Resource: &anypb.Any{TypeUrl: typeURL, Value: data}}
	if alias != "" {
		r.Aliases = []string{alias}
	}
	return r
}

// object is the resource of a member, a namespace or a backend.
func object(collection, name, value string) *discoveryv3.Resource {
	if collection == "shared" {
		return resource(name, "type.googleapis.com/prism.config.v1.Backend", &configv1.Backend{Name: name, Type: value}, collection)
	}
	return resource(name, subscribe.NamespaceType, &configv1.NamespaceConfig{Namespace: name, StoragePrefix: value}, collection)
}

func manifestOf(collection string, m members) *manifest.Manifest {
	if len(m) == 0 {
		return manifest.Empty
	}
	var entries []manifest.Entry
	for name, value := range m {
		entries = append(entries, manifest.Entry{Name: name, Hash: ident.HashOf(object(collection, name, value).Resource.Value)})
	}
	out, err := manifest.New(entries)
	if err != nil {
		panic(err)
	}
	return out
}

// content is what brings a collection from one state to another, with its sentinel last. A nil from sends it in full.
func content(collection string, from, to members, shared members) []*discoveryv3.Resource {
	var out []*discoveryv3.Resource
	for _, name := range slices.Sorted(maps.Keys(to)) {
		if value, had := from[name]; !had || value != to[name] {
			out = append(out, object(collection, name, to[name]))
		}
	}
	return append(out, sentinel(collection, to, shared, from == nil))
}

func sentinel(collection string, m members, shared members, full bool) *discoveryv3.Resource {
	return newSentinel(collection, m, shared, full, time.Unix(1000, 0))
}

// sentinelAt ends a change that was committed at a time.
func sentinelAt(collection string, m, shared members, committed time.Time) *discoveryv3.Resource {
	return newSentinel(collection, m, shared, false, committed)
}

func newSentinel(collection string, m, shared members, full bool, committed time.Time) *discoveryv3.Resource {
	root := manifestOf(collection, m).Root()
	r := resource(collection, "type.googleapis.com/prism.config.v1.Sentinel", &configv1.Sentinel{
		Root: root.Bytes(), SharedRoot: manifestOf("shared", shared).Root().Bytes(), Count: uint32(len(m)), Full: full,
		SnapshotVersion: uint64(len(m)), StoreRevision: 7, CommittedAt: timestamppb.New(committed),
	}, "")
	r.Version = root.String()
	return r
}

// nsIn returns the i-th name of a namespace resource that lies in the partition.
func nsIn(p ident.Partition, i int) string {
	for n := 0; ; n++ {
		name := fmt.Sprint("app-", n)
		if ident.PartitionOf(name, partitions) == p {
			if i == 0 {
				return "ns/" + name
			}
			i--
		}
	}
}

// proxy is a client under test with the states that it gave to Apply.
type proxy struct {
	t        testing.TB
	client   *subscribe.Client
	states   chan subscribe.State
	metrics  *prometheus.Registry
	log      *bytes.Buffer
	reject   func(subscribe.State) []*configv1.Rejection // nil takes everything
	proceed  chan struct{}                               // when not nil, Apply waits for it
	stop     func()
	returned chan error
}

// start runs a client against peers by name. Run's goroutines end with the test.
func start(t testing.TB, peers map[string]*peer, change func(*subscribe.Config, *proxy)) *proxy {
	t.Helper()
	p := &proxy{t: t, states: make(chan subscribe.State, 10_000), metrics: prometheus.NewRegistry(), log: &bytes.Buffer{}, returned: make(chan error, 1)}
	cfg := subscribe.Config{
		Node:         subscribe.Node{ID: "proxy-1", Address: "127.0.0.1:8980", Build: "v1.2.3"},
		ReleaseDelay: 30 * time.Second,
		Registerer:   p.metrics,
		Logger:       slog.New(slog.NewTextHandler(p.log, nil)),
		Apply: func(ctx context.Context, s subscribe.State) []*configv1.Rejection {
			p.states <- s
			if p.proceed != nil {
				select {
				case <-p.proceed:
				case <-ctx.Done():
				}
			}
			if p.reject != nil {
				return p.reject(s)
			}
			return nil
		},
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, name string) (net.Conn, error) {
			if peer := peers[name]; peer != nil {
				return peer.listener.DialContext(ctx)
			}
			return nil, fmt.Errorf("nobody listens at %q", name)
		})},
	}
	for name := range peers {
		cfg.Endpoints = append(cfg.Endpoints, "passthrough:///"+name)
	}
	if len(cfg.Endpoints) == 0 {
		cfg.Endpoints = []string{"passthrough:///nobody"}
	}
	if change != nil {
		change(&cfg, p)
	}
	client, err := subscribe.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	p.client = client
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { p.returned <- client.Run(ctx) })
	p.stop = func() { cancel(); running.Wait() }
	t.Cleanup(p.stop)
	return p
}

// state waits for the next Apply.
func (p *proxy) state() subscribe.State {
	p.t.Helper()
	return receive(p.t, p.states, "a state")
}

// idle fails when Apply was called with a state that the test has not looked at.
func (p *proxy) idle(why string) {
	p.t.Helper()
	synctest.Wait()
	select {
	case s := <-p.states:
		p.t.Fatalf("%s, but there is a state with changes of %v", why, s.Changed)
	default:
	}
}

// has fails unless the state has exactly these members in the partition, in the shared set said.
func has(t testing.TB, s subscribe.State, p ident.Partition, want members, shared members) {
	t.Helper()
	got := s.Partitions[p]
	if got == nil {
		t.Fatalf("%v is not in the state", p)
	}
	if text := valuesOf(t, p.String(), got.Members); !maps.Equal(text, want) {
		t.Fatalf("%v has %v, want %v", p, text, want)
	}
	if got.SharedRoot != manifestOf("shared", shared).Root() {
		t.Fatalf("%v is in the shared set %v", p, got.SharedRoot)
	}
	if text := valuesOf(t, "shared", s.Shared[got.SharedRoot]); !maps.Equal(text, shared) {
		t.Fatalf("the shared set is %v, want %v", text, shared)
	}
}

func valuesOf(t testing.TB, collection string, objects map[string]subscribe.Object) members {
	t.Helper()
	out := members{}
	for name, o := range objects {
		if ident.HashOf(o.Data) != o.Hash {
			t.Fatalf("%s: the hash is not that of the bytes", name)
		}
		if collection == "shared" {
			m := &configv1.Backend{}
			if err := proto.Unmarshal(o.Data, m); err != nil {
				t.Fatal(err)
			}
			out[name] = m.GetType()
			continue
		}
		m := &configv1.NamespaceConfig{}
		if err := proto.Unmarshal(o.Data, m); err != nil {
			t.Fatal(err)
		}
		out[name] = m.GetStoragePrefix()
	}
	return out
}

// counter returns the sum of a metric over its labels.
func (p *proxy) counter(name string) float64 {
	p.t.Helper()
	families, err := p.metrics.Gather()
	if err != nil {
		p.t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() == "prism_subscribe_"+name {
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}
