package dataapi

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/cespare/xxhash/v2"
	"google.golang.org/grpc"

	"github.com/prism-gateway/prism/dataplane/authz"
	"github.com/prism-gateway/prism/dataplane/caller"
	"github.com/prism-gateway/prism/dataplane/forward"
	"github.com/prism-gateway/prism/dataplane/routing"
	"github.com/prism-gateway/prism/dataplane/session"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
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
	Get(namespace, id string, c session.Claim) (*session.Session, error)
	List(namespace string, c session.Claim) []*session.Session
	Refresh(namespace, id string, c session.Claim) (*session.Session, error)
	Close(namespace, id string, c session.Claim) error
}

// admitted is a call that may go on.
type admitted struct {
	caller  *caller.Caller   // nil: nobody was asked
	session *session.Session // nil: the namespace does not want to know its callers

	asked     bool // the call has got as far as the pattern
	elsewhere bool // another proxy has answered the call, and recorded it
}

// The faults of who may not. What the principal may not even read is told like what is not there.
var (
	noNamespace = fault.New(fault.PermissionDenied, fault.Namespace, "there is no such namespace, or the principal may not use it").WithOutcome(fault.NotApplied)
	noOperation = fault.New(fault.PermissionDenied, fault.Operation, "the principal may read the namespace, and not do this").WithOutcome(fault.NotApplied)
	unasked     = fault.New(fault.Unauthenticated, fault.NoCredentials, "the namespace asks its callers who they are from now on").WithOutcome(fault.NotApplied)
	noMethod    = fault.New(fault.PermissionDenied, fault.UnknownMethod, "the method declares no permission, so nobody has it").WithOutcome(fault.NotApplied)
)

// asks reports whether callers of a route must say who they are.
func (s *Server) asks(r *routing.Route) bool { return r.Callers.Known || s.cfg.Required }

// identify finds out whose call it is and whether it is permitted. What is refused has reached no store and no provider.
func (s *Server) identify(ctx context.Context, r *routing.Route, needs authz.Permission) (admitted, error) {
	if !s.asks(r) {
		return admitted{}, nil
	}
	who, err := s.cfg.Callers.Find(ctx)
	if err != nil {
		return admitted{}, err
	}
	return admitted{caller: who}, permitted(r, who, needs)
}

// begin finds the session of a call that goes on here, where the namespace has sessions.
func (s *Server) begin(r *routing.Route, a *admitted) (err error) {
	if a.caller != nil && r.Callers.Known {
		a.session, err = s.cfg.Sessions.Begin(r.Namespace, r.Callers.Session, a.caller.Claim())
	}
	return err
}

// preferred are the owners that a principal's calls go to rather than to this proxy, the best first, so that its sessions and
// its leases are there once and not once for each owner: by the hash of both their names (rendezvous hashing, Thaler and
// Ravishankar 1998). There are none where that is this proxy or does not matter, and for calls that were forwarded.
// aboutSessions calls always go there.
func (s *Server) preferred(ctx context.Context, t *routing.Table, r *routing.Route, a admitted, aboutSessions bool) []routing.Peer {
	if a.caller == nil || a.caller.Principal == nil || !r.Affine && !aboutSessions || s.hopped(ctx) {
		return nil
	}
	fleet := t.Fleet()
	weight := func(m uint32) uint64 {
		return xxhash.Sum64String(fleet.Members[m].ID + "\x00" + a.caller.Principal.ID)
	}
	var before []uint32 // the owners that come before this proxy
	for _, m := range fleet.Owners[ident.PartitionOf(r.Namespace, t.Count())] {
		if int(m) >= len(fleet.Members) || int(m) == fleet.Self || fleet.Members[m].Draining {
			continue
		}
		if fleet.Self < 0 || weight(m) > weight(uint32(fleet.Self)) {
			before = append(before, m)
		}
	}
	slices.SortFunc(before, func(x, y uint32) int { return cmp.Compare(weight(y), weight(x)) })
	peers := make([]routing.Peer, len(before))
	for i, m := range before {
		peers[i] = fleet.Members[m]
	}
	return peers
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
	if err := g.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	return g.ctx.Err()
}

// guard makes the stream of an admitted caller end when the caller may not go on; why says so then. end is called once. A caller
// whom nobody asked may go on until somebody asks.
func (s *Server) guard(stream grpc.ServerStream, route *routing.Route, a admitted, needs authz.Permission) (_ grpc.ServerStream, why func() error, end func()) {
	known := stream.Context()
	if a.caller != nil {
		known = context.WithValue(context.WithValue(known, session.Key{}, a.session), callerKey{}, a.caller)
	}
	ctx, cancel := context.WithCancelCause(known)
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
	} else if a.caller == nil {
		// Nothing of it ends.
	} else if ends := a.caller.Claim().Ends; !ends.IsZero() {
		timer := time.NewTimer(ends.Sub(s.cfg.Now()))
		defer timer.Stop()
		expired = timer.C
	}
	gone := route.Gone()
	for {
		select {
		case <-ctx.Done():
			return
		case <-over:
			cancel(a.session.Err())
			return
		case <-expired:
			cancel(fault.New(fault.Unauthenticated, fault.TokenExpired, "the token or the certificate has expired").WithOutcome(fault.NotApplied))
			return
		case <-gone:
			if route = s.current(route.Namespace); route == nil {
				gone = nil // it is served elsewhere, which ends streams that go on for ever
				continue
			}
			gone = route.Gone()
			switch {
			case !s.asks(route):
			case a.caller == nil:
				cancel(unasked)
				return
			case permitted(route, a.caller, needs) != nil:
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
