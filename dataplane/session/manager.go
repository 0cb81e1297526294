package session

import (
	"cmp"
	"context"
	"crypto/sha256"
	"hash/maphash"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/prism-gateway/prism/shared/fault"
)

const (
	defaultMax   = 20_000
	perPrincipal = 100                    // sessions of one principal with one namespace: the one unused longest gives way
	sweepEvery   = 200 * time.Millisecond // how late at most an end takes effect where nobody calls
	shards       = 64
)

// How sessions end.
var (
	ended   = fault.New(fault.Unauthenticated, fault.TokenExpired, "the session is over: its token has expired, or it was unused for too long").WithOutcome(fault.NotApplied)
	closed  = fault.New(fault.Unauthenticated, fault.Revoked, "the session was closed").WithOutcome(fault.NotApplied)
	evicted = fault.New(fault.Unauthenticated, fault.Sessions, "the principal has begun too many other sessions").WithOutcome(fault.NotApplied)
	gone    = fault.New(fault.Unavailable, fault.Draining, "the proxy is stopping").WithOutcome(fault.NotApplied)
	unknown = fault.New(fault.NotFound, fault.Session, "the caller has no such session on this proxy").WithOutcome(fault.NotApplied)
	other   = fault.New(fault.Unauthenticated, fault.CertInvalid, "the session belongs to another certificate").WithOutcome(fault.NotApplied)
	full    = fault.New(fault.Exhausted, fault.Sessions, "the proxy has as many sessions as it may").WithOutcome(fault.NotApplied).WithRetry(time.Second)
	// Revoked ends a session, or a stream, whose principal may not do any more what it did.
	Revoked = fault.New(fault.PermissionDenied, fault.Revoked, "the principal's access was taken away").WithOutcome(fault.NotApplied)
)

// Config makes a Manager.
type Config struct {
	// Max bounds the sessions; 0 means 20,000.
	Max int
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Registerer takes the metrics; nil: none.
	Registerer prometheus.Registerer
}

// Manager has a proxy's sessions. Its methods may be called concurrently.
type Manager struct {
	cfg   Config
	seed  maphash.Seed
	parts [shards]part
	count atomic.Int64

	mu    sync.Mutex // guards what follows, and the making of sessions
	byID  map[string]*Session
	whose map[holder][]*Session
	over  bool // the proxy is stopping

	created, hits, attempts prometheus.Counter
	endings                 *prometheus.CounterVec
}

// holder is a principal in a namespace.
type holder struct{ namespace, principal string }

type part struct {
	mu    sync.RWMutex
	byKey map[key]*Session
}

// New makes a Manager without sessions.
func New(cfg Config) (*Manager, error) {
	cfg.Max = cmp.Or(cfg.Max, defaultMax)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	m := &Manager{
		cfg: cfg, seed: maphash.MakeSeed(), byID: map[string]*Session{}, whose: map[holder][]*Session{},
		created:  prometheus.NewCounter(prometheus.CounterOpts{Name: "prism_session_middleware_created_total", Help: "Sessions made."}),
		attempts: prometheus.NewCounter(prometheus.CounterOpts{Name: "prism_session_middleware_cache_attempts_total", Help: "Calls that looked for their session."}),
		hits:     prometheus.NewCounter(prometheus.CounterOpts{Name: "prism_session_middleware_cache_hits_total", Help: "Calls whose session was there."}),
		endings:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "prism_session_ended_total", Help: "Sessions that are over, by why."}, []string{"reason"}),
	}
	for i := range m.parts {
		m.parts[i].byKey = map[key]*Session{}
	}
	if cfg.Registerer == nil {
		return m, nil
	}
	open := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "prism_session_open", Help: "Sessions that are not over."},
		func() float64 { return float64(m.count.Load()) })
	for _, c := range []prometheus.Collector{m.created, m.attempts, m.hits, m.endings, open} {
		if err := cfg.Registerer.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// Run ends sessions that are due until ctx is done, and then all.
func (m *Manager) Run(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			m.mu.Lock()
			m.over = true
			m.mu.Unlock()
			m.EndAll(gone, func(*Session) bool { return true })
			return nil
		case <-tick.C:
			m.sweep()
		}
	}
}

func (m *Manager) part(k key) *part {
	return &m.parts[maphash.Comparable(m.seed, k)%shards]
}

func (m *Manager) find(k key) *Session {
	p := m.part(k)
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.byKey[k]
}

// Begin returns the session of a call, making it at the first. The error is a fault.
func (m *Manager) Begin(namespace string, p Policy, c Claim) (*Session, error) {
	m.attempts.Inc()
	k, now := c.key(namespace), m.cfg.Now()
	s := m.find(k)
	if s != nil {
		if err := s.boundTo(c); err != nil {
			return nil, err
		}
		err := s.use(now)
		if err == nil {
			m.hits.Inc()
			return s, nil
		}
		m.end(s, fault.From(err))
	}
	if !c.Ends.IsZero() && !now.Before(c.Ends) {
		return nil, ended
	}
	return m.create(namespace, p, c, k, now)
}

// boundTo refuses what another certificate shows than the one that the session was made with.
func (s *Session) boundTo(c Claim) error {
	bound := s.owner.Certificate
	if !s.bearer || bound == [sha256.Size]byte{} || bound == c.Principal.Certificate {
		return nil
	}
	return other
}

func (m *Manager) create(namespace string, p Policy, c Claim, k key, now time.Time) (*Session, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.over {
		return nil, gone
	}
	if s := m.find(k); s != nil { // somebody was faster
		if err := s.boundTo(c); err != nil {
			return nil, err
		}
		if s.use(now) == nil {
			return s, nil
		}
	}
	who := holder{namespace, c.Principal.ID}
	if theirs := m.whose[who]; len(theirs) >= perPrincipal {
		m.endLocked(slices.MinFunc(theirs, func(a, b *Session) int { return cmp.Compare(a.used.Load(), b.used.Load()) }), evicted)
	}
	if int(m.count.Load()) >= m.cfg.Max {
		return nil, full
	}
	s := open(namespace, p, c, now)
	s.keys = []key{k}
	m.byID[s.id] = s
	m.whose[who] = append(m.whose[who], s)
	m.put(k, s)
	m.count.Add(1)
	m.created.Inc()
	return s, nil
}

func (m *Manager) put(k key, s *Session) {
	p := m.part(k)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.byKey[k] = s
}

// end ends a session; ending it again does nothing.
func (m *Manager) end(s *Session, why *fault.Fault) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.endLocked(s, why)
}

func (m *Manager) endLocked(s *Session, why *fault.Fault) {
	keys, first := s.end(why)
	if !first {
		return
	}
	for _, k := range keys {
		p := m.part(k)
		p.mu.Lock()
		if p.byKey[k] == s {
			delete(p.byKey, k)
		}
		p.mu.Unlock()
	}
	delete(m.byID, s.id)
	who := holder{s.namespace, s.owner.ID}
	if m.whose[who] = slices.DeleteFunc(m.whose[who], func(o *Session) bool { return o == s }); len(m.whose[who]) == 0 {
		delete(m.whose, who)
	}
	m.count.Add(-1)
	m.endings.WithLabelValues(string(why.Reason)).Inc()
}

// sweep ends what is due and warns what will be soon.
func (m *Manager) sweep() {
	now := m.cfg.Now()
	for _, s := range m.all() {
		if now.Before(s.ExpiresAt()) {
			s.warn(now)
			continue
		}
		m.end(s, ended)
	}
}

func (m *Manager) all() []*Session {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]*Session, 0, len(m.byID))
	for _, s := range m.byID {
		out = append(out, s)
	}
	return out
}

// Get returns a session of the principal of a claim: the one named, or the claim's own when id is empty.
func (m *Manager) Get(namespace, id string, c Claim) (*Session, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.byID[id]
	if id == "" {
		s = m.find(c.key(namespace))
	}
	if s == nil || s.namespace != namespace || s.owner.ID != c.Principal.ID || s.Err() != nil {
		return nil, unknown
	}
	return s, s.boundTo(c)
}

// List returns the sessions of the claim's principal with a namespace, oldest first.
func (m *Manager) List(namespace string, c Claim) []*Session {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := slices.Clone(m.whose[holder{namespace, c.Principal.ID}])
	slices.SortFunc(out, func(a, b *Session) int { return a.created.Compare(b.created) })
	return out
}

// Refresh lets a session live on with what the claim shows, up to its absolute limit. The token that it had serves until
// its end.
func (m *Manager) Refresh(namespace, id string, c Claim) (*Session, error) {
	s, err := m.Get(namespace, id, c)
	if err != nil {
		return nil, err
	}
	k := c.key(namespace)
	m.mu.Lock()
	defer m.mu.Unlock()
	if own := m.find(k); own != nil && own != s {
		m.endLocked(own, closed) // which a call with the new token began before
	}
	now := m.cfg.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.Err(); err != nil {
		return nil, err
	}
	if !slices.Contains(s.keys, k) {
		if len(s.keys) > 1 { // the newest and the one before
			drop := s.keys[0]
			p := m.part(drop)
			p.mu.Lock()
			delete(p.byKey, drop)
			p.mu.Unlock()
			s.keys = s.keys[1:]
		}
		s.keys = append(s.keys, k)
		m.put(k, s)
	}
	s.ends.Store(s.limit(c.Ends).UnixNano())
	s.used.Store(now.UnixNano())
	s.login, s.since, s.warned = c.Login, now, false
	s.tell(Event{Kind: Refreshed})
	return s, nil
}

// Close ends a session of the claim's principal.
func (m *Manager) Close(namespace, id string, c Claim) error {
	s, err := m.Get(namespace, id, c)
	if err != nil {
		return err
	}
	m.end(s, closed)
	return nil
}

// EndAll ends the sessions that match, for a reason.
func (m *Manager) EndAll(why *fault.Fault, match func(*Session) bool) {
	for _, s := range m.all() {
		if match(s) {
			m.end(s, why)
		}
	}
}

// Count is how many sessions there are.
func (m *Manager) Count() int { return int(m.count.Load()) }
