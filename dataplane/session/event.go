package session

import "time"

// Kind is what happened to a session.
type Kind int

// The kinds, with the numbers of prism.data.v1.SessionEvent.
const (
	Expiring  Kind = iota + 1 // it ends at Deadline unless it is refreshed
	Rotated                   // its backend's credential was replaced
	Refreshed                 // it was refreshed
	Ended                     // it is over; nothing follows
)

// Event is one thing that happened to a session.
type Event struct {
	Kind     Kind
	Deadline time.Time // of Expiring
}

// events is how many wait for a watcher. Who is slower misses some, but never the end, which Done tells too.
const events = 16

// Watch returns what happens from now on; cancel ends it.
func (s *Session) Watch() (_ <-chan Event, cancel func()) {
	c := make(chan Event, events)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watches == nil {
		s.watches = map[chan Event]bool{}
	}
	s.watches[c] = true
	if s.over.Load() != nil {
		c <- Event{Kind: Ended}
	}
	return c, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.watches, c)
	}
}

// Tell tells the watchers.
func (s *Session) Tell(e Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tell(e)
}

func (s *Session) tell(e Event) {
	for c := range s.watches {
		select {
		case c <- e:
		default:
		}
	}
}

// warn tells once, when two thirds of the session's life are over, by when it must be refreshed.
func (s *Session) warn(now time.Time) {
	ends := time.Unix(0, s.ends.Load())
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.warned && now.Sub(s.since) >= ends.Sub(s.since)*2/3 {
		s.warned = true
		s.tell(Event{Kind: Expiring, Deadline: ends})
	}
}
