package push

import (
	"context"
	"time"
)

// longestBlind bounds the time between two attempts to send clients to others.
const longestBlind = 5 * time.Minute

// blindness is for how long a replica has not followed the store. A client of such a replica would get no changes for as
// long as it lasts, although others have them.
type blindness struct {
	first    time.Duration
	patience time.Duration
	since    time.Time // zero while the store is followed
}

// look reports whether it is time to turn clients away.
func (b *blindness) look(trouble error, now time.Time) bool {
	switch {
	case trouble == nil:
		b.since = time.Time{}
	case b.since.IsZero():
		b.since, b.patience = now, b.first
	case now.Sub(b.since) >= b.patience:
		b.since, b.patience = now, min(2*b.patience, max(b.first, longestBlind))
		return true
	}
	return false
}

// attend returns a context for a stream, until done is called. When the server stops or turns its streams away, it ends
// with the reason as its cause.
func (s *Server) attend(stream context.Context) (ctx context.Context, done func()) {
	s.mu.Lock()
	present := s.present
	s.mu.Unlock()
	ctx, cancel := context.WithCancelCause(stream)
	forget := context.AfterFunc(present, func() { cancel(context.Cause(present)) })
	return ctx, func() {
		forget()
		cancel(nil)
	}
}

// turnAway ends all streams. Each client tries another replica next.
func (s *Server) turnAway() {
	if streams := s.connections.streams(); streams > 0 {
		s.log.Warn("this replica does not follow the store and sends its clients to others", "streams", streams)
	}
	s.mu.Lock()
	turn := s.turn
	s.present, s.turn = context.WithCancelCause(s.closing)
	s.mu.Unlock()
	turn(errBlind)
}
