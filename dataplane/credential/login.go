package credential

import (
	"errors"
	"fmt"
	"time"
)

// loginKey tells the logins at one provider apart; the zero one is the proxy's own.
type loginKey struct{ owner, authPath, role, vaultNamespace string }

// login is an owner's login at a provider. Source.mu guards it.
type login struct {
	timer
	sup *supplier
	key loginKey
	own bool

	entries *entry // a list
	waiting []job  // for a token, or for the token being asked after
	tok     *token // nil: not logged in
	gone    bool

	busy        bool      // a job for it is queued or under way
	next        time.Time // when to renew or replace, or after a failure to try again
	mustReplace bool
	failures    int
	err         error
}

// token is what one login gave.
type token struct {
	lease    Lease
	journal  uint64
	asked    time.Duration // as first given
	expires  time.Time     // zero: never
	checked  time.Time     // when it was known to be good
	doubts   int           // how often that was asked because something was refused
	uses     int           // generations fetched with it that have not ended
	replaced bool          // there is a newer one
	lost     bool          // it could not be renewed: it is gone, with what was fetched with it, or will be
	with     []uint64      // in the journal, what ends with it
}

func (s *supplier) newLogin(key loginKey, own bool) *login {
	l := &login{sup: s, key: key, own: own}
	l.timer = timer{index: -1, fire: l}
	return l
}

func (l *login) addEntry(e *entry) {
	e.after = l.entries
	if l.entries != nil {
		l.entries.before = e
	}
	l.entries = e
}

func (l *login) removeEntry(e *entry) {
	if e.before != nil {
		e.before.after = e.after
	} else {
		l.entries = e.after
	}
	if e.after != nil {
		e.after.before = e.before
	}
	e.before, e.after = nil, nil
}

// all returns the entries, which may be removed meanwhile.
func (l *login) all() []*entry {
	var all []*entry
	for e := l.entries; e != nil; e = e.after {
		all = append(all, e)
	}
	return all
}

// usable returns the token if it is good.
func (l *login) usable(now time.Time) *token {
	if l.tok == nil || l.tok.lost || !l.tok.expires.IsZero() && !now.Before(l.tok.expires) {
		return nil
	}
	return l.tok
}

// whoLocked is how to find who logs in: by the newest handle, whose token is the freshest.
func (l *login) whoLocked() func() *Login {
	if l.own {
		return func() *Login { return nil }
	}
	var found func() *Login
	for e := l.entries; e != nil; e = e.after {
		if e.handles != nil {
			return e.handles.who
		}
		if e.wanted != nil {
			found = e.wanted.who
		}
	}
	return found
}

// dueLocked is called when the login's time has come.
func (l *login) dueLocked(s *Source, now time.Time) { s.lookLoginLocked(l, now) }

// lookLoginLocked does for a login what is to be done by now, and sets when to look again.
func (s *Source) lookLoginLocked(l *login, now time.Time) {
	if l.gone || l.busy || l.tok == nil || l.next.IsZero() && l.tok.expires.IsZero() {
		return
	}
	if l.usable(now) == nil && !l.tok.lost {
		s.lostLocked(l, now)
	}
	if now.Before(l.next) {
		again := l.next
		if !l.tok.lost {
			again = earliest(again, l.tok.expires)
		}
		s.armLocked(&l.timer, again)
		return
	}
	l.busy = true
	if l.mustReplace || l.tok.lost || !l.tok.lease.Renewable {
		s.enqueueLocked(l.sup, rotating, job{op: opLogin, login: l})
	} else {
		s.enqueueLocked(l.sup, renewing, job{op: opRenewLogin, login: l})
	}
}

// lostLocked takes note that a token is not good any more: what was fetched with it is gone too, and all is replaced.
func (s *Source) lostLocked(l *login, now time.Time) {
	l.tok.lost = true
	l.mustReplace, l.next = true, now
}

// wantLocked has a job wait for a login, which is begun if need be.
func (s *Source) wantLocked(l *login, j job, now time.Time) {
	if l.err != nil && now.Before(l.next) && !l.busy {
		s.jobFailedLocked(j, l.err)
		return
	}
	l.waiting = append(l.waiting, j)
	if l.busy {
		return
	}
	l.busy = true
	c := rotating
	if l.tok == nil && !l.own {
		c = making
	}
	s.enqueueLocked(l.sup, c, job{op: opLogin, login: l})
}

// doubtLocked has a job wait until it is known whether the login is good, after a refusal. It reports whether there is
// anything to find out.
func (s *Source) doubtLocked(l *login, tok *token, j job, now time.Time) bool {
	switch {
	case l.tok != tok || l.usable(now) == nil: // there is another by now, or will be
	case tok.lease.ID.IsZero() || now.Sub(tok.checked) < min(time.Second<<min(tok.doubts, 10), 5*time.Minute):
		return false
	case !l.busy:
		l.busy = true
		tok.doubts++
		if tok.lease.Renewable {
			s.enqueueLocked(l.sup, renewing, job{op: opRenewLogin, login: l})
		} else {
			s.enqueueLocked(l.sup, rotating, job{op: opLogin, login: l})
		}
	}
	if !l.busy {
		s.requeueLocked(j)
		return true
	}
	l.waiting = append(l.waiting, j)
	return true
}

// loggedInLocked takes what a login came to.
func (s *Source) loggedInLocked(l *login, lease Lease, journal uint64, err error) {
	l.busy = false
	now := s.cfg.Now()
	if err != nil {
		l.failures++
		refused := errors.Is(err, ErrRefused) || errors.Is(err, ErrNoIdentity)
		if refused && !l.own {
			err = fmt.Errorf("%w: %w", ErrLogin, err)
		}
		l.err = err
		l.next = now.Add(backOff(l.failures, 200*time.Millisecond, 30*time.Second))
		if refused {
			l.next = now.Add(backOff(l.failures, time.Second, time.Minute))
		}
		if errors.Is(err, ErrNoIdentity) {
			l.sup.noOwn = true
		}
		s.releaseWaitingLocked(l, err)
		s.armLocked(&l.timer, l.next)
		return
	}
	tok := &token{lease: lease, journal: journal, asked: lease.TTL, checked: now}
	if lease.TTL > 0 {
		tok.expires = now.Add(lease.TTL)
	}
	if l.gone {
		s.endTokenLocked(l.sup, tok)
		return
	}
	was := l.tok
	l.tok, l.failures, l.err, l.mustReplace = tok, 0, nil, false
	l.next = time.Time{}
	if lease.TTL > 0 {
		l.next = now.Add(halfway(lease.TTL, l.sup.crowded()))
	}
	if was != nil {
		was.replaced = true
		for _, e := range l.all() { // a lease ends with the token that it was fetched with
			if e.held != nil && e.held.tok == was {
				e.mustReplace, e.next = true, now
				s.lookLocked(e)
			}
		}
		if was.uses == 0 {
			s.endTokenLocked(l.sup, was)
		}
	}
	s.releaseWaitingLocked(l, nil)
	s.armLocked(&l.timer, earliest(l.next, tok.expires))
}

// loginRenewedLocked takes what a renewal of a login came to.
func (s *Source) loginRenewedLocked(l *login, tok *token, lease Lease, err error) {
	l.busy = false
	if l.gone || l.tok != tok {
		return
	}
	now := s.cfg.Now()
	switch {
	case errors.Is(err, ErrRefused):
		s.cfg.Logger.Warn("a login is not good any more, and replaced", keyName, l.sup.name, keyError, err)
		s.lostLocked(l, now)
		s.lookLoginLocked(l, now) // those who wait go on waiting, for the new one
		return
	case err != nil:
		l.failures++
		l.next = now.Add(backOff(l.failures, 200*time.Millisecond, 30*time.Second))
		s.releaseWaitingLocked(l, err)
	default:
		l.failures, l.err = 0, nil
		tok.checked = now
		tok.lease.TTL, tok.lease.Renewable = lease.TTL, lease.Renewable
		tok.expires, l.next = time.Time{}, time.Time{}
		if lease.TTL > 0 {
			tok.expires = now.Add(lease.TTL)
			l.next = now.Add(halfway(lease.TTL, false))
			if float64(lease.TTL) < shortened*float64(tok.asked) {
				l.mustReplace, l.next = true, now
			}
		}
		for _, e := range l.all() {
			if e.held != nil && e.held.tok == tok {
				s.lookLocked(e) // it may be used for longer
			}
		}
		s.releaseWaitingLocked(l, nil)
	}
	s.lookLoginLocked(l, now)
}

// releaseWaitingLocked lets those who wait go on, or tells them that there is no login.
func (s *Source) releaseWaitingLocked(l *login, err error) {
	waiting := l.waiting
	l.waiting = nil
	for _, j := range waiting {
		if err != nil {
			s.jobFailedLocked(j, err)
		} else {
			s.requeueLocked(j)
		}
	}
}

// removeLoginLocked forgets a login that no entry needs and revokes its token, and with it the generations that were
// fetched with it.
func (s *Source) removeLoginLocked(l *login, with []*generation) {
	l.gone = true
	delete(l.sup.logins, l.key)
	s.armLocked(&l.timer, time.Time{})
	l.waiting = nil
	tok := l.tok
	var ended []uint64
	for _, g := range with {
		if tok != nil && g.tok == tok && !tok.lease.ID.IsZero() {
			tok.uses--
			if g.journal != 0 {
				ended = append(ended, g.journal)
			}
			continue
		}
		s.endGenerationLocked(l.sup, g)
	}
	if tok != nil {
		s.endTokenLocked(l.sup, tok, ended...)
	}
}
