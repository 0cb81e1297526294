package credential

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"time"
)

// op is what a provider is asked to do.
type op int

const (
	opLogin op = iota
	opFetch
	opRenewLogin
	opRenew
	opRevoke
)

// job is one call of a provider that is to be made, for the one of these that its op needs.
type job struct {
	op    op
	entry *entry
	login *login
	end   *ending
}

// enqueueLocked has a job done when its turn comes.
func (s *Source) enqueueLocked(sup *supplier, c class, j job) {
	sup.queues[c].push(j)
	s.signal()
}

// requeueLocked has a job that waited for a login done.
func (s *Source) requeueLocked(j job) {
	switch {
	case j.op == opRevoke:
		s.enqueueLocked(j.end.sup, revoking, j)
	case j.op == opRenew:
		s.enqueueLocked(j.entry.sup, renewing, j)
	case j.entry.number > 0:
		s.enqueueLocked(j.entry.sup, rotating, j)
	default:
		s.enqueueLocked(j.entry.sup, making, j)
	}
}

// jobFailedLocked tells a job that it cannot be done.
func (s *Source) jobFailedLocked(j job, err error) {
	switch {
	case j.op != opRevoke:
		j.entry.busy = false
		s.failedLocked(j.entry, err)
	case errors.Is(err, ErrNoIdentity) || errors.Is(err, ErrRefused) && j.end.tok != nil:
		j.end.byTok = true
		s.enqueueLocked(j.end.sup, revoking, j)
	default:
		s.endFailedLocked(j.end, s.cfg.Now())
	}
}

// Drain ends all: nothing new is begun, and every lease and login is revoked, as many at once as a provider may be asked.
// It returns when that is done, or with an error when ctx ends before: what is left is in the journal, if there is one,
// and Run goes on with it until its own end. Holders see that there is no credential.
func (s *Source) Drain(ctx context.Context) error {
	s.mu.Lock()
	s.draining = true
	if !s.running {
		s.mu.Unlock()
		return nil
	}
	for _, e := range s.entries {
		s.removeLocked(e)
	}
	s.mu.Unlock()
	if err := s.untilIdle(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	for _, sup := range s.suppliers { // last, for the others were revoked with it
		if own := sup.own; own.tok != nil {
			s.removeLoginLocked(own, nil)
		}
	}
	s.mu.Unlock()
	return s.untilIdle(ctx)
}

func (s *Source) untilIdle(ctx context.Context) error {
	idle := make(chan struct{})
	s.mu.Lock()
	s.idle = idle
	s.mu.Unlock()
	s.signal()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		s.mu.Lock()
		defer s.mu.Unlock()
		s.idle = nil
		return fmt.Errorf("credential: %d leases were not revoked in time: %w", s.busyLocked(), ctx.Err())
	}
}

// busyLocked is how much is to be waited for.
func (s *Source) busyLocked() int {
	n := 0
	for _, sup := range s.suppliers {
		n += sup.ending + sup.calls
	}
	return n
}

// Run asks the providers until ctx ends. It is called once. It fails at once when the journal is another process's or
// cannot be read. Calls under way when ctx ends are given up; call Drain before.
func (s *Source) Run(ctx context.Context) error {
	if s.cfg.JournalDir != "" {
		j, left, damaged, err := openJournal(s.cfg.JournalDir)
		if err != nil {
			return fmt.Errorf("credential: %w", err)
		}
		defer j.close()
		if damaged > 0 {
			s.cfg.Logger.Warn("lines of the journal of leases cannot be read, as after a crash", keyCount, damaged)
		}
		s.recover(j, left)
	}
	s.mu.Lock()
	s.running = true
	s.mu.Unlock()
	defer s.calls.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			s.mu.Lock()
			s.draining = true
			s.mu.Unlock()
			return nil
		case <-timer.C:
		case <-s.wake:
		}
		timer.Reset(s.turn(ctx))
	}
}

// recover has what a former process left be revoked.
func (s *Source) recover(j *journal, left []record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.journal = j
	lost := 0
	for _, logins := range []bool{true, false} { // with a login all that it fetched ends
		for _, r := range left {
			if r.Login != logins {
				continue
			}
			sup, ok := s.suppliers[r.Provider]
			if !ok {
				s.journalRemove(r.Number)
				lost++
				continue
			}
			s.endLocked(&ending{sup: sup, lease: r.lease(), journal: []uint64{r.Number}, former: true})
		}
	}
	if len(left) > 0 {
		s.cfg.Logger.Info("leases of a former process are revoked", keyCount, len(left)-lost)
	}
	if lost > 0 {
		s.cfg.Logger.Warn("leases of a provider that is not configured any more live until they end by themselves", keyCount, lost)
	}
}

// turn does what is due and returns after what time to look again, unless woken.
func (s *Source) turn(ctx context.Context) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.cfg.Now()
	for len(s.timers) > 0 && !s.timers[0].at.After(now) {
		heap.Pop(&s.timers).(*timer).fire.dueLocked(s, now)
	}
	wait := time.Hour
	if len(s.timers) > 0 {
		wait = s.timers[0].at.Sub(now)
	}
	for _, sup := range s.suppliers {
		wait = min(wait, s.dispatchLocked(ctx, sup, now))
	}
	if s.idle != nil && s.busyLocked() == 0 {
		close(s.idle)
		s.idle = nil
	}
	return wait
}

// dispatchLocked begins the calls that the limits allow, the most urgent first, and returns when the next may begin.
func (s *Source) dispatchLocked(ctx context.Context, sup *supplier, now time.Time) time.Duration {
	wait := time.Hour
	for c := range classes {
		q, b := &sup.queues[c], sup.renewals
		if c >= rotating {
			b = sup.issues
		}
		for q.len() > 0 && sup.calls < maxCalls && (c < rotating || sup.issuing < maxIssues) {
			call := s.admitLocked(sup, q.front(), now)
			if call == nil {
				q.pop()
				continue
			}
			if s.draining { // there is little time: only how many are under way at once is bounded
			} else if w := b.take(now); w > 0 {
				wait = min(wait, w)
				break
			}
			q.pop()
			if sup.calls == 0 {
				sup.silentSince = now
			}
			sup.calls++
			if c >= rotating {
				sup.issuing++
			}
			s.calls.Go(func() {
				ctx, cancel := context.WithTimeout(ctx, callTimeout)
				defer cancel()
				finish := call(ctx)
				s.mu.Lock()
				defer s.mu.Unlock()
				sup.calls--
				if c >= rotating {
					sup.issuing--
				}
				finish()
				s.signal()
			})
		}
	}
	return wait
}

// admitLocked makes a job's call, or returns nil when the job is not needed any more or waits for something else. The call
// asks the provider and returns what to do then, under the lock. admitLocked may be called again with the same job.
func (s *Source) admitLocked(sup *supplier, j job, now time.Time) func(context.Context) func() {
	switch j.op {
	case opLogin:
		return s.admitLoginLocked(sup, j.login)
	case opRenewLogin:
		return s.admitRenewLoginLocked(sup, j.login, now)
	case opFetch:
		return s.admitFetchLocked(sup, j, now)
	case opRenew:
		return s.admitRenewLocked(sup, j, now)
	}
	return s.admitRevokeLocked(sup, j, now)
}
