package push_test

import (
	"context"
	"fmt"
	"runtime"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/prism-gateway/prism/controlplane/push"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	"github.com/prism-gateway/prism/shared/ident"
	"github.com/prism-gateway/prism/shared/placement"
)

// crowd is a fleet of clients that acknowledge everything. Clients and server share the process and its processors.
type crowd struct {
	replica *replica
	source  *source
	names   []string
	acks    chan ident.Partition // one for each acknowledged change of a partition
	conns   []*grpc.ClientConn
	held    [][]string // partitions, by proxy
}

// gather connects proxies, each with the partitions that placement gives it, and returns when all have everything.
// heapPerStream is what a stream takes on both sides, its stacks left out.
func gather(b *testing.B, proxies, namespaces int) (c *crowd, heapPerStream float64) {
	const partitions = 1024
	c = &crowd{source: newSource(partitions), acks: make(chan ident.Partition, 1<<20)}
	var sets []snapshot.Set
	for i := range namespaces {
		name := fmt.Sprintf("ns/team-%05d", i)
		c.names = append(c.names, name)
		sets = append(sets, snapshot.Set{Name: name, Data: object(b, name, fmt.Sprintf("%01400d", i))})
	}
	c.source.edit(b, sets)
	c.replica = start(b, c.source, func(c *push.Config) { c.StreamsPerSecond, c.StreamBurst = 1e6, 1e6 })
	members := make([]placement.Member, proxies)
	for i := range members {
		members[i] = placement.Member{ID: fmt.Sprintf("proxy-%04d", i)}
	}
	owners := placement.Compute(members, partitions, 3)
	c.held = make([][]string, proxies)
	for p := range ident.Partition(partitions) {
		for _, o := range owners.Owners(p) {
			c.held[o] = append(c.held[o], p.String())
		}
	}
	before := heap()
	for i, names := range c.held {
		conn, err := grpc.NewClient("passthrough:///"+c.replica.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			b.Fatal(err)
		}
		stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(context.Background())
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { conn.Close() })
		c.conns = append(c.conns, conn)
		stream.Send(&discoveryv3.DeltaDiscoveryRequest{Node: node(members[i].ID, 0), TypeUrl: push.NamespaceType, ResourceNamesSubscribe: names})
		go c.acknowledge(stream)
	}
	for range partitions * 3 {
		<-c.acks
	}
	heapPerStream = float64(heap()-before) / float64(proxies)
	return c, heapPerStream
}

func (c *crowd) acknowledge(stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient) {
	for {
		r, err := stream.Recv()
		if err != nil {
			return
		}
		stream.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()})
		for _, resource := range r.GetResources() {
			if p, err := ident.ParsePartition(resource.GetName()); err == nil {
				c.acks <- p
			}
		}
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkUpdate measures one namespace's change, from the publication to the third acknowledgement sent.
func BenchmarkUpdate(b *testing.B) {
	for _, size := range []struct{ proxies, namespaces int }{{200, 10_000}, {1000, 10_000}} {
		b.Run(fmt.Sprintf("%d streams, %d namespaces", size.proxies, size.namespaces), func(b *testing.B) {
			c, heapPerStream := gather(b, size.proxies, size.namespaces)
			trees := []*snapshot.Tree{c.source.Head()}
			name := c.names[0]
			for i := range 2 { // two states to go between, so that only the push is measured
				trees = append(trees, c.source.set(b, name, fmt.Sprintf("%01400d", -i-1)))
				for range 3 {
					<-c.acks
				}
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				c.source.moved(func() {
					c.source.tree = trees[i%2]
					c.source.revision++
				})
				for range 3 {
					<-c.acks
				}
			}
			b.ReportMetric(heapPerStream/1024, "KiB/stream")
		})
	}
}

// BenchmarkReconnect measures that all proxies open new streams with the roots that they have, until each was answered.
func BenchmarkReconnect(b *testing.B) {
	c, _ := gather(b, 1000, 10_000)
	tree := c.source.Head()
	shared := tree.Shared().Root().String()
	resources := 0
	for b.Loop() {
		answers := make(chan int, len(c.conns))
		ctx, cancel := context.WithCancel(context.Background())
		for i, conn := range c.conns {
			go func() { answers <- c.resume(ctx, conn, i, tree, shared) }()
		}
		for range c.conns {
			resources += <-answers
		}
		cancel()
	}
	b.ReportMetric(float64(resources)/float64(b.N), "resources")
}

// resume opens a stream with roots and returns how many resources the first answers hold.
func (c *crowd) resume(ctx context.Context, conn *grpc.ClientConn, i int, tree *snapshot.Tree, shared string) (resources int) {
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return 0
	}
	initial := map[string]string{}
	for _, name := range c.held[i] {
		if p, err := ident.ParsePartition(name); err == nil {
			initial[name] = tree.Collection(p).Root().String() + "/" + shared
		}
	}
	stream.Send(&discoveryv3.DeltaDiscoveryRequest{
		Node: node(fmt.Sprintf("proxy-%04d", i), 0), TypeUrl: push.NamespaceType, ResourceNamesSubscribe: c.held[i], InitialResourceVersions: initial,
	})
	if r, err := stream.Recv(); err == nil {
		resources = len(r.GetResources())
	}
	return resources
}
