package subscribe_test

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/prism-gateway/prism/dataplane/subscribe"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	"github.com/prism-gateway/prism/shared/ident"
)

// routes is what a table has lost, as Check tells it. Memory is damaged there as well, because nothing else reads it then.
type routes struct {
	mu     sync.Mutex
	lost   map[ident.Partition][]string
	damage func()
}

func (r *routes) damageBy(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.damage = f
}

func (r *routes) set(p ident.Partition, names ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lost = map[ident.Partition][]string{p: names}
}

func (r *routes) check(p ident.Partition, _ *subscribe.Partition) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.damage != nil {
		r.damage()
		r.damage = nil
	}
	return r.lost[p]
}

// inEffect is the last state that was given to Apply: the memory that a proxy serves from.
type inEffect struct{ subscribe.State }

func (e *inEffect) follow(cfg *subscribe.Config) {
	apply := cfg.Apply
	cfg.Apply = func(ctx context.Context, s subscribe.State) []*configv1.Rejection {
		e.State = s
		return apply(ctx, s)
	}
}

// watched starts a proxy that looks over what it has in effect: two namespaces in partition 1.
func watched(t *testing.T) (p *proxy, s *adsStream, r *routes, state *inEffect, drifted func(within time.Duration, want ...string)) {
	t.Helper()
	r, state = &routes{}, &inEffect{}
	p, cp, s := running(t, pair, func(cfg *subscribe.Config, _ *proxy) {
		cfg.Facts, cfg.Check = &facts{}, r.check
		state.follow(cfg)
	})
	reports := receive(t, cp.reports, "a report stream")
	reports.do <- answered(time.Second)
	synctest.Wait()
	drain := func(of *reportStream) (cells []*controlv1.CellReport) {
		for len(of.requests) > 0 {
			cells = append(cells, of.next(t).GetCells()...)
		}
		return cells
	}
	drain(reports)
	return p, s, r, state, func(within time.Duration, want ...string) {
		t.Helper()
		begun := time.Now()
		for {
			for _, c := range drain(reports) {
				if slices.Equal(c.GetDrifted(), want) {
					return
				}
			}
			if time.Since(begun) > within {
				t.Fatalf("after %v the fleet was not told that %q have drifted; the log: %s", within, want, p.log)
			}
			reports.do <- answered(time.Second)
			time.Sleep(time.Second)
			synctest.Wait()
		}
	}
}

var pair = members{nsIn(1, 0): "1", nsIn(1, 1): "1"}

func TestBytesThatHaveChangedAreFoundAndFetchedAnew(t *testing.T) {
	one := nsIn(1, 0)
	synctest.Test(t, func(t *testing.T) {
		p, s, r, state, drifted := watched(t)
		time.Sleep(time.Minute)
		s.none("nothing has drifted")
		p.idle("nothing has drifted")
		r.damageBy(func() { state.Partitions[1].Members[one].Data[0] ^= 1 })
		drifted(21*time.Second, one)
		if r := s.next(); !slices.Equal(r.GetResourceNamesUnsubscribe(), []string{"p/0001"}) {
			t.Fatalf("want everything of the partition asked for again, got %v", r)
		}
		if r := s.next(); !slices.Equal(r.GetResourceNamesSubscribe(), []string{"p/0001"}) {
			t.Fatalf("want everything of the partition asked for again, got %v", r)
		}
		s.ack(s.send(subscribe.NamespaceType, content("p/0001", nil, pair, backends)))
		has(t, p.state(), 1, pair, backends)
		drifted(11 * time.Second)
		time.Sleep(time.Minute)
		s.none("all is well again")
		p.idle("all is well again")
		p.stop()
		if n := strings.Count(p.log.String(), "not what its version stands for"); n != 1 || p.counter("drifted_total") != 1 {
			t.Errorf("logged %d times, counted %v times; want once", n, p.counter("drifted_total"))
		}
	})
}

func TestRoutesThatAreNotWhatTheBytesSayAreMadeAnew(t *testing.T) {
	one := nsIn(1, 0)
	synctest.Test(t, func(t *testing.T) {
		p, s, r, _, drifted := watched(t)
		r.set(1, one)
		drifted(11*time.Second, one)
		if again := p.state(); !slices.Equal(again.Changed, []ident.Partition{1}) {
			t.Fatalf("made anew: %v", again.Changed)
		}
		r.set(1)
		drifted(11 * time.Second)
		s.none("the bytes are intact")
	})
}

func TestSharedBytesThatHaveChangedAreFetchedAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, s, r, state, drifted := watched(t)
		const name = "backend/main"
		r.damageBy(func() { state.Shared[state.Partitions[1].SharedRoot][name].Data[0] ^= 1 })
		drifted(31*time.Second, name)
		for range 2 {
			if r := s.next(); r.GetTypeUrl() != subscribe.SharedType {
				t.Fatalf("want the shared set asked for again, got %v", r)
			}
		}
		s.ack(s.send(subscribe.SharedType, content("shared", nil, backends, nil)))
		drifted(21 * time.Second)
		s.ack(s.send(subscribe.NamespaceType, content("p/0001", pair, members{nsIn(1, 0): "2"}, backends)[:1], nsIn(1, 1)))
		s.ack(s.send(subscribe.NamespaceType, content("p/0001", members{nsIn(1, 0): "2"}, members{nsIn(1, 0): "2"}, backends)))
		has(t, p.last(), 1, members{nsIn(1, 0): "2"}, backends)
	})
}

// TestWhatHasDriftedIsNotClaimed has the stream end before what has drifted was sent again: the next one must not be told
// that it is here.
func TestWhatHasDriftedIsNotClaimed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, state := &routes{}, &inEffect{}
		_, cp, s := running(t, pair, func(cfg *subscribe.Config, _ *proxy) {
			cfg.Check = r.check
			state.follow(cfg)
		})
		r.damageBy(func() { state.Partitions[1].Members[nsIn(1, 0)].Data[0] ^= 1 })
		s.next() // it is asked for again
		s.fail(status.Error(codes.Unavailable, "going away"))
		s = cp.accept(t)
		for {
			request := s.next()
			if request.GetTypeUrl() != subscribe.NamespaceType {
				continue
			}
			if _, claimed := request.GetInitialResourceVersions()["p/0001"]; claimed || !slices.Contains(request.GetResourceNamesSubscribe(), "p/0001") {
				t.Fatalf("the next stream is asked with %v", request)
			}
			return
		}
	})
}
