package credential

import (
	"errors"
	"sync/atomic"
	"time"
)

// Handle is one user's hold on the credential of a key. Its methods may be called concurrently.
type Handle struct {
	source *Source
	entry  *entry
	who    func() *Login
	seen   atomic.Pointer[view] // what Current returned last, or would have at first

	before, after *Handle // of the same entry; guarded by Source.mu, as what follows
	first         uint64  // the generation that it began with
	retired       uint64  // it uses this generation, and those before it, no more
	released      bool
}

// view is what the users of a key see. It is replaced when there is another generation, or none.
type view struct {
	credential atomic.Pointer[Credential] // nil: there is none. A renewal replaces it, with a later end
	until      atomic.Int64               // Unix nanoseconds: it is not used from then on; 0: no bound
	changed    chan struct{}              // closed when the view is replaced
}

// Current returns the newest credential that may be used; nil: there is none, and Err says why. It costs no lock.
func (h *Handle) Current() *Credential {
	v := h.entry.view.Load()
	h.seen.Store(v)
	return v.usable(h.source.cfg.Now())
}

func (v *view) usable(now time.Time) *Credential {
	if until := v.until.Load(); until != 0 && now.UnixNano() >= until {
		return nil
	}
	return v.credential.Load()
}

// ExpiresAt is when the credential that may be used now ends, unless it is renewed; zero: there is none, or it does not end.
func (h *Handle) ExpiresAt() time.Time {
	if c := h.entry.view.Load().usable(h.source.cfg.Now()); c != nil {
		return c.ExpiresAt
	}
	return time.Time{}
}

// Changed returns a channel that is closed when Current would return another generation than it did last (at first, than
// when the handle was acquired), or none, or one again.
func (h *Handle) Changed() <-chan struct{} {
	v := h.entry.view.Load()
	if h.seen.Load() != v {
		return closedChannel()
	}
	return v.changed
}

func closedChannel() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

// Err returns why there is no credential, as a fault; nil when there is one. It wraps ErrLogin when the caller's token is
// not taken any more.
func (h *Handle) Err() error {
	h.source.mu.Lock()
	defer h.source.mu.Unlock()
	e, now := h.entry, h.source.cfg.Now()
	switch {
	case e.view.Load().usable(now) != nil:
		return nil
	case e.err != nil:
		return unavailable(e.err, max(e.next.Sub(now), 50*time.Millisecond))
	}
	return unavailable(errors.New("the credential has ended and there is no other yet"), time.Second)
}

// Retire tells that this user has closed what it opened with a generation and with those before it. When all have, its
// lease is revoked, a short while later. That of the newest generation is not.
func (h *Handle) Retire(generation uint64) {
	s := h.source
	s.mu.Lock()
	defer s.mu.Unlock()
	if h.released {
		return
	}
	if h.entry.held != nil {
		generation = min(generation, h.entry.held.number-1)
	}
	h.entry.retireLocked(s, h, generation)
}

// Refused tells that the store did not take a generation's credential. If it is the newest it is replaced; if that happens
// again and again, more and more seldom.
func (h *Handle) Refused(generation uint64) {
	s := h.source
	s.mu.Lock()
	defer s.mu.Unlock()
	if !h.released {
		h.entry.refusedLocked(s, generation)
	}
}

// Release ends the hold. After the last one the credential's lease is revoked, and with the last credential of an owner
// its login. Releasing again does nothing.
func (h *Handle) Release() {
	s := h.source
	s.mu.Lock()
	defer s.mu.Unlock()
	if h.released {
		return
	}
	e := h.entry
	e.retireLocked(s, h, e.number)
	h.released = true
	if h.before != nil {
		h.before.after = h.after
	} else {
		e.handles = h.after
	}
	if h.after != nil {
		h.after.before = h.before
	}
	h.before, h.after = nil, nil
	if e.refs--; e.refs == 0 && e.waiting() == 0 && !e.gone {
		s.removeLocked(e)
	}
}
