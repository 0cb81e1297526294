package push_test

import (
	"slices"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"

	"github.com/prism-gateway/prism/controlplane/push"
)

func TestRejectionStandsUntilTheNextGoodVersion(t *testing.T) {
	s := newSource(partitions)
	ns := inPartition(3, partitions, 2)
	s.set(t, ns[0], "one", ns[1], "one")
	r := start(t, s)
	p := connect(t, r)
	p.subscribe(push.NamespaceType, nil, "p/0003")
	p.next()

	tree := s.set(t, ns[0], "bad")
	bad := p.receive()
	p.apply(bad)
	rejection := &configv1.Rejection{
		Resource: ns[0], Version: bad.GetResources()[0].GetVersion(), Field: "patterns[0].bindings[0]", Reason: "no such backend",
	}
	p.nack(bad, "1 refused", rejection)
	refused := func(cells map[string]cellState) bool {
		c := cells["proxy-1"]
		return len(c.GetRejections()) == 1 && c.GetRejections()[0].GetField() == rejection.GetField() &&
			c.GetRejections()[0].GetReason() == rejection.GetReason() && c.GetRejections()[0].GetVersion() == rejection.GetVersion()
	}
	r.await(t, 3, "the NACK with its rest in effect", func(cells map[string]cellState) bool {
		return refused(cells) && string(cells["proxy-1"].GetAcceptedRoot()) == string(tree.Collection(3).Root().Bytes())
	})
	if got := r.tracker.Rejections("proxy-1"); len(got) != 1 {
		t.Errorf("the proxy refuses %v", got)
	}

	tree = s.set(t, ns[1], "two")
	p.next()
	r.await(t, 3, "another's change leaves it standing", func(cells map[string]cellState) bool {
		return refused(cells) && string(cells["proxy-1"].GetAcceptedRoot()) == string(tree.Collection(3).Root().Bytes())
	})
	s.set(t, ns[0], "good")
	p.next()
	r.await(t, 3, "the next good version clears it", func(cells map[string]cellState) bool {
		return len(cells["proxy-1"].GetRejections()) == 0
	})
}

func TestRefusingAllAdvancesNothing(t *testing.T) {
	s := newSource(partitions)
	ns := inPartition(3, partitions, 1)
	first := s.set(t, ns[0], "one")
	r := start(t, s)
	p := connect(t, r)
	p.subscribe(push.NamespaceType, nil, "p/0003")
	p.next()
	second := s.set(t, ns[0], "two")
	p.nack(p.receive(), "the root does not hold")
	r.await(t, 3, "refused as a whole", func(cells map[string]cellState) bool {
		c := cells["proxy-1"]
		return len(c.GetRejections()) == 1 && c.GetRejections()[0].GetReason() == "the root does not hold" &&
			string(c.GetAcceptedRoot()) == string(first.Collection(3).Root().Bytes()) &&
			string(c.GetSentRoot()) == string(second.Collection(3).Root().Bytes())
	})
}

func TestRejectionsAreToldOfWhatTheyBelongTo(t *testing.T) {
	const backend = "backend/redis-main"
	setUp := func(t *testing.T) (*source, *replica, *proxy) {
		s := newSource(partitions)
		s.set(t, inPartition(3, partitions, 1)[0], "one", inPartition(4, partitions, 1)[0], "one", backend, "one")
		r := start(t, s)
		p := connect(t, r)
		p.subscribe(push.SharedType, nil, "shared")
		p.next()
		p.subscribe(push.NamespaceType, nil, "p/0003")
		p.next()
		p.subscribe(push.NamespaceType, nil, "p/0004")
		p.next()
		return s, r, p
	}
	refuses := func(resources ...string) func(map[string]cellState) bool {
		return func(cells map[string]cellState) bool {
			var got []string
			for _, r := range cells["proxy-1"].GetRejections() {
				got = append(got, r.GetResource())
			}
			return slices.Equal(got, resources)
		}
	}
	t.Run("a backend, of the partitions that it came to be used in", func(t *testing.T) {
		s, r, p := setUp(t)
		tree := s.set(t, inPartition(4, partitions, 1)[0], "two")
		p.nack(p.receive(), "1 refused", &configv1.Rejection{Resource: backend, Reason: "no such driver"})
		r.await(t, 4, "refused", func(cells map[string]cellState) bool {
			return refuses(backend)(cells) && string(cells["proxy-1"].GetAcceptedRoot()) == string(tree.Collection(4).Root().Bytes())
		})
		r.await(t, 3, "another partition is as it was", refuses())
		s.set(t, inPartition(4, partitions, 1)[0], "three")
		p.next()
		r.await(t, 4, "the next good state clears it", refuses())
	})
	t.Run("a namespace of a partition that the stream does not have, of those it has", func(t *testing.T) {
		s, r, p := setUp(t)
		foreign := inPartition(5, partitions, 1)[0]
		s.set(t, inPartition(4, partitions, 1)[0], "two")
		p.nack(p.receive(), "2 refused", &configv1.Rejection{Resource: foreign}, &configv1.Rejection{Resource: "p/4000000000"})
		r.await(t, 4, "refused", refuses(foreign, "p/4000000000"))
		r.await(t, 5, "nobody has the other partition", func(cells map[string]cellState) bool { return len(cells) == 0 })
	})
	t.Run("a backend that is refused with the shared objects, of every partition", func(t *testing.T) {
		s, r, p := setUp(t)
		tree := s.set(t, backend, "two")
		o, _ := tree.Object(backend)
		for range 3 { // the shared objects, and each partition's new sentinel
			response := p.receive()
			p.apply(response)
			if response.GetTypeUrl() != push.SharedType {
				p.ack(response)
				if len(p.ends) == 3 && string(p.ends["p/0004"].GetSharedRoot()) == string(tree.Shared().Root().Bytes()) {
					break
				}
				continue
			}
			p.nack(response, "1 refused", &configv1.Rejection{Resource: backend, Version: o.Hash.String(), Reason: "no such driver"})
		}
		r.await(t, 3, "refused", refuses(backend))
		r.await(t, 4, "refused", refuses(backend))
		if got := r.tracker.Rejections("proxy-1"); len(got) != 1 {
			t.Errorf("the proxy refuses %v", got)
		}
		s.set(t, backend, "three")
		go func() { // the rest of the answers
			for {
				response, err := p.stream.Recv()
				if err != nil {
					return
				}
				p.stream.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: response.GetTypeUrl(), ResponseNonce: response.GetNonce()})
			}
		}()
		r.await(t, 3, "the next good version clears it", refuses())
	})
	t.Run("a partition by its name is not in effect", func(t *testing.T) {
		s, r, p := setUp(t)
		before := p.root("p/0004")
		s.set(t, inPartition(4, partitions, 1)[0], "two")
		p.nack(p.receive(), "1 refused", &configv1.Rejection{Resource: "p/0004", Field: "root", Reason: "it does not hold"})
		r.await(t, 4, "refused", func(cells map[string]cellState) bool {
			return refuses("p/0004")(cells) && string(cells["proxy-1"].GetAcceptedRoot()) == string(before.Bytes())
		})
	})
}
