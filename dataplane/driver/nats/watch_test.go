package nats_test

import (
	"context"
	"testing"
	"time"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/dataplane/driver/conformance"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/testserver/natsserver"
)

// follow watches the id a until stop is called, which the test's end does too.
func follow(t *testing.T, s store, space driver.Space, after []byte) (events chan driver.Event, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	events = make(chan driver.Event, 1000)
	placed, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		if err := s.Watch(ctx, space, driver.From{ID: []byte("a"), After: after}, func(sent []driver.Event) error {
			if len(sent) == 0 {
				close(placed)
			}
			for _, e := range sent {
				events <- e
			}
			return nil
		}); err != nil {
			t.Errorf("the watch ended with %v", err)
		}
	}()
	stop = func() {
		cancel()
		<-ended
	}
	t.Cleanup(stop)
	select {
	case <-placed:
	case <-ended:
		t.FailNow()
	}
	return events, stop
}

// next demands the next event.
func next(t *testing.T, events chan driver.Event, kind driver.EventKind, key, value string) driver.Event {
	t.Helper()
	select {
	case e := <-events:
		if e.Kind != kind || string(e.Item.Key) != key || string(e.Item.Value) != value {
			t.Fatalf("got %d %q %q, want %d %q %q", e.Kind, e.Item.Key, e.Item.Value, kind, key, value)
		}
		return e
	case <-time.After(time.Minute):
		t.Fatalf("no event, want %d %q %q", kind, key, value)
		return driver.Event{}
	}
}

// TestWatchOverARestart goes on when the server is back, and misses nothing that was changed meanwhile.
func TestWatchOverARestart(t *testing.T) {
	server := natsserver.Start(t, natsserver.Options{})
	config := driver.Config{Endpoints: []string{server.Addr()}}
	s, other := open(t, config), open(t, config)
	space := conformance.NewSpace()
	mustWrite(t, s, space, put("a", "before", "v"))
	events, _ := follow(t, s, space, nil)
	mustWrite(t, s, space, put("a", "k", "one"))
	next(t, events, driver.Changed, "k", "one")
	server.Kill()
	server.Restart(t)
	mustWrite(t, other, space, put("a", "k", "two"))
	mustWrite(t, other, space, driver.Write{Op: driver.Delete, Name: put("a", "before", "").Name})
	next(t, events, driver.Changed, "k", "two")
	next(t, events, driver.Deleted, "before", "")
	mustWrite(t, other, space, put("a", "k", "three"))
	next(t, events, driver.Changed, "k", "three")
}

// TestWatchThatComesBack is told when it missed a change that another has replaced, and goes on from then.
func TestWatchThatComesBack(t *testing.T) {
	server := natsserver.Start(t, natsserver.Options{})
	s := open(t, driver.Config{Endpoints: []string{server.Addr()}})
	space := conformance.NewSpace()
	after := mustWrite(t, s, space, put("a", "k", "one")).Version
	mustWrite(t, s, space, put("a", "k", "two"))
	mustWrite(t, s, space, put("a", "k", "three"))
	events, stop := follow(t, s, space, after)
	next(t, events, driver.Resync, "", "")
	last := next(t, events, driver.Changed, "k", "three")
	mustWrite(t, s, space, put("a", "j", "v"))
	next(t, events, driver.Changed, "j", "v")
	stop()
	events, _ = follow(t, s, space, last.Item.Version)
	next(t, events, driver.Changed, "j", "v")
}

// TestWatchOfExpiries tells of an item whose time ran out once, in whatever way that is noticed.
func TestWatchOfExpiries(t *testing.T) {
	server := natsserver.Start(t, natsserver.Options{})
	clock := &clock{}
	config := driver.Config{Endpoints: []string{server.Addr()}, Now: clock.Now}
	s, other := open(t, config), open(t, config)
	space := conformance.NewSpace()
	expiring := func(key, value string) driver.Write {
		w := put("a", key, value)
		w.ExpireAt = clock.Now().Add(time.Second)
		return w
	}
	mustWrite(t, s, space, expiring("before", "v"))
	events, stop := follow(t, s, space, nil)
	others, _ := follow(t, other, space, nil)
	mustWrite(t, s, space, expiring("k", "one"))
	clock.Move(2 * time.Second)
	for _, events := range []chan driver.Event{events, others} {
		next(t, events, driver.Changed, "k", "one")
		lapsed := map[string]bool{string((<-events).Item.Key): true, string((<-events).Item.Key): true}
		if !lapsed["k"] || !lapsed["before"] {
			t.Errorf("got %v", lapsed)
		}
	}
	// One that was not there when it happened learns of it when it comes back.
	last := mustWrite(t, s, space, expiring("late", "v"))
	next(t, events, driver.Changed, "late", "v")
	stop()
	clock.Move(2 * time.Second)
	events, _ = follow(t, s, space, last.Version)
	next(t, events, driver.Lapsed, "late", "")
	next(t, others, driver.Changed, "late", "v")
	next(t, others, driver.Lapsed, "late", "")
	mustWrite(t, s, space, put("a", "late", "again"))
	next(t, events, driver.Changed, "late", "again")
	next(t, others, driver.Changed, "late", "again")
}

// TestWatchThatIsClosed ends when its instance does.
func TestWatchThatIsClosed(t *testing.T) {
	server := natsserver.Start(t, natsserver.Options{})
	s := open(t, driver.Config{Endpoints: []string{server.Addr()}})
	placed, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- s.Watch(context.Background(), "s", driver.From{ID: []byte("a")}, func([]driver.Event) error {
			close(placed)
			return nil
		})
	}()
	<-placed
	s.Close()
	if err := <-ended; !fault.Is(err, fault.Draining) {
		t.Errorf("got %v", err)
	}
}

// TestWatchThatIsNotAllowed says so and does not wait in vain.
func TestWatchThatIsNotAllowed(t *testing.T) {
	server := natsserver.Start(t, natsserver.Options{Config: `authorization { users: [ {user: "prism", permissions: { subscribe: "_INBOX.>" }} ] }`})
	s := open(t, driver.Config{Endpoints: []string{server.Addr()}, Username: "prism"})
	err := s.Watch(t.Context(), "s", driver.From{ID: []byte("a")}, func([]driver.Event) error {
		t.Error("it is in place")
		return context.Canceled
	})
	if err := is(err, fault.Unavailable, fault.BackendDown, fault.NotApplied); err != nil {
		t.Error(err)
	}
}

// TestWatchOfAStreamThatIsMadeAnew is told that all it knew may be gone, and follows the new one.
func TestWatchOfAStreamThatIsMadeAnew(t *testing.T) {
	server := natsserver.Start(t, natsserver.Options{})
	s := open(t, driver.Config{Endpoints: []string{server.Addr()}})
	space := conformance.NewSpace()
	mustWrite(t, s, space, put("a", "other", "v"))
	mustWrite(t, s, space, put("a", "k", "one"))
	events, _ := follow(t, s, space, nil)
	if err := raw(t, server).DeleteStream(t.Context(), "prism-kv"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(t.Context(), space, put("a", "k", "").Name, false); !fault.Is(err, fault.BackendDown) {
		t.Errorf("got %v", err)
	}
	mustWrite(t, s, space, put("a", "k", "of the new stream"))
	if e := <-events; e.Kind != driver.Resync {
		t.Errorf("got %d %q, want a resync", e.Kind, e.Item.Value)
	}
	mustWrite(t, s, space, put("a", "k", "two"))
	next(t, events, driver.Changed, "k", "two")
}
