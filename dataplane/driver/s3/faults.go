package s3

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
	"time"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"

	"github.com/prism-gateway/prism/shared/fault"
)

// pause is after how long a caller may try again what may soon be possible.
const pause = 200 * time.Millisecond

// What the store says of a conditional call, besides faults.
var (
	errOvertaken   = errors.New("the object is no longer the one that was read")
	errUnsupported = errors.New("the store does not know the operation")
)

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

// damaged is the fault of an object that is no item of ours.
func damaged(err error) *fault.Fault {
	return fault.Wrap(err, fault.DataLoss, fault.Checksum, "the stored item cannot be read")
}

func down(err error, text string) *fault.Fault {
	return fault.Wrap(err, fault.Unavailable, fault.BackendDown, text).WithRetry(pause)
}

// call is what one call of the driver does, which may be several requests.
type call struct {
	i    *Instance
	ctx  context.Context
	stop func()      // frees the context
	sent atomic.Bool // the newest request has a connection
}

// begin begins a call, which has to end. wait bounds one that has no deadline; 0 does not.
func (i *Instance) begin(ctx context.Context, wait time.Duration) (*call, *fault.Fault) {
	if ctx.Err() != nil {
		return nil, unsent(ctx.Err())
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.closed {
		return nil, closedFault()
	}
	i.running.Add(1)
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(i.living, cancel)
	if _, ok := ctx.Deadline(); !ok && wait > 0 {
		ctx, cancel = withTimeout(ctx, cancel, wait)
	}
	c := &call{i: i}
	c.stop = func() {
		stop()
		cancel()
	}
	c.ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { c.sent.Store(true) }})
	return c, nil
}

// end ends a call.
func (c *call) end() {
	c.stop()
	c.i.running.Done()
}

// withTimeout bounds a context that another function cancels.
func withTimeout(ctx context.Context, outer context.CancelFunc, wait time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	return ctx, func() {
		cancel()
		outer()
	}
}

// failed is what a request's error means: errOvertaken, errUnsupported, or a fault with the outcome of a write. It is nil
// when there is no error.
func (c *call) failed(err error) error {
	if err == nil {
		return nil
	}
	if r, ok := errors.AsType[*awshttp.ResponseError](err); ok && r.HTTPStatusCode() >= http.StatusMultipleChoices {
		return answered(err, r.HTTPStatusCode())
	}
	outcome := fault.NotApplied
	if c.sent.Load() {
		outcome = fault.OutcomeUnknown
	}
	switch {
	case c.i.living.Err() != nil:
		return closedFault().WithOutcome(outcome)
	case errors.Is(context.Cause(c.ctx), errTooSlow):
		return errTooSlow.WithOutcome(outcome)
	case c.ctx.Err() != nil && outcome == fault.NotApplied:
		return unsent(c.ctx.Err())
	case c.ctx.Err() != nil:
		f := fault.From(c.ctx.Err())
		if f.Code == fault.DeadlineExceeded {
			f = fault.Wrap(err, fault.DeadlineExceeded, fault.Backend, "the backend did not answer in time")
		}
		return f.WithOutcome(outcome)
	case outcome == fault.NotApplied:
		return down(err, "the backend takes no connection").WithOutcome(outcome)
	}
	return down(err, "the connection to the backend broke").WithOutcome(outcome)
}

// fault is failed where nothing is conditional.
func (c *call) fault(err error) *fault.Fault {
	switch err := c.failed(err); {
	case err == nil:
		return nil
	case errors.Is(err, errOvertaken), errors.Is(err, errUnsupported):
		return fault.Wrap(err, fault.FailedPrecondition, fault.Backend, "the backend does not know the operation").WithOutcome(fault.NotApplied)
	default:
		return fault.From(err)
	}
}

// codeOf is S3's code of an error; empty where the store gave none.
func codeOf(err error) string {
	if e, ok := errors.AsType[smithy.APIError](err); ok {
		return e.ErrorCode()
	}
	return ""
}

// answered is what an answer means that says that the store did not do it.
func answered(err error, status int) error {
	var f *fault.Fault
	code := codeOf(err)
	switch {
	case status == http.StatusPreconditionFailed, code == "ConditionalRequestConflict", status == http.StatusNotFound && code == "NoSuchKey":
		return errOvertaken
	case status == http.StatusNotImplemented:
		return errUnsupported
	case status == http.StatusNotFound && code == "NoSuchUpload":
		f = fault.Wrap(err, fault.DeadlineExceeded, fault.Backend, "the value took too long to arrive")
	case status == http.StatusNotFound:
		f = down(err, "the backend has no such bucket")
	case code == "RequestTimeTooSkewed":
		f = down(err, "the clocks of the proxy and the backend differ too much")
	case status == http.StatusUnauthorized, code == "InvalidAccessKeyId", code == "SignatureDoesNotMatch", code == "ExpiredToken", code == "InvalidToken":
		f = fault.Wrap(err, fault.Unavailable, fault.CredentialsUnavailable, "the backend refuses the proxy's credential").WithRetry(100 * time.Millisecond)
	case status == http.StatusForbidden:
		f = down(err, "the backend denies the proxy the operation")
	case status >= 300 && status < 400, code == "AuthorizationHeaderMalformed":
		f = down(err, "the backend has the bucket in another region; set region")
	case status == http.StatusRequestEntityTooLarge, code == "EntityTooLarge":
		f = fault.Wrap(err, fault.Invalid, fault.TooLarge, "the value is larger than the backend takes")
	case status == http.StatusInsufficientStorage, code == "XMinioStorageFull", code == "QuotaExceeded":
		f = fault.Wrap(err, fault.Exhausted, fault.Backend, "the backend is full")
	case status == http.StatusRequestedRangeNotSatisfiable:
		f = damaged(errHeader)
	case status == http.StatusServiceUnavailable, status == http.StatusTooManyRequests:
		f = down(err, "the backend is overloaded")
	case status >= 500:
		return down(err, "the backend failed").WithOutcome(fault.OutcomeUnknown)
	default:
		f = fault.Wrap(err, fault.Internal, fault.Bug, "internal error")
	}
	return f.WithOutcome(fault.NotApplied)
}
