package conformance

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/shared/fault"
)

// follower is one Watch of a case.
type follower struct {
	t      *testing.T
	cancel context.CancelFunc
	events chan driver.Event
	ended  chan error
}

// follow watches the id a and returns when the watch is in place.
func (e *Env) follow(from driver.From) *follower {
	e.t.Helper()
	from.ID = []byte("a")
	ctx, cancel := context.WithCancel(context.Background())
	f := &follower{t: e.t, cancel: cancel, events: make(chan driver.Event, 10_000), ended: make(chan error, 1)}
	placed := make(chan struct{})
	var once sync.Once
	w := e.inst.(driver.Watcher)
	space := e.Space
	go func() {
		f.ended <- w.Watch(ctx, space, from, func(events []driver.Event) error {
			if len(events) == 0 {
				once.Do(func() { close(placed) })
			}
			for _, event := range events {
				f.events <- event
			}
			return nil
		})
	}()
	e.t.Cleanup(f.stop)
	select {
	case <-placed:
	case err := <-f.ended:
		close(f.ended) // stop waits for it
		e.t.Fatalf("the watch ended: %s", show(err))
	case <-time.After(30 * time.Second):
		e.t.Fatal("the watch is not in place")
	}
	return f
}

// stop ends the watch, which is no error.
func (f *follower) stop() {
	f.cancel()
	if err, ok := <-f.ended; ok {
		if err != nil {
			f.t.Errorf("the watch ended with %s", show(err))
		}
		close(f.ended)
	}
}

// next is the next event.
func (f *follower) next() driver.Event {
	f.t.Helper()
	select {
	case e := <-f.events:
		return e
	case <-time.After(30 * time.Second):
		f.t.Fatal("no event")
		return driver.Event{}
	}
}

// is demands the next event.
func (f *follower) is(kind driver.EventKind, key, value string) driver.Event {
	f.t.Helper()
	got := f.next()
	if got.Kind != kind || string(got.Item.Key) != key || (kind == driver.Changed && string(got.Item.Value) != value) ||
		string(got.Item.ID) != "a" || len(got.Item.Version) == 0 {
		f.t.Fatalf("got %d %q %q %q version %x, want %d %q %q", got.Kind, got.Item.ID, got.Item.Key, got.Item.Value, got.Item.Version, kind, key, value)
	}
	return got
}

func watchCases() []Case {
	return in("keyvalue.watch",
		Case{ID: "KC-06", Name: "watch_put_delete_expire", Needs: expires, Run: func(t *testing.T, e *Env) {
			e.must(put("a", "before", "x"))
			f := e.follow(driver.From{})
			done := e.must(put("a", "k", "one"))
			e.must(put("b", "k", "of another id"))
			e.must(put("a", "k", "two"))
			e.must(remove("a", "k"))
			e.must(remove("a", "k")) // nothing happens
			e.must(until(put("a", "short", "x"), e.Clock.Now().Add(time.Second)))
			if got := f.is(driver.Changed, "k", "one"); string(got.Item.Version) != string(done.Version) {
				t.Errorf("version %x, want %x", got.Item.Version, done.Version)
			}
			f.is(driver.Changed, "k", "two")
			f.is(driver.Deleted, "k", "")
			f.is(driver.Changed, "short", "x")
			e.Clock.Move(5 * time.Second)
			f.is(driver.Lapsed, "short", "")
			e.must(put("a", "end", "x"))
			f.is(driver.Changed, "end", "x")
		}},
		Case{ID: "KC-06", Name: "watch_prefix", Run: func(t *testing.T, e *Env) {
			f := e.follow(driver.From{Prefix: []byte("p.")})
			for _, key := range []string{"p", "p.1", "q", "p.\x00", "", "p.2"} {
				e.must(put("a", key, "x"))
			}
			f.is(driver.Changed, "p.1", "x")
			f.is(driver.Changed, "p.\x00", "x")
			f.is(driver.Changed, "p.2", "x")
		}},
		Case{ID: "KC-07", Name: "watch_resume_no_gap", Run: func(t *testing.T, e *Env) {
			f := e.follow(driver.From{})
			e.must(put("a", "k", "one"))
			e.must(remove("a", "k"))
			f.is(driver.Changed, "k", "one")
			last := f.is(driver.Deleted, "k", "")
			f.stop()
			e.must(put("a", "k", "two"))
			e.must(put("a", "j", "three"))
			f = e.follow(driver.From{After: last.Item.Version})
			f.is(driver.Changed, "k", "two")
			f.is(driver.Changed, "j", "three")
			e.must(put("a", "k", "four"))
			f.is(driver.Changed, "k", "four")
		}},
		Case{ID: "KC-07", Name: "watch_under_writers_misses_nothing", Run: func(t *testing.T, e *Env) {
			f := e.follow(driver.From{})
			var wait sync.WaitGroup
			const writers, each = 4, 50
			for n := range writers {
				wait.Go(func() {
					for i := range each {
						if _, err := e.Write(context.Background(), e.Space, put("a", fmt.Sprint(n), fmt.Sprint(i))); err != nil {
							t.Error(show(err))
						}
					}
				})
			}
			next := map[string]int{}
			for range writers * each {
				got := f.next()
				if want := fmt.Sprint(next[string(got.Item.Key)]); got.Kind != driver.Changed || string(got.Item.Value) != want {
					t.Fatalf("key %q: got %d %q, want %q", got.Item.Key, got.Kind, got.Item.Value, want)
				}
				next[string(got.Item.Key)]++
			}
			wait.Wait()
		}},
		Case{ID: "KC-08", Name: "watch_resync_announced", Run: func(t *testing.T, e *Env) {
			e.must(put("a", "k", "one"))
			f := e.follow(driver.From{After: []byte("no version of ours")})
			if got := f.next(); got.Kind != driver.Resync {
				t.Fatalf("got %+v, want a resync", got)
			}
			e.must(put("a", "k", "two"))
			f.is(driver.Changed, "k", "two")
		}},
		Case{ID: "KC-09", Name: "slow_watcher_is_cut_by_its_error", Run: func(t *testing.T, e *Env) {
			slow := fault.New(fault.Exhausted, fault.SlowConsumer, "slow")
			ended := make(chan error, 1)
			placed := make(chan struct{})
			go func() {
				ended <- e.inst.(driver.Watcher).Watch(context.Background(), e.Space, driver.From{ID: []byte("a")}, func(events []driver.Event) error {
					if len(events) == 0 {
						close(placed)
						return nil
					}
					return slow
				})
			}()
			<-placed
			e.must(put("a", "k", "x"))
			if err := <-ended; !fault.Is(err, fault.SlowConsumer) {
				t.Errorf("ended with %s", show(err))
			}
		}},
	)
}
