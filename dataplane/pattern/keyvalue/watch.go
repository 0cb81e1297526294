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
// then the changes in order. A caller that is too slow is cut off with the version after which it can go on.
func (s *Store) Watch(ctx context.Context, f Following, deliver func([]driver.Event) error) error {
	if s.watcher == nil {
		return Missing(Watch)
	}
	violations := checkName("", driver.Name{ID: f.ID})
	if len(f.Prefix) > MaxKeyBytes {
		violations = append(violations, violation("prefix", "key.length", "is too long"))
	}
	if len(f.After) > MaxVersionBytes {
		violations = append(violations, violation("start_version", "version.length", "is too long"))
	}
	if violations != nil {
		return invalid(violations)
	}
	if err := notSent(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	b := &backlog{ready: make(chan struct{}, 1)}
	ended := make(chan error, 1)
	go func() {
		ended <- s.watcher.Watch(ctx, s.cfg.Space, driver.From{ID: f.ID, Prefix: f.Prefix, After: f.After}, b.add)
	}()
	last := f.After
	give := func() error {
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
				last = v
			}
		}
	}
	for {
		select {
		case <-b.ready:
			if err := give(); err != nil {
				cancel()
				<-ended
				return err
			}
		case err := <-ended:
			if errors.Is(err, errSlow) {
				return slow(last)
			}
			if giveErr := give(); giveErr != nil {
				return giveErr
			}
			return err
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
	if b.events = append(b.events, events...); len(b.events) > maxBacklog || b.bytes > maxBacklogBytes {
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
