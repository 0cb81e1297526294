package pool

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prism-gateway/prism/dataplane/credential"
	"github.com/prism-gateway/prism/dataplane/session"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/secret"
)

// How long the parts of a change of credentials may take.
const (
	openFor    = 10 * time.Second // a credential and its pool
	proveFor   = 10 * time.Second // a new pool, to answer
	proveStep  = 50 * time.Millisecond
	anotherFor = 2 * time.Second  // a call waits for another credential when the backend refused the one that is there
	drainFor   = 30 * time.Second // calls under way on a pool that was replaced
	laneConns  = 8                // of one lane, when nobody says otherwise
)

// lane is one credential's way to a backend: the pool that is open with it now, and the next while it is replaced. Where
// others need the connections more it is parked: it has the credential, and no pool until the next call.
type lane struct {
	leased *Leased
	owner  string
	ready  chan struct{} // closed when it is open, or could not be

	used    atomic.Int64                    // Unix nanoseconds
	now     atomic.Pointer[opened]          // nil before it is ready and while it is parked
	latest  atomic.Pointer[session.Session] // who used it last; nil when it is shared by all
	token   atomic.Pointer[secret.Text]     // the newest of its owner's, to log in with; nil when the owner has none
	turning atomic.Bool                     // the pool is being replaced
	told    uint64                          // by the sweep: the generation that it had, parked

	mu      sync.Mutex // guards what follows
	handle  *credential.Handle
	err     error // why it could not be opened
	closed  bool
	pools   int    // that are open, or still closing
	refused uint64 // the generation that the backend refused
	waking  *waking
}

// waking is that a parked lane opens its pool again.
type waking struct {
	done chan struct{} // closed when it has, or could not; guards err
	err  error
}

// opened is a pool that was opened with one generation of a credential.
type opened struct {
	pool       *Pool
	generation uint64
	size       int
	lane       *lane

	calls   atomic.Int64
	retired atomic.Bool
	over    sync.Once
	ended   chan struct{} // closed when the pool takes no new work
}

// begin notes a call, unless the pool takes no new ones.
func (o *opened) begin() bool {
	o.calls.Add(1)
	if !o.retired.Load() {
		return true
	}
	o.end()
	return false
}

func (o *opened) end() {
	if o.calls.Add(-1) == 0 && o.retired.Load() {
		o.close()
	}
}

// retire lets the pool go when its last call has ended, or after a while.
func (o *opened) retire() {
	if o.retired.Swap(true) {
		return
	}
	close(o.ended)
	if o.calls.Load() == 0 {
		o.close()
		return
	}
	time.AfterFunc(drainFor, o.close)
}

// close closes the pool, and then says that its credential is used no more.
func (o *opened) close() {
	o.over.Do(func() {
		o.pool.Release()
		go func() {
			<-o.pool.done
			o.lane.leased.budget.give(o.size)
			o.lane.mu.Lock()
			handle := o.lane.handle
			o.lane.mu.Unlock()
			handle.Retire(o.generation)
			o.lane.letGo(1)
		}()
	})
}

// load is how many connections the lane may have and how many calls are under way.
func (l *lane) load() (size int, calls int64) {
	if o := l.now.Load(); o != nil {
		return o.size, o.calls.Load()
	}
	return 0, 0
}

// open gets the credential and opens the pool. It is called once, by a goroutine of its own.
func (l *lane) open(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, openFor)
	defer cancel()
	defer close(l.ready)
	began := time.Now()
	handle, err := l.leased.source.Acquire(ctx, l.leased.key(l.owner), l.login)
	if err == nil {
		l.mu.Lock()
		l.handle = handle
		l.mu.Unlock()
		err = l.turn(ctx, false)
	}
	if err != nil {
		l.mu.Lock()
		l.err = err
		l.mu.Unlock()
		l.leased.forget(l)
		return
	}
	if opened := l.leased.set.cfg.Opened; opened != nil {
		opened.Observe(time.Since(began).Seconds())
	}
}

// login is how the provider knows for whom the credential is; nil: as the proxy.
func (l *lane) login() *credential.Login {
	as := l.leased.lease.Login
	if s := l.latest.Load(); s != nil {
		if token := s.Login(); !token.IsZero() {
			l.token.Store(&token)
		}
	}
	token := l.token.Load()
	if token == nil || as.Role == "" {
		return nil
	}
	return &credential.Login{AuthPath: as.AuthPath, Role: as.Role, Token: *token, VaultNamespace: as.VaultNamespace}
}

// use notes that a session uses the lane. Its token is remembered: an owner that logs in with one never gets the proxy's
// credential instead, also when its sessions are over and the token is not good any more.
func (l *lane) use(s *session.Session, token secret.Text) {
	if s == nil || l.latest.Load() == s {
		return
	}
	if !token.IsZero() {
		l.token.Store(&token)
	}
	l.latest.Store(s)
}

// turn opens a pool with the newest credential and puts it in the place of the one that is there. With proof it answers
// before any call goes there.
func (l *lane) turn(ctx context.Context, proof bool) error {
	c := l.handle.Current()
	if c == nil {
		return l.handle.Err()
	}
	size, err := l.leased.connections(ctx, proof)
	if err != nil {
		return err
	}
	spec := l.leased.spec
	spec.lease, spec.MaxConnections = l.leased.label(l.owner, c.Generation), size
	spec.Username, spec.Password, spec.Token, spec.PrivateKey, spec.Certificate = c.Username, c.Password, c.Token, c.PrivateKey, c.Certificate
	p, err := l.leased.set.Acquire(spec)
	if err != nil {
		l.leased.budget.give(size)
		return err
	}
	l.mu.Lock()
	l.pools++
	l.mu.Unlock()
	next := &opened{pool: p, generation: c.Generation, size: size, lane: l, ended: make(chan struct{})}
	if proof {
		if err := l.prove(ctx, next); err != nil {
			next.retire()
			return err
		}
	}
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		next.retire()
		return errClosed
	}
	before := l.now.Swap(next)
	l.leased.budget.join(l) // it may have been parked meanwhile
	l.mu.Unlock()
	if before != nil {
		before.retire()
		l.tell()
	}
	return nil
}

// tell tells the sessions that their credential was replaced.
func (l *lane) tell() {
	if s := l.latest.Load(); s != nil {
		s.Tell(session.Event{Kind: session.Rotated})
	}
}

// prove waits until a new pool answers: the backend may learn of its user a little later.
func (l *lane) prove(ctx context.Context, o *opened) error {
	ctx, cancel := context.WithTimeout(ctx, proveFor)
	defer cancel()
	for {
		err := o.pool.ping(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			if fault.Is(err, fault.CredentialsUnavailable) {
				l.handle.Refused(o.generation)
			}
			return err
		case <-time.After(proveStep):
		}
	}
}

// replace puts a pool with the newest credential, or of another size, in place in the background, unless that is under way.
func (l *lane) replace(ctx context.Context) {
	if l.turning.Swap(true) {
		return
	}
	l.leased.set.wg.Go(func() {
		defer l.turning.Store(false)
		ctx, cancel := context.WithTimeout(ctx, openFor+proveFor)
		defer cancel()
		_ = l.turn(ctx, true) // the pool that is there serves on, and the next look tries again
	})
}

// take returns the pool for a call, which ends it.
func (l *lane) take(ctx context.Context) (*opened, error) {
	select {
	case <-l.ready:
	default:
		select {
		case <-l.ready:
		case <-ctx.Done():
			return nil, fault.Wrap(ctx.Err(), fault.DeadlineExceeded, fault.Pool, "the time ran out before the backend's credential was there").WithOutcome(fault.NotApplied)
		}
	}
	l.mu.Lock()
	handle, err, closed, refused := l.handle, l.err, l.closed, l.refused
	l.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if closed {
		return nil, errClosed
	}
	began := l.leased.set.cfg.Now()
	l.used.Store(began.UnixNano())
	for {
		c := handle.Current()
		if c == nil {
			if l.isClosed() {
				return nil, errClosed
			}
			return nil, handle.Err()
		}
		o := l.now.Load()
		if o == nil {
			if err := l.wake(ctx); err != nil {
				return nil, err
			}
			continue
		}
		if c.Generation != o.generation {
			l.replace(l.leased.ctx)
		}
		switch {
		case o.generation == refused:
			if err := l.another(ctx, handle, began); err != nil {
				return nil, err
			}
		case o.begin():
			return o, nil
		case l.isClosed(): // just now; else it was replaced
			return nil, errClosed
		}
	}
}

// park closes the pool and keeps the credential.
func (l *lane) park() {
	l.mu.Lock()
	o := l.now.Swap(nil)
	l.leased.budget.leave(l)
	l.mu.Unlock()
	if o != nil {
		o.retire()
	}
}

// unused reports that no generation of the credential from before the call is used, nor will be.
func (l *lane) unused() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.pools == 0 && l.waking == nil && !l.turning.Load()
}

// wake opens the pool of a parked lane, once for all calls that wait for it.
func (l *lane) wake(ctx context.Context) error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return errClosed
	}
	w := l.waking
	if w == nil {
		w = &waking{done: make(chan struct{})}
		l.waking = w
		l.leased.budget.join(l)
		l.leased.set.wg.Go(func() {
			ctx, cancel := context.WithTimeout(l.leased.ctx, openFor)
			defer cancel()
			w.err = l.turn(ctx, false)
			l.mu.Lock()
			l.waking = nil
			if l.now.Load() == nil {
				l.leased.budget.leave(l)
			}
			l.mu.Unlock()
			close(w.done)
		})
	}
	l.mu.Unlock()
	select {
	case <-w.done:
		return w.err
	case <-ctx.Done():
		return fault.Wrap(ctx.Err(), fault.DeadlineExceeded, fault.Pool, "the time ran out while waiting for a connection").WithOutcome(fault.NotApplied)
	}
}

// errClosed is that a lane was closed while a call looked at it: the call opens another.
var errClosed = errors.New("the lane was closed")

// another waits until the pool is another than one whose credential the backend refused.
func (l *lane) another(ctx context.Context, handle *credential.Handle, since time.Time) error {
	changed := handle.Changed()
	var err error
	select {
	case <-changed:
		l.replace(l.leased.ctx)
		return nil
	case <-time.After(proveStep):
		if l.leased.set.cfg.Now().Sub(since) < anotherFor {
			return nil
		}
	case <-ctx.Done():
		err = ctx.Err()
	}
	return fault.Wrap(err, fault.Unavailable, fault.CredentialsUnavailable, "the backend refuses the credential, and there is no other yet").
		WithOutcome(fault.NotApplied).WithRetry(time.Second)
}

// refuse tells that the backend refused the credential of a pool, and reports whether the call may be tried with another.
func (l *lane) refuse(o *opened, err error) bool {
	f := fault.From(err)
	if f == nil || f.Reason != fault.CredentialsUnavailable {
		return false
	}
	l.mu.Lock()
	first := l.refused < o.generation
	l.refused = max(l.refused, o.generation)
	handle := l.handle
	l.mu.Unlock()
	if first {
		handle.Refused(o.generation)
	}
	return f.Outcome != fault.OutcomeUnknown
}

// close lets everything go: the pool, and then the credential.
func (l *lane) close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.leased.budget.leave(l)
	if o := l.now.Load(); o != nil {
		o.retire() // again is no harm
	}
	l.letGo(0)
}

func (l *lane) isClosed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closed
}

// letGo notes that pools have closed, and releases the credential of a lane that is closed when no pool is left: each may
// have calls under way until then.
func (l *lane) letGo(closed int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pools -= closed
	if l.closed && l.pools == 0 && l.handle != nil {
		l.handle.Release() // again is no harm
	}
}
