package push_test

import (
	"fmt"
	"slices"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"pgregory.net/rapid"

	"github.com/prism-gateway/prism/controlplane/push"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	"github.com/prism-gateway/prism/shared/ident"
)

// What a proxy is told of a collection always has the root that the sentinel says (proxy.complete checks each), and when
// all is quiet it is the root of the newest snapshot, whatever changed, was subscribed, was cut or was refused before.
func TestProxyComesToTheNewestRoot(t *testing.T) {
	const partitions = 4
	s := newSource(partitions)
	replicas := []*replica{start(t, s), start(t, s)}
	conns := []*grpc.ClientConn{dial(t, replicas[0].address), dial(t, replicas[1].address)}
	proxyNumber := 0
	rapid.Check(t, func(rt *rapid.T) {
		s.moved(func() {
			s.forgetful = rapid.Bool().Draw(rt, "forgetful")
			s.tree = snapshot.New(partitions)
			s.revision++
		})
		proxyNumber++
		me := node(fmt.Sprintf("proxy-%d", proxyNumber), 0)
		wanted := map[string]bool{}
		var p *proxy
		reconnect := func() {
			former := p
			p = connectVia(t, conns[rapid.IntRange(0, 1).Draw(rt, "replica")])
			initial, shared := map[string]string{}, map[string]string{}
			if former != nil {
				former.cancel()
				p.state, p.ends = former.state, former.ends
				for collection, sentinel := range p.ends {
					root := p.root(collection).String()
					if collection == "shared" {
						shared[collection] = root
						continue
					}
					if !wanted[collection] {
						delete(p.state, collection)
						delete(p.ends, collection)
						continue
					}
					if rapid.Bool().Draw(rt, "single resources") {
						for name, version := range p.state[collection] {
							initial[name] = version
						}
						continue
					}
					with, _ := ident.HashFrom(sentinel.GetSharedRoot())
					initial[collection] = root + "/" + with.String()
				}
			}
			names := make([]string, 0, len(wanted))
			for name := range wanted {
				names = append(names, name)
			}
			slices.Sort(names)
			p.request(&discoveryv3.DeltaDiscoveryRequest{Node: me, TypeUrl: push.SharedType, ResourceNamesSubscribe: []string{"shared"}, InitialResourceVersions: shared})
			p.request(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: push.NamespaceType, ResourceNamesSubscribe: names, InitialResourceVersions: initial})
			for range rapid.IntRange(0, 2).Draw(rt, "answers") { // the first request of each type is always answered
				r := p.receive()
				p.apply(r)
				if rapid.Bool().Draw(rt, "refuse") {
					p.nack(r, "refused")
				} else {
					p.ack(r)
				}
			}
		}
		reconnect()
		rt.Repeat(map[string]func(*rapid.T){
			"change": func(rt *rapid.T) {
				var pairs []string
				for i := range 6 {
					name := fmt.Sprintf("ns/team-%d", i)
					if i == 5 {
						name = "backend/main"
					}
					switch rapid.IntRange(0, 3).Draw(rt, "what") {
					case 0:
						pairs = append(pairs, name, fmt.Sprint(rapid.IntRange(1, 3).Draw(rt, "content")))
					case 1:
						pairs = append(pairs, name, "")
					}
				}
				s.set(t, pairs...)
			},
			"subscribe": func(rt *rapid.T) {
				name := ident.Partition(rapid.IntRange(0, partitions-1).Draw(rt, "partition")).String()
				wanted[name] = true
				delete(p.staged, name)
				p.request(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: push.NamespaceType, ResourceNamesSubscribe: []string{name}})
			},
			"unsubscribe": func(rt *rapid.T) {
				name := ident.Partition(rapid.IntRange(0, partitions-1).Draw(rt, "partition")).String()
				if !wanted[name] {
					return
				}
				delete(wanted, name)
				p.request(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: push.NamespaceType, ResourceNamesUnsubscribe: []string{name}})
			},
			"reconnect": func(*rapid.T) { reconnect() },
			"":          func(*rapid.T) {},
		})
		// Quiet: everything that is wanted comes to the newest root and shared root.
		newest := s.Head()
		shared := newest.Shared().Root()
		behind := func() bool {
			if e := p.ends["shared"]; e == nil || string(e.GetRoot()) != string(shared.Bytes()) {
				return true
			}
			for name := range wanted {
				partition, _ := ident.ParsePartition(name)
				e := p.ends[name]
				if e == nil || p.root(name) != newest.Collection(partition).Root() || string(e.GetSharedRoot()) != string(shared.Bytes()) {
					return true
				}
			}
			return false
		}
		for behind() {
			p.next()
		}
		p.cancel()
	})
}
