package push

import "time"

// longestBlind bounds the time between two attempts to send proxies to others.
const longestBlind = 5 * time.Minute

// blindness is for how long a replica has not followed the store. A proxy on such a replica would get no changes for as
// long as it lasts, although others have them.
type blindness struct {
	first    time.Duration
	patience time.Duration
	since    time.Time // zero while the store is followed
}

// look reports whether it is time to turn proxies away.
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

// turnAway ends all streams of proxies. Each tries another replica next.
func (s *Server) turnAway() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.sessions) > 0 {
		s.log.Warn("this replica does not follow the store and sends its proxies to others", "streams", len(s.sessions))
	}
	for session := range s.sessions {
		session.end(errBlind)
	}
}
