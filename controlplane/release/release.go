// Package release says what of the newest snapshot each proxy is to have while changes go to the fleet in waves.
//
// The fleet has two trees: the newest snapshot, and the stable one, which is the newest without what is pending. An
// object on which they differ is pending in one release, the newest whose snapshot changed it. A cell, which is a
// partition at a rank, sees the newest of the objects whose releases have reached it and the stable of all others. A
// wave, a promotion and a way back are moves of these two trees; a change outside the releases goes into both and
// passes them by.
package release

import (
	"math"

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

// State is what the fleet ought to have. It is immutable.
type State struct {
	head, stable *snapshot.Tree
	active       []*recordv1.Release
}

// Settled is the state in which every owner has a tree and no release is under way.
func Settled(tree *snapshot.Tree) *State { return &State{head: tree, stable: tree} }

// Head is the newest snapshot.
func (s *State) Head() *snapshot.Tree { return s.head }

// Stable is the newest snapshot without what is pending; Head itself when nothing is.
func (s *State) Stable() *snapshot.Tree { return s.stable }

// Active are the releases under way, by snapshot. They must not be changed.
func (s *State) Active() []*recordv1.Release { return s.active }

// View is what a cell is to have.
type View struct {
	// Partition is the partition's objects, and Shared what their backends' names resolve in.
	Partition, Shared *snapshot.Collection
	// Snapshot is the newest snapshot of which, and of all before it, nothing is withheld from the cell.
	Snapshot uint64
}

// View returns what a cell is to have.
func (s *State) View(p ident.Partition, _ Rank) View {
	return View{Partition: s.head.Collection(p), Shared: s.head.Shared(), Snapshot: s.head.Version()}
}
