package pool

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"time"

	"github.com/prism-gateway/prism/dataplane/breaker"
	"github.com/prism-gateway/prism/dataplane/credential"
	"github.com/prism-gateway/prism/dataplane/session"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/secret"
)

// Scope is who shares a credential.
type Scope int

// The scopes.
const (
	ByNamespace Scope = iota // all callers
	ByPrincipal              // all sessions of one principal
	BySession                // nobody
)

// Lease is where the credentials of a backend come from, for one namespace.
type Lease struct {
	// Namespace is whose callers they are for.
	Namespace string
	// Provider and Path say where they are.
	Provider, Path string
	// Scope is who shares one.
	Scope Scope
	// Login is how callers log in to get their own; its Token is not used. Without a Role the proxy logs in as itself.
	Login credential.Login
}

// source is where credentials come from.
type source interface {
	Acquire(ctx context.Context, key credential.Key, who func() *credential.Login) (*credential.Handle, error)
}

// Leased is a backend that is opened with credentials that come and go: one for all callers, or each caller's own. It is an
// Instance that takes each call to the pool of its caller's credential, so that no two credentials ever share a
// connection. When a credential is replaced the new pool answers before the old one is let go.
type Leased struct {
	set     *Set
	spec    Spec
	lease   Lease
	source  source
	budget  *budget
	breaker *breaker.Breaker
	id      string
	refs    int // guarded by set.mu
	ctx     context.Context
	cancel  context.CancelFunc

	mu     sync.Mutex // guards what follows
	lanes  map[string]*lane
	claims map[string]int // sessions, by the owner of their credential
	over   bool
}

// Lease returns the backend of spec as a namespace's callers reach it; Release gives it back. It asks no provider before the
// first call, but for what all callers share.
func (s *Set) Lease(spec Spec, l Lease) (*Leased, error) {
	if s.cfg.Source == nil {
		return nil, errors.New("the proxy has no source of credentials")
	}
	if _, ok := s.drivers[spec.Type]; !ok {
		return nil, errors.New("no driver for " + spec.Type + " in this build")
	}
	id := spec.key() + l.label()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errors.New("the proxy is stopping")
	}
	if known, ok := s.leases[id]; ok {
		known.refs++
		return known, nil
	}
	b, ok := s.budgets[spec.Backend]
	if !ok {
		b = newBudget(s.cfg.MaxPerBackend)
		s.budgets[spec.Backend] = b
	}
	ctx, cancel := context.WithCancel(context.Background())
	made := &Leased{
		set: s, spec: spec, lease: l, source: s.cfg.Source, budget: b, breaker: breaker.New(s.cfg.Now), id: id, refs: 1,
		ctx: ctx, cancel: cancel, lanes: map[string]*lane{}, claims: map[string]int{},
	}
	s.leases[id] = made
	s.wg.Go(made.run)
	return made, nil
}

func (l Lease) label() string {
	var b []byte
	for _, text := range []string{l.Namespace, l.Provider, l.Path, strconv.Itoa(int(l.Scope)), l.Login.AuthPath, l.Login.Role, l.Login.VaultNamespace} {
		b = append(strconv.AppendInt(b, int64(len(text)), 10), ':')
		b = append(b, text...)
	}
	return string(b)
}

// run looks after the lanes until the Leased is let go: it replaces pools whose credential has changed, and lets go what
// nobody has used for long.
func (l *Leased) run() {
	if l.shared() {
		_, _ = l.lane(nil) // so that it is there before the first call
	}
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-l.ctx.Done():
			l.closeAll()
			return
		case <-tick.C:
			l.sweep()
		}
	}
}

const sweepEvery = 500 * time.Millisecond

func (l *Leased) all() []*lane {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]*lane, 0, len(l.lanes))
	for _, one := range l.lanes {
		out = append(out, one)
	}
	return out
}

func (l *Leased) sweep() {
	if l.shared() && len(l.all()) == 0 {
		_, _ = l.lane(nil)
	}
	now := l.set.cfg.Now()
	for _, one := range l.all() {
		select {
		case <-one.ready:
		default:
			continue
		}
		one.mu.Lock()
		handle := one.handle
		one.mu.Unlock()
		if handle == nil {
			continue // it could not be opened
		}
		o, c := one.now.Load(), handle.Current()
		switch {
		case !l.shared() && (o == nil || o.calls.Load() == 0) && now.Sub(time.Unix(0, one.used.Load())) > l.set.cfg.IdleTimeout:
			l.forget(one)
		case c == nil:
		case o == nil && c.Generation != one.told && one.unused():
			one.told = c.Generation
			handle.Retire(c.Generation)
		case o != nil && c.Generation != o.generation:
			one.replace(l.ctx)
		}
	}
}

func (l *Leased) closeAll() {
	l.mu.Lock()
	l.over = true
	l.mu.Unlock()
	for _, one := range l.all() {
		l.forget(one)
	}
}

// forget closes a lane and lets the next call open another.
func (l *Leased) forget(one *lane) {
	l.mu.Lock()
	if l.lanes[one.owner] == one {
		delete(l.lanes, one.owner)
	}
	l.mu.Unlock()
	one.close()
}

// shared reports whether all callers have one credential.
func (l *Leased) shared() bool { return l.lease.Scope == ByNamespace }

// owner is who has the credential of a caller's session.
func (l *Leased) owner(s *session.Session) (string, error) {
	switch {
	case l.shared():
		return "", nil
	case s == nil:
		return "", fault.New(fault.Unauthenticated, fault.NoCredentials, "the namespace's callers have credentials of their own, and this one has not said who it is").
			WithOutcome(fault.NotApplied)
	case l.lease.Scope == BySession:
		return "session " + s.ID(), nil
	}
	return "principal " + s.Principal().ID, nil
}

// key names the credential of an owner.
func (l *Leased) key(owner string) credential.Key {
	return credential.Key{Provider: l.lease.Provider, Path: l.lease.Path, Owner: l.lease.label() + owner}
}

// label tells the pools of an owner's generations apart.
func (l *Leased) label(owner string, generation uint64) string {
	return l.lease.label() + owner + " " + strconv.FormatUint(generation, 10)
}

// lane is that of a session's credential, which is opened when it is not there. It does not wait.
func (l *Leased) lane(s *session.Session) (*lane, error) {
	owner, err := l.owner(s)
	if err != nil {
		return nil, err
	}
	var token secret.Text
	if s != nil { // not under the lock, which a session that ends waits for
		token = s.Login()
		if err := s.Err(); err != nil {
			return nil, err // it has no token any more, and does not get the proxy's credential instead
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if one, ok := l.lanes[owner]; ok {
		one.use(s, token)
		return one, nil
	}
	if l.over {
		return nil, fault.New(fault.Unavailable, fault.Draining, "the proxy is stopping").WithOutcome(fault.NotApplied)
	}
	one := &lane{leased: l, owner: owner, ready: make(chan struct{})}
	one.used.Store(l.set.cfg.Now().UnixNano())
	one.use(s, token)
	l.lanes[owner] = one
	l.budget.join(one)
	l.set.wg.Go(func() { one.open(l.ctx) })
	return one, nil
}

// claim is a session's claim on the lane of an owner.
type claim struct {
	leased *Leased
	owner  string
}

// claim notes that a session uses the lane of its owner, until it is released.
func (l *Leased) claim(s *session.Session) (session.Held, error) {
	owner, err := l.owner(s)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.claims[owner]++
	return &claim{leased: l, owner: owner}, nil
}

// Release lets the lane go when no session claims it any more.
func (c *claim) Release() {
	l := c.leased
	l.mu.Lock()
	l.claims[c.owner]--
	if l.claims[c.owner] > 0 {
		l.mu.Unlock()
		return
	}
	delete(l.claims, c.owner)
	one := l.lanes[c.owner]
	l.mu.Unlock()
	if one != nil {
		l.forget(one)
	}
}

// Ends is when the owner's credential does.
func (c *claim) Ends() time.Time {
	c.leased.mu.Lock()
	one := c.leased.lanes[c.owner]
	c.leased.mu.Unlock()
	if one == nil {
		return time.Time{}
	}
	one.mu.Lock()
	handle := one.handle
	one.mu.Unlock()
	if handle == nil {
		return time.Time{}
	}
	return handle.ExpiresAt()
}

// connections takes connections out of the backend's budget, and waits for them when others have to give way first.
func (l *Leased) connections(ctx context.Context, replacing bool) (int, error) {
	want := l.spec.MaxConnections
	if want == 0 {
		want = laneConns
	}
	for {
		freed := l.budget.wait()
		if n := l.budget.take(want, replacing); n > 0 {
			return n, nil
		}
		switch victim, idle := l.budget.yielding(l.set.cfg.Now()); {
		case victim == nil:
		case idle:
			victim.park()
		default:
			victim.replace(victim.leased.ctx)
		}
		timer := time.NewTimer(proveStep)
		select {
		case <-freed:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return 0, fault.New(fault.Exhausted, fault.ConnectionBudget, "all connections to the backend are in use").
				WithOutcome(fault.NotApplied).WithRetry(time.Second)
		}
		timer.Stop()
	}
}

// Breaker stands before the backend's calls; all lanes share it.
func (l *Leased) Breaker() *breaker.Breaker { return l.breaker }

// Backend is the backend's name.
func (l *Leased) Backend() string { return l.spec.Backend }

// Open makes the credential and the pool of a call's caller ready.
func (l *Leased) Open(ctx context.Context) error {
	o, err := l.take(ctx)
	if err == nil {
		o.end()
	}
	return err
}

// Retain takes it once more, for someone who holds it.
func (l *Leased) Retain() {
	l.set.mu.Lock()
	defer l.set.mu.Unlock()
	l.refs++
}

// Release gives it back. The last release closes its pools, in the background, and gives their credentials back.
func (l *Leased) Release() {
	l.set.mu.Lock()
	defer l.set.mu.Unlock()
	l.refs--
	if l.refs == 0 {
		delete(l.set.leases, l.id)
		l.cancel()
	}
}

// Unready says why calls would fail now; empty where it depends on the caller.
func (l *Leased) Unready() string {
	if !l.shared() {
		return ""
	}
	for _, one := range l.all() {
		if o := one.now.Load(); o != nil {
			return o.pool.Unready()
		}
	}
	return "backend " + l.spec.Backend + ": its credential is not there yet"
}

// take returns the pool of a call's caller.
func (l *Leased) take(ctx context.Context) (*opened, error) {
	s := session.From(ctx)
	if s != nil && !l.shared() {
		if _, err := s.Hold(l, func() (session.Held, error) { return l.claim(s) }); err != nil {
			return nil, err
		}
	}
	for {
		one, err := l.lane(s)
		if err != nil {
			return nil, err
		}
		o, err := one.take(ctx)
		if !errors.Is(err, errClosed) {
			return o, err
		}
		l.forget(one)
	}
}
