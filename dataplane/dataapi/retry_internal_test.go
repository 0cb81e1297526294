package dataapi

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/prism-gateway/prism/dataplane/limit"
	"github.com/prism-gateway/prism/dataplane/routing"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/fault"
)

// TestWhatIsTriedAgain gives a call attempts that fail one after the other, and then succeed.
func TestWhatIsTriedAgain(t *testing.T) {
	refused := fault.New(fault.Unavailable, fault.BackendDown, "refused").WithOutcome(fault.NotApplied)
	lost := fault.New(fault.Unavailable, fault.BackendDown, "lost").WithOutcome(fault.OutcomeUnknown)
	silent := fault.New(fault.Unavailable, fault.BackendDown, "says nothing")
	open := fault.New(fault.Unavailable, fault.BreakerOpen, "open").WithOutcome(fault.NotApplied)
	slow := fault.New(fault.DeadlineExceeded, fault.Backend, "slow").WithOutcome(fault.OutcomeUnknown)
	other := fault.New(fault.Conflict, fault.VersionMismatch, "other").WithOutcome(fault.NotApplied)
	bare := &datav1.PutRequest{}
	token := &datav1.PutRequest{Token: &datav1.IdempotencyToken{}}
	for name, tc := range map[string]struct {
		write    bool
		in       *datav1.PutRequest
		errs     []*fault.Fault
		within   time.Duration // of the caller's; 0: a minute
		budget   int           // calls before it; 0: many
		attempts int
		outcome  fault.Outcome // of the error; empty: it succeeds
		reason   fault.Reason
	}{
		"a write that was not applied":                      {write: true, in: bare, errs: []*fault.Fault{refused, refused}, attempts: 3},
		"a write of unknown outcome without a token":        {write: true, in: bare, errs: []*fault.Fault{lost}, attempts: 1, outcome: fault.OutcomeUnknown, reason: fault.BackendDown},
		"a write that does not say, without a token":        {write: true, in: bare, errs: []*fault.Fault{silent}, attempts: 1, reason: fault.BackendDown},
		"one that became unknown, without a token":          {write: true, in: bare, errs: []*fault.Fault{refused, lost}, attempts: 2, outcome: fault.OutcomeUnknown, reason: fault.BackendDown},
		"a write of unknown outcome with a token":           {write: true, in: token, errs: []*fault.Fault{lost}, attempts: 2},
		"unknown stays unknown when the next is refused":    {write: true, in: token, errs: []*fault.Fault{lost, open}, attempts: 2, outcome: fault.OutcomeUnknown, reason: fault.BreakerOpen},
		"unknown stays unknown after all attempts":          {write: true, in: token, errs: []*fault.Fault{lost, refused, refused}, attempts: 3, outcome: fault.OutcomeUnknown, reason: fault.BackendDown},
		"unsaid stays unknown":                              {write: true, in: token, errs: []*fault.Fault{silent, refused, refused}, attempts: 3, outcome: fault.OutcomeUnknown, reason: fault.BackendDown},
		"refused each time is not applied":                  {write: true, in: token, errs: []*fault.Fault{refused, refused, refused}, attempts: 3, outcome: fault.NotApplied, reason: fault.BackendDown},
		"a read, whatever its outcome":                      {in: bare, errs: []*fault.Fault{lost, refused}, attempts: 3},
		"an open breaker is not asked again":                {in: bare, errs: []*fault.Fault{open}, attempts: 1, outcome: fault.NotApplied, reason: fault.BreakerOpen},
		"time that ran out is not tried again":              {in: bare, errs: []*fault.Fault{slow}, attempts: 1, outcome: fault.OutcomeUnknown, reason: fault.Backend},
		"an answer is not tried again":                      {write: true, in: token, errs: []*fault.Fault{other}, attempts: 1, outcome: fault.NotApplied, reason: fault.VersionMismatch},
		"a caller without time is answered at once":         {in: bare, errs: []*fault.Fault{refused}, within: time.Millisecond, attempts: 1, outcome: fault.NotApplied, reason: fault.BackendDown},
		"without a budget nothing is tried again":           {in: bare, errs: []*fault.Fault{refused}, budget: 8, attempts: 1, outcome: fault.NotApplied, reason: fault.BackendDown},
		"a budget of one retry is one, and not one of each": {in: bare, errs: []*fault.Fault{refused, refused}, budget: 9, attempts: 2, outcome: fault.NotApplied, reason: fault.BackendDown},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				metrics, err := NewMetrics(prometheus.NewRegistry())
				if err != nil {
					t.Fatal(err)
				}
				if tc.budget == 0 {
					tc.budget = 1000
				}
				r := &routing.Route{Limits: limit.New(limit.Bounds{})}
				for range tc.budget {
					r.Limits.Reached()
				}
				if tc.within == 0 {
					tc.within = time.Minute
				}
				ctx, cancel := context.WithTimeout(t.Context(), tc.within)
				defer cancel()
				attempts := 0
				_, err = repeatedly(ctx, &Server{cfg: Config{Metrics: metrics}}, r, tc.write, tc.in, func(context.Context, *routing.Route, *datav1.PutRequest) (*datav1.PutResponse, error) {
					if attempts++; attempts <= len(tc.errs) {
						return nil, tc.errs[attempts-1]
					}
					return &datav1.PutResponse{}, nil
				})
				var got fault.Fault
				if f := fault.From(err); f != nil {
					got = *f
				}
				if attempts != tc.attempts || got.Outcome != tc.outcome || got.Reason != tc.reason {
					t.Errorf("%d attempts, %v of outcome %q; want %d, %q, %q", attempts, err, got.Outcome, tc.attempts, tc.reason, tc.outcome)
				}
			})
		})
	}
	for name, tc := range map[string]struct {
		err    error
		earned bool
	}{
		"success":                       {nil, true},
		"an answer":                     {other, true},
		"a store that is away":          {refused, true},
		"a store that is slow":          {slow, true},
		"an open breaker":               {open, false},
		"a request that breaks rules":   {fault.New(fault.Invalid, fault.Field, "broken"), false},
		"an interface that is not had":  {fault.New(fault.FailedPrecondition, fault.InterfaceMissing, "none"), false},
		"time that ran out in a queue":  {fault.New(fault.DeadlineExceeded, fault.Queue, "late"), false},
		"a caller that gave up":         {context.Canceled, false},
		"a connection that is not free": {fault.New(fault.DeadlineExceeded, fault.Pool, "busy"), false},
	} {
		t.Run("the budget after "+name, func(t *testing.T) {
			r := &routing.Route{Limits: limit.New(limit.Bounds{})}
			for range 10 {
				if reached(tc.err) {
					r.Limits.Reached()
				}
			}
			if got := r.Limits.Retry(); got != tc.earned {
				t.Errorf("ten calls earned a retry: %v, want %v", got, tc.earned)
			}
		})
	}
	if refused.Outcome != fault.NotApplied {
		t.Error("a driver's fault was changed")
	}
}
