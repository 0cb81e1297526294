package credential

import (
	"errors"
	"time"

	"github.com/prism-gateway/prism/shared/secret"
)

// ending is a lease that is to be revoked. Source.mu guards it.
type ending struct {
	timer
	sup     *supplier
	lease   Lease
	tok     *token    // by which it was fetched; nil: not known
	journal []uint64  // what ends with it
	until   time.Time // it ends by itself then; zero: not known
	former  bool      // of a former process

	byTok    bool // the proxy's own identity may not revoke it, or there is none
	checked  bool // after a refusal the own login was asked for, and is good
	failures int
	next     time.Time
}

// endGenerationLocked revokes a generation's lease.
func (s *Source) endGenerationLocked(sup *supplier, g *generation) {
	tok := g.tok
	if tok != nil {
		tok.uses--
	}
	switch {
	case g.lease.ID.IsZero():
	case !g.ends.IsZero() && !s.cfg.Now().Before(g.ends):
		s.journalRemove(g.journal)
	case tok != nil && tok.lost && !tok.lease.ID.IsZero(): // with its token, at the latest
		tok.with = append(tok.with, g.journal)
	case tok != nil && tok.replaced && tok.uses == 0 && !tok.lease.ID.IsZero():
		s.endTokenLocked(sup, tok, g.journal)
		return
	default:
		s.endLocked(&ending{sup: sup, lease: g.lease, tok: tok, journal: []uint64{g.journal}, until: g.ends})
	}
	if tok != nil && tok.replaced && tok.uses == 0 {
		s.endTokenLocked(sup, tok)
	}
}

// endTokenLocked revokes a login, and with it what was fetched with it. Of one that was lost nobody knows whether it is
// gone: it may only not be renewed.
func (s *Source) endTokenLocked(sup *supplier, tok *token, with ...uint64) {
	if tok.lease.ID.IsZero() {
		return
	}
	with = append(append(with, tok.with...), tok.journal)
	if !tok.expires.IsZero() && !s.cfg.Now().Before(tok.expires) {
		s.journalRemove(with...)
		return
	}
	s.endLocked(&ending{sup: sup, lease: tok.lease, tok: tok, journal: with, until: tok.expires})
}

// lost reports whether it went with its login.
func (end *ending) lost() bool { return end.tok != nil && end.tok.lost }

func (s *Source) endLocked(end *ending) {
	end.timer = timer{index: -1, fire: end}
	end.sup.ending++
	s.enqueueLocked(end.sup, revoking, job{op: opRevoke, end: end})
}

// dueLocked is called when it is to be tried again.
func (end *ending) dueLocked(s *Source, now time.Time) {
	if !end.until.IsZero() && !now.Before(end.until) {
		s.overLocked(end)
		return
	}
	s.enqueueLocked(end.sup, revoking, job{op: opRevoke, end: end})
}

// overLocked lets go of what has ended.
func (s *Source) overLocked(end *ending) {
	end.sup.ending--
	s.journalRemove(end.journal...)
}

// revokedLocked takes what a revocation came to.
func (s *Source) revokedLocked(end *ending, own *token, err error) {
	now := s.cfg.Now()
	switch {
	case err == nil:
		s.overLocked(end)
	case errors.Is(err, ErrRefused) && own != nil && !end.checked && s.doubtLocked(end.sup.own, own, job{op: opRevoke, end: end}, now):
		end.checked = true
	case errors.Is(err, ErrRefused) && end.lease.Login && !end.lease.Token.IsZero(): // it may not revoke itself, or is gone
		end.lease.Token = secret.Text{}
		s.enqueueLocked(end.sup, revoking, job{op: opRevoke, end: end})
	case errors.Is(err, ErrRefused) && end.lost():
		s.overLocked(end)
	case errors.Is(err, ErrRefused) && !end.byTok && end.tok != nil && !end.lease.Login:
		end.byTok = true
		s.enqueueLocked(end.sup, revoking, job{op: opRevoke, end: end})
	case errors.Is(err, ErrRefused):
		s.cfg.Logger.Warn("a lease may not be revoked, and lives until it ends by itself", keyName, end.sup.name, keyError, err)
		s.overLocked(end)
	default:
		s.endFailedLocked(end, now)
	}
}

func (s *Source) endFailedLocked(end *ending, now time.Time) {
	end.failures++
	end.next = now.Add(backOff(end.failures, 200*time.Millisecond, 30*time.Second))
	s.armLocked(&end.timer, earliest(end.next, end.until))
}

// journalRemove writes down that leases have ended.
func (s *Source) journalRemove(numbers ...uint64) {
	if err := s.journal.remove(numbers...); err != nil {
		s.journalFailed(err)
	}
}

func (s *Source) journalFailed(err error) {
	s.metrics.journalErrors.Inc()
	s.cfg.Logger.Error("the journal of leases cannot be written; after a crash leases may live until they end by themselves", keyError, err)
}
