package dataapi

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/prism-gateway/prism/dataplane/caller"
	"github.com/prism-gateway/prism/dataplane/routing"
	"github.com/prism-gateway/prism/dataplane/session"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/fault"
)

// callerKey finds the caller of a call in its context.
type callerKey struct{}

// claimOf is what the caller of a call shows. Namespaces that do not ask who calls have no sessions.
func claimOf(ctx context.Context) (session.Claim, error) {
	who, _ := ctx.Value(callerKey{}).(*caller.Caller)
	if who == nil || who.Principal == nil {
		return session.Claim{}, fault.New(fault.FailedPrecondition, fault.InterfaceMissing, "the namespace does not ask who calls, and so it has no sessions").
			WithOutcome(fault.NotApplied)
	}
	return who.Claim(), nil
}

func sessionOf(s *session.Session) *datav1.Session {
	out := &datav1.Session{
		Id: s.ID(), Principal: s.Principal().ID, CreatedAt: timestamppb.New(s.CreatedAt()), UsedAt: timestamppb.New(s.UsedAt()), ExpireAt: timestamppb.New(s.ExpiresAt()),
	}
	if ends := s.CredentialEnds(); !ends.IsZero() {
		out.CredentialExpireAt = timestamppb.New(ends)
	}
	return out
}

// createSession makes the session, as any call does, and opens what its calls will need.
func (s *Server) createSession(ctx context.Context, r *routing.Route, _ *datav1.CreateSessionRequest) (*datav1.CreateSessionResponse, error) {
	claim, err := claimOf(ctx)
	if err != nil {
		return nil, err
	}
	own, err := s.cfg.Sessions.Get(r.Namespace, "", claim)
	if err != nil {
		return nil, err
	}
	if err := r.Open(ctx); err != nil {
		return nil, err
	}
	return &datav1.CreateSessionResponse{Session: sessionOf(own)}, nil
}

func (s *Server) getSession(ctx context.Context, r *routing.Route, in *datav1.GetSessionRequest) (*datav1.GetSessionResponse, error) {
	claim, err := claimOf(ctx)
	if err != nil {
		return nil, err
	}
	found, err := s.cfg.Sessions.Get(r.Namespace, in.GetId(), claim)
	if err != nil {
		return nil, err
	}
	return &datav1.GetSessionResponse{Session: sessionOf(found)}, nil
}

func (s *Server) listSessions(ctx context.Context, r *routing.Route, _ *datav1.ListSessionsRequest) (*datav1.ListSessionsResponse, error) {
	claim, err := claimOf(ctx)
	if err != nil {
		return nil, err
	}
	out := &datav1.ListSessionsResponse{}
	for _, one := range s.cfg.Sessions.List(r.Namespace, claim) {
		out.Sessions = append(out.Sessions, sessionOf(one))
	}
	return out, nil
}

func (s *Server) refreshSession(ctx context.Context, r *routing.Route, in *datav1.RefreshSessionRequest) (*datav1.RefreshSessionResponse, error) {
	claim, err := claimOf(ctx)
	if err != nil {
		return nil, err
	}
	refreshed, err := s.cfg.Sessions.Refresh(r.Namespace, in.GetId(), claim)
	if err != nil {
		return nil, err
	}
	return &datav1.RefreshSessionResponse{Session: sessionOf(refreshed)}, nil
}

func (s *Server) closeSession(ctx context.Context, r *routing.Route, in *datav1.CloseSessionRequest) (*datav1.CloseSessionResponse, error) {
	claim, err := claimOf(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.cfg.Sessions.Close(r.Namespace, in.GetId(), claim); err != nil {
		return nil, err
	}
	return &datav1.CloseSessionResponse{}, nil
}

// watchSession sends what happens to a session until it is over.
func watchSession(c streamed) error {
	in := &datav1.WatchSessionRequest{}
	if err := c.first.Decode(in); err != nil {
		return undecodable(err)
	}
	claim, err := claimOf(c.Context())
	if err != nil {
		return err
	}
	watched, err := c.server.cfg.Sessions.Get(c.route.Namespace, in.GetId(), claim)
	if err != nil {
		return err
	}
	events, cancel := watched.Watch()
	defer cancel()
	if err := c.SendHeader(nil); err != nil { // so that the caller knows that it misses nothing from now on
		return err
	}
	ctx, end, moved := c.whileServed()
	defer end()
	for {
		e := session.Event{Kind: session.Ended}
		select {
		case e = <-events:
		case <-watched.Done():
		case <-ctx.Done():
			select {
			case <-watched.Done(): // which ends the stream's own context too
			default:
				if err := moved(); err != nil {
					return err
				}
				return fault.From(ctx.Err())
			}
		}
		out := &datav1.WatchSessionResponse{Event: datav1.SessionEvent(e.Kind)}
		if !e.Deadline.IsZero() {
			out.Deadline = timestamppb.New(e.Deadline.Round(time.Millisecond))
		}
		if err := c.ended(out, e.Kind == session.Ended); err != nil || e.Kind == session.Ended {
			return err
		}
	}
}

// ended sends an event; the last one also when the stream's own session is the one that is over.
func (c streamed) ended(out *datav1.WatchSessionResponse, last bool) error {
	if g, ok := c.ServerStream.(*guarded); ok && last {
		return g.ServerStream.SendMsg(out)
	}
	return c.SendMsg(out)
}
