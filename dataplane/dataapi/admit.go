package dataapi

import (
	"context"
	"time"

	"google.golang.org/grpc"

	"github.com/prism-gateway/prism/dataplane/authz"
	"github.com/prism-gateway/prism/dataplane/caller"
	"github.com/prism-gateway/prism/dataplane/forward"
	"github.com/prism-gateway/prism/dataplane/routing"
	"github.com/prism-gateway/prism/dataplane/session"
	"github.com/prism-gateway/prism/shared/fault"
)

// finder finds out whose call it is.
type finder interface {
	// Find fails when the caller shows nothing that is believed.
	Find(ctx context.Context) (*caller.Caller, error)
	// FromProxy reports whether another proxy calls.
	FromProxy(ctx context.Context) bool
}

// sessions keeps callers' sessions.
type sessions interface {
	Begin(namespace string, p session.Policy, c session.Claim) (*session.Session, error)
}

// admitted is a call that may go on.
type admitted struct {
	caller  *caller.Caller   // nil: nobody was asked
	session *session.Session // nil: the namespace does not want to know its callers
}

// The faults of who may not. What the principal may not even read is told like what is not there.
var (
	noNamespace = fault.New(fault.PermissionDenied, fault.Namespace, "there is no such namespace, or the principal may not use it").WithOutcome(fault.NotApplied)
	noOperation = fault.New(fault.PermissionDenied, fault.Operation, "the principal may read the namespace, and not do this").WithOutcome(fault.NotApplied)
	noMethod    = fault.New(fault.PermissionDenied, fault.UnknownMethod, "the method declares no permission, so nobody has it").WithOutcome(fault.NotApplied)
)

// asks reports whether callers of a route must say who they are.
func (s *Server) asks(r *routing.Route) bool { return r.Callers.Known || s.cfg.Required }

// admit finds out whose call it is, whether it is permitted, and its session. What is refused has reached no store and no
// provider.
func (s *Server) admit(ctx context.Context, r *routing.Route, needs authz.Permission) (admitted, error) {
	if !s.asks(r) {
		return admitted{}, nil
	}
	who, err := s.cfg.Callers.Find(ctx)
	if err != nil {
		return admitted{}, err
	}
	a := admitted{caller: who}
	if err := permitted(r, who, needs); err != nil || !r.Callers.Known {
		return a, err
	}
	a.session, err = s.cfg.Sessions.Begin(r.Namespace, r.Callers.Session, who.Claim())
	return a, err
}

// permitted reports why a caller may not do what needs a permission.
func permitted(r *routing.Route, who *caller.Caller, needs authz.Permission) error {
	if needs == authz.None {
		return noMethod
	}
	if who.Token != nil {
		if err := who.Token.For(r.Callers.Issuer, r.Callers.Audience); err != nil {
			return err
		}
	}
	switch {
	case r.Callers.Policy.Allows(who.Principal, needs):
		return nil
	case r.Callers.Policy.Allows(who.Principal, authz.Read):
		return noOperation
	}
	return noNamespace
}

// hopped reports whether another proxy forwarded the call.
func (s *Server) hopped(ctx context.Context) bool {
	return forward.Hopped(ctx) && s.cfg.Callers.FromProxy(ctx)
}

// absent is the fault of a namespace that is not there: who has shown no right to anything is told no more than who may
// not use it.
func (s *Server) absent(ctx context.Context) error {
	if !s.cfg.Required {
		return fault.New(fault.NotFound, fault.Namespace, "there is no such namespace").WithOutcome(fault.NotApplied)
	}
	if _, err := s.cfg.Callers.Find(ctx); err != nil {
		return err
	}
	return noNamespace
}

// guarded is a stream whose context ends when its caller may not go on: the session is over, the token has expired, or the
// namespace's rules have changed. Nothing is sent or received after that.
type guarded struct {
	grpc.ServerStream
	ctx context.Context
}

// Context is the stream's.
func (g *guarded) Context() context.Context { return g.ctx }

// SendMsg fails when the caller may not go on.
func (g *guarded) SendMsg(m any) error {
	if err := g.ctx.Err(); err != nil {
		return err
	}
	return g.ServerStream.SendMsg(m)
}

// RecvMsg fails when the caller may not go on.
func (g *guarded) RecvMsg(m any) error {
	if err := g.ctx.Err(); err != nil {
		return err
	}
	return g.ServerStream.RecvMsg(m)
}

// guard makes the stream of an admitted caller end when the caller may not go on; why says so then. end is called once.
func (s *Server) guard(stream grpc.ServerStream, route *routing.Route, a admitted, needs authz.Permission) (_ grpc.ServerStream, why func() error, end func()) {
	if a.caller == nil {
		return stream, func() error { return nil }, func() {}
	}
	ctx, cancel := context.WithCancelCause(context.WithValue(stream.Context(), session.Key{}, a.session))
	end = func() { cancel(nil) }
	if a.session != nil {
		busy := a.session.Busy(s.cfg.Now)
		end = func() { cancel(nil); busy() }
	}
	go s.watchCaller(ctx, cancel, route, a, needs)
	why = func() error {
		if f := fault.From(context.Cause(ctx)); f != nil && (f.Code == fault.PermissionDenied || f.Code == fault.Unauthenticated) {
			return f
		}
		return nil
	}
	return &guarded{ServerStream: stream, ctx: ctx}, why, end
}

// watchCaller ends ctx when the caller may not go on, and returns when ctx ends.
func (s *Server) watchCaller(ctx context.Context, cancel context.CancelCauseFunc, route *routing.Route, a admitted, needs authz.Permission) {
	var over <-chan struct{}
	var expired <-chan time.Time
	if a.session != nil {
		over = a.session.Done() // which a refresh puts off
	} else if ends := a.caller.Claim().Ends; !ends.IsZero() {
		timer := time.NewTimer(ends.Sub(s.cfg.Now()))
		defer timer.Stop()
		expired = timer.C
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-over:
			cancel(a.session.Err())
			return
		case <-expired:
			cancel(fault.New(fault.Unauthenticated, fault.TokenExpired, "the token has expired").WithOutcome(fault.NotApplied))
			return
		case <-route.Gone():
			if route = s.current(route.Namespace); route == nil {
				<-ctx.Done() // it is served elsewhere, which ends streams that go on for ever
				return
			}
			if s.asks(route) && permitted(route, a.caller, needs) != nil {
				cancel(session.Revoked)
				return
			}
		}
	}
}

// current is the namespace's route in the table in effect, or nil.
func (s *Server) current(namespace string) *routing.Route {
	pin := s.cfg.Routes.Acquire()
	defer s.cfg.Routes.Release(pin)
	r, _, _ := pin.Table().Lookup(namespace)
	return r
}
