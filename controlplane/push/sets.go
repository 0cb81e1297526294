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
	if s.shared.have[sharedName] == nil || root.IsZero() || slices.Contains(s.sets, root) {
		return false
	}
	for _, h := range s.namespaces.have {
		if h.kept && h.shared == root {
			return false
		}
	}
	return true
}

// fetch has the set sent that a partition refers to, and then the partition.
func (s *session) fetch(name string) {
	if s.namespaces.waiting == nil {
		s.namespaces.waiting = map[string]struct{}{}
	}
	s.namespaces.waiting[name] = struct{}{}
	s.shared.wake(sharedName)
}

// nextSet is the shared set that is sent next: the oldest that partitions wait for. While none waits it is the one of
// a partition that the client has, or of any.
func (s *session) nextSet() target {
	var next target
	for _, name := range sortedNames(s.namespaces.waiting) {
		t := s.namespaces.target(name)
		if s.lacks(t.shared.Root()) && (next.collection == nil || t.snapshot < next.snapshot) {
			next = target{collection: t.shared, snapshot: t.snapshot}
		}
	}
	if next.collection != nil {
		return next
	}
	p := ident.Partition(0)
	if held := s.partitions(); len(held) > 0 {
		p = held[0]
	}
	view := s.server.shown.Load().view(s.node, p)
	return target{collection: view.Shared, snapshot: view.Snapshot}
}

// sentSet notes that a set was sent whole, and reports whether no partition waits for another.
func (s *session) sentSet(root ident.Hash) bool {
	s.sets = append(s.sets, root)
	s.sets = s.sets[max(0, len(s.sets)-sentSets):]
	for name := range s.namespaces.waiting {
		if !s.lacks(s.namespaces.target(name).shared.Root()) {
			delete(s.namespaces.waiting, name)
			s.ready = append(s.ready, name)
		}
	}
	return len(s.namespaces.waiting) == 0
}

// resume has the partitions sent whose set was.
func (s *session) resume() {
	names := s.ready
	s.ready = nil
	f := s.namespaces
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range names {
		f.markLocked(name)
	}
	f.sendLocked()
}

// forgetSets is for a client that no longer subscribes to the shared sets, or subscribes anew.
func (s *session) forgetSets() {
	s.sets = nil
	for _, h := range s.namespaces.have {
		h.kept = false
	}
	for name := range s.namespaces.waiting {
		s.ready = append(s.ready, name)
	}
	clear(s.namespaces.waiting)
	s.resume()
}

// partitions are those that the client subscribes to, in order.
func (s *session) partitions() []ident.Partition {
	held := make([]ident.Partition, 0, len(s.namespaces.have))
	for name := range s.namespaces.have {
		if p, err := ident.ParsePartition(name); err == nil {
			held = append(held, p)
		}
	}
	slices.Sort(held)
	return held
}
