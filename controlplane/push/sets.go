package push

import (
	"slices"

	"github.com/prism-gateway/prism/shared/ident"
)

// A client keeps the shared sets that its partitions refer to and the last few that it was sent. While a release is
// under way its partitions may refer to several. A partition is sent when the set that it refers to was, on this stream
// or before it.

// sentSets is how many of the last sets that were sent a client has for certain; it keeps twice as many.
const sentSets = 4

// lacks reports whether the client may not have a shared set. A client that does not subscribe to them lacks none.
func (s *session) lacks(root ident.Hash) bool {
	if s.shared.holds(sharedCell) == nil || root.IsZero() || slices.Contains(s.sets, root) {
		return false
	}
	if root == s.lacking {
		return true
	}
	for _, h := range s.namespaces.have {
		if h.kept && h.at.shared == root {
			return false
		}
	}
	s.lacking = root // many partitions ask for the same
	return true
}

// fetch has the set sent that a partition refers to, and then the partition.
func (s *session) fetch(c cell) {
	s.namespaces.waiting.add(c)
	s.shared.wake(sharedCell)
}

// nextSet is the shared set that is sent next: the oldest that partitions wait for. While none waits it is the one of
// a partition that the client has, or of any.
func (s *session) nextSet(shown *state) target {
	var next target
	for _, c := range s.namespaces.waiting {
		t := s.namespaces.target(shown, c)
		if (next.collection == nil || t.snapshot < next.snapshot) && s.lacks(t.sharedRoot()) {
			next = target{collection: t.shared, snapshot: t.snapshot}
		}
	}
	if next.collection != nil {
		return next
	}
	c := cell(0)
	if len(s.namespaces.have) > 0 {
		c = s.namespaces.have[0].cell
	}
	t := s.namespaces.target(shown, c)
	return target{collection: t.shared, snapshot: t.snapshot}
}

// sentSet notes that a set was sent whole, and reports whether no partition waits for another.
func (s *session) sentSet(shown *state, root ident.Hash) bool {
	s.sets = append(s.sets, root)
	s.sets = s.sets[max(0, len(s.sets)-sentSets):]
	s.lacking = ident.Hash{}
	var still cells
	for _, c := range s.namespaces.waiting {
		if s.lacks(s.namespaces.target(shown, c).sharedRoot()) {
			still = append(still, c)
		} else {
			s.ready = append(s.ready, c)
		}
	}
	s.namespaces.waiting = still
	return len(still) == 0
}

// resume has the partitions sent whose set was.
func (s *session) resume() {
	f := s.namespaces
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.ready {
		f.dirty.add(c)
	}
	s.ready = nil
	f.sendLocked()
}

// forgetSets is for a client that no longer subscribes to the shared sets, or subscribes anew.
func (s *session) forgetSets() {
	s.sets, s.lacking = nil, ident.Hash{}
	for i := range s.namespaces.have {
		s.namespaces.have[i].kept = false
	}
	s.ready = append(s.ready, s.namespaces.waiting...)
	s.namespaces.waiting = nil
	s.resume()
}
