package dataapi

import (
	"context"
	"errors"
	"strings"
	"time"

	"google.golang.org/grpc"

	"github.com/prism-gateway/prism/dataplane/forward"
	"github.com/prism-gateway/prism/dataplane/frame"
	"github.com/prism-gateway/prism/dataplane/routing"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/fault/faultgrpc"
)

// retryMoved is after what time the caller of a stream that was ended here may open it again.
const retryMoved = 100 * time.Millisecond

// streamed is a stream that is served here, by a route that it holds: not by a pin, which would keep all tables that
// come after it.
type streamed struct {
	grpc.ServerStream
	server *Server
	route  *routing.Route
	first  *frame.Frame // the request, or its first part
}

// streaming describes a streaming method. namespaceOf finds the namespace in the first message, at field.
func (s *Server) streaming(service, name string, write bool, desc grpc.StreamDesc, field string, namespaceOf func(*frame.Frame) (string, bool), serve func(streamed) error) grpc.StreamDesc {
	full := "/" + service + "/" + name
	needs, operation := s.needs.Needs(full), short(service, name)
	metrics := s.cfg.Metrics.method(service, name)
	desc.StreamName = name
	desc.Handler = func(_ any, stream grpc.ServerStream) (err error) {
		began := s.cfg.Now()
		s.cfg.Metrics.underWay.Add(1)
		namespace := "" // until it is known to be a name
		defer func() {
			err = naming(err, namespace)
			metrics.ended(err, s.cfg.Now().Sub(began))
			s.cfg.Metrics.underWay.Add(-1)
		}()
		if s.cfg.Validator {
			return validating()
		}
		first, err := s.receive(stream)
		if err != nil {
			return err
		}
		asked, ok := namespaceOf(first)
		if !ok {
			first.Free()
			return undecodable(errors.New("namespace of the request"))
		}
		to := func(owners []routing.Peer) forward.Call {
			return forward.Call{Method: full, Write: write, Owners: owners, RequestID: faultgrpc.RequestID(stream.Context())}
		}
		pin := s.cfg.Routes.Acquire()
		route, owners, err := s.resolve(stream.Context(), pin.Table(), asked, field)
		if !fault.Is(err, fault.Field) {
			namespace = strings.Clone(asked) // the frame may be given away
		}
		if err != nil || route == nil {
			s.cfg.Routes.Release(pin)
			var there *forward.Stream
			if err == nil {
				metrics.forwarded.Inc()
				there, err = s.cfg.Forward.Open(stream.Context(), to(owners))
			}
			if err != nil {
				first.Free()
				return err
			}
			return there.Run(stream, first)
		}
		record, err := s.reserve()
		if err != nil {
			s.cfg.Routes.Release(pin)
			first.Free()
			return err
		}
		defer record.giveBack() // of a call that panics
		var who admitted
		defer func() {
			err = record.end(stream.Context(), access{route: route, operation: operation, write: write, who: who, began: began}, err)
		}()
		who, err = s.identify(stream.Context(), route, needs)
		var there *forward.Stream
		if at := s.preferred(stream.Context(), pin.Table(), route, who, service == datav1.SessionManager_ServiceDesc.ServiceName); err == nil && len(at) > 0 {
			metrics.forwarded.Inc()
			if there, err = s.cfg.Forward.Open(stream.Context(), to(at)); fault.Is(err, fault.NotOwner) {
				err = nil // none of them is there: it is served here
			}
		}
		if err != nil || there != nil {
			s.cfg.Routes.Release(pin)
			if err != nil {
				first.Free()
				return err
			}
			who.elsewhere = true
			return there.Run(stream, first)
		}
		release := route.Hold()
		s.cfg.Routes.Release(pin)
		defer release()
		defer first.Free()
		if err := s.begin(route, &who); err != nil {
			return err
		}
		_ = stream.SetHeader(route.Header) // fails only when the caller is gone
		if route.Draining {
			return draining()
		}
		if err := route.Limits.BeginStream(); err != nil {
			return err
		}
		defer route.Limits.EndStream()
		who.asked = true
		stream, revoked, end := s.guard(stream, route, who, needs)
		defer end()
		err = serve(streamed{ServerStream: stream, server: s, route: route, first: first})
		if why := revoked(); why != nil && err != nil {
			err = why
		}
		if err != nil {
			return settled(err, write)
		}
		return nil
	}
	return desc
}

func draining() error {
	return fault.New(fault.FailedPrecondition, fault.NamespaceDraining, "the namespace is being deleted").WithOutcome(fault.NotApplied)
}

// whileServed is a context that ends when the proxy stops or does not serve the namespace from the same store any more;
// moved says why. A change of the namespace that leaves its store alone does nothing.
func (c streamed) whileServed() (ctx context.Context, cancel context.CancelFunc, moved func() error) {
	ctx, end := context.WithCancelCause(c.Context())
	go func() {
		for route := c.route; ; {
			select {
			case <-ctx.Done():
				return
			case <-c.server.stopping:
				end(fault.New(fault.Unavailable, fault.Draining, "the proxy is stopping").WithRetry(retryMoved))
				return
			case <-route.Gone():
				if route = c.server.sameStore(c.route); route == nil {
					end(fault.New(fault.Unavailable, fault.NotOwner, "the namespace is served elsewhere now").WithRetry(retryMoved))
					return
				}
			}
		}
	}()
	return ctx, func() { end(nil) }, func() error {
		if f := fault.From(context.Cause(ctx)); f != nil && f.Code == fault.Unavailable {
			return f
		}
		return nil
	}
}

// sameStore is the namespace's route in the table in effect if it has the store of an earlier one, or nil.
func (s *Server) sameStore(before *routing.Route) *routing.Route {
	pin := s.cfg.Routes.Acquire()
	defer s.cfg.Routes.Release(pin)
	t := pin.Table()
	now, partition, answer := t.Lookup(before.Namespace)
	if answer != routing.Found || now.Draining || !now.KeyValue.SameStore(before.KeyValue) || (now.SingleOwner && t.Fleet().Rank(partition) != 0) {
		return nil
	}
	return now
}
