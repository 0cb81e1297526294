// Package dataapi serves the data services: it finds a call's route once, bounds the call, and turns messages into calls
// of the route's pattern and back.
//
// A call is routed by the bytes that it came in and decoded only where it is served; elsewhere it is forwarded as it is.
package dataapi

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/prism-gateway/prism/dataplane/authz"
	"github.com/prism-gateway/prism/dataplane/forward"
	"github.com/prism-gateway/prism/dataplane/frame"
	"github.com/prism-gateway/prism/dataplane/pattern/keyvalue"
	"github.com/prism-gateway/prism/dataplane/routing"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/fault/faultgrpc"
	"github.com/prism-gateway/prism/shared/ident"
)

// The metadata that callers ask and are answered with.
const (
	DebugHeader   = "prism-debug"
	debugTiming   = "timing"
	TimingTrailer = "prism-timing"
)

// MaxRequestBytes bounds a request. Servers take a little more, so that the refusal can say so.
const (
	MaxRequestBytes = 4 << 20
	MaxFrameBytes   = MaxRequestBytes + 1<<20
)

// startingRetry is after what time a caller may ask a proxy again that has no configuration yet.
const startingRetry = 200 * time.Millisecond

// forwarder takes calls to owners.
type forwarder interface {
	Unary(ctx context.Context, c forward.Call, request *frame.Frame) (*frame.Frame, error)
	Open(ctx context.Context, c forward.Call) (*forward.Stream, error)
}

// Config makes a Server.
type Config struct {
	// Routes is the table in effect. Required.
	Routes *routing.Routes
	// Forward takes calls that others own. Required.
	Forward forwarder
	// Callers finds out who calls. Required.
	Callers finder
	// Sessions are those of callers. Required.
	Sessions sessions
	// Required says that every caller must be known, also those of namespaces that do not ask.
	Required bool
	// Audit records accesses; nil records none.
	Audit Recorder
	// Metrics counts calls. Required.
	Metrics *Metrics
	// Validator refuses every call: the proxy only compiles configuration.
	Validator bool
	// ReceiveWait bounds how long a stream waits for its caller's next message; 0 means 30 s.
	ReceiveWait time.Duration
	// Now is the clock of measurements; nil means time.Now.
	Now func() time.Time
}

// Server serves the data services.
type Server struct {
	cfg      Config
	needs    authz.Table
	frames   sync.Pool
	stop     sync.Once
	stopping chan struct{}
}

// New makes a Server.
func New(cfg Config) (*Server, error) {
	if cfg.Routes == nil || cfg.Forward == nil || cfg.Callers == nil || cfg.Sessions == nil || cfg.Metrics == nil {
		return nil, errors.New("dataapi: Routes, Forward, Callers, Sessions and Metrics are required")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.ReceiveWait == 0 {
		cfg.ReceiveWait = receiveWait
	}
	needs := authz.NewTable(datav1.File_prism_data_v1_keyvalue_proto, datav1.File_prism_data_v1_session_proto)
	return &Server{cfg: cfg, needs: needs, frames: sync.Pool{New: func() any { return new(frame.Frame) }}, stopping: make(chan struct{})}, nil
}

// Drain ends the streams that would go on for ever, and tells their callers to open them elsewhere. Other calls are not
// touched.
func (s *Server) Drain() { s.stop.Do(func() { close(s.stopping) }) }

// Unknown answers calls of methods that do not exist. It is for grpc.UnknownServiceHandler.
func (s *Server) Unknown(any, grpc.ServerStream) error {
	s.cfg.Metrics.unknown.Inc()
	return fault.New(fault.Unimplemented, fault.Method, "there is no such method").WithOutcome(fault.NotApplied)
}

// operation is one unary method.
type operation struct {
	server *Server
	name   string // the full name
	short  string // service and method, without the package
	write  bool
	needs  authz.Permission
	// sessions says that it is about sessions, which are where their principal's calls go.
	sessions bool
	// begins says that it begins a session where there is none; the one that refreshes does not: it is for one that is there.
	begins  bool
	metrics *methodMetrics
	run     func(ctx context.Context, r *routing.Route, f *frame.Frame) (proto.Message, error)

	info   *grpc.UnaryServerInfo
	handle grpc.UnaryHandler
}

// unary describes a method whose request is a Req. Nothing is allocated for a call but what the call itself needs.
func unary[Req any, M interface {
	*Req
	proto.Message
}, Res proto.Message](s *Server, service, name string, write bool, call func(context.Context, *routing.Route, M) (Res, error)) grpc.MethodDesc {
	op := &operation{
		server: s, name: "/" + service + "/" + name, short: short(service, name), write: write, needs: s.needs.Needs("/" + service + "/" + name),
		sessions: service == datav1.SessionManager_ServiceDesc.ServiceName, begins: "/"+service+"/"+name != datav1.SessionManager_RefreshSession_FullMethodName, metrics: s.cfg.Metrics.method(service, name),
		run: func(ctx context.Context, r *routing.Route, f *frame.Frame) (proto.Message, error) {
			m := M(new(Req))
			if err := f.Decode(m); err != nil {
				return nil, undecodable(err)
			}
			return repeatedly(ctx, s, r, write, m, call)
		},
	}
	op.info = &grpc.UnaryServerInfo{Server: s, FullMethod: op.name}
	op.handle = op.serve
	return grpc.MethodDesc{MethodName: name, Handler: func(_ any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
		f := s.frames.Get().(*frame.Frame)
		defer func() {
			f.Free()
			s.frames.Put(f)
		}()
		if err := decode(f); err != nil {
			return nil, err
		}
		if intercept == nil {
			return op.serve(ctx, f)
		}
		return intercept(ctx, f, op.info, op.handle)
	}}
}

// serve is the way of one call: resolve and pin, forward or bound, decode, run.
func (op *operation) serve(ctx context.Context, request any) (answer any, err error) {
	began := op.server.cfg.Now()
	op.server.cfg.Metrics.underWay.Add(1)
	var traffic *routing.Traffic // nil until it is known that the call is answered here
	namespace := ""              // until it is known to be a name
	defer func() {
		err = naming(err, namespace)
		took := op.server.cfg.Now().Sub(began)
		traffic.Count(ours(op.metrics.ended(err, took)), took)
		op.server.cfg.Metrics.underWay.Add(-1)
	}()
	if op.server.cfg.Validator {
		return nil, validating()
	}
	f := request.(*frame.Frame)
	if len(f.Bytes()) > MaxRequestBytes {
		return nil, fault.Newf(fault.Invalid, fault.TooLarge, "the request is %d bytes long, want at most %d", len(f.Bytes()), MaxRequestBytes).WithOutcome(fault.NotApplied)
	}
	asked, ok := f.Namespace()
	if !ok {
		return nil, undecodable(errors.New("namespace of the request"))
	}
	pin := op.server.cfg.Routes.Acquire()
	defer op.server.cfg.Routes.Release(pin)
	route, owners, err := op.server.resolve(ctx, pin.Table(), asked, "namespace")
	if !fault.Is(err, fault.Field) {
		namespace = asked
	}
	if err != nil {
		return nil, err
	}
	if route == nil {
		op.metrics.forwarded.Inc()
		out, err := op.server.cfg.Forward.Unary(ctx, forward.Call{
			Method: op.name, Write: op.write, Owners: owners, RequestID: faultgrpc.RequestID(ctx),
		}, f)
		if err != nil {
			return nil, err
		}
		return out, nil
	}
	traffic = route.Traffic
	slot, err := op.server.reserve()
	if err != nil {
		return nil, err
	}
	defer slot.giveBack() // of a call that panics
	answer, who, err := op.here(ctx, pin.Table(), route, f, began)
	return answer, slot.end(ctx, access{route: route, operation: op.short, write: op.write, who: who, began: began}, err)
}

// here is the way of a call for a route of this proxy. Whose call it is is told as far as it is known when it fails.
func (op *operation) here(ctx context.Context, t *routing.Table, route *routing.Route, f *frame.Frame, began time.Time) (answer any, who admitted, err error) {
	if who, err = op.server.identify(ctx, route, op.needs); err != nil {
		return nil, who, err
	}
	if at := op.server.preferred(ctx, t, route, who, op.sessions); len(at) > 0 {
		op.metrics.forwarded.Inc()
		out, err := op.server.cfg.Forward.Unary(ctx, forward.Call{Method: op.name, Write: op.write, Owners: at, RequestID: faultgrpc.RequestID(ctx)}, f)
		if err == nil || !fault.Is(err, fault.NotOwner) || op.write && fault.From(err).Outcome != fault.NotApplied {
			who.elsewhere = true
			return out, who, err
		}
	}
	if op.begins {
		if err := op.server.begin(route, &who); err != nil {
			return nil, who, err
		}
	}
	if err := grpc.SetHeader(ctx, route.Header); err != nil {
		return nil, who, fault.Wrap(err, fault.Cancelled, fault.Client, "the caller gave up").WithOutcome(fault.NotApplied)
	}
	if route.Draining {
		return nil, who, draining()
	}
	if err := route.Limits.Begin(); err != nil {
		return nil, who, err
	}
	defer route.Limits.End()
	who.asked = true
	bounded := boundedBy(ctx, route, who, began)
	defer bounded.end()
	ready := op.server.cfg.Now()
	out, err := op.run(bounded, route, f)
	if asksForTiming(ctx) {
		now := op.server.cfg.Now()
		_ = grpc.SetTrailer(ctx, metadata.Pairs(TimingTrailer, fmt.Sprintf("route=%dus,backend=%dus", ready.Sub(began).Microseconds(), now.Sub(ready).Microseconds())))
	}
	if err != nil {
		return nil, who, settled(err, op.write)
	}
	return out, who, nil
}

func asksForTiming(ctx context.Context) bool {
	v := metadata.ValueFromIncomingContext(ctx, DebugHeader)
	return len(v) > 0 && v[0] == debugTiming
}

// settled is the fault of a handler. A write that does not say how it ended is not known to have.
func settled(err error, write bool) error {
	f := fault.From(err)
	if write && f.Outcome == "" {
		return f.WithOutcome(fault.OutcomeUnknown)
	}
	return f
}

// naming says in a fault of ours which namespace it is about; an owner's words are left as they came.
func naming(err error, namespace string) error {
	if f, ok := errors.AsType[*fault.Fault](err); ok && namespace != "" {
		return f.With("namespace", strings.Clone(namespace)) // it is part of the frame
	}
	return err
}

func undecodable(err error) error {
	return fault.Wrap(err, fault.Invalid, fault.Field, "the request cannot be decoded").WithOutcome(fault.NotApplied)
}

// resolve finds out who serves a namespace: this proxy by a route, or others. The table must be pinned for as long as
// the route is used. field is where the request has the name.
func (s *Server) resolve(ctx context.Context, t *routing.Table, namespace, field string) (*routing.Route, []routing.Peer, error) {
	route, partition, answer := t.Lookup(namespace)
	switch answer {
	case routing.Found:
		if !route.SingleOwner || t.Fleet().Rank(partition) == 0 {
			return route, nil, nil
		}
	case routing.Absent, routing.NotOwned:
		if !wellFormed(namespace) {
			return nil, nil, keyvalue.Invalid(fault.Violation{Field: field, Rule: "string.pattern", Text: "is no name of a namespace: want a lower-case letter, then 2 to 62 of a-z, 0-9, '-'"})
		}
	}
	switch answer {
	case routing.Absent:
		return nil, nil, s.absent(ctx)
	case routing.Starting:
		return nil, nil, starting()
	}
	if s.hopped(ctx) {
		return nil, nil, fault.New(fault.Unavailable, fault.NotOwner, "this proxy does not serve the namespace").WithOutcome(fault.NotApplied)
	}
	owners := ownersOf(t.Fleet(), partition, route != nil)
	if len(owners) == 0 {
		return nil, nil, starting()
	}
	return nil, owners, nil
}

// wellFormed reports whether a namespace could have the name.
func wellFormed(namespace string) bool {
	for i := range len(namespace) {
		switch c := namespace[i]; {
		case 'a' <= c && c <= 'z':
		case i > 0 && ('0' <= c && c <= '9' || c == '-'):
		default:
			return false
		}
	}
	return 3 <= len(namespace) && len(namespace) <= 63
}

func validating() error {
	return fault.New(fault.Unavailable, fault.NotOwner, "this proxy is a validator and takes no calls").WithOutcome(fault.NotApplied)
}

func starting() error {
	return fault.New(fault.Unavailable, fault.Starting, "the proxy has not received the namespace's configuration yet").
		WithOutcome(fault.NotApplied).WithRetry(startingRetry)
}

// ownersOf lists whom to ask, the best first: the owners by rank, then those that are loading.
func ownersOf(fleet *routing.Fleet, p ident.Partition, single bool) []routing.Peer {
	var out []routing.Peer
	add := func(lists [][]uint32, most int) {
		if int(p) >= len(lists) {
			return
		}
		for i, m := range lists[p] {
			if i < most && int(m) != fleet.Self && int(m) < len(fleet.Members) {
				out = append(out, fleet.Members[m])
			}
		}
	}
	if single {
		add(fleet.Owners, 1)
		return out
	}
	add(fleet.Owners, len(fleet.Members))
	add(fleet.Loading, len(fleet.Members))
	return out
}
