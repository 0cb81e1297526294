package nats

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/prism-gateway/prism/shared/fault"
)

// pause is after how long a caller may try again what may soon be possible.
const pause = 100 * time.Millisecond

func closedFault() *fault.Fault {
	return fault.New(fault.Unavailable, fault.Draining, "the backend is closed").WithOutcome(fault.NotApplied)
}

// unsent is the fault of a call whose context ended before it was sent.
func unsent(err error) *fault.Fault {
	f := fault.From(err)
	if f.Code == fault.DeadlineExceeded {
		f = fault.Wrap(err, fault.DeadlineExceeded, fault.Pool, "the time ran out while waiting for a connection")
	}
	return f.WithOutcome(fault.NotApplied)
}

// late is the fault of a call whose context ended after it was sent.
func late(err error) *fault.Fault {
	f := fault.From(err)
	if f.Code == fault.DeadlineExceeded {
		f = fault.Wrap(err, fault.DeadlineExceeded, fault.Backend, "the backend did not answer in time")
	}
	return f.WithOutcome(fault.OutcomeUnknown)
}

// dialFault is the fault of a connection that was not made.
func dialFault(err error) *fault.Fault {
	switch {
	case errors.Is(err, context.Canceled):
		return closedFault()
	case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired), errors.Is(err, nats.ErrAuthRevoked):
		return fault.Wrap(err, fault.Unavailable, fault.CredentialsUnavailable, "the backend refuses the proxy's credential").
			WithOutcome(fault.NotApplied).WithRetry(pause)
	case errors.Is(err, nats.ErrPermissionViolation):
		return deniedFault(err)
	}
	return fault.Wrap(err, fault.Unavailable, fault.BackendDown, "the backend takes no connection").WithOutcome(fault.NotApplied).WithRetry(pause)
}

// brokenFault is the fault of a call whose connection broke while it waited for the answer.
func brokenFault(err error) *fault.Fault {
	return fault.Wrap(err, fault.Unavailable, fault.BackendDown, "the connection to the backend broke").
		WithOutcome(fault.OutcomeUnknown).WithRetry(pause)
}

func deniedFault(err error) *fault.Fault {
	return fault.Wrap(err, fault.Unavailable, fault.BackendDown, "the backend denies the proxy the operation").WithOutcome(fault.NotApplied)
}

// publishFault is the fault of a request that the SDK did not take.
func publishFault(err error) *fault.Fault {
	switch {
	case errors.Is(err, nats.ErrMaxPayload):
		return tooLarge(err)
	case errors.Is(err, nats.ErrConnectionClosed):
		return brokenFault(err).WithOutcome(fault.NotApplied)
	}
	// Part of it may have been written.
	return brokenFault(err)
}

func tooLarge(err error) *fault.Fault {
	return fault.Wrap(err, fault.Invalid, fault.TooLarge, "the value is larger than the backend takes").WithOutcome(fault.NotApplied)
}

// noStream is the fault of a subject that nobody answers: the stream is gone, or has no leader. It is looked for anew.
func noStream(l *line) *fault.Fault {
	l.target.Store(nil)
	l.parts.Store(nil)
	return fault.New(fault.Unavailable, fault.BackendDown, "the backend has no stream for the items at present").
		WithOutcome(fault.NotApplied).WithRetry(pause)
}

// damaged is the fault of a message that is no item of ours.
func damaged(err error) *fault.Fault {
	return fault.Wrap(err, fault.DataLoss, fault.Checksum, "the stored item cannot be read")
}

// problem is the error in an answer of JetStream. It means that nothing was done.
type problem struct {
	Status      int    `json:"code"`
	Code        int    `json:"err_code"`
	Description string `json:"description"`
}

// Error returns JetStream's text.
func (p *problem) Error() string { return fmt.Sprintf("%s (%d)", p.Description, p.Code) }

// The codes of JetStream that matter here.
const (
	codeAccountFull   = 10002
	codeNoResources   = 10023
	codeNotForAccount = 10039
	codeStorageFull   = 10047
	codeTooLarge      = 10054
	codeNameTaken     = 10058
	codeNoStream      = 10059
	codeWrongSequence = 10071
	codeNotEnabled    = 10076
	codeNotStored     = 10077
	codeWrongConstant = 10164
)

// fault is the fault that a problem is to a caller.
func (p *problem) fault(l *line) *fault.Fault {
	down := func(text string) *fault.Fault {
		return fault.Wrap(p, fault.Unavailable, fault.BackendDown, text).WithRetry(pause)
	}
	var f *fault.Fault
	switch {
	case p.Code == codeAccountFull, p.Code == codeNoResources, p.Code == codeStorageFull, p.Code == codeNotStored:
		f = fault.Wrap(p, fault.Exhausted, fault.Backend, "the backend is full")
	case p.Code == codeTooLarge:
		f = tooLarge(p)
	case p.Code == codeNotEnabled, p.Code == codeNotForAccount:
		f = down("the backend has no JetStream for the proxy's account")
	case p.Code == codeNoStream:
		return noStream(l)
	case p.Status == 503, p.Status == 500:
		f = down("the backend cannot do it at present")
	default:
		f = fault.Wrap(p, fault.Internal, fault.Bug, "internal error")
	}
	return f.WithOutcome(fault.NotApplied)
}

// api asks JetStream's API and reads the answer into response, whose error field is problem.
func (l *line) api(ctx context.Context, subject string, request, response any, failed **problem) *fault.Fault {
	m := nats.NewMsg(subject)
	if request != nil {
		var err error
		if m.Data, err = json.Marshal(request); err != nil {
			return fault.From(err).WithOutcome(fault.NotApplied)
		}
	}
	answer, f := l.do(ctx, m)
	if f != nil {
		return f
	}
	if err := json.Unmarshal(answer.Data, response); err != nil {
		return fault.Wrap(err, fault.Internal, fault.Bug, "internal error").WithOutcome(fault.OutcomeUnknown)
	}
	if *failed != nil {
		return (*failed).fault(l)
	}
	return nil
}
