package subscribe_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/prism-gateway/prism/dataplane/subscribe"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/ident"
)

const benchPartitions, benchNamespaces = 1024, 10_000

// benchTree is 10,000 namespaces of 1.4 KB in 1,024 partitions, all of one proxy.
func benchTree() map[string]members {
	tree := map[string]members{"shared": backends}
	for p := range ident.Partition(benchPartitions) {
		tree[p.String()] = members{}
	}
	for i := range benchNamespaces {
		name := fmt.Sprint("app-", i)
		tree[ident.PartitionOf(name, benchPartitions).String()]["ns/"+name] = benchValue(i)
	}
	return tree
}

func benchValue(i int) string { return fmt.Sprintf("%01400d", i) }

// benchProxy is one that has the tree in effect.
func benchProxy(b *testing.B, tree map[string]members, dir string) (*proxy, *adsStream) {
	b.Helper()
	cp := newPeer(b, "installation-1")
	p := start(b, map[string]*peer{"a": cp}, func(c *subscribe.Config, _ *proxy) { c.StateDir = dir })
	s := cp.accept(b)
	s.next()
	s.next()
	m := &configv1.Assignment{Epoch: 1, Members: []*configv1.Member{{Id: "proxy-1"}}}
	for range benchPartitions {
		m.Partitions = append(m.Partitions, &configv1.PartitionOwners{Owners: []uint32{0}})
	}
	n := s.send(subscribe.AssignmentType, []*discoveryv3.Resource{fleet(m)})
	s.next()
	s.ack(n)
	s.ack(s.send(subscribe.SharedType, content("shared", nil, backends, nil)))
	var page []*discoveryv3.Resource
	for q := range ident.Partition(benchPartitions) {
		page = append(page, content(q.String(), nil, tree[q.String()], backends)...)
		if len(page) > 600 || q == benchPartitions-1 {
			s.ack(s.send(subscribe.NamespaceType, page))
			page = nil
		}
	}
	for len(p.states) > 0 {
		<-p.states
	}
	return p, s
}

// BenchmarkColdStart is from Run to Apply with 10,000 namespaces on disk and no control plane.
func BenchmarkColdStart(b *testing.B) {
	dir := b.TempDir()
	first, _ := benchProxy(b, benchTree(), dir)
	first.stop()
	for b.Loop() {
		p := start(b, nil, func(c *subscribe.Config, _ *proxy) { c.StateDir = dir })
		if s := <-p.states; len(s.Partitions) != benchPartitions {
			b.Fatalf("%d partitions", len(s.Partitions))
		}
		p.stop()
	}
}

// BenchmarkUpdate is from one changed namespace's response, sent, to its acknowledgement, received; Apply does nothing.
func BenchmarkUpdate(b *testing.B) {
	for name, dir := range map[string]string{"memory": "", "disk": b.TempDir()} {
		b.Run(name, func(b *testing.B) {
			tree := benchTree()
			p, s := benchProxy(b, tree, dir)
			var draining sync.WaitGroup
			ctx, cancel := context.WithCancel(context.Background())
			draining.Go(func() {
				for {
					select {
					case <-p.states:
					case <-ctx.Done():
						return
					}
				}
			})
			i := 0
			for b.Loop() {
				n := fmt.Sprint("app-", i%benchNamespaces)
				q := ident.PartitionOf(n, benchPartitions).String()
				next := members{}
				for k, v := range tree[q] {
					next[k] = v
				}
				next["ns/"+n] = benchValue(i + benchNamespaces)
				resources := content(q, tree[q], next, backends)
				tree[q] = next
				s.ack(s.send(subscribe.NamespaceType, resources))
				i++
			}
			cancel()
			draining.Wait()
		})
	}
}
