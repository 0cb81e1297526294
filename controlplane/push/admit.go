package push

import (
	"context"
	"strconv"
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

// StreamAggregatedResources is state of the world, the older form of xDS. Nothing is served by it: each subscription is
// told once that there is nothing, and the stream stays.
func (s *Server) StreamAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	leave, err := s.enter(stream.Context())
	if err != nil {
		return err
	}
	defer leave(false)
	requests := make(chan *discoveryv3.DiscoveryRequest)
	go func() {
		defer close(requests)
		for {
			request, err := stream.Recv()
			if err != nil {
				return
			}
			select {
			case requests <- request:
			case <-stream.Context().Done():
				return
			}
		}
	}()
	nonce := 0
	for {
		select {
		case <-s.closing.Done():
			return errStopping
		case request, more := <-requests:
			if !more {
				return nil
			}
			if request.GetResponseNonce() != "" {
				continue // an acknowledgement
			}
			nonce++
			response := &discoveryv3.DiscoveryResponse{TypeUrl: request.GetTypeUrl(), VersionInfo: "0", Nonce: strconv.Itoa(nonce)}
			if err := stream.Send(response); err != nil {
				return err
			}
		}
	}
}
