package dataapi

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/prism-gateway/prism/dataplane/routing"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/fault"
)

// How often a call is tried again here, and after how long: twice as long each time, with jitter.
const (
	maxRetries = 2
	firstWait  = 5 * time.Millisecond
)

// repeatedly calls until the call succeeds or is not to be tried again. When one attempt of a write may have been applied,
// or may be later, it stays so: that a later attempt was not applied says nothing of the earlier one.
func repeatedly[Req any, Res any](ctx context.Context, s *Server, r *routing.Route, write bool, in Req, call func(context.Context, *routing.Route, Req) (Res, error)) (Res, error) {
	unknown := false
	for attempt := 0; ; attempt++ {
		out, err := call(ctx, r, in)
		if attempt == 0 && reached(err) {
			r.Limits.Reached()
		}
		if err == nil {
			return out, nil
		}
		if !s.again(ctx, r, err, write, in, attempt) {
			if unknown {
				err = fault.From(err).WithOutcome(fault.OutcomeUnknown)
			}
			return out, err
		}
		unknown = unknown || write && fault.From(err).Outcome != fault.NotApplied
	}
}

// reached reports whether a call that ended so was asked of the store: what was refused before it earns no retries.
func reached(err error) bool {
	f := fault.From(err)
	switch {
	case f == nil:
		return true
	case f.Code == fault.Unavailable:
		return f.Reason == fault.BackendDown
	case f.Code == fault.DeadlineExceeded:
		return f.Reason == fault.Backend
	case f.Code == fault.Cancelled, f.Code == fault.Invalid, f.Reason == fault.InterfaceMissing, f.Reason == fault.Consistency:
		return false
	}
	return true
}

// again waits and reports whether to try a call once more: one that the store did not answer, that is safe to repeat, and
// that the namespace's budget of retries allows.
func (s *Server) again(ctx context.Context, r *routing.Route, err error, write bool, request any, attempt int) bool {
	f := fault.From(err)
	switch {
	case attempt >= maxRetries, f.Code != fault.Unavailable || f.Reason != fault.BackendDown, !repeatable(f, write, request), !r.Limits.Retry():
		return false
	}
	wait := firstWait << attempt
	wait = wait/2 + rand.N(wait)
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < 2*wait {
		return false
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		s.cfg.Metrics.retries.Inc()
		return true
	}
}

// repeatable reports whether doing a call twice is the same as doing it once.
func repeatable(f *fault.Fault, write bool, request any) bool {
	if !write || f.Outcome == fault.NotApplied {
		return true
	}
	with, ok := request.(interface {
		GetToken() *datav1.IdempotencyToken
	})
	return ok && with.GetToken() != nil
}
