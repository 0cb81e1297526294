package subscribe_test

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/prism-gateway/prism/dataplane/subscribe"
	"github.com/prism-gateway/prism/shared/ident"
)

// honest is a control plane that keeps to the contract: diffs from the roots that a stream has, in pages, one response in
// flight for each type. It cuts its first stream at one message.
type honest struct {
	order []string // of the types, when there is something to send of several
	cut   int      // the message, sent or received, at which the first stream ends; 0 for none

	mu       sync.Mutex
	tree     map[string]members // collections by name
	history  map[string]members // by collection and root
	changed  chan struct{}      // closed when the tree changes
	messages int                // of the first stream
	streams  int
	resent   int // resources sent in all
}

func newHonest(tree map[string]members, cut int, order []string) *honest {
	h := &honest{order: order, cut: cut, history: map[string]members{}, changed: make(chan struct{})}
	h.set(tree)
	return h
}

func (h *honest) set(tree map[string]members) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tree = tree
	for name, m := range tree {
		h.history[name+manifestOf(name, m).Root().String()] = m
	}
	close(h.changed)
	h.changed = make(chan struct{})
}

// conversation is what the control plane knows of one stream.
type conversation struct {
	*honest
	stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
	first  bool
	have   map[string]members // by subscribed collection; nil: nothing
	shared map[string]string  // the shared root last sent with a partition
	claim  string             // the shared root that the proxy came with
	asked  map[string]bool    // types whose first request is to be answered
	flying map[string]bool
	pages  map[string][]*response
	nonce  int
}

func (h *honest) serve(s discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	h.mu.Lock()
	h.streams++
	c := &conversation{
		honest: h, stream: s, first: h.streams == 1, have: map[string]members{}, shared: map[string]string{},
		asked: map[string]bool{}, flying: map[string]bool{}, pages: map[string][]*response{},
	}
	h.mu.Unlock()
	requests := make(chan *request)
	go func() {
		defer close(requests)
		for {
			r, err := s.Recv()
			if err != nil {
				return
			}
			select {
			case requests <- r:
			case <-s.Context().Done():
				return
			}
		}
	}()
	for {
		h.mu.Lock()
		changed := h.changed
		h.mu.Unlock()
		select {
		case r, ok := <-requests:
			if !ok {
				return io.EOF
			}
			if err := c.count(); err != nil {
				return err
			}
			c.take(r)
		case <-changed:
		case <-s.Context().Done():
			return nil
		}
		if err := c.push(); err != nil {
			return err
		}
	}
}

func (c *conversation) count() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.first {
		if c.messages++; c.messages == c.cut {
			return status.Error(codes.Unavailable, "cut")
		}
	}
	return nil
}

func (c *conversation) take(r *request) {
	if r.GetResponseNonce() != "" {
		c.flying[r.GetTypeUrl()] = false
	}
	for _, name := range r.GetResourceNamesUnsubscribe() {
		delete(c.have, name)
	}
	for _, name := range r.GetResourceNamesSubscribe() {
		c.have[name] = nil
		if version, ok := r.GetInitialResourceVersions()[name]; ok {
			root, shared, other := strings.Cut(version, "/")
			if r.GetTypeUrl() == subscribe.SharedType {
				c.claim = root
			}
			if c.shared[name] = shared; !other {
				c.shared[name] = c.claim
			}
			c.mu.Lock()
			c.have[name] = c.history[name+root]
			c.mu.Unlock()
		}
		c.asked[r.GetTypeUrl()] = true
	}
}

// push sends a page of each type that has one and nothing in flight.
func (c *conversation) push() error {
	for _, typeURL := range c.order {
		if c.flying[typeURL] {
			continue
		}
		if len(c.pages[typeURL]) == 0 {
			c.diff(typeURL)
		}
		if len(c.pages[typeURL]) == 0 && c.asked[typeURL] {
			c.pages[typeURL] = []*response{{}}
		}
		if len(c.pages[typeURL]) == 0 {
			continue
		}
		c.asked[typeURL] = false
		page := c.pages[typeURL][0]
		c.pages[typeURL] = c.pages[typeURL][1:]
		c.nonce++
		page.TypeUrl, page.Nonce = typeURL, fmt.Sprint(c.nonce)
		c.flying[typeURL] = true
		if err := c.count(); err != nil {
			return err
		}
		if err := c.stream.Send(page); err != nil {
			return err
		}
	}
	return nil
}

// diff makes the pages of a type, two resources each.
func (c *conversation) diff(typeURL string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if typeURL == subscribe.AssignmentType {
		if c.asked[typeURL] {
			c.pages[typeURL] = []*response{{Resources: assignment(1, 0, 1, 2, 3)}}
		}
		return
	}
	var resources []*discoveryv3.Resource
	var removed []string
	for _, name := range slices.Sorted(maps.Keys(c.have)) {
		if name == "fleet" || (name == "shared") != (typeURL == subscribe.SharedType) {
			continue
		}
		from, to, shared := c.have[name], c.tree[name], c.tree["shared"]
		root := manifestOf("shared", shared).Root().String()
		if from != nil && maps.Equal(from, to) && (name == "shared" || c.shared[name] == root) {
			continue
		}
		for member := range from {
			if _, ok := to[member]; !ok {
				removed = append(removed, member)
			}
		}
		if name == "shared" {
			shared = nil
		}
		resources = append(resources, content(name, from, to, shared)...)
		c.have[name], c.shared[name] = to, root
	}
	c.resent += len(resources)
	for page := range slices.Chunk(resources, 2) {
		c.pages[typeURL] = append(c.pages[typeURL], &response{Resources: page, RemovedResources: removed})
		removed = nil
	}
}

// trees are two states of an installation between which every kind of change lies.
func trees() (a, b map[string]members) {
	a, b = map[string]members{"shared": backends}, map[string]members{"shared": backends2}
	for p := range ident.Partition(partitions) {
		a[p.String()] = members{nsIn(p, 0): "1", nsIn(p, 1): "1", nsIn(p, 2): "1"}
		b[p.String()] = members{nsIn(p, 0): "1", nsIn(p, 1): "2", nsIn(p, 3): "1"}
	}
	b["p/0003"] = members{}
	return a, b
}

func (p *proxy) last() (s subscribe.State) {
	p.t.Helper()
	s = p.state()
	for len(p.states) > 0 {
		s = p.state()
	}
	return s
}

func TestCutAtEveryMessage(t *testing.T) {
	orders := [][]string{
		{subscribe.AssignmentType, subscribe.SharedType, subscribe.NamespaceType},
		{subscribe.NamespaceType, subscribe.SharedType, subscribe.AssignmentType},
		{subscribe.SharedType, subscribe.NamespaceType, subscribe.AssignmentType},
	}
	a, b := trees()
	for i, order := range orders {
		total := 0
		for cut := 0; cut <= total; cut++ {
			t.Run(fmt.Sprintf("order %d, message %d", i, cut), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					h := newHonest(a, cut, order)
					cp := newPeer(t, "")
					cp.serve = h.serve
					p := start(t, map[string]*peer{"a": cp}, nil)
					time.Sleep(time.Second)
					h.set(b)
					time.Sleep(time.Minute)
					s := p.last()
					for q := range ident.Partition(partitions) {
						has(t, s, q, b[q.String()], backends2)
					}
					if p.counter("resyncs_total") != 0 || p.counter("nacks_total") != 0 || p.counter("timeouts_total") != 0 {
						t.Fatalf("%v resyncs, %v refusals, %v timeouts", p.counter("resyncs_total"), p.counter("nacks_total"), p.counter("timeouts_total"))
					}
					p.stop()
					h.mu.Lock()
					defer h.mu.Unlock()
					if cut == 0 {
						total = h.messages
					} else if h.streams < 2 {
						t.Fatal("the stream was not cut")
					}
				})
			})
		}
		if total < 20 {
			t.Fatalf("only %d messages", total)
		}
	}
}

func TestResumeSendsNothingAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _ := trees()
		dir := t.TempDir()
		h := newHonest(a, 0, []string{subscribe.AssignmentType, subscribe.SharedType, subscribe.NamespaceType})
		cp := newPeer(t, "")
		cp.serve = h.serve
		p := start(t, map[string]*peer{"a": cp}, func(c *subscribe.Config, _ *proxy) { c.StateDir = dir })
		time.Sleep(time.Second)
		p.stop()
		p = start(t, map[string]*peer{"a": cp}, func(c *subscribe.Config, _ *proxy) { c.StateDir = dir })
		s := p.state()
		for q := range ident.Partition(partitions) {
			has(t, s, q, a[q.String()], backends)
		}
		h.mu.Lock()
		h.resent = 0
		h.mu.Unlock()
		time.Sleep(time.Minute)
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.resent != 0 {
			t.Fatalf("%d resources sent again", h.resent)
		}
		if p.client.Staleness() != 0 {
			t.Fatal("not connected")
		}
	})
}
