package dataapi

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prism-gateway/prism/dataplane/routing"
	"github.com/prism-gateway/prism/dataplane/session"
)

// margin is kept from the caller's time, so that the answer that it ran out still reaches the caller.
const margin = 5 * time.Millisecond

// bounded is a call's context with the deadline that holds for the backend. The timer is made when somebody waits for
// the end: a call that no one has to wait for does not pay for it.
type bounded struct {
	context.Context // the caller's
	deadline        time.Time
	who             admitted

	inner atomic.Pointer[timed]
	mu    sync.Mutex // guards the making of inner
}

type timed struct {
	context.Context
	cancel context.CancelFunc
}

// boundedBy makes the context of a call on a route; its user calls end.
func boundedBy(ctx context.Context, r *routing.Route, who admitted, now time.Time) *bounded {
	b := &bounded{Context: ctx, who: who}
	longest := r.MaxDeadline
	if theirs, ok := ctx.Deadline(); ok {
		left := theirs.Sub(now)
		b.deadline = theirs.Add(-max(0, min(margin, left/2)))
	} else if r.DefaultDeadline > 0 && (longest == 0 || r.DefaultDeadline < longest) {
		longest = r.DefaultDeadline
	}
	if longest > 0 {
		if ours := now.Add(longest); b.deadline.IsZero() || ours.Before(b.deadline) {
			b.deadline = ours
		}
	}
	return b
}

// Deadline is when the backend's time is over.
func (b *bounded) Deadline() (time.Time, bool) {
	if b.deadline.IsZero() {
		return b.Context.Deadline()
	}
	return b.deadline, true
}

// Done is closed at the deadline or when the caller gives up.
func (b *bounded) Done() <-chan struct{} {
	if b.deadline.IsZero() {
		return b.Context.Done()
	}
	return b.timed().Done()
}

// Err says why Done is closed.
func (b *bounded) Err() error {
	if t := b.inner.Load(); t != nil {
		return t.Err()
	}
	if err := b.Context.Err(); err != nil {
		return err
	}
	if !b.deadline.IsZero() && !time.Now().Before(b.deadline) {
		return context.DeadlineExceeded
	}
	return nil
}

// Value finds the caller and its session. For the rest it looks into the timer's context when there is one: by it, contexts made of this one find their parent without
// a goroutine.
func (b *bounded) Value(key any) any {
	if _, ok := key.(session.Key); ok {
		return b.who.session
	}
	if _, ok := key.(callerKey); ok {
		return b.who.caller
	}
	if t := b.inner.Load(); t != nil {
		return t.Value(key)
	}
	return b.Context.Value(key)
}

func (b *bounded) timed() *timed {
	if t := b.inner.Load(); t != nil {
		return t
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if t := b.inner.Load(); t != nil {
		return t
	}
	t := &timed{}
	t.Context, t.cancel = context.WithDeadline(b.Context, b.deadline)
	b.inner.Store(t)
	return t
}

// end frees what was made.
func (b *bounded) end() {
	if t := b.inner.Load(); t != nil {
		t.cancel()
	}
}
