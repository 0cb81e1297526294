package standard_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"

	"github.com/prism-gateway/prism/controlplane/push/standard"
	"github.com/prism-gateway/prism/shared/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const partitions = 4

// fleet is an assignment that tests change.
type fleet struct {
	mu      sync.Mutex // guards current
	current *configv1.Assignment
	moved   chan struct{}
}

func (f *fleet) Assignment() *configv1.Assignment {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.current
}

func (f *fleet) WatchAssignment() (<-chan struct{}, func()) { return f.moved, func() {} }

// give makes the owners those of p/0002, and a those of all others.
func (f *fleet) give(owners ...uint32) {
	a := &configv1.Assignment{Members: []*configv1.Member{
		{Id: "a", Address: "10.0.0.1:8980", Labels: map[string]string{"zone": "z1"}}, {Id: "b", Address: "10.0.0.2:8980"},
		{Id: "leaving", Address: "10.0.0.3:8980", Draining: true}, {Id: "validator", Address: "10.0.0.4:8980", Validator: true},
	}}
	for p := range partitions {
		entry := &configv1.PartitionOwners{Owners: []uint32{0}, Loading: []uint32{1}}
		if p == 2 {
			entry.Owners = owners
		}
		a.Partitions = append(a.Partitions, entry)
	}
	f.mu.Lock()
	f.current = a
	f.mu.Unlock()
	f.moved <- struct{}{}
}

// served is the server behind gRPC.
type served struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	*standard.Server
}

func (s served) StreamAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	return s.State(stream.Context(), stream)
}

func (s served) DeltaAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	return s.Delta(stream.Context(), stream)
}

func start(t testing.TB, change ...func(*standard.Config)) (*fleet, discoveryv3.AggregatedDiscoveryServiceClient) {
	t.Helper()
	f := &fleet{moved: make(chan struct{}, 100)}
	cfg := standard.Config{Fleet: f, Logger: slog.New(slog.DiscardHandler)}
	for _, c := range change {
		c(&cfg)
	}
	s, err := standard.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, served{Server: s})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { s.Run(ctx) })
	running.Go(func() { g.Serve(listener) })
	conn, err := grpc.NewClient("passthrough:///"+listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		cancel()
		g.Stop()
		running.Wait()
	})
	return f, discoveryv3.NewAggregatedDiscoveryServiceClient(conn)
}

// client speaks state of the world and acknowledges everything.
type client struct {
	t      testing.TB
	stream discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesClient
}

func open(t testing.TB, c discoveryv3.AggregatedDiscoveryServiceClient) *client {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	stream, err := c.StreamAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return &client{t: t, stream: stream}
}

func (c *client) ask(typeURL string, names ...string) {
	c.t.Helper()
	if err := c.stream.Send(&discoveryv3.DiscoveryRequest{Node: &corev3.Node{Id: "client"}, TypeUrl: typeURL, ResourceNames: names}); err != nil {
		c.t.Fatal(err)
	}
}

// next returns the next answer that holds something, or that says that something is not there.
func (c *client) next(names ...string) *discoveryv3.DiscoveryResponse {
	c.t.Helper()
	for {
		r, err := c.stream.Recv()
		if err != nil {
			c.t.Fatal(err)
		}
		if err := c.stream.Send(&discoveryv3.DiscoveryRequest{
			TypeUrl: r.GetTypeUrl(), ResourceNames: names, VersionInfo: r.GetVersionInfo(), ResponseNonce: r.GetNonce(),
		}); err != nil {
			c.t.Fatal(err)
		}
		if len(r.GetResources())+len(r.GetResourceErrors()) > 0 {
			return r
		}
	}
}

// owners reads addresses by priority.
func owners(t testing.TB, r *discoveryv3.DiscoveryResponse) (addresses []string) {
	t.Helper()
	load := &endpointv3.ClusterLoadAssignment{}
	if err := r.GetResources()[0].UnmarshalTo(load); err != nil {
		t.Fatal(err)
	}
	for i, e := range load.GetEndpoints() {
		if int(e.GetPriority()) != i || e.GetLoadBalancingWeight().GetValue() == 0 {
			t.Errorf("owner %d: %v", i, e)
		}
		addresses = append(addresses, e.GetLbEndpoints()[0].GetEndpoint().GetAddress().GetSocketAddress().GetAddress())
	}
	return addresses
}

func TestOwnersMoveByTheirAddressesAlone(t *testing.T) {
	const name = "prism.p.0002"
	f, conn := start(t)
	c := open(t, conn)
	c.ask(resource.ListenerType, name)
	f.give(0, 1)
	listener := &listenerv3.Listener{}
	if err := c.next(name).GetResources()[0].UnmarshalTo(listener); err != nil || listener.GetName() != name || listener.GetApiListener() == nil {
		t.Fatalf("listener %v, %v", listener, err)
	}
	c.ask(resource.ClusterType, name)
	cluster := &clusterv3.Cluster{}
	if err := c.next(name).GetResources()[0].UnmarshalTo(cluster); err != nil || cluster.GetName() != name || cluster.GetType() != clusterv3.Cluster_EDS {
		t.Fatalf("cluster %v, %v", cluster, err)
	}
	c.ask(resource.RouteType, name)
	c.next(name)
	c.ask(resource.EndpointType, name)
	if got := owners(t, c.next(name)); !slices.Equal(got, []string{"10.0.0.1", "10.0.0.2"}) {
		t.Errorf("owners %v", got)
	}
	for what, step := range map[string]struct {
		owners []uint32
		want   []string
	}{
		"who leaves and a validator are not among them": {owners: []uint32{2, 1, 3}, want: []string{"10.0.0.2"}},
		"who leaves alone is":                           {owners: []uint32{2}, want: []string{"10.0.0.3"}},
		"nobody":                                        {owners: nil, want: nil},
		"by rank":                                       {owners: []uint32{1, 0}, want: []string{"10.0.0.2", "10.0.0.1"}},
	} {
		f.give(step.owners...)
		r := c.next(name) // nothing but addresses is sent
		if got := owners(t, r); r.GetTypeUrl() != resource.EndpointType || !slices.Equal(got, step.want) {
			t.Errorf("%s: %s, owners %v, want %v", what, r.GetTypeUrl(), got, step.want)
		}
	}
}

func TestUnknownNamesAreSaidToBeUnknown(t *testing.T) {
	f, conn := start(t)
	f.give(0)
	c := open(t, conn)
	c.ask(resource.ListenerType, "prism.p.0001")
	c.next("prism.p.0001")
	for _, name := range []string{"prism.p.0004", "prism.p.1", "orders", "prism.p.0001/x"} {
		c := open(t, conn)
		c.ask(resource.ListenerType, name)
		r := c.next(name)
		if len(r.GetResources()) != 0 || len(r.GetResourceErrors()) != 1 || r.GetResourceErrors()[0].GetResourceName().GetName() != name {
			t.Errorf("%s: %v", name, r)
		}
	}
	c.ask("type.googleapis.com/envoy.service.runtime.v3.Runtime", "x") // the stream goes on
	c.ask(resource.EndpointType, "prism.p.0003")
	c.next("prism.p.0003")
}

func TestEnvoyAsksForAllClusters(t *testing.T) {
	f, conn := start(t)
	f.give(0)
	first := open(t, conn)
	first.ask(resource.ClusterType, "prism.p.0003") // answered when all is there
	first.next("prism.p.0003")
	c := open(t, conn)
	c.ask(resource.ClusterType)
	if got := len(c.next().GetResources()); got != partitions {
		t.Errorf("state of the world: %d clusters", got)
	}
	stream, err := conn.DeltaAggregatedResources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: "envoy"}, TypeUrl: resource.ClusterType}); err != nil {
		t.Fatal(err)
	}
	if r, err := stream.Recv(); err != nil || len(r.GetResources()) != partitions {
		t.Errorf("delta: %v, %v", r, err)
	}
	// A gRPC client that asks for nothing of a type gets nothing.
	c.ask(resource.EndpointType)
	c.ask(resource.ListenerType, "prism.p.0001")
	for r := c.next("prism.p.0001"); r.GetTypeUrl() != resource.ListenerType; r = c.next("prism.p.0001") {
		t.Errorf("%d of %s", len(r.GetResources()), r.GetTypeUrl())
	}
}

func TestStreamsAreBounded(t *testing.T) {
	f, conn := start(t, func(c *standard.Config) { c.MaxStreams = 1 })
	f.give(0)
	c := open(t, conn)
	c.ask(resource.ListenerType, "prism.p.0001")
	c.next("prism.p.0001")
	_, err := open(t, conn).stream.Recv()
	if err == nil || fault.From(err).Text == "" {
		t.Errorf("a second stream: %v", err)
	}
}

// BenchmarkIdleStream measures what a gRPC client's stream takes on both ends, its connection left out.
func BenchmarkIdleStream(b *testing.B) {
	const streams = 200
	f, conn := start(b)
	f.give(0)
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	for b.Loop() {
		before := heap()
		for i := range streams {
			c := open(b, conn)
			name := fmt.Sprintf("prism.p.%04d", i%partitions)
			for _, typeURL := range []string{resource.ListenerType, resource.ClusterType, resource.EndpointType} {
				c.ask(typeURL, name)
				c.next(name)
			}
		}
		b.ReportMetric(float64(heap()-before)/streams/1024, "KiB/stream")
	}
}
