package keyvalue

import (
	"context"
	"encoding/base64"
	"errors"
	"sync"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/shared/fault"
)

// The bounds of what waits for a slow watcher.
const (
	maxBacklog      = 1024    // events
	maxBacklogBytes = 4 << 20 // of items
	maxDelivered    = 256     // events in one delivery
)

// Following says what to follow.
type Following struct {
	ID     []byte
	Prefix []byte
	After  []byte // the version of the last event seen; empty: from now on
}

// Watch follows the changes of an id until ctx ends or deliver fails. It delivers nothing once, when it is in place, and
// then the changes in order, one delivery after the other. A caller that is too slow is cut off with the version after
// which it can go on. last is the version of the last event that was delivered, or After. It does not wait for a delivery
// that hangs: that one may end after Watch has.
func (s *Store) Watch(ctx context.Context, f Following, deliver func([]driver.Event) error) (last []byte, err error) {
	if s.watcher == nil {
		return f.After, Missing(Watch)
	}
	violations := checkName("", driver.Name{ID: f.ID})
	if len(f.Prefix) > MaxKeyBytes {
		violations = append(violations, violation("prefix", "key.length", "is too long"))
	}
	if len(f.After) > MaxVersionBytes {
		violations = append(violations, violation("start_version", "version.length", "is too long"))
	}
	if violations != nil {
		return f.After, invalid(violations)
	}
	if err := notSent(ctx); err != nil {
		return f.After, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	b := &backlog{ready: make(chan struct{}, 1), last: f.After, resumes: len(f.After) > 0}
	ended := make(chan error, 1)
	go func() {
		ended <- s.watcher.Watch(ctx, s.cfg.Space, driver.From{ID: f.ID, Prefix: f.Prefix, After: f.After}, b.add)
	}()
	var delivering chan error // nil while nothing is delivered
	ready := b.ready          // nil while something is
	for {
		select {
		case <-ready:
			delivering, ready = make(chan error, 1), nil
			go func(done chan error) { done <- b.give(deliver) }(delivering)
		case err := <-delivering:
			delivering, ready = nil, b.ready
			if err != nil {
				cancel()
				<-ended
				return b.delivered(), err
			}
		case err := <-ended:
			if errors.Is(err, errSlow) {
				last := b.delivered()
				return last, slow(last)
			}
			if delivering != nil && ctx.Err() == nil {
				if failed := <-delivering; failed != nil {
					return b.delivered(), failed
				}
			}
			if ctx.Err() == nil {
				if failed := b.give(deliver); failed != nil {
					return b.delivered(), failed
				}
			}
			return b.delivered(), err
		}
	}
}

// slow is the fault of a caller that was cut off.
func slow(last []byte) error {
	f := fault.New(fault.Exhausted, fault.SlowConsumer, "the caller is too slow for the changes; read again what matters, or go on after the last event")
	if len(last) > 0 {
		f = f.With("start_version", base64.StdEncoding.EncodeToString(last))
	}
	return f
}

var errSlow = errors.New("more events wait than may")

// backlog is the events that wait for the caller.
type backlog struct {
	ready chan struct{} // has one when there is something

	mu     sync.Mutex // guards what follows
	placed bool       // the driver said that it is in place, and the caller was not told
	events []driver.Event
	bytes  int
	last   []byte // the version of the last event that was delivered
	// What the driver sent first may be all that a caller who came back has missed: that much more may wait.
	resumes               bool // the first are still to come
	moreEvents, moreBytes int
}

// give delivers what waits.
func (b *backlog) give(deliver func([]driver.Event) error) error {
	for {
		events, placed := b.take()
		if placed {
			if err := deliver(nil); err != nil {
				return err
			}
		}
		if len(events) == 0 {
			return nil
		}
		if err := deliver(events); err != nil {
			return err
		}
		if v := events[len(events)-1].Item.Version; len(v) > 0 { // a resync has none: what came before is where to go on
			b.mu.Lock()
			b.last = v
			b.mu.Unlock()
		}
	}
}

// delivered is the version of the last event that was delivered.
func (b *backlog) delivered() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.last
}

// add takes events of the driver.
func (b *backlog) add(events []driver.Event) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(events) == 0 {
		b.placed = true
	}
	for i := range events {
		b.bytes += sizeOf(&events[i].Item)
	}
	if len(events) > 0 && b.resumes {
		b.resumes, b.moreEvents, b.moreBytes = false, len(events), b.bytes
	}
	if b.events = append(b.events, events...); len(b.events) > maxBacklog+b.moreEvents || b.bytes > maxBacklogBytes+b.moreBytes {
		return errSlow
	}
	select {
	case b.ready <- struct{}{}:
	default:
	}
	return nil
}

// take gives the next events, at most as many as one delivery carries, and whether to tell that the watch is in place.
func (b *backlog) take() (events []driver.Event, placed bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	placed, b.placed = b.placed, false
	n, size := 0, 0
	for n < len(b.events) && n < maxDelivered && (n == 0 || size < DefaultPageBytes) {
		size += sizeOf(&b.events[n].Item)
		n++
	}
	if events, b.events = b.events[:n:n], b.events[n:]; len(b.events) == 0 {
		b.events = nil
	}
	b.bytes -= size
	return events, placed
}
