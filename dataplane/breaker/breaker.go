// Package breaker turns a store that does not answer into an immediate refusal, so that callers do not wait for it one
// by one, and lets single calls through to see whether it is back.
package breaker

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prism-gateway/prism/shared/fault"
)

// When a breaker opens and for how long.
const (
	slots    = 10          // of one second: the window
	least    = 20          // calls in the window, so that a few failures of an idle store do not count as all
	firstOff = time.Second // the first time that it stays open
	lastOff  = 30 * time.Second
)

// State is what a breaker does with calls.
type State int32

// The states.
const (
	Closed   State = iota // they pass
	Open                  // they are refused
	HalfOpen              // one passes at a time, and decides
)

// String names the state.
func (s State) String() string { return [...]string{"closed", "open", "half-open"}[s] }

// Breaker stands before one backend. It opens when at least half of the calls of the last ten seconds failed, of twenty or
// more since the first that did; it stays open for a second, and twice as long after each probe that fails, up to half a minute. Its methods may be
// called concurrently; nil lets everything pass.
type Breaker struct {
	now     func() time.Time
	state   atomic.Int32
	failing atomic.Bool // a call of the window failed: until then nothing is counted, and a call costs two loads

	mu     sync.Mutex // guards what follows, and changes of the above
	counts [slots]count
	off    time.Duration // how long it is open this time
	until  time.Time     // when a probe may pass
	probed time.Time     // since when one is under way; zero: none
}

// count is the calls of one second.
type count struct {
	second            int64 // since 1970
	succeeded, failed int
}

// New makes a closed breaker. now is the clock; nil means time.Now.
func New(now func() time.Time) *Breaker {
	if now == nil {
		now = time.Now
	}
	return &Breaker{now: now}
}

// State is what it does with calls.
func (b *Breaker) State() State {
	if b == nil {
		return Closed
	}
	return State(b.state.Load())
}

// Begin admits a call, whose end is told by End, or refuses it.
func (b *Breaker) Begin() error {
	if b == nil || State(b.state.Load()) == Closed {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	wait := b.until.Sub(now)
	switch {
	case State(b.state.Load()) == Closed:
		return nil
	case wait <= 0 && (b.probed.IsZero() || now.Sub(b.probed) > lastOff): // one that never ends decides nothing
		b.probed = now
		b.state.Store(int32(HalfOpen))
		return nil
	}
	return fault.New(fault.Unavailable, fault.BreakerOpen, "the backend does not answer; calls are refused until it does").
		WithOutcome(fault.NotApplied).WithRetry(max(wait, 50*time.Millisecond))
}

// End tells how a call that was admitted ended.
func (b *Breaker) End(err error) {
	if b == nil {
		return
	}
	closed := State(b.state.Load()) == Closed
	if err == nil && closed && !b.failing.Load() {
		return
	}
	failed, counts := verdict(err)
	if closed && !counts {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if State(b.state.Load()) != Closed {
		b.probeLocked(failed, counts)
		return
	}
	now := b.now()
	c := &b.counts[now.Unix()%slots]
	if c.second != now.Unix() {
		*c = count{second: now.Unix()}
	}
	if failed {
		c.failed++
		b.failing.Store(true)
	} else {
		c.succeeded++
	}
	succeeded, lost := b.windowLocked(now)
	switch {
	case lost == 0:
		b.failing.Store(false)
	case failed && lost+succeeded >= least && lost >= succeeded:
		b.off = firstOff
		b.openLocked(now)
	}
}

// Answered tells that the backend answered something else than a call, such as a ping: the next call is let through to see.
func (b *Breaker) Answered() {
	if b == nil || State(b.state.Load()) == Closed {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.until = b.now()
}

// probeLocked takes the end of a call while the breaker is not closed: it may be the probe, or one that had begun before.
func (b *Breaker) probeLocked(failed, counts bool) {
	switch {
	case failed && !b.probed.IsZero():
		b.off = min(2*b.off, lastOff)
		b.openLocked(b.now())
	case !failed && counts:
		b.counts = [slots]count{}
		b.probed = time.Time{}
		b.failing.Store(false)
		b.state.Store(int32(Closed))
	default:
		b.probed = time.Time{} // it said nothing of the backend: the next is the probe
	}
}

// openLocked refuses calls for a while, which differs a little between proxies.
func (b *Breaker) openLocked(now time.Time) {
	b.probed = time.Time{}
	b.until = now.Add(b.off/2 + rand.N(b.off))
	b.state.Store(int32(Open))
}

func (b *Breaker) windowLocked(now time.Time) (succeeded, failed int) {
	for _, c := range b.counts {
		if now.Unix()-c.second < slots {
			succeeded, failed = succeeded+c.succeeded, failed+c.failed
		}
	}
	return succeeded, failed
}

// Failed reports whether a call's end speaks against the backend.
func Failed(err error) bool {
	failed, _ := verdict(err)
	return failed
}

// verdict says whether a call's end speaks against the backend, and whether it says anything of it at all.
func verdict(err error) (failed, counts bool) {
	f := fault.From(err)
	if f == nil {
		return false, true
	}
	switch f.Code {
	case fault.Unavailable:
		return f.Reason == fault.BackendDown, f.Reason == fault.BackendDown
	case fault.DeadlineExceeded:
		return f.Reason == fault.Backend, f.Reason == fault.Backend
	case fault.Cancelled, fault.Invalid:
		return false, false
	}
	return false, true
}
