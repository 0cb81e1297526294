package push

import (
	"context"
	"strconv"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/prism-gateway/prism/shared/fault"
)

var (
	errNoNode     = refuse(fault.New(fault.Invalid, fault.Field, "node.id: the first request must name the proxy"))
	errTooStrange = refuse(fault.New(fault.Invalid, fault.Field, "type_url, resource_names_subscribe: too many that this control plane does not know"))
	errNotLoaded  = refuse(fault.New(fault.Unavailable, fault.NotLoaded, "this replica has not loaded the configuration yet").WithRetry(time.Second))
	errStopping   = refuse(fault.New(fault.Unavailable, fault.Draining, "this replica is stopping").WithRetry(time.Second))
	errNotServed  = refuse(fault.New(fault.Unimplemented, fault.Method, "state of the world is not served here"))
	errBlind      = refuse(fault.New(fault.Unavailable, fault.StoreDown, "this replica does not follow the store: try another").WithRetry(100 * time.Millisecond))
	errBehind     = refuse(fault.New(fault.Unavailable, fault.NotLoaded, "this replica is behind what the proxy has seen").WithRetry(time.Second))
)

// refusal ends a stream. It is a fault for an interceptor and a status for gRPC where there is none.
type refusal struct{ fault *fault.Fault }

func refuse(f *fault.Fault) error { return &refusal{fault: f} }

func (r *refusal) Error() string { return r.fault.Error() }

func (r *refusal) Unwrap() error { return r.fault }

// GRPCStatus is the fault as a status.
func (r *refusal) GRPCStatus() *status.Status {
	st := status.New(codes.Code(r.fault.Code), r.fault.Text)
	details := []protoadapt.MessageV1{&errdetails.ErrorInfo{Reason: string(r.fault.Reason), Domain: "prism"}}
	if r.fault.RetryAfter > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(r.fault.RetryAfter)})
	}
	if with, err := st.WithDetails(details...); err == nil {
		return with
	}
	return st
}

// enter takes a new stream until leave is called, or says why it is not taken: nothing is loaded, too many come at once,
// the server is stopping.
func (s *Server) enter(ctx context.Context) (leave func(deaf bool), err error) {
	leave = s.connections.begin(ctx) // before closing is looked at, so that cutOff sees it
	if err := s.refuses(); err != nil {
		leave(false)
		return nil, err
	}
	return leave, nil
}

func (s *Server) refuses() error {
	if s.closing.Err() != nil {
		return errStopping
	}
	if s.shown.Load() == nil {
		s.publish() // Run may not have come to it yet
	}
	shown := s.shown.Load()
	if shown == nil || shown.owners == nil && len(shown.released.Active()) > 0 { // nobody's rank is known
		return errNotLoaded
	}
	r := s.admit.Reserve()
	if wait := r.Delay(); wait > 0 {
		r.Cancel()
		s.metrics.refused.Inc()
		return refuse(fault.New(fault.Unavailable, fault.Rate, "too many proxies come at once").WithRetry(max(wait, 100*time.Millisecond)))
	}
	s.metrics.admitted.Inc()
	return nil
}

// seenRevision is the highest revision of the store that the proxy was told; 0 when it says none.
func seenRevision(node *corev3.Node) int64 {
	value := node.GetMetadata().GetFields()[revisionKey]
	if n, err := strconv.ParseInt(value.GetStringValue(), 10, 64); err == nil {
		return n
	}
	return int64(value.GetNumberValue())
}

// standard serves the streams of clients that are not Prism's.
type standard interface {
	State(context.Context, discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error
	Delta(context.Context, discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error
}

// StreamAggregatedResources is state of the world, the older form of xDS, which only standard clients speak.
func (s *Server) StreamAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	if s.standard == nil {
		return errNotServed
	}
	leave, err := s.enter(stream.Context())
	if err != nil {
		return err
	}
	defer func() { leave(s.closing.Err() != nil) }()
	return s.serveStandard(stream.Context(), func(ctx context.Context) error { return s.standard.State(ctx, stream) })
}

// serveStandard ends a stream of a standard client when the server stops, or turns its streams away.
func (s *Server) serveStandard(stream context.Context, serve func(context.Context) error) error {
	ctx, done := s.attend(stream)
	defer done()
	err := serve(ctx)
	if ctx.Err() != nil && stream.Err() == nil {
		return context.Cause(ctx)
	}
	return err
}

// Node is what a proxy calls itself in a request, which it says in the first of a stream; empty in others, in those of clients
// that are not Prism's, and in other messages.
func Node(request any) string {
	if r, ok := request.(*discoveryv3.DeltaDiscoveryRequest); ok && !isStandard(r.GetTypeUrl()) {
		return r.GetNode().GetId()
	}
	return ""
}

// isStandard reports whether a type is not Prism's but one that xDS defines.
func isStandard(typeURL string) bool { return strings.HasPrefix(typeURL, "type.googleapis.com/envoy.") }

// begun is a stream of which the first request was read.
type begun struct {
	discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
	first *discoveryv3.DeltaDiscoveryRequest // Recv returns it once
}

// Recv returns the next request.
func (b *begun) Recv() (*discoveryv3.DeltaDiscoveryRequest, error) {
	if first := b.first; first != nil {
		b.first = nil
		return first, nil
	}
	return b.AggregatedDiscoveryService_DeltaAggregatedResourcesServer.Recv()
}
