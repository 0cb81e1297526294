package credential

import (
	"errors"
	"time"

	"golang.org/x/time/rate"
)

const (
	maxCalls  = 32 // of one provider at once
	maxIssues = 24 // of those, logins and new credentials, so that renewals never wait for them
)

// class is a priority.
type class int

// The classes, the most urgent first.
const (
	renewing class = iota
	revoking
	rotating
	making
	classes
)

// supplier is a provider and what is to be asked of it. Source.mu guards it.
type supplier struct {
	name     string
	provider Provider
	dynamic  bool
	cacheTTL time.Duration
	counts   supplierMetrics

	queues           [classes]queue
	calls, issuing   int // under way
	issues, renewals *bucket

	silentSince time.Time // since when calls are under way and none was answered
	failures    int       // calls in a row that were not answered
	downUntil   time.Time // until when nothing new is begun, as it does not answer
	reason      error     // why it does not answer; nil when it does

	logins map[loginKey]*login
	own    *login
	noOwn  bool // the proxy has no identity of its own there
	held   int  // credentials
	ending int  // leases that are to be revoked
}

func newSupplier(name string, p Provider, cacheTTL time.Duration, policy Policy) *supplier {
	s := &supplier{
		name: name, provider: p, dynamic: p.Dynamic(), cacheTTL: cacheTTL, logins: map[loginKey]*login{},
		issues: newBucket(policy.IssuesPerSecond), renewals: newBucket(policy.RenewalsPerSecond),
	}
	s.own = s.newLogin(loginKey{}, true)
	return s
}

// slotOf returns the login of an owner, which may not have been made yet.
func (s *supplier) slotOf(owner string, as *Login) *login {
	if as == nil {
		return s.own
	}
	key := loginKey{owner, as.AuthPath, as.Role, as.VaultNamespace}
	l, ok := s.logins[key]
	if !ok {
		l = s.newLogin(key, false)
		s.logins[key] = l
	}
	return l
}

// notNow returns for how long nothing new is to be asked, and why; 0: it may be.
func (s *supplier) notNow(now time.Time) (time.Duration, error) {
	if wait := s.downUntil.Sub(now); wait > 0 {
		return wait, s.reason
	}
	if s.calls > 0 && now.Sub(s.silentSince) > silence {
		return silence, errors.New("the provider has not answered for a while")
	}
	if s.queues[making].len() >= maxQueue {
		return s.queueTime(), errors.New("too many credentials are waited for")
	}
	return 0, nil
}

// queueTime is about how long what is queued now waits.
func (s *supplier) queueTime() time.Duration {
	waiting := s.queues[rotating].len() + s.queues[making].len()
	return time.Duration(float64(waiting) / s.issues.rate() * float64(time.Second))
}

// trouble is why the provider does not answer; nil when it does, or when nothing has been wanted of it for a while, so
// that nobody knows.
func (s *supplier) trouble(now time.Time) error {
	if s.held == 0 && s.ending == 0 && now.Sub(s.downUntil) > time.Minute {
		return nil
	}
	return s.reason
}

// crowded reports whether so much is asked for together that its renewals would come together too.
func (s *supplier) crowded() bool { return s.queueTime() > time.Second }

// answeredLocked takes note of what a call came to.
func (s *Source) answeredLocked(sup *supplier, b *bucket, now time.Time, what string, err error) {
	sup.silentSince = now
	switch {
	case err == nil || errors.Is(err, ErrRefused) || errors.Is(err, ErrNoIdentity):
	case errors.Is(err, ErrThrottled):
		b.slower(now)
	default:
		sup.failures++
		sup.downUntil = now.Add(backOff(sup.failures, 200*time.Millisecond, 5*time.Second))
		if sup.reason == nil {
			s.cfg.Logger.Warn("a credential provider does not answer", keyName, sup.name, keyMethod, what, keyError, err)
		}
		sup.reason = err
		return
	}
	if sup.reason != nil {
		s.cfg.Logger.Info("a credential provider answers again", keyName, sup.name)
	}
	sup.failures, sup.downUntil, sup.reason = 0, time.Time{}, nil
}

// outcome is a call's result as a label.
func outcome(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, ErrRefused), errors.Is(err, ErrNoIdentity):
		return "refused"
	case errors.Is(err, ErrThrottled):
		return "throttled"
	}
	return "unavailable"
}

// bucket bounds a rate. It halves the rate when the provider says that it is asked too often, and finds back by a
// twentieth a second.
type bucket struct {
	limiter *rate.Limiter
	full    float64 // per second
	share   float64 // of full, in (0, 1]
	grown   time.Time
	slowed  time.Time
}

func newBucket(perSecond float64) *bucket {
	return &bucket{limiter: rate.NewLimiter(rate.Limit(perSecond), max(1, int(perSecond/10))), full: perSecond, share: 1}
}

func (b *bucket) rate() float64 { return b.full * b.share }

// take takes one; when there is none it takes none, and returns how long to wait.
func (b *bucket) take(now time.Time) time.Duration {
	if b.share < 1 {
		b.set(min(1, b.share+0.05*now.Sub(b.grown).Seconds()), now)
	}
	r := b.limiter.ReserveN(now, 1)
	wait := r.DelayFrom(now)
	if wait > 0 {
		r.CancelAt(now)
	}
	return wait
}

func (b *bucket) slower(now time.Time) {
	if now.Sub(b.slowed) > 100*time.Millisecond { // what was under way together counts once
		b.slowed = now
		b.set(max(b.share/2, 0.01), now)
	}
}

func (b *bucket) set(share float64, now time.Time) {
	b.share, b.grown = share, now
	b.limiter.SetLimitAt(now, rate.Limit(b.full*share))
}

// queue is first in, first out.
type queue struct {
	jobs []job
	head int
}

func (q *queue) len() int   { return len(q.jobs) - q.head }
func (q *queue) front() job { return q.jobs[q.head] }
func (q *queue) push(j job) { q.jobs = append(q.jobs, j) }

func (q *queue) pop() {
	q.jobs[q.head] = job{}
	if q.head++; q.head > 64 && q.head*2 > len(q.jobs) {
		q.jobs = append(q.jobs[:0:0], q.jobs[q.head:]...)
		q.head = 0
	}
}
