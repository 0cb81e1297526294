// Package release says what of the newest snapshot each proxy is to have while changes go to the fleet in waves.
//
// The fleet has two trees: the newest snapshot, and the stable one, which is the newest without what is pending. An
// object on which they differ is pending in one release, the newest whose snapshot changed it. A cell, which is a
// partition at a rank, sees the newest of the objects whose releases have reached it and the stable of all others. A
// wave, a promotion and a way back are moves of these two trees; a change outside the releases goes into both and
// passes them by.
//
// What is bound to something always finds it, in every cell. A backend that a release has made and something else is
// bound to becomes stable at once, because it hurts nobody; one that a release deletes is there until the release is
// done; one that stable namespaces are bound to is not deleted.
package release

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"sync"

	"github.com/prism-gateway/prism/controlplane/snapshot"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/ident"
)

// Rank is a proxy's place in a partition: from 0 that of an owner, or one of these.
type Rank int

const (
	// Validator is the rank of a validator in every partition.
	Validator Rank = -1
	// Other is the rank of whoever holds a partition and is no owner: one that is loading it, or was an owner before.
	Other Rank = math.MaxInt32
)

// State is what the fleet ought to have. It is immutable and may be used from any number of goroutines. Nothing that
// its methods return may be changed.
type State struct {
	head, stable *snapshot.Tree
	active       []*recordv1.Release // by snapshot
	claims       []*claim            // parallel to active
	parts        []*part             // by partition, nil where nothing is pending; none at all when nothing is anywhere
	shared       *part
	concerned    []func() []ident.Partition // parallel to active
}

// Settled is the state in which every owner has a tree and no release is under way.
func Settled(tree *snapshot.Tree) *State { return &State{head: tree, stable: tree} }

// Head is the newest snapshot.
func (s *State) Head() *snapshot.Tree { return s.head }

// Stable is the newest snapshot without what is pending, under the same number; Head itself when nothing is.
func (s *State) Stable() *snapshot.Tree { return s.stable }

// Active are the releases under way, by snapshot.
func (s *State) Active() []*recordv1.Release { return s.active }

// Release returns the release under way that bears a snapshot's number.
func (s *State) Release(snapshot uint64) (*recordv1.Release, bool) {
	i, ok := s.index(snapshot)
	if !ok {
		return nil, false
	}
	return s.active[i], true
}

func (s *State) index(snapshot uint64) (int, bool) {
	return slices.BinarySearchFunc(s.active, snapshot, func(r *recordv1.Release, v uint64) int { return cmp.Compare(r.GetSnapshot(), v) })
}

// WaveOf returns the wave that brings a release to a cell, 0 when it is not under way.
func (s *State) WaveOf(snapshot uint64, p ident.Partition, rank Rank) int {
	i, ok := s.index(snapshot)
	if !ok {
		return 0
	}
	return waveOf(s.active[i], p, rank)
}

func waveOf(r *recordv1.Release, p ident.Partition, rank Rank) int {
	switch rank {
	case Validator:
		return WaveValidators
	case 0:
		if _, first := slices.BinarySearch(r.First, uint32(p)); first {
			return WaveFirst
		}
		return WaveRank0
	case 1:
		return WaveRank1
	}
	return WaveAll
}

// Reached reports whether a release has reached a cell. One that is not under way any more has, as far as it will.
func (s *State) Reached(snapshot uint64, p ident.Partition, rank Rank) bool {
	i, ok := s.index(snapshot)
	return !ok || waveOf(s.active[i], p, rank) <= int(s.active[i].Wave)
}

// Of returns the release in which an object is pending, by its whole name.
func (s *State) Of(name string) (*recordv1.Release, bool) {
	release, _, ok := s.pendingOf(name)
	if !ok {
		return nil, false
	}
	return s.Release(release)
}

// pendingOf returns an object that is pending, and the release that it is pending in.
func (s *State) pendingOf(name string) (release uint64, d Pending, ok bool) {
	pt := s.shared
	if namespace, ok := strings.CutPrefix(name, snapshot.NamespacePrefix); ok {
		pt = s.part(ident.PartitionOf(namespace, s.head.Partitions()))
	}
	if pt == nil {
		return 0, Pending{}, false
	}
	for _, h := range pt.holders {
		if i, ok := h.find(name); ok {
			return h.release, h.pending[i], true
		}
	}
	return 0, Pending{}, false
}

// Pending is an object that is pending: Before is what is stable, and After what is newest. The one that is not there
// is zero.
type Pending = snapshot.Difference

// Pending returns what is pending in a release: namespaces by partition, then what is shared, each by name.
func (s *State) Pending(snapshot uint64) []Pending {
	var out []Pending
	for pt := range s.all {
		if h := pt.holder(snapshot); h != nil {
			out = append(out, h.pending...)
		}
	}
	return out
}

// Held returns how many objects are pending in a release.
func (s *State) Held(snapshot uint64) int {
	n := 0
	for pt := range s.all {
		if h := pt.holder(snapshot); h != nil {
			n += len(h.pending)
		}
	}
	return n
}

// held counts what is pending, by release.
func (s *State) held() map[uint64]int {
	counts := make(map[uint64]int, len(s.active))
	for pt := range s.all {
		for _, h := range pt.holders {
			counts[h.release] += len(h.pending)
		}
	}
	return counts
}

// Concerned returns the partitions that a release concerns, in order: those in which a namespace is pending in it, and
// those with a namespace that is bound to what is shared and pending in it.
func (s *State) Concerned(snapshot uint64) []ident.Partition {
	i, ok := s.index(snapshot)
	if !ok {
		return nil
	}
	return s.concerned[i]()
}

// concerns computes Concerned.
func (s *State) concerns(release uint64) []ident.Partition {
	shared := map[string]bool{}
	if h := s.shared.holder(release); h != nil {
		for _, d := range h.pending {
			if name, ok := strings.CutPrefix(d.Name, snapshot.BackendPrefix); ok {
				shared[name] = true
			}
		}
	}
	bound := func(c *snapshot.Collection) bool {
		for name := range c.Backends() {
			if shared[name] {
				return true
			}
		}
		return false
	}
	var out []ident.Partition
	for p := range ident.Partition(s.head.Partitions()) {
		if s.part(p).holder(release) != nil || len(shared) > 0 && (bound(s.head.Collection(p)) || bound(s.stable.Collection(p))) {
			out = append(out, p)
		}
	}
	return out
}

// View is what a cell is to have.
type View struct {
	// Partition is the partition's objects, and Shared what their backends' names resolve in.
	Partition, Shared *snapshot.Collection
	// Snapshot is the newest snapshot of which, and of all before it, nothing that concerns the cell is withheld from it.
	Snapshot uint64
}

// View returns what a cell is to have. It is cheap: what is mixed of the two trees is made once, and is shared by all
// states and cells that see the same.
func (s *State) View(p ident.Partition, rank Rank) View {
	v := View{Partition: s.head.Collection(p), Shared: s.head.Shared(), Snapshot: s.head.Version()}
	if pt := s.part(p); pt != nil {
		mask, oldest := s.reached(pt, p, rank, false)
		v.Partition = pt.see(mask)
		v.Snapshot = min(v.Snapshot, oldest-1)
	}
	if s.shared != nil {
		mask, oldest := s.reached(s.shared, p, rank, true)
		v.Shared = s.shared.see(mask)
		v.Snapshot = min(v.Snapshot, oldest-1)
	}
	return v
}

// reached says which of a part's holders have reached a cell, and the oldest that has not and concerns it.
func (s *State) reached(pt *part, p ident.Partition, rank Rank, shared bool) (mask holders, oldest uint64) {
	oldest = math.MaxUint64
	for n, h := range pt.holders {
		i, _ := s.index(h.release)
		if waveOf(s.active[i], p, rank) <= int(s.active[i].Wave) {
			mask[n/64] |= 1 << (n % 64)
			continue
		}
		if h.release >= oldest {
			continue
		}
		if shared {
			if _, concerned := slices.BinarySearch(s.concerned[i](), p); !concerned {
				continue
			}
		}
		oldest = h.release
	}
	return mask, oldest
}

func (s *State) part(p ident.Partition) *part {
	if s.parts == nil {
		return nil
	}
	return s.parts[p]
}

// all goes through the parts in which something is pending.
func (s *State) all(yield func(*part) bool) {
	for _, pt := range s.parts {
		if pt != nil && !yield(pt) {
			return
		}
	}
	if s.shared != nil {
		yield(s.shared)
	}
}

// watchConcerned lets Concerned be computed once, when it is asked for.
func (s *State) watchConcerned() {
	s.concerned = make([]func() []ident.Partition, len(s.active))
	for i, r := range s.active {
		s.concerned[i] = sync.OnceValue(func() []ident.Partition { return s.concerns(r.Snapshot) })
	}
}
