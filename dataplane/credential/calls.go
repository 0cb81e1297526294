package credential

import (
	"context"
	"errors"
	"time"
)

// asked takes note of a call's result: the rate, whether the provider answers, the metrics.
func (s *Source) askedLocked(sup *supplier, b *bucket, call string, began time.Time, err error) {
	now := s.cfg.Now()
	s.answeredLocked(sup, b, now, call, err)
	sup.counts.asked(call, outcome(err), now.Sub(began))
}

func (s *Source) admitLoginLocked(sup *supplier, l *login) func(context.Context) func() {
	who := l.whoLocked()
	if l.gone || who == nil {
		l.busy = false
		return nil
	}
	return func(ctx context.Context) func() {
		began := s.cfg.Now()
		lease, err := sup.provider.Login(ctx, who())
		var number uint64
		if err == nil {
			lease.Login = true
			number = s.remember(sup, lease)
		}
		return func() {
			s.askedLocked(sup, sup.issues, "login", began, err)
			s.loggedInLocked(l, lease, number, err)
		}
	}
}

func (s *Source) admitRenewLoginLocked(sup *supplier, l *login, now time.Time) func(context.Context) func() {
	tok := l.usable(now)
	if l.gone || tok == nil {
		l.busy = false
		s.lookLoginLocked(l, now)
		return nil
	}
	lease := tok.lease
	lease.TTL = tok.asked
	return func(ctx context.Context) func() {
		began := s.cfg.Now()
		renewed, err := sup.provider.Renew(ctx, lease)
		return func() {
			s.askedLocked(sup, sup.renewals, "renew", began, err)
			s.loginRenewedLocked(l, tok, renewed, err)
		}
	}
}

func (s *Source) admitFetchLocked(sup *supplier, j job, now time.Time) func(context.Context) func() {
	e := j.entry
	if e.gone || e.abandoned(now) {
		e.busy = false
		s.lookLocked(e) // forgets it
		return nil
	}
	var tok *token
	request := Request{Path: e.key.Path}
	if e.slot != nil {
		if tok = e.slot.usable(now); tok == nil {
			s.wantLocked(e.slot, j, now)
			return nil
		}
		request.As = tok.lease
	}
	return func(ctx context.Context) func() {
		began := s.cfg.Now()
		issued, err := sup.provider.Fetch(ctx, request)
		if err == nil && !issued.Credential.ExpiresAt.IsZero() && !issued.Credential.ExpiresAt.After(s.cfg.Now()) {
			err = errOver
		}
		var number uint64
		if err == nil {
			number = s.remember(sup, issued.Lease)
		}
		return func() {
			s.askedLocked(sup, sup.issues, "fetch", began, err)
			switch {
			case err == nil:
				e.busy = false
				s.fetchedLocked(e, issued, tok, number)
			case errors.Is(err, ErrRefused) && tok != nil && !e.checked && !e.gone && s.doubtLocked(e.slot, tok, j, s.cfg.Now()):
				e.checked = true
			default:
				e.busy, e.checked = false, false
				s.failedLocked(e, err)
			}
		}
	}
}

func (s *Source) admitRenewLocked(sup *supplier, j job, now time.Time) func(context.Context) func() {
	e, g := j.entry, j.entry.held
	if e.gone || g == nil || e.mustReplace || g.tok == nil || e.slot.tok != g.tok {
		e.busy = false
		if g != nil && g.tok != nil && e.slot.tok != g.tok {
			e.mustReplace = true
		}
		s.lookLocked(e)
		return nil
	}
	l := e.slot
	if l.usable(now) == nil { // the login is gone, and with it the lease
		e.busy, e.mustReplace = false, true
		s.lookLocked(e)
		return nil
	}
	if !l.busy && !l.next.IsZero() && !now.Before(l.next) { // the login comes before its leases
		s.lookLoginLocked(l, now)
	}
	if l.busy {
		l.waiting = append(l.waiting, j)
		return nil
	}
	lease := g.lease
	lease.TTL, lease.As = g.asked, g.tok.lease.Token
	return func(ctx context.Context) func() {
		began := s.cfg.Now()
		renewed, err := sup.provider.Renew(ctx, lease)
		return func() {
			s.askedLocked(sup, sup.renewals, "renew", began, err)
			e.busy = false
			s.renewedLocked(e, g, renewed, err)
		}
	}
}

func (s *Source) admitRevokeLocked(sup *supplier, j job, now time.Time) func(context.Context) func() {
	end, lease := j.end, j.end.lease
	var own *token
	switch {
	case lease.Login && !lease.Token.IsZero(): // a token revokes itself
	case !end.byTok && !sup.noOwn:
		if own = sup.own.usable(now); own == nil {
			s.wantLocked(sup.own, j, now)
			return nil
		}
		lease.As = own.lease.Token
	case end.tok != nil:
		lease.As = end.tok.lease.Token
	default:
		s.cfg.Logger.Warn("a lease of a former process lives until it ends by itself: the proxy has no login of its own to revoke it with", keyName, sup.name)
		s.overLocked(end)
		return nil
	}
	return func(ctx context.Context) func() {
		began := s.cfg.Now()
		err := sup.provider.Revoke(ctx, lease)
		return func() {
			s.askedLocked(sup, sup.renewals, "revoke", began, err)
			s.revokedLocked(end, own, err)
		}
	}
}

// remember writes a lease down before it is used. One that cannot be is used all the same: it ends by itself soon, and
// without it nothing would work on a disk that is full.
func (s *Source) remember(sup *supplier, l Lease) uint64 {
	now := s.cfg.Now()
	var expires time.Time
	if l.TTL > 0 {
		expires = now.Add(l.TTL)
	}
	number, err := s.journal.add(sup.name, l, now, expires)
	if err != nil {
		s.journalFailed(err)
	}
	return number
}
