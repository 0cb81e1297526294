// Package pool keeps backends open for as long as routes use them, and knows which of them answer.
package pool

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/prism-gateway/prism/dataplane/breaker"
	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/secret"
)

// Spec is what opens a backend. Two equal specs are one pool.
type Spec struct {
	Backend        string // the backend's name
	Type           string
	Endpoints      []string
	Settings       map[string]string
	MaxConnections int
	DialTimeout    time.Duration
	// CredentialPath names the credential; Username and Password are what stood there.
	CredentialPath string
	Username       string
	Password       secret.Text
	// Token, PrivateKey and Certificate stood there too, for stores that take them.
	Token, PrivateKey secret.Text
	Certificate       []byte

	lease string // of a credential that comes and goes: whose it is, and its generation
}

// key tells specs apart. The password is not in it: what stands at a credential's path changes by rotation, which is
// a pool of its own.
func (s Spec) key() string {
	var b strings.Builder
	add := func(text string) {
		b.WriteString(strconv.Itoa(len(text)))
		b.WriteByte(':')
		b.WriteString(text)
	}
	for _, text := range []string{s.Backend, s.Type, s.CredentialPath, s.Username, s.lease, strconv.Itoa(s.MaxConnections), s.DialTimeout.String(), strconv.Itoa(len(s.Endpoints))} {
		add(text)
	}
	for _, e := range s.Endpoints {
		add(e)
	}
	for _, k := range slices.Sorted(maps.Keys(s.Settings)) {
		add(k)
		add(s.Settings[k])
	}
	return b.String()
}

// State is whether a backend answers.
type State int32

// The states.
const (
	Opening State = iota // not known yet
	Ready                // it answers
	Down                 // it does not; the pool goes on asking
	Closed               // let go
)

// String names the state.
func (s State) String() string { return [...]string{"opening", "ready", "down", "closed"}[s] }

// Status is a state and why.
type Status struct {
	State State
	// Reason is for operators; it names the backend. Empty when ready.
	Reason string
	// Since is when the state began.
	Since time.Time
}

// Config makes a Set.
type Config struct {
	// Drivers are all drivers of the build.
	Drivers []driver.Driver
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// PingEvery is how often a backend that answers is asked; 0 means 5 s.
	PingEvery time.Duration
	// PingTimeout bounds one question; 0 means 2 s.
	PingTimeout time.Duration
	// Changed is called, by any goroutine, when a state changed. It must not block. Nil is allowed.
	Changed func()
	// Source has the credentials of leased backends; nil: there are none.
	Source source
	// MaxPerBackend bounds the connections to a leased backend over all of its credentials; 0 means 200.
	MaxPerBackend int
	// IdleTimeout is after what time without a call the pool of one caller's credential is closed; 0 means 5 minutes.
	IdleTimeout time.Duration
	// Opened takes how long each credential and its first pool took to be there, in seconds; nil: nobody asks.
	Opened prometheus.Observer
}

// Set is all pools of a proxy. Its methods may be called concurrently.
type Set struct {
	cfg     Config
	drivers map[string]driver.Driver
	wg      sync.WaitGroup

	mu      sync.Mutex // guards what follows, and each pool's and each Leased's refs
	pools   map[string]*Pool
	leases  map[string]*Leased
	budgets map[string]*budget // by backend
	closed  bool
}

// New makes an empty set.
func New(cfg Config) (*Set, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.PingEvery == 0 {
		cfg.PingEvery = 5 * time.Second
	}
	if cfg.PingTimeout == 0 {
		cfg.PingTimeout = 2 * time.Second
	}
	if cfg.MaxPerBackend == 0 {
		cfg.MaxPerBackend = 200
	}
	if cfg.IdleTimeout == 0 {
		cfg.IdleTimeout = 5 * time.Minute
	}
	if cfg.Changed == nil {
		cfg.Changed = func() {}
	}
	s := &Set{cfg: cfg, drivers: map[string]driver.Driver{}, pools: map[string]*Pool{}, leases: map[string]*Leased{}, budgets: map[string]*budget{}}
	for _, d := range cfg.Drivers {
		if s.drivers[d.Type()] != nil {
			return nil, fmt.Errorf("pool: two drivers for %s", d.Type())
		}
		s.drivers[d.Type()] = d
	}
	return s, nil
}

// Driver returns the driver of a backend type.
func (s *Set) Driver(backendType string) (driver.Driver, bool) {
	d, ok := s.drivers[backendType]
	return d, ok
}

// Acquire returns the pool for spec, opening it if it is not there; Release gives it back. It does not wait for the
// backend. An error says what is wrong with the spec.
func (s *Set) Acquire(spec Spec) (*Pool, error) {
	key := spec.key()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errors.New("the proxy is stopping")
	}
	if p, ok := s.pools[key]; ok {
		p.refs++
		return p, nil
	}
	d, ok := s.drivers[spec.Type]
	if !ok {
		return nil, fmt.Errorf("no driver for %s in this build", spec.Type)
	}
	instance, err := d.Open(driver.Config{
		Name: spec.Backend, Endpoints: spec.Endpoints, Settings: spec.Settings, Username: spec.Username, Password: spec.Password,
		Token: spec.Token, PrivateKey: spec.PrivateKey, Certificate: spec.Certificate,
		MaxConnections: spec.MaxConnections, DialTimeout: spec.DialTimeout, Now: s.cfg.Now,
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &Pool{owner: s, key: key, backend: spec.Backend, backendType: spec.Type, instance: instance, breaker: breaker.New(s.cfg.Now), cancel: cancel, refs: 1, done: make(chan struct{})}
	p.status.Store(&Status{State: Opening, Reason: "backend " + spec.Backend + " has not answered yet", Since: s.cfg.Now()})
	s.pools[key] = p
	s.wg.Go(func() { p.run(ctx) })
	return p, nil
}

// Close lets go of all pools, whoever uses them, and returns when they are closed. Later calls of Acquire fail.
func (s *Set) Close() {
	s.mu.Lock()
	s.closed = true
	for _, l := range s.leases {
		l.cancel()
	}
	for _, p := range s.pools {
		p.cancel()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// OwnPaths lists the credentials of a provider that the proxy asks for as itself, in order.
func (s *Set) OwnPaths(provider string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var paths []string
	for _, l := range s.leases {
		if l.lease.Provider == provider && (l.shared() || l.lease.Login.Role == "") {
			paths = append(paths, l.lease.Path)
		}
	}
	slices.Sort(paths)
	return slices.Compact(paths)
}

// Ready reports whether every backend answers.
func (s *Set) Ready() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.pools {
		if p.Unready() != "" {
			return false
		}
	}
	return true
}

// Snapshot lists the pools by name and type with their status, in no order.
func (s *Set) Snapshot() []Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Info, 0, len(s.pools))
	for _, p := range s.pools {
		out = append(out, Info{Backend: p.backend, Type: p.backendType, Status: p.Status(), Breaker: p.breaker.State(), Routes: p.refs})
	}
	return out
}

// Budgets lists the backends that are opened with credentials that come and go, by name.
func (s *Set) Budgets() map[string]Budget {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[string]Budget, len(s.budgets))
	for backend, b := range s.budgets {
		out[backend] = b.info()
	}
	return out
}

// Info is what there is to know of a pool.
type Info struct {
	Backend, Type string
	Status        Status
	Breaker       breaker.State
	Routes        int // how many routes use it
}

// Pool is one open backend.
type Pool struct {
	owner       *Set
	key         string
	backend     string
	backendType string
	instance    driver.Instance
	breaker     *breaker.Breaker
	cancel      context.CancelFunc
	status      atomic.Pointer[Status]
	refs        int           // guarded by owner.mu
	done        chan struct{} // closed when the instance is
}

// Instance is the open backend. It may be used until the pool is released.
func (p *Pool) Instance() driver.Instance { return p.instance }

// Breaker stands before the backend's calls; all routes of the pool share it.
func (p *Pool) Breaker() *breaker.Breaker { return p.breaker }

// Backend is the backend's name.
func (p *Pool) Backend() string { return p.backend }

// Status is whether the backend answers.
func (p *Pool) Status() Status { return *p.status.Load() }

// Unready says why the backend does not answer, for operators; empty when it does.
func (p *Pool) Unready() string { return p.status.Load().Reason }

// Retain takes the pool once more, for someone who holds it.
func (p *Pool) Retain() {
	p.owner.mu.Lock()
	defer p.owner.mu.Unlock()
	p.refs++
}

// Release gives the pool back. The last release closes it in the background.
func (p *Pool) Release() {
	p.owner.mu.Lock()
	defer p.owner.mu.Unlock()
	p.refs--
	if p.refs == 0 {
		delete(p.owner.pools, p.key)
		p.cancel()
	}
}

// The waits between two questions to a backend that does not answer.
const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = 5 * time.Second
)

// run asks the backend whether it answers until the pool is let go, and closes it then.
func (p *Pool) run(ctx context.Context) {
	retry := firstRetry
	for ctx.Err() == nil {
		wait := p.owner.cfg.PingEvery
		if err := p.ping(ctx); err == nil {
			p.set(Ready, "")
			p.breaker.Answered()
			retry = firstRetry
		} else if ctx.Err() == nil {
			p.set(Down, "backend "+p.backend+": "+fault.From(err).Text)
			wait = jittered(retry)
			retry = min(2*retry, lastRetry)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
	defer close(p.done)
	_ = p.instance.Close() // nobody uses it any more, and nobody could do anything about it
	p.set(Closed, "backend "+p.backend+" is closed")
}

func (p *Pool) ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, p.owner.cfg.PingTimeout)
	defer cancel()
	return p.instance.Ping(ctx)
}

func (p *Pool) set(state State, reason string) {
	before := p.status.Load()
	if before.State == state && before.Reason == reason {
		return
	}
	next := &Status{State: state, Reason: reason, Since: before.Since}
	if before.State != state {
		next.Since = p.owner.cfg.Now()
	}
	p.status.Store(next)
	p.owner.cfg.Changed()
}

// jittered spreads d over its upper half, so that many proxies do not ask a backend that comes back all at once.
func jittered(d time.Duration) time.Duration { return d/2 + rand.N(d/2) }
