// Package forward takes a call one hop to an owner of its namespace, in the bytes that it came in.
//
// The next owner is tried when one is away or no longer an owner. A write is tried again only when it is certain that
// it was not done; a read always.
package forward

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/prism-gateway/prism/dataplane/frame"
	"github.com/prism-gateway/prism/dataplane/routing"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/fault/faultgrpc"
)

// HopHeader marks a call that has been forwarded. Where proxies have no certificates it is taken from anyone: all it does
// is that the call is not forwarded again, so forging it gains nothing.
const HopHeader = "x-prism-hop"

const (
	ourPrefix     = "prism-"
	avoidFor      = time.Second      // how long an owner that was away is asked after the others
	keepaliveTime = 20 * time.Second // of silence; servers allow every 10 s
	idleTimeout   = 5 * time.Minute  // after which a connection without calls is given up
	largestAnswer = 16 << 20         // the owner has its own bounds; this only must not be smaller
)

// Config makes a Forwarder.
type Config struct {
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// DialOptions are added to the connections'; without credentials among them they are plaintext.
	DialOptions []grpc.DialOption
	// Callers tells owners whose call it is; nil tells nothing.
	Callers callers
}

// callers tells an owner whose call is forwarded to it.
type callers interface {
	// Forwarded is the metadata for the proxy with an id; ctx is the caller's.
	Forwarded(ctx context.Context, to string) (metadata.MD, error)
}

// Forwarder has the connections to the other proxies. Its methods may be called concurrently.
type Forwarder struct {
	now     func() time.Time
	callers callers
	options []grpc.DialOption
	peers   sync.Map                      // address -> *link
	fleet   atomic.Pointer[routing.Fleet] // that Keep was last told of

	mu     sync.Mutex // guards opening and closing of links, and closed
	closed bool
}

// link is the connection to one proxy.
type link struct {
	conn       *grpc.ClientConn
	avoidUntil atomic.Int64 // Unix nanoseconds
	calls      atomic.Int64 // under way, plus one until it is retired
}

// New makes a Forwarder without connections.
func New(cfg Config) *Forwarder {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Forwarder{now: cfg.Now, callers: cfg.Callers, options: append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithIdleTimeout(idleTimeout),
		grpc.WithDisableServiceConfig(),
		// A proxy whose machine is gone answers nothing: calls without a deadline must not wait for it for ever.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: 5 * time.Second}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: time.Second,
		}),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(frame.NewCodec()), grpc.MaxCallRecvMsgSize(largestAnswer)),
	}, cfg.DialOptions...)}
}

// Hopped reports whether the call has been forwarded already.
func Hopped(ctx context.Context) bool {
	return len(metadata.ValueFromIncomingContext(ctx, HopHeader)) > 0
}

// Call is one call to be forwarded.
type Call struct {
	// Method is the full name, /service/method.
	Method string
	// Write says that doing it twice is not the same as doing it once.
	Write bool
	// Owners are tried in this order, those known to be away last.
	Owners []routing.Peer
	// RequestID is passed on.
	RequestID string
}

// Unary forwards a call and returns the owner's answer. The request stays the caller's. The error is a fault, or the
// owner's status as it came.
func (f *Forwarder) Unary(ctx context.Context, c Call, request *frame.Frame) (*frame.Frame, error) {
	var last error
	for _, owner := range f.ordered(c.Owners) {
		out, err := f.outgoing(ctx, owner, c.RequestID)
		if err != nil {
			return nil, err
		}
		l, err := f.link(owner.Address)
		if err != nil {
			return nil, err
		}
		answer := &frame.Frame{}
		var header, trailer metadata.MD
		var to peer.Peer
		err = l.conn.Invoke(out, c.Method, request, answer, grpc.Header(&header), grpc.Trailer(&trailer), grpc.Peer(&to))
		again := f.judge(l, err, c.Write, to.Addr != nil)
		l.done()
		if err == nil || !again || ctx.Err() != nil {
			pass(header, func(md metadata.MD) { _ = grpc.SetHeader(ctx, md) })
			pass(trailer, func(md metadata.MD) { _ = grpc.SetTrailer(ctx, md) })
			if err != nil {
				return nil, tell(err, c.Write && to.Addr != nil)
			}
			answer.GiveAway()
			return answer, nil
		}
		answer.Free()
		last = err
	}
	return nil, noOwner(last)
}

// Stream is a stream that an owner has taken. Exactly one call of Run follows.
type Stream struct {
	forwarder *Forwarder
	link      *link
	out       grpc.ClientStream
	cancel    context.CancelFunc
	write     bool
}

// Open begins to forward a stream: at the first owner that is reached, to which nothing has been sent then. The error is a fault.
func (f *Forwarder) Open(ctx context.Context, c Call) (*Stream, error) {
	ctx, cancel := context.WithCancel(ctx)
	desc := &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}
	var last error
	for _, owner := range f.ordered(c.Owners) {
		told, err := f.outgoing(ctx, owner, c.RequestID)
		if err != nil {
			cancel()
			return nil, err
		}
		l, err := f.link(owner.Address)
		if err != nil {
			cancel()
			return nil, err
		}
		out, err := l.conn.NewStream(told, desc, c.Method)
		if err == nil {
			return &Stream{forwarder: f, link: l, out: out, cancel: cancel, write: c.Write}, nil
		}
		f.judge(l, err, c.Write, false)
		l.done()
		last = err
	}
	cancel()
	return nil, noOwner(last)
}

// Run copies both ways until the owner's end, beginning with the caller's first message, which is given away.
func (s *Stream) Run(in grpc.ServerStream, first *frame.Frame) error {
	defer s.cancel()
	err := pump(in, s.out, first)
	s.forwarder.judge(s.link, err, s.write, true)
	s.link.done()
	if err != nil {
		return tell(err, s.write)
	}
	return nil
}

// pump copies messages both ways until the owner's end.
func pump(in grpc.ServerStream, out grpc.ClientStream, first *frame.Frame) error {
	go func() { // ends with in's context, which ends with its call
		for message := first; ; {
			err := out.SendMsg(message)
			message.Free()
			if err != nil {
				return // the owner's status comes out of RecvMsg
			}
			message = &frame.Frame{}
			if in.RecvMsg(message) != nil {
				_ = out.CloseSend()
				return
			}
		}
	}()
	if md, err := out.Header(); err == nil && md != nil {
		pass(md, func(md metadata.MD) { _ = in.SetHeader(md) })
		_ = in.SendHeader(nil) // before any message: it may tell that a watch is in place. That the caller is gone comes out below
	}
	for {
		message := &frame.Frame{}
		err := out.RecvMsg(message)
		if err != nil {
			pass(out.Trailer(), in.SetTrailer)
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		message.GiveAway()
		if err := in.SendMsg(message); err != nil {
			return err
		}
	}
}

// judge remembers whether the owner is there, and says whether the next may be asked.
func (f *Forwarder) judge(l *link, err error, write, reached bool) (again bool) {
	told := faultgrpc.FromStatus(err)
	ours := err != nil && told.Reason != ""
	switch status.Code(err) {
	case codes.Unavailable:
	case codes.DeadlineExceeded:
		if !ours { // an owner that is there says so itself, a little before the time is over
			l.avoidUntil.Store(f.now().Add(avoidFor).UnixNano())
		}
		return false
	case codes.Canceled:
		return false // it says nothing of the owner
	default:
		l.avoidUntil.Store(0)
		return false
	}
	if !ours || told.Reason == fault.NotOwner || told.Reason == fault.Draining || told.Reason == fault.Starting {
		l.avoidUntil.Store(f.now().Add(avoidFor).UnixNano())
	}
	if ours && told.Reason == fault.BackendDown {
		return false // the others have the same backend
	}
	return !reached || !write || told.Outcome == fault.NotApplied
}

// tell is the error for the caller: the owner's own words, or a fault that says what is known of the outcome.
func tell(err error, sentWrite bool) error {
	if f := faultgrpc.FromStatus(err); f.Reason != "" {
		return err
	}
	outcome := fault.NotApplied
	if sentWrite {
		outcome = fault.OutcomeUnknown
	}
	switch status.Code(err) {
	case codes.DeadlineExceeded:
		return fault.Wrap(err, fault.DeadlineExceeded, fault.Backend, "the time ran out").WithOutcome(outcome)
	case codes.Canceled:
		return fault.Wrap(err, fault.Cancelled, fault.Client, "the caller gave up").WithOutcome(outcome)
	case codes.Unavailable:
		return fault.Wrap(err, fault.Unavailable, fault.NotOwner, "the owner of the namespace went away during the call").
			WithOutcome(outcome).WithRetry(avoidFor / 10)
	}
	return fault.Wrap(err, fault.Internal, fault.Bug, "internal error").WithOutcome(outcome)
}

// noOwner is the fault of a call for which no owner was found.
func noOwner(last error) error {
	return fault.Wrap(last, fault.Unavailable, fault.NotOwner, "no owner of the namespace answers").
		WithOutcome(fault.NotApplied).WithRetry(avoidFor / 10)
}

// outgoing is the context of the call as it is forwarded to an owner: the caller's deadline and its prism- metadata, the hop,
// and who the caller is. Nothing else of what the caller sent goes on.
func (f *Forwarder) outgoing(ctx context.Context, owner routing.Peer, requestID string) (context.Context, error) {
	md := metadata.MD{}
	if f.callers != nil {
		var err error
		if md, err = f.callers.Forwarded(ctx, owner.ID); err != nil {
			return nil, fault.Wrap(err, fault.Internal, fault.Bug, "internal error").WithOutcome(fault.NotApplied)
		}
	}
	md.Set(HopHeader, "1")
	if in, ok := metadata.FromIncomingContext(ctx); ok {
		for key, values := range in {
			if strings.HasPrefix(key, ourPrefix) {
				md[key] = values
			}
		}
	}
	if requestID != "" {
		md.Set(faultgrpc.RequestIDHeader, requestID)
	}
	return metadata.NewOutgoingContext(ctx, md), nil
}

// pass gives on what is ours of an owner's metadata.
func pass(md metadata.MD, set func(metadata.MD)) {
	var ours metadata.MD
	for key, values := range md {
		if strings.HasPrefix(key, ourPrefix) && key != faultgrpc.RequestIDHeader { // which this proxy sets itself
			if ours == nil {
				ours = metadata.MD{}
			}
			ours[key] = values
		}
	}
	if ours != nil {
		set(ours)
	}
}
