package credential

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/prism-gateway/prism/shared/fault"
)

const (
	callTimeout = 10 * time.Second // of one call of a provider
	patience    = 5 * time.Second  // how long Acquire waits at most
	silence     = time.Second      // after what time without any answer a provider counts as not answering
	unclaimed   = 30 * time.Second // how long what nobody waits for any more is kept for who comes again
	maxQueue    = 20_000           // new credentials that may be waited for at each provider
)

// Policy bounds what is asked of providers and how long what is held is relied on.
type Policy struct {
	// Margin is how long before its end a credential of a lease counts as used up; 0 means 5 minutes. It is at most a
	// third of the lease.
	Margin time.Duration
	// Grace is how long, after the margin and while the provider does not answer, a credential is used all the same, at
	// most until its lease ends; 0 means the margin, less than 0 none.
	Grace time.Duration
	// IssuesPerSecond bounds logins and new credentials of each provider; 0 means 50.
	IssuesPerSecond float64
	// RenewalsPerSecond bounds renewals and revocations of each provider; 0 means 200.
	RenewalsPerSecond float64
	// Linger is how long after the last user a replaced credential is revoked; 0 means 1 s, less than 0 at once.
	Linger time.Duration
}

// Config makes a Source.
type Config struct {
	// Providers are the providers by name; required.
	Providers map[string]Provider
	// CacheTTL is, by a provider's name, how long a credential without a lease counts as good; default 24 h. It is read
	// again at half of that.
	CacheTTL map[string]time.Duration
	// Policy is for all providers.
	Policy Policy
	// JournalDir is where leases are written down so that the next process can revoke them; it belongs to one process.
	// Empty: they are not.
	JournalDir string
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Logger is required.
	Logger *slog.Logger
	// Registerer takes the metrics; nil: none.
	Registerer prometheus.Registerer
}

// Key names a credential and who shares it.
type Key struct {
	// Provider is the provider's name.
	Provider string
	// Path is what follows the provider's name and "://".
	Path string
	// Owner is who shares it: a session, a principal or a namespace, with all that their logins differ by. All keys of
	// one owner and provider share a login.
	Owner string
}

// Source has the credentials of a proxy. Its methods may be called concurrently.
type Source struct {
	cfg     Config
	metrics *metrics
	wake    chan struct{} // capacity 1: there may be work

	calls sync.WaitGroup // of providers, under way; added to under mu

	mu        sync.Mutex // guards what follows, and all entries, logins and endings
	suppliers map[string]*supplier
	entries   map[Key]*entry
	timers    timers
	journal   *journal
	running   bool          // Run is at work
	draining  bool          // nothing new is begun
	idle      chan struct{} // of Drain: closed when nothing is left; nil: nobody waits
}

// New makes a Source, which does nothing before Run.
func New(cfg Config) (*Source, error) {
	if cfg.Logger == nil {
		return nil, errors.New("credential: Config.Logger is required")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	p := &cfg.Policy
	p.Margin = cmp.Or(p.Margin, 5*time.Minute)
	p.Grace = max(cmp.Or(p.Grace, p.Margin), 0)
	p.IssuesPerSecond = cmp.Or(p.IssuesPerSecond, 50)
	p.RenewalsPerSecond = cmp.Or(p.RenewalsPerSecond, 200)
	p.Linger = max(cmp.Or(p.Linger, time.Second), 0)
	if p.Margin < 0 || p.IssuesPerSecond < 0 || p.RenewalsPerSecond < 0 {
		return nil, errors.New("credential: a margin and rates are not less than zero")
	}
	s := &Source{cfg: cfg, wake: make(chan struct{}, 1), suppliers: map[string]*supplier{}, entries: map[Key]*entry{}}
	for name, provider := range cfg.Providers {
		if provider == nil {
			return nil, fmt.Errorf("credential: provider %s is nil", name)
		}
		s.suppliers[name] = newSupplier(name, provider, cmp.Or(cfg.CacheTTL[name], 24*time.Hour), cfg.Policy)
	}
	var err error
	s.metrics, err = newMetrics(cfg.Registerer, s)
	return s, err
}

// Acquire returns a handle on the credential of a key, which it waits for when it is not there: until ctx ends, or less
// long when the provider does not answer or too many wait already. All callers of one key have the same credential. who
// is called, by any goroutine and until the handle is released, when the provider wants a login: it returns the caller's,
// with a token that is good now, or nil for the proxy's own; a nil who stands for that too. Which AuthPath, Role and
// VaultNamespace it returns does not change. The error is a fault.
func (s *Source) Acquire(ctx context.Context, key Key, who func() *Login) (*Handle, error) {
	if who == nil {
		who = func() *Login { return nil }
	}
	as := who()
	s.mu.Lock()
	if s.draining {
		s.mu.Unlock()
		return nil, fault.New(fault.Unavailable, fault.Draining, "the proxy is stopping").WithOutcome(fault.NotApplied)
	}
	sup, ok := s.suppliers[key.Provider]
	if !ok {
		s.mu.Unlock()
		return nil, unavailable(fmt.Errorf("no credential provider is named %q: %w", key.Provider, ErrRefused), 0)
	}
	e := s.entries[key]
	sup.counts.attempts.Inc()
	if e != nil && e.view.Load().usable(s.cfg.Now()) != nil {
		sup.counts.hits.Inc()
		h := e.handleLocked(s, who)
		s.mu.Unlock()
		return h, nil
	}
	now := s.cfg.Now()
	patient := patience
	if deadline, ok := ctx.Deadline(); ok {
		patient = min(patient, time.Until(deadline))
	}
	if e == nil {
		if wait, cause := sup.notNow(now); wait > 0 {
			s.mu.Unlock()
			return nil, unavailable(cause, wait)
		}
		e = s.addLocked(key, sup, as, now)
	}
	if e.err != nil && e.held == nil && now.Before(e.next) {
		err := unavailable(e.err, e.next.Sub(now))
		s.mu.Unlock()
		return nil, err
	}
	if e.wanted == nil {
		e.wanted = &demand{}
	}
	demand, wait := e.wanted, sup.queueTime()
	demand.waiting++
	demand.who, demand.until = who, now.Add(wait+unclaimed)
	if demand.answer == nil {
		demand.answer = make(chan struct{})
	}
	answer := demand.answer
	s.lookLocked(e)
	if wait > patient { // it stays in the queue for when the caller comes again
		demand.waiting--
		s.mu.Unlock()
		return nil, unavailable(errors.New("more credentials are waited for than the provider is asked for in that time"), wait)
	}
	s.mu.Unlock()

	timer := time.NewTimer(patient)
	defer timer.Stop()
	var ended error
	select {
	case <-answer:
	case <-timer.C:
		ended = unavailable(errors.New("the provider did not answer in time"), time.Second)
	case <-ctx.Done():
		ended = fault.From(ctx.Err())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	demand.waiting--
	switch now := s.cfg.Now(); {
	case e.gone:
		return nil, fault.New(fault.Unavailable, fault.Draining, "the proxy is stopping").WithOutcome(fault.NotApplied)
	case e.view.Load().usable(now) != nil:
		return e.handleLocked(s, who), nil
	case ended != nil:
		return nil, ended
	case e.err != nil:
		return nil, unavailable(e.err, max(e.next.Sub(now), 50*time.Millisecond))
	}
	return nil, unavailable(errors.New("the credential ended before it was used"), time.Second)
}

// unavailable is what a caller is told when there is no credential for it.
func unavailable(cause error, after time.Duration) *fault.Fault {
	return fault.Wrap(cause, fault.Unavailable, fault.CredentialsUnavailable, "the backend's credentials cannot be had now").
		WithOutcome(fault.NotApplied).WithRetry(after)
}

// ProviderStatus is how one provider is.
type ProviderStatus struct {
	// Name is its name, Type what it is.
	Name, Type string
	// Reason is why it does not answer; empty when it does, or nothing is wanted of it. It holds no secret.
	Reason string
	// Held is how many credentials are held, Waiting how many things are to be asked of it.
	Held, Waiting int
}

// Providers tells how the providers are, by name in order.
func (s *Source) Providers() []ProviderStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]ProviderStatus, 0, len(s.suppliers))
	for _, name := range slices.Sorted(maps.Keys(s.suppliers)) {
		sup := s.suppliers[name]
		status := ProviderStatus{Name: name, Type: sup.provider.Type(), Held: sup.held, Waiting: sup.calls}
		for c := range sup.queues {
			status.Waiting += sup.queues[c].len()
		}
		if err := sup.trouble(s.cfg.Now()); err != nil {
			status.Reason = err.Error()
		}
		out = append(out, status)
	}
	return out
}

// addLocked makes the entry of a key.
func (s *Source) addLocked(key Key, sup *supplier, as *Login, now time.Time) *entry {
	e := &entry{key: key, sup: sup}
	e.timer = timer{index: -1, fire: e}
	e.view.Store(&view{changed: make(chan struct{})})
	if sup.dynamic {
		e.slot = sup.slotOf(key.Owner, as)
		e.slot.addEntry(e)
	}
	s.entries[key] = e
	return e
}

func (s *Source) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}
