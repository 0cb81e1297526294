package subscribe_test

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/prism-gateway/prism/dataplane/subscribe"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/ident"
)

var (
	backends  = members{"backend/main": "redis"}
	backends2 = members{"backend/main": "redis", "backend/next": "sqlite"}
)

func TestFirstState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cp := newPeer(t, "")
		p := start(t, map[string]*peer{"a": cp}, func(_ *subscribe.Config, p *proxy) { p.proceed = make(chan struct{}) })
		s := cp.accept(t)
		first := s.next()
		if first.GetNode().GetId() != "proxy-1" || first.GetNode().GetUserAgentVersion() != "v1.2.3" ||
			first.GetNode().GetMetadata().GetFields()["prism.store_revision"].GetStringValue() != "0" ||
			!slices.Equal(first.GetResourceNamesSubscribe(), []string{"fleet"}) || len(first.GetInitialResourceVersions()) > 0 {
			t.Fatalf("the first request is %v", first)
		}
		second := s.next()
		if second.GetNode() != nil || !slices.Equal(second.GetResourceNamesSubscribe(), []string{"shared"}) {
			t.Fatalf("the second request is %v", second)
		}
		s.none("nothing is assigned yet")

		n := s.send(subscribe.AssignmentType, assignment(5, 1))
		if r := s.next(); !slices.Equal(r.GetResourceNamesSubscribe(), []string{"p/0001"}) || r.GetResponseNonce() != "" {
			t.Fatalf("the subscription is %v", r)
		}
		if st := p.state(); st.Epoch != 5 || len(st.Assignment.GetMembers()) != 2 || len(st.Partitions) != 0 {
			t.Fatalf("the state is %v", st)
		}
		s.none("the assignment is not in effect yet")
		p.proceed <- struct{}{}
		s.ack(n)

		s.ack(s.send(subscribe.SharedType, content("shared", nil, backends, nil)))
		want := members{nsIn(1, 0): "x", nsIn(1, 1): "y"}
		all := content("p/0001", nil, want, backends)
		s.ack(s.send(subscribe.NamespaceType, all[:1])) // a page
		p.idle("only a page has come")
		n = s.send(subscribe.NamespaceType, all[1:])
		st := p.state()
		has(t, st, 1, want, backends)
		if !slices.Equal(st.Changed, []ident.Partition{1}) || st.Partitions[1].Snapshot != 2 || st.Partitions[1].CommittedAt.Unix() != 1000 {
			t.Fatalf("the state is %v", st)
		}
		s.none("the partition is not in effect yet")
		if got := p.client.Status(); len(got.Missing) != 1 || len(got.Cells) != 0 || !got.Assigned || got.Endpoint != "passthrough:///a" {
			t.Fatalf("the status is %+v", got)
		}
		p.proceed <- struct{}{}
		s.ack(n)
		synctest.Wait()
		if got := p.client.Status(); len(got.Missing) != 0 || len(got.Cells) != 1 || got.Cells[0].Root != manifestOf("p/0001", want).Root() || got.Cells[0].Members != 2 {
			t.Fatalf("the status is %+v", got)
		}
	})
}

// running is a proxy that has partition 1 in effect.
func running(t *testing.T, now members, change func(*subscribe.Config, *proxy)) (*proxy, *peer, *adsStream) {
	t.Helper()
	cp := newPeer(t, "installation-1")
	p := start(t, map[string]*peer{"a": cp}, change)
	s := cp.accept(t)
	s.handshake([]ident.Partition{1}, backends)
	p.state()
	s.ack(s.send(subscribe.NamespaceType, content("p/0001", nil, now, backends)))
	has(t, p.state(), 1, now, backends)
	return p, cp, s
}

func TestChanges(t *testing.T) {
	one, two := nsIn(1, 0), nsIn(1, 1)
	synctest.Test(t, func(t *testing.T) {
		p, _, s := running(t, members{one: "1", two: "2"}, nil)
		step := func(to members, shared members, resources []*discoveryv3.Resource, removed ...string) {
			t.Helper()
			s.ack(s.send(subscribe.NamespaceType, resources, removed...))
			has(t, p.state(), 1, to, shared)
		}
		now := members{one: "1", two: "2"}
		next := members{one: "1b", two: "2"}
		step(next, backends, content("p/0001", now, next, backends))
		now, next = next, members{two: "2"}
		step(next, backends, content("p/0001", now, next, backends), one)
		step(members{one: "1"}, backends, content("p/0001", nil, members{one: "1"}, backends)) // full: two is gone
		step(members{}, backends, content("p/0001", members{one: "1"}, members{}, backends), one)
		s.ack(s.send(subscribe.NamespaceType, content("p/0001", members{}, members{}, backends)))
		p.idle("nothing is new")

		// A change of the shared set alone reaches the partition by its sentinel.
		s.ack(s.send(subscribe.SharedType, content("shared", backends, backends2, nil)))
		p.idle("no partition names the new set yet")
		step(members{}, backends2, content("p/0001", members{}, members{}, backends2))
		if p.counter("resyncs_total") != 0 || p.counter("nacks_total") != 0 {
			t.Fatal("a good change was refused")
		}
	})
}

func TestPartitionWaitsForItsSharedSet(t *testing.T) {
	one := nsIn(1, 0)
	synctest.Test(t, func(t *testing.T) {
		p, _, s := running(t, members{one: "1"}, nil)
		n := s.send(subscribe.NamespaceType, content("p/0001", members{one: "1"}, members{one: "2"}, backends2))
		p.idle("the shared set is not here")
		s.none("the partition is not in effect")
		m := s.send(subscribe.SharedType, content("shared", backends, backends2, nil))
		has(t, p.state(), 1, members{one: "2"}, backends2)
		s.ack(m)
		s.ack(n)

		// A set that does not come is asked for again, with the partition.
		n = s.send(subscribe.NamespaceType, content("p/0001", members{one: "2"}, members{one: "3"}, members{"backend/lost": "redis"}))
		if got := s.nack(n); len(got) != 1 || got[0].GetResource() != "p/0001" || got[0].GetField() != "shared_root" {
			t.Fatalf("refused %v", got)
		}
		for _, want := range []string{"p/0001", "shared"} {
			if r := s.next(); !slices.Equal(r.GetResourceNamesUnsubscribe(), []string{want}) {
				t.Fatalf("got %v", r)
			}
			if r := s.next(); !slices.Equal(r.GetResourceNamesSubscribe(), []string{want}) {
				t.Fatalf("got %v", r)
			}
		}
		s.ack(s.send(subscribe.SharedType, content("shared", nil, backends, nil)))
		s.ack(s.send(subscribe.NamespaceType, content("p/0001", nil, members{one: "3"}, backends)))
		has(t, p.state(), 1, members{one: "3"}, backends)
	})
}

func TestWhatDoesNotVerifyIsRefused(t *testing.T) {
	one, two := nsIn(1, 0), nsIn(1, 1)
	now, next := members{one: "1"}, members{one: "1b", two: "2"}
	for name, tc := range map[string]struct {
		damage   func([]*discoveryv3.Resource) []*discoveryv3.Resource // of the good change
		resource string                                                // that the refusal names
		field    string
		resync   bool
		applied  bool
	}{
		"bytes that are not of the version": {
			damage: func(r []*discoveryv3.Resource) []*discoveryv3.Resource {
				r[0].Resource.Value = append(r[0].Resource.Value, 0x18, 1)
				return r
			},
			resource: one, field: "version", resync: true,
		},
		"a resource of a type that is not known": {
			damage:   func(r []*discoveryv3.Resource) []*discoveryv3.Resource { r[1].Resource.TypeUrl += "2"; return r },
			resource: two, field: "resource.type_url", resync: true,
		},
		"a resource without a body": {
			damage:   func(r []*discoveryv3.Resource) []*discoveryv3.Resource { r[1].Resource = nil; return r },
			resource: two, field: "version", resync: true,
		},
		"a root of other members": {
			damage: func(r []*discoveryv3.Resource) []*discoveryv3.Resource {
				return append(r[:2], sentinel("p/0001", now, backends, false))
			},
			resource: "p/0001", field: "root", resync: true,
		},
		"a member that did not come": {
			damage:   func(r []*discoveryv3.Resource) []*discoveryv3.Resource { return r[1:] },
			resource: "p/0001", field: "root", resync: true,
		},
		"a sentinel that is no message": {
			damage:   func(r []*discoveryv3.Resource) []*discoveryv3.Resource { r[2].Resource.Value = []byte{0xff}; return r },
			resource: "p/0001", resync: true,
		},
		"a sentinel of another version than its root": {
			damage:   func(r []*discoveryv3.Resource) []*discoveryv3.Resource { r[2].Version = r[1].Version; return r },
			resource: "p/0001", field: "root", resync: true,
		},
		"a name that stands twice": {
			damage: func(r []*discoveryv3.Resource) []*discoveryv3.Resource {
				return append([]*discoveryv3.Resource{r[0], object("p/0001", one, "z")}, r[1:]...)
			},
			resource: one, field: "name", applied: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, _, s := running(t, now, nil)
				n := s.send(subscribe.NamespaceType, tc.damage(content("p/0001", now, next, backends)))
				var rejections []*configv1.Rejection
				if tc.resync {
					if r := s.next(); !slices.Equal(r.GetResourceNamesUnsubscribe(), []string{"p/0001"}) || r.GetResponseNonce() != "" {
						t.Fatalf("got %v", r)
					}
					if r := s.next(); !slices.Equal(r.GetResourceNamesSubscribe(), []string{"p/0001"}) || r.GetResponseNonce() != "" {
						t.Fatalf("got %v", r)
					}
				}
				if tc.applied {
					has(t, p.state(), 1, next, backends)
				}
				rejections = s.nack(n)
				if len(rejections) == 0 || rejections[0].GetResource() != tc.resource || rejections[0].GetField() != tc.field || rejections[0].GetReason() == "" {
					t.Fatalf("refused %v", rejections)
				}
				p.idle("the change is not to be had")
				if !tc.resync {
					return
				}
				if got := p.counter("resyncs_total"); got != 1 {
					t.Fatalf("%v resyncs", got)
				}
				// What was sent before the resync was heard is of no use, and no reason for another.
				s.ack(s.send(subscribe.NamespaceType, content("p/0001", next, members{one: "1c", two: "2"}, backends)))
				p.idle("a full answer is due")
				s.ack(s.send(subscribe.NamespaceType, content("p/0001", nil, next, backends)))
				has(t, p.state(), 1, next, backends)
				s.none("all is well")
			})
		})
	}
}

func TestAServerThatAlwaysLiesIsAskedLessAndLess(t *testing.T) {
	one := nsIn(1, 0)
	synctest.Test(t, func(t *testing.T) {
		p, _, s := running(t, members{one: "1"}, nil)
		begun := time.Now()
		asked := 0
		lie := func() {
			s.send(subscribe.NamespaceType, []*discoveryv3.Resource{object("p/0001", one, "2"), sentinel("p/0001", members{one: "3"}, backends, true)})
		}
		lie()
		for asked < 20 {
			if r := s.next(); len(r.GetResourceNamesSubscribe()) > 0 {
				asked++
				lie()
			}
		}
		if time.Since(begun) < 30*time.Second {
			t.Fatalf("asked %d times in %v", asked, time.Since(begun))
		}
		p.idle("nothing that verifies has come")
	})
}

func TestUnknownTypeIsRefusedAndTheStreamGoesOn(t *testing.T) {
	one := nsIn(1, 0)
	synctest.Test(t, func(t *testing.T) {
		p, _, s := running(t, members{one: "1"}, nil)
		if got := s.nack(s.send("type.googleapis.com/prism.config.v9.Novelty", nil)); got[0].GetField() != "type_url" {
			t.Fatalf("refused %v", got)
		}
		s.ack(s.send(subscribe.NamespaceType, content("p/0003", nil, members{nsIn(3, 0): "1"}, backends))) // not subscribed
		s.ack(s.send(subscribe.NamespaceType, nil, "ns/"+"nobody", nsIn(3, 1), "p/0001", "what"))
		p.idle("nothing of ours has changed")
		s.ack(s.send(subscribe.SharedType, []*discoveryv3.Resource{object("shared", "novelty/x", "?"), sentinel("shared", members{"backend/main": "redis", "novelty/x": "?"}, nil, false)}))
		s.ack(s.send(subscribe.NamespaceType, content("p/0001", members{one: "1"}, members{one: "2"}, backends)))
		has(t, p.state(), 1, members{one: "2"}, backends)
	})
}

func TestRefusedByApply(t *testing.T) {
	one, two := nsIn(1, 0), nsIn(1, 1)
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		bad := map[string]bool{"bad": true}
		refuse := func(st subscribe.State) (out []*configv1.Rejection) {
			for _, changed := range st.Changed {
				for name, value := range valuesOf(t, "p", st.Partitions[changed].Members) {
					if bad[value] {
						out = append(out, &configv1.Rejection{Resource: name, Field: "storage_prefix", Reason: "it is bad"})
					}
				}
			}
			return out
		}
		p, cp, s := running(t, members{one: "1"}, func(cfg *subscribe.Config, p *proxy) { cfg.StateDir, p.reject = dir, refuse })

		n := s.send(subscribe.NamespaceType, content("p/0001", members{one: "1"}, members{one: "bad", two: "bad"}, backends))
		has(t, p.state(), 1, members{one: "bad", two: "bad"}, backends)
		got := s.nack(n)
		if len(got) != 2 || got[0].GetField() != "storage_prefix" || got[0].GetVersion() != object("p/0001", got[0].GetResource(), "bad").Version {
			t.Fatalf("refused %v", got)
		}
		synctest.Wait()
		if cell := p.client.Status().Cells[0]; len(cell.Rejections) != 2 || cell.Root != manifestOf("p/0001", members{one: "bad", two: "bad"}).Root() || cell.Members != 1 {
			t.Fatalf("the cell is %+v", cell)
		}

		// Another member's change does not bring up the refused bytes again: the last good ones stand in their place.
		three := nsIn(1, 2)
		s.ack(s.send(subscribe.NamespaceType, content("p/0001", members{one: "bad", two: "bad"}, members{one: "bad", two: "bad", three: "3"}, backends)))
		has(t, p.state(), 1, members{one: "1", three: "3"}, backends)

		// Nor does a restart.
		p.stop()
		p = start(t, map[string]*peer{"a": cp}, func(cfg *subscribe.Config, p *proxy) { cfg.StateDir, p.reject = dir, refuse })
		has(t, p.state(), 1, members{one: "1", three: "3"}, backends)
		synctest.Wait()
		if cells := p.client.Status().Cells; len(cells) != 1 || len(cells[0].Rejections) != 2 {
			t.Fatalf("the cells are %+v", cells)
		}
		s = cp.accept(t)
		s.next()
		s.next()
		if r := s.next(); r.GetInitialResourceVersions()["p/0001"] != manifestOf("p/0001", members{one: "bad", two: "bad", three: "3"}).Root().String() {
			t.Fatalf("resumes with %v", r)
		}

		// Another shared set does, and so do other bytes.
		s.ack(s.send(subscribe.SharedType, content("shared", backends, backends2, nil)))
		bad = nil
		now := members{one: "bad", two: "bad", three: "3"}
		s.ack(s.send(subscribe.NamespaceType, content("p/0001", now, now, backends2)))
		has(t, p.state(), 1, now, backends2)
		bad = map[string]bool{"worse": true}
		next := members{one: "worse", two: "bad", three: "3"}
		if got := s.nack(s.send(subscribe.NamespaceType, content("p/0001", now, next, backends2))); len(got) != 1 || got[0].GetResource() != one {
			t.Fatalf("refused %v", got)
		}
		has(t, p.state(), 1, next, backends2)
		good := members{one: "good", two: "bad", three: "3"}
		s.ack(s.send(subscribe.NamespaceType, content("p/0001", next, good, backends2)))
		has(t, p.state(), 1, good, backends2)
		synctest.Wait()
		if cell := p.client.Status().Cells[0]; len(cell.Rejections) != 0 {
			t.Fatalf("the cell is %+v", cell)
		}
	})
}

func TestRefusedBackendIsToldWithThePartition(t *testing.T) {
	one := nsIn(1, 0)
	synctest.Test(t, func(t *testing.T) {
		p, _, s := running(t, members{one: "1"}, nil)
		p.reject = func(subscribe.State) []*configv1.Rejection {
			return []*configv1.Rejection{{Resource: "backend/main", Reason: "no driver"}}
		}
		if got := s.nack(s.send(subscribe.NamespaceType, content("p/0001", members{one: "1"}, members{one: "2"}, backends))); got[0].GetResource() != "backend/main" {
			t.Fatalf("refused %v", got)
		}
		synctest.Wait()
		if got := p.client.Status().Refused; len(got) != 1 {
			t.Fatalf("refused %v", got)
		}
	})
}

func TestChangesDuringApplyComeTogether(t *testing.T) {
	one := nsIn(1, 0)
	synctest.Test(t, func(t *testing.T) {
		p, _, s := running(t, members{one: "0"}, nil)
		p.proceed = make(chan struct{})
		var nonces []string
		for i := range 5 {
			from, to := members{one: string(rune('0' + i))}, members{one: string(rune('1' + i))}
			nonces = append(nonces, s.send(subscribe.NamespaceType, content("p/0001", from, to, backends)))
			synctest.Wait()
		}
		has(t, p.state(), 1, members{one: "1"}, backends)
		s.none("Apply runs")
		p.proceed <- struct{}{}
		has(t, p.state(), 1, members{one: "5"}, backends)
		s.ack(nonces[0])
		s.none("Apply runs")
		p.proceed <- struct{}{}
		for _, n := range nonces[1:] {
			s.ack(n)
		}
		p.idle("all is in effect")
	})
}

// While releases are under way partitions may resolve in different shared sets. Each is kept for as long as a partition
// refers to it, however many others come, and no longer.
func TestSeveralSharedSetsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old, next := members{"backend/main": "redis"}, members{"backend/main": "sqlite"}
		control := newPeer(t, "test")
		p := start(t, map[string]*peer{"one": control}, nil)
		s := control.accept(t)
		s.handshake([]ident.Partition{0, 1}, old)
		first, second := members{nsIn(0, 0): "a"}, members{nsIn(1, 0): "a"}
		s.ack(s.send(subscribe.NamespaceType, append(content("p/0000", nil, first, old), content("p/0001", nil, second, old)...)))
		has(t, drain(p), 1, second, old)

		// A wave reaches one of them.
		s.ack(s.send(subscribe.SharedType, content("shared", old, next, nil)))
		s.ack(s.send(subscribe.NamespaceType, content("p/0001", second, second, next)))
		state := drain(p)
		has(t, state, 0, first, old)
		has(t, state, 1, second, next)

		// Many sets later the other still resolves in the old one, and so does what comes to it now.
		have := next
		for i := range 20 {
			set := members{"backend/main": fmt.Sprint("other-", i)}
			s.ack(s.send(subscribe.SharedType, content("shared", have, set, nil)))
			have = set
		}
		third := members{nsIn(0, 0): "b"}
		s.ack(s.send(subscribe.NamespaceType, content("p/0000", first, third, old)))
		state = drain(p)
		has(t, state, 0, third, old)
		has(t, state, 1, second, next)
		if len(state.Shared) != 3 { // and the empty one
			t.Errorf("%d shared sets in the state", len(state.Shared))
		}
	})
}

// drain returns the last state that was given to Apply.
func drain(p *proxy) subscribe.State {
	p.t.Helper()
	s := p.state()
	for {
		synctest.Wait()
		select {
		case s = <-p.states:
		default:
			return s
		}
	}
}
