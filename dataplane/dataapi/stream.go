package dataapi

import (
	"errors"

	"google.golang.org/grpc"

	"github.com/prism-gateway/prism/dataplane/forward"
	"github.com/prism-gateway/prism/dataplane/frame"
	"github.com/prism-gateway/prism/dataplane/pattern/keyvalue"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/fault/faultgrpc"
)

// stream describes a streaming method whose interface no driver of this build offers. It is resolved and forwarded like
// every call, because another owner's build may offer it.
func (s *Server) stream(service, name string, write bool, needs string, desc grpc.StreamDesc) grpc.StreamDesc {
	full := "/" + service + "/" + name
	metrics := s.cfg.Metrics.method(service, name)
	desc.StreamName = name
	desc.Handler = func(_ any, stream grpc.ServerStream) (err error) {
		began := s.cfg.Now()
		defer func() { metrics.ended(err, s.cfg.Now().Sub(began)) }()
		if s.cfg.Validator {
			return validating()
		}
		first := &frame.Frame{}
		if err := stream.RecvMsg(first); err != nil {
			return err
		}
		namespace, ok := first.Namespace()
		if name == "WriteValue" { // its first message carries the write
			namespace, ok = first.NestedNamespace()
		}
		if !ok {
			return undecodable(errors.New("namespace of the request"))
		}
		pin := s.cfg.Routes.Acquire()
		route, owners, err := resolve(stream.Context(), pin.Table(), namespace)
		if err == nil && route != nil {
			_ = stream.SetHeader(route.Header) // fails only when the caller is gone
			err = keyvalue.Missing(needs)
			if route.Draining {
				err = fault.New(fault.FailedPrecondition, fault.NamespaceDraining, "the namespace is being deleted").WithOutcome(fault.NotApplied)
			}
		}
		s.cfg.Routes.Release(pin) // a stream outlives tables: it is pinned by the message
		if err != nil {
			first.Free()
			return err
		}
		metrics.forwarded.Inc()
		return s.cfg.Forward.Stream(stream, forward.Call{
			Method: full, Write: write, Owners: owners, RequestID: faultgrpc.RequestID(stream.Context()),
		}, first)
	}
	return desc
}
