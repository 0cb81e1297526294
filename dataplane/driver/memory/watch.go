package memory

import (
	"bytes"
	"context"
	"slices"
	"time"

	"github.com/prism-gateway/prism/dataplane/driver"
)

// The bounds of what is kept of an id's changes for watchers that come back.
const (
	maxLog      = 4096            // changes
	maxLogBytes = 8 << 20         // of items
	keepLog     = 5 * time.Minute // after the last watcher left
	lapseEvery  = 100 * time.Millisecond
)

// log is the newest changes of one id, oldest first, and who is told of the next.
type log struct {
	events   []driver.Event
	bytes    int
	watchers map[*watcher]struct{}
	left     time.Time // when the last watcher left
}

// watcher is one Watch. Its events wait under the shard's lock, so that they are in order.
type watcher struct {
	prefix  []byte
	waiting []driver.Event
	wake    chan struct{} // has one when events wait
}

// Watch follows an id. Its changes are kept from the first Watch on, so that one who comes back misses none.
func (i *Instance) Watch(ctx context.Context, space driver.Space, from driver.From, send func([]driver.Event) error) error {
	if err := i.usable(ctx); err != nil {
		return err
	}
	s, id := i.place(space, from.ID)
	w := &watcher{prefix: from.Prefix, wake: make(chan struct{}, 1)}
	s.join(id, w, from)
	defer func() { s.leave(id, w, i.now()) }()
	if err := send(nil); err != nil {
		return err
	}
	lapse := time.NewTicker(lapseEvery)
	defer lapse.Stop()
	for {
		s.mu.Lock()
		events := w.waiting
		w.waiting = nil
		s.mu.Unlock()
		if len(events) > 0 {
			if err := send(events); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-i.stop:
			return i.usable(ctx)
		case <-w.wake:
		case <-lapse.C: // an expiry is told soon, not when the sweeper comes
			s.mu.Lock()
			s.sweepLocked(i, id, i.now())
			s.mu.Unlock()
		}
	}
}

// join adds a watcher, with the changes that it missed.
func (s *shard) join(id string, w *watcher, from driver.From) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.logs[id]
	if l == nil {
		l = &log{watchers: map[*watcher]struct{}{}}
		s.logs[id] = l
	}
	l.watchers[w] = struct{}{}
	if len(from.After) == 0 {
		return
	}
	w.wake <- struct{}{}
	at := slices.IndexFunc(l.events, func(e driver.Event) bool { return bytes.Equal(e.Item.Version, from.After) })
	if at < 0 {
		w.waiting = []driver.Event{{Kind: driver.Resync}}
		return
	}
	for _, e := range l.events[at+1:] {
		w.take(e)
	}
}

func (s *shard) leave(id string, w *watcher, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.logs[id]; l != nil {
		delete(l.watchers, w)
		l.left = now
	}
}

// take adds a change, in a copy that is the watcher's, if it is one that it follows.
func (w *watcher) take(e driver.Event) {
	if !bytes.HasPrefix(e.Item.Key, w.prefix) {
		return
	}
	e.Item = *(&item{Item: e.Item}).copyFor(false)
	w.waiting = append(w.waiting, e)
}

// tellLocked tells the watchers of an id that it becomes the item of a key; nil removes what is there.
func (s *shard) tellLocked(i *Instance, id string, key []byte, it *item, now time.Time) {
	if s.logs[id] == nil {
		return
	}
	if r := s.ids[id]; r != nil {
		if at, ok := r.find(key); ok && driver.Expired(r.items[at].expire, now) {
			s.logLocked(i, id, driver.Lapsed, r.items[at])
		} else if ok && it == nil {
			s.logLocked(i, id, driver.Deleted, r.items[at])
		}
	}
	if it != nil {
		s.logLocked(i, id, driver.Changed, it)
	}
}

// logLocked keeps a change and gives it to the watchers. A removal has a version of its own.
func (s *shard) logLocked(i *Instance, id string, kind driver.EventKind, it *item) {
	l := s.logs[id]
	if l == nil {
		return
	}
	e := driver.Event{Kind: kind, Item: it.Item}
	if kind != driver.Changed {
		e.Item = driver.Item{Name: it.Name, Version: i.versions.Next()}
	}
	if it.large != nil {
		e.Item.Value = nil
	}
	l.events, l.bytes = append(l.events, e), l.bytes+len(e.Item.Value)+len(e.Item.Key)
	if len(l.events) > maxLog || l.bytes > maxLogBytes {
		old := 0 // a quarter at least, so that not every change moves all others
		for old < len(l.events)-1 && (old < len(l.events)/4 || l.bytes > maxLogBytes) {
			l.bytes -= len(l.events[old].Item.Value) + len(l.events[old].Item.Key)
			old++
		}
		l.events = slices.Delete(l.events, 0, old)
	}
	for w := range l.watchers {
		w.take(e)
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}
