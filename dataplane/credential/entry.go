package credential

import (
	"bytes"
	"errors"
	"maps"
	"sync/atomic"
	"time"
)

// shortened is the share of what was asked for below which a renewal means that the end is near: what was renewed is
// replaced at once.
const shortened = 0.7

// entry is what is held of one key. Source.mu guards it.
type entry struct {
	timer
	view atomic.Pointer[view]

	key  Key
	sup  *supplier
	slot *login // nil: the provider wants none

	handles *Handle // the newest first
	refs    int     // how many
	wanted  *demand // nil: nobody waits, nor did lately
	gone    bool    // not in Source.entries any more

	before, after *entry // of the same login

	number uint64        // of the last generation
	held   *generation   // nil: none
	old    []*generation // replaced, with leases that have not been revoked

	busy        bool      // a job for it is queued or under way
	next        time.Time // when to ask the provider again
	mustReplace bool      // by another generation, rather than renewed
	checked     bool      // after a refusal its login was asked for, and is good
	failures    int       // in a row
	err         error     // of the last failure; nil after a success
	refusals    int       // by the store, one soon after the other
}

// demand is who waits for an entry's credential.
type demand struct {
	waiting int           // calls of Acquire
	answer  chan struct{} // closed when they can go on; nil: not yet asked for
	who     func() *Login // the last one's
	until   time.Time     // how long the entry is kept when they have given up
}

// waiting is how many calls of Acquire wait.
func (e *entry) waiting() int {
	if e.wanted == nil {
		return 0
	}
	return e.wanted.waiting
}

// abandoned reports whether nobody holds the entry, waits for it, or may come again.
func (e *entry) abandoned(now time.Time) bool {
	return e.refs == 0 && e.waiting() == 0 && (e.wanted == nil || !now.Before(e.wanted.until))
}

// generation is one credential of an entry.
type generation struct {
	number  uint64
	lease   Lease
	tok     *token // by which it was fetched; nil: none
	journal uint64
	life    time.Duration // as last given
	asked   time.Duration // as first given, which renewals ask for
	ends    time.Time     // zero: never
	real    bool          // at the end it is over, and not only to be read again

	users    int       // handles that have not retired it; counted when it is replaced
	revokeAt time.Time // when users is 0
}

// handleLocked makes a handle.
func (e *entry) handleLocked(s *Source, who func() *Login) *Handle {
	h := &Handle{source: s, entry: e, who: who, after: e.handles}
	h.seen.Store(e.view.Load())
	if e.held != nil {
		h.first = e.held.number
	}
	if e.handles != nil {
		e.handles.before = h
	}
	e.handles = h
	e.refs++
	return h
}

// publishLocked shows all users another credential, or none.
func (e *entry) publishLocked(c *Credential, until time.Time) {
	v := &view{changed: make(chan struct{})}
	v.credential.Store(c)
	v.setUntil(until)
	close(e.view.Swap(v).changed)
	e.answerLocked()
}

// answerLocked has those who wait look again.
func (e *entry) answerLocked() {
	if e.wanted != nil && e.wanted.answer != nil {
		close(e.wanted.answer)
		e.wanted.answer = nil
	}
}

func (v *view) setUntil(until time.Time) {
	if until.IsZero() {
		v.until.Store(0)
	} else {
		v.until.Store(until.UnixNano())
	}
}

// limitLocked is until when what is held may be used: the margin before its end, and the grace longer unless the provider
// said no.
func (e *entry) limitLocked(s *Source) time.Time {
	g := e.held
	if g == nil || g.ends.IsZero() {
		return time.Time{}
	}
	limit := g.ends
	if g.real {
		limit = limit.Add(-min(s.cfg.Policy.Margin, g.life/3))
	}
	if !errors.Is(e.err, ErrRefused) {
		limit = limit.Add(s.cfg.Policy.Grace)
	}
	if g.real {
		limit = earliest(limit, g.ends)
	}
	if g.tok != nil {
		limit = earliest(limit, g.tok.expires)
	}
	return limit
}

// dueLocked is called when the entry's time has come.
func (e *entry) dueLocked(s *Source, _ time.Time) { s.lookLocked(e) }

// lookLocked does for an entry what is to be done by now, and sets when to look again.
func (s *Source) lookLocked(e *entry) {
	now := s.cfg.Now()
	if e.gone {
		return
	}
	if e.abandoned(now) {
		s.removeLocked(e)
		return
	}
	if limit := e.limitLocked(s); !limit.IsZero() && !now.Before(limit) {
		s.cfg.Logger.Warn("a credential has ended and there is no other", keyName, e.key.Provider, keyResource, e.key.Path)
		s.replaceLocked(e, nil, nil, now)
		e.next = earliest(e.next, now)
	}
	again := s.lookOldLocked(e, now)
	if limit := e.limitLocked(s); e.held != nil {
		e.view.Load().setUntil(limit)
		again = earliest(again, limit)
	}
	if waiting := e.waiting(); e.refs == 0 && waiting == 0 {
		again = earliest(again, e.wanted.until)
	} else if waiting == 0 {
		e.wanted = nil
	}
	if wanted := e.held != nil || e.refs > 0 || e.waiting() > 0; wanted && !e.busy && !e.nextNever() {
		if now.Before(e.next) {
			again = earliest(again, e.next)
		} else {
			s.askLocked(e)
		}
	}
	s.armLocked(&e.timer, again)
}

// nextNever reports whether what is held does not end and need not be replaced.
func (e *entry) nextNever() bool { return e.held != nil && e.next.IsZero() }

// askLocked queues what the entry needs from its provider.
func (s *Source) askLocked(e *entry) {
	e.busy = true
	switch g := e.held; {
	case g == nil && e.number == 0:
		s.enqueueLocked(e.sup, making, job{op: opFetch, entry: e})
	case g == nil || e.mustReplace || g.lease.ID.IsZero() || !g.lease.Renewable:
		s.enqueueLocked(e.sup, rotating, job{op: opFetch, entry: e})
	default:
		s.enqueueLocked(e.sup, renewing, job{op: opRenew, entry: e})
	}
}

// lookOldLocked revokes the replaced generations that nobody uses, and returns when to look again.
func (s *Source) lookOldLocked(e *entry, now time.Time) time.Time {
	var again time.Time
	kept := e.old[:0]
	for _, g := range e.old {
		due := g.ends // what has ended by itself is let go, whoever uses it
		if g.users == 0 {
			due = g.revokeAt
		}
		if !due.IsZero() && !now.Before(due) {
			s.endGenerationLocked(e.sup, g)
			continue
		}
		kept = append(kept, g)
		again = earliest(again, due)
	}
	clear(e.old[len(kept):])
	e.old = kept
	return again
}

// replaceLocked puts another generation in the place of the held one; nil: none.
func (s *Source) replaceLocked(e *entry, g *generation, c *Credential, now time.Time) {
	if was := e.held; was != nil {
		e.sup.held--
		if was.lease.ID.IsZero() {
			s.endGenerationLocked(e.sup, was)
		} else {
			was.users, was.revokeAt = e.refs, now
			e.old = append(e.old, was)
		}
	}
	e.held = g
	if g != nil {
		e.sup.held++
	}
	e.publishLocked(c, e.limitLocked(s))
}

// retireLocked takes a handle out of the users of generations.
func (e *entry) retireLocked(s *Source, h *Handle, generation uint64) {
	if generation <= h.retired {
		return
	}
	now := s.cfg.Now()
	for _, g := range e.old {
		if g.number <= generation && g.number > h.retired && g.number >= h.first {
			if g.users--; g.users == 0 {
				g.revokeAt = now.Add(s.cfg.Policy.Linger)
			}
		}
	}
	h.retired = generation
	s.lookLocked(e)
}

// refusedLocked replaces a generation that the store does not take.
func (e *entry) refusedLocked(s *Source, generation uint64) {
	if e.held == nil || e.held.number != generation || e.mustReplace {
		return
	}
	now := s.cfg.Now()
	if now.Sub(e.view.Load().credential.Load().IssuedAt) > time.Minute {
		e.refusals = 0
	}
	e.refusals++
	wait := time.Duration(0)
	if e.refusals > 1 {
		wait = backOff(e.refusals-1, time.Second, time.Minute)
	}
	s.metrics.refusals.WithLabelValues(e.key.Provider).Inc()
	s.cfg.Logger.Warn("a store does not take its credential", keyName, e.key.Provider, keyResource, e.key.Path, keyCount, e.refusals)
	e.mustReplace, e.next = true, now.Add(wait)
	s.lookLocked(e)
}

// failedLocked takes note that the provider did not do what the entry needs.
func (s *Source) failedLocked(e *entry, err error) {
	now := s.cfg.Now()
	e.failures++
	e.err = err
	if refused := errors.Is(err, ErrRefused); refused || errors.Is(err, ErrNoIdentity) {
		e.next = now.Add(backOff(e.failures, time.Second, time.Minute))
		s.cfg.Logger.Warn("a credential is refused", keyName, e.key.Provider, keyResource, e.key.Path, keyError, err)
	} else {
		e.next = now.Add(backOff(e.failures, 200*time.Millisecond, 30*time.Second))
	}
	if e.held == nil && !errors.Is(err, ErrThrottled) {
		if e.wanted != nil {
			e.wanted.until = e.next.Add(unclaimed)
		}
		e.answerLocked()
	}
	s.lookLocked(e)
}

// fetchedLocked takes a credential.
func (s *Source) fetchedLocked(e *entry, issued Issued, tok *token, journal uint64) {
	now := s.cfg.Now()
	g := &generation{lease: issued.Lease, tok: tok, journal: journal, life: issued.Lease.TTL}
	c := issued.Credential
	c.IssuedAt = now
	switch leased := !g.lease.ID.IsZero() || g.life > 0; {
	case leased:
		g.real = true
		if g.life > 0 {
			g.ends = now.Add(g.life)
			c.ExpiresAt = g.ends
		}
	default:
		g.tok = nil // it does not end with the login
		g.life = e.sup.cacheTTL
		if !c.ExpiresAt.IsZero() && c.ExpiresAt.Sub(now) < g.life {
			g.life, g.real = c.ExpiresAt.Sub(now), true
		}
		g.ends = now.Add(g.life)
	}
	if g.tok != nil {
		g.tok.uses++
	}
	if e.gone {
		s.endGenerationLocked(e.sup, g)
		return
	}
	g.asked = g.life
	e.failures, e.err, e.mustReplace, e.checked = 0, nil, false, false
	e.next = time.Time{}
	if g.life > 0 {
		e.next = now.Add(halfway(g.life, e.sup.crowded()))
		s.metrics.ttl.WithLabelValues(e.key.Provider).Observe(g.life.Seconds())
	}
	if was := e.held; was != nil && was.lease.ID.IsZero() && g.lease.ID.IsZero() && same(e.view.Load().credential.Load(), &c) {
		g.number = was.number
		c.Generation = was.number
		e.held = g
		e.view.Load().credential.Store(&c)
		e.answerLocked()
	} else {
		e.number++
		g.number = e.number
		c.Generation = e.number
		s.replaceLocked(e, g, &c, now)
	}
	s.lookLocked(e)
}

// same reports whether two credentials that stand at a path open the store alike.
func same(a, b *Credential) bool {
	return a.Username == b.Username && a.Password.Reveal() == b.Password.Reveal() && a.APIKey.Reveal() == b.APIKey.Reveal() &&
		a.Token.Reveal() == b.Token.Reveal() && a.PrivateKey.Reveal() == b.PrivateKey.Reveal() &&
		bytes.Equal(a.Certificate, b.Certificate) && bytes.Equal(a.Authorities, b.Authorities) && maps.Equal(a.Metadata, b.Metadata)
}

// renewedLocked takes what a renewal came to.
func (s *Source) renewedLocked(e *entry, g *generation, l Lease, err error) {
	if e.gone || e.held != g {
		s.lookLocked(e)
		return
	}
	now := s.cfg.Now()
	switch {
	case errors.Is(err, ErrRefused): // it was revoked, or may not be renewed: replaced once, and then as any failure
		e.mustReplace, e.next = true, now
		s.cfg.Logger.Warn("a lease is not renewed, and replaced", keyName, e.key.Provider, keyResource, e.key.Path, keyError, err)
		s.lookLocked(e)
		return
	case err != nil:
		s.failedLocked(e, err)
		return
	}
	e.failures, e.err = 0, nil
	g.lease.TTL, g.lease.Renewable = l.TTL, l.Renewable
	g.life, g.ends, e.next = l.TTL, time.Time{}, time.Time{}
	if l.TTL > 0 {
		g.ends = now.Add(l.TTL)
		e.next = now.Add(halfway(l.TTL, false))
		if float64(l.TTL) < shortened*float64(g.asked) {
			e.mustReplace = true
		}
	}
	if e.mustReplace {
		e.next = now
	}
	v := e.view.Load()
	c := *v.credential.Load()
	c.ExpiresAt = g.ends
	v.credential.Store(&c)
	s.lookLocked(e)
}

// removeLocked forgets an entry and revokes what it held.
func (s *Source) removeLocked(e *entry) {
	e.gone = true
	delete(s.entries, e.key)
	s.armLocked(&e.timer, time.Time{})
	ending := e.old
	if e.held != nil {
		e.sup.held--
		ending = append(ending, e.held)
	}
	e.old, e.held = nil, nil
	e.publishLocked(nil, time.Time{})
	if l := e.slot; l != nil {
		l.removeEntry(e)
		if !l.own && l.entries == nil {
			s.removeLoginLocked(l, ending)
			return
		}
	}
	for _, g := range ending {
		s.endGenerationLocked(e.sup, g)
	}
}
