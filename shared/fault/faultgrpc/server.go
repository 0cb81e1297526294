package faultgrpc

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"runtime/debug"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/prism-gateway/prism/shared/fault"
)

// RequestIDHeader is the metadata key of the request id: taken from the caller when it is well-formed, and sent back in
// the trailer of a call that failed.
const RequestIDHeader = "prism-request-id"

// The log attributes of this package; telemetry has the same names.
const (
	attrRequestID = "request_id"
	attrMethod    = "method"
	attrCode      = "code"
	attrReason    = "reason"
	attrError     = "error"
	attrStack     = "stack"
	attrLeftOut   = "left_out"
)

// callKey finds the call in a context.
type callKey struct{}

// call is the context of one call. The request id is made when somebody asks for it, so that a call that succeeds
// unnamed pays for nothing but this struct.
type call struct {
	context.Context
	once sync.Once
	id   string
}

// Value finds the call itself.
func (c *call) Value(key any) any {
	if _, ok := key.(callKey); ok {
		return c
	}
	return c.Context.Value(key)
}

func (c *call) requestID() string {
	c.once.Do(func() {
		if from := metadata.ValueFromIncomingContext(c.Context, RequestIDHeader); len(from) > 0 && wellFormed(from[0]) {
			c.id = from[0]
			return
		}
		var random [16]byte
		_, _ = rand.Read(random[:]) // never fails
		c.id = hex.EncodeToString(random[:])
	})
	return c.id
}

// RequestID returns the id of the call that ctx belongs to; empty outside of the interceptors.
func RequestID(ctx context.Context) string {
	if c, ok := ctx.Value(callKey{}).(*call); ok {
		return c.requestID()
	}
	return ""
}

// wellFormed keeps ids from outside short and free of what could break a log line.
func wellFormed(id string) bool {
	if len(id) == 0 || len(id) > 64 {
		return false
	}
	for i := range len(id) {
		switch c := id[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_', c == '.':
		default:
			return false
		}
	}
	return true
}

// Unary turns the error of a handler into a status, once, and logs its cause. Of many causes with one reason a few are
// logged each second, and the next line says how many were left out. It belongs outside of all interceptors whose errors
// must reach the caller.
func Unary(log *slog.Logger) grpc.UnaryServerInterceptor {
	lines := newRation()
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
		c := &call{Context: ctx}
		defer func() {
			if p := recover(); p != nil {
				resp, err = nil, panicked(c, log, info.FullMethod, p)
			}
			if err != nil {
				_ = grpc.SetTrailer(ctx, metadata.Pairs(RequestIDHeader, c.requestID())) // fails only without a server
			}
		}()
		if resp, err = next(c, req); err != nil {
			return nil, answer(c, log, lines, info.FullMethod, err)
		}
		return resp, nil
	}
}

// Stream is Unary for streams.
func Stream(log *slog.Logger) grpc.StreamServerInterceptor {
	lines := newRation()
	return func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
		c := &call{Context: stream.Context()}
		defer func() {
			if p := recover(); p != nil {
				err = panicked(c, log, info.FullMethod, p)
			}
			if err != nil {
				stream.SetTrailer(metadata.Pairs(RequestIDHeader, c.requestID()))
			}
		}()
		if err = next(srv, &serverStream{ServerStream: stream, ctx: c}); err != nil {
			return answer(c, log, lines, info.FullMethod, err)
		}
		return nil
	}
}

type serverStream struct {
	grpc.ServerStream
	ctx context.Context
}

// Context returns the context with the call's request id.
func (s *serverStream) Context() context.Context { return s.ctx }

// answer makes the error that leaves the server, and logs what the caller does not see.
func answer(c *call, log *slog.Logger, lines *ration, method string, err error) error {
	if reflect.TypeOf(err) == statusError {
		if st, _ := status.FromError(err); sayable(st) {
			return err
		}
	}
	f := fault.From(err)
	id := c.requestID()
	if cause := errors.Unwrap(f); cause != nil || f.Code == fault.Internal {
		logCause(c, log, lines, method, f, cmp.Or[error](cause, f))
	}
	return Status(f, id).Err()
}

func logCause(c *call, log *slog.Logger, lines *ration, method string, f *fault.Fault, cause error) {
	level := severity(f.Code)
	if !log.Enabled(c, level) {
		return
	}
	leftOut, ok := lines.take(f.Reason, time.Now())
	if !ok {
		return
	}
	attrs := []slog.Attr{
		slog.String(attrRequestID, c.requestID()), slog.String(attrMethod, method),
		slog.String(attrCode, codes.Code(f.Code).String()), slog.String(attrReason, string(f.Reason)),
		slog.String(attrError, cause.Error()),
	}
	if leftOut > 0 {
		attrs = append(attrs, slog.Int(attrLeftOut, leftOut))
	}
	log.LogAttrs(c, level, "call failed", attrs...)
}

// statusError is the type of what status.Error returns. Other errors that know a status, such as those of a store's
// SDK, are not meant for our callers.
var statusError = reflect.TypeOf(status.Error(codes.Unknown, ""))

// sayable reports whether a status that a handler returned may go out as it is: one of ours, or one of a standard
// service (health, reflection) about the caller's request. What a connection reports (UNAVAILABLE with an address, say)
// is a cause.
func sayable(st *status.Status) bool {
	switch st.Code() {
	case codes.InvalidArgument, codes.NotFound, codes.Unimplemented, codes.OutOfRange, codes.FailedPrecondition,
		codes.Canceled, codes.DeadlineExceeded:
		return true
	}
	return ours(st)
}

func severity(code fault.Code) slog.Level {
	switch code {
	case fault.Internal, fault.Unknown, fault.DataLoss:
		return slog.LevelError
	case fault.Cancelled:
		return slog.LevelDebug
	}
	return slog.LevelWarn
}

func panicked(c *call, log *slog.Logger, method string, p any) error {
	id := c.requestID()
	log.LogAttrs(c, slog.LevelError, "call panicked",
		slog.String(attrRequestID, id), slog.String(attrMethod, method),
		slog.String(attrError, fmt.Sprint(p)), slog.String(attrStack, string(debug.Stack())))
	return Status(fault.New(fault.Internal, fault.Bug, "internal error").WithOutcome(fault.OutcomeUnknown), id).Err()
}
