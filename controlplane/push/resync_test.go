package push_test

import (
	"testing"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"

	"github.com/prism-gateway/prism/controlplane/push"
	"github.com/prism-gateway/prism/shared/ident"
)

func TestAPartitionIsSentInFullAgain(t *testing.T) {
	s := newSource(partitions)
	ns := inPartition(3, partitions, 3)
	s.set(t, ns[0], "one", ns[1], "one", ns[2], "one")
	r := start(t, s)
	p := connect(t, r)
	p.subscribe(push.NamespaceType, nil, "p/0003", "p/0004")
	tree := s.Head()
	p.until("p/0003", tree.Collection(3).Root())
	if r.server.Resync("nobody", 3) || r.server.Resync("proxy-1", 5) {
		t.Error("what nobody has is sent in full")
	}
	clear(p.state["p/0003"]) // it lost everything
	if !r.server.Resync("proxy-1", 3) {
		t.Fatal("the proxy's stream is not found")
	}
	full := false
	for !full {
		response := p.next()
		for _, resource := range response.GetResources() {
			sentinel := &configv1.Sentinel{}
			if resource.GetName() == "p/0003" && resource.GetResource().UnmarshalTo(sentinel) == nil {
				full = sentinel.GetFull()
			}
		}
	}
	if got := p.root("p/0003"); got != tree.Collection(3).Root() {
		t.Errorf("it has root %v", got)
	}
	// From there on it is told differences again.
	changed := s.set(t, ns[0], "two")
	p.until("p/0003", changed.Collection(ident.Partition(3)).Root())
	if got := len(p.state["p/0003"]); got != 3 {
		t.Errorf("it has %d namespaces", got)
	}
}
