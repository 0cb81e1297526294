package redis

import (
	"context"
	"errors"
	"net"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/prism-gateway/prism/shared/fault"
)

// dialError is the failure to open a connection: nothing was sent.
type dialError struct{ error }

func (e dialError) Unwrap() error { return e.error }

func closedFault() *fault.Fault {
	return fault.New(fault.Unavailable, fault.Draining, "the backend is closed").WithOutcome(fault.NotApplied)
}

// unsent is the fault of a call whose context ended before its command was sent.
func unsent(err error) *fault.Fault {
	f := fault.From(err)
	if f.Code == fault.DeadlineExceeded {
		f = fault.Wrap(err, fault.DeadlineExceeded, fault.Pool, "the time ran out while waiting for a connection")
	}
	return f.WithOutcome(fault.NotApplied)
}

// refusals are what the server says when it did nothing, by how the text begins after ERR.
var refusals = []struct {
	begins string
	code   fault.Code
	reason fault.Reason
	text   string
}{
	{"LOADING", fault.Unavailable, fault.BackendDown, "the backend is loading its data"},
	{"READONLY", fault.Unavailable, fault.BackendDown, "the backend takes no writes"},
	{"MASTERDOWN", fault.Unavailable, fault.BackendDown, "the backend has lost its primary"},
	{"CLUSTERDOWN", fault.Unavailable, fault.BackendDown, "the backend's cluster is down"},
	{"NOREPLICAS", fault.Unavailable, fault.BackendDown, "the backend has too few replicas for a write"},
	{"MISCONF", fault.Unavailable, fault.BackendDown, "the backend cannot write to its disk"},
	{"MOVED", fault.Unavailable, fault.BackendDown, "the backend keeps the data elsewhere"},
	{"TRYAGAIN", fault.Unavailable, fault.BackendDown, "the backend is moving the data"},
	{"BUSY", fault.Unavailable, fault.BackendDown, "the backend is busy"},
	{"max number of clients", fault.Unavailable, fault.BackendDown, "the backend takes no more connections"},
	{"OOM", fault.Exhausted, fault.Backend, "the backend is full"},
	{"NOAUTH", fault.Unavailable, fault.CredentialsUnavailable, "the backend refuses the proxy's credential"},
	{"WRONGPASS", fault.Unavailable, fault.CredentialsUnavailable, "the backend refuses the proxy's credential"},
	{"AUTH", fault.Unavailable, fault.CredentialsUnavailable, "the backend refuses the proxy's credential"},
	{"NOPERM", fault.Unavailable, fault.BackendDown, "the backend denies the proxy the operation"},
	{"Protocol error: unauthenticated", fault.Unavailable, fault.CredentialsUnavailable, "the backend refuses the proxy's credential"},
	{"NOSCRIPT", fault.Unavailable, fault.BackendDown, "the backend has forgotten a script"},
	{"CORRUPT", fault.DataLoss, fault.Checksum, "the backend holds something that is no item"},
}

// answer is the fault of a command that was given to a line, or nil.
func answer(err error) *fault.Fault {
	if err == nil || errors.Is(err, redis.Nil) {
		return nil
	}
	if e, ok := errors.AsType[redis.Error](err); ok {
		text := strings.TrimPrefix(e.Error(), "ERR ")
		if strings.HasPrefix(text, "WRONGTYPE") { // a script may have written before it met the value
			return fault.Wrap(err, fault.DataLoss, fault.Checksum, "the backend holds something that is no item").WithOutcome(fault.OutcomeUnknown)
		}
		for _, r := range refusals {
			if strings.HasPrefix(text, r.begins) {
				if _, lacks, ok := strings.Cut(text, " has no permissions"); ok {
					err = errors.New("NOPERM the user has no permissions" + lacks) // its name is not for logs
				}
				f := fault.Wrap(err, r.code, r.reason, r.text).WithOutcome(fault.NotApplied)
				if r.code == fault.Unavailable {
					f = f.WithRetry(100 * time.Millisecond)
				}
				return f
			}
		}
		return fault.Wrap(err, fault.Internal, fault.Bug, "internal error").WithOutcome(fault.OutcomeUnknown)
	}
	netErr, isNet := errors.AsType[net.Error](err)
	_, isDial := errors.AsType[dialError](err)
	switch {
	case isDial:
		return fault.Wrap(err, fault.Unavailable, fault.BackendDown, "the backend takes no connection").
			WithOutcome(fault.NotApplied).WithRetry(100 * time.Millisecond)
	case errors.Is(err, redis.ErrClosed):
		return closedFault()
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, redis.ErrPoolTimeout):
		return unsent(context.DeadlineExceeded)
	case isNet && netErr.Timeout():
		return fault.Wrap(err, fault.DeadlineExceeded, fault.Backend, "the backend did not answer in time").WithOutcome(fault.OutcomeUnknown)
	}
	return fault.Wrap(err, fault.Unavailable, fault.BackendDown, "the connection to the backend broke").
		WithOutcome(fault.OutcomeUnknown).WithRetry(100 * time.Millisecond)
}
