// Package limit bounds what one namespace may ask of one proxy: calls per second and calls at once.
package limit

import (
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/prism-gateway/prism/shared/fault"
)

// retryBusy is how long a caller is told to wait when too many calls are under way.
const retryBusy = 10 * time.Millisecond

// Bounds are the limits of a namespace on one proxy.
type Bounds struct {
	// Rate is in calls per second; 0 means without bound. Up to one second's calls may come at once.
	Rate float64
	// Concurrency is how many calls may be under way; 0 means without bound.
	Concurrency int64
}

// Limiter enforces the bounds of one namespace. It outlives changes of its bounds, so that a change of configuration
// gives nobody a fresh allowance. Its methods may be called concurrently.
type Limiter struct {
	rate     atomic.Pointer[rate.Limiter] // nil: without bound
	most     atomic.Int64
	underway atomic.Int64
	streams  atomic.Int64 // that stay open
	retries  atomic.Int64 // in parts of retryParts
}

// The budget of retries: what a call adds, and how much may be saved up.
const (
	retryParts = 10 // a tenth of a retry for each call
	maxRetries = 10 * retryParts
)

// Retry takes one retry from the namespace's budget, which holds one for each ten calls that the store was asked and ten at most: when a store
// fails for everybody, the proxy asks it a tenth more than its callers do, and not a multiple.
func (l *Limiter) Retry() bool {
	for {
		left := l.retries.Load()
		if left < retryParts {
			return false
		}
		if l.retries.CompareAndSwap(left, left-retryParts) {
			return true
		}
	}
}

// New makes a limiter.
func New(b Bounds) *Limiter {
	l := &Limiter{}
	l.SetBounds(b)
	return l
}

// SetBounds replaces the bounds; calls under way go on.
func (l *Limiter) SetBounds(b Bounds) {
	l.most.Store(b.Concurrency)
	burst := max(1, int(b.Rate))
	switch current := l.rate.Load(); {
	case b.Rate <= 0:
		l.rate.Store(nil)
	case current == nil:
		l.rate.Store(rate.NewLimiter(rate.Limit(b.Rate), burst))
	default:
		current.SetLimit(rate.Limit(b.Rate))
		current.SetBurst(burst)
	}
}

// Begin admits a call or says when to come again. Who was admitted calls End once.
func (l *Limiter) Begin() error {
	return l.begin(&l.underway, "too many calls of this namespace are under way")
}

// BeginStream admits a stream that stays open, such as a watch. As many may be open as calls may be under way, and neither
// takes from the other. Who was admitted calls EndStream once.
func (l *Limiter) BeginStream() error {
	return l.begin(&l.streams, "too many streams of this namespace are open")
}

func (l *Limiter) begin(of *atomic.Int64, tooMany string) error {
	if now, most := of.Add(1), l.most.Load(); most > 0 && now > most {
		of.Add(-1)
		return fault.New(fault.Exhausted, fault.Bulkhead, tooMany).
			WithOutcome(fault.NotApplied).WithRetry(retryBusy)
	}
	if bucket := l.rate.Load(); bucket != nil && !bucket.Allow() {
		of.Add(-1)
		r := bucket.Reserve()
		wait := r.Delay()
		r.Cancel()
		return fault.New(fault.Exhausted, fault.Rate, "the namespace's calls per second are used up").
			WithOutcome(fault.NotApplied).WithRetry(max(wait, time.Millisecond))
	}
	return nil
}

// Reached tells that a call was asked of the store: it adds to the budget of retries.
func (l *Limiter) Reached() {
	if saved := l.retries.Load(); saved < maxRetries {
		l.retries.Add(1) // a few too many at once do not matter
	}
}

// End ends a call that was admitted.
func (l *Limiter) End() { l.underway.Add(-1) }

// EndStream ends a stream that was admitted.
func (l *Limiter) EndStream() { l.streams.Add(-1) }

// Underway is how many calls are under way.
func (l *Limiter) Underway() int64 { return l.underway.Load() }
