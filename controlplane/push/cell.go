package push

import (
	"slices"

	"github.com/prism-gateway/prism/controlplane/snapshot"
	"github.com/prism-gateway/prism/shared/ident"
	"github.com/prism-gateway/prism/shared/manifest"
)

// cell is a collection as one stream has it: that of a partition, or one of those below.
type cell int32

const (
	sharedCell cell = -1 // what all share
	fleetCell  cell = -2 // the assignment, which is no collection of the tree
)

// String is the name of the cell's collection.
func (c cell) String() string {
	switch c {
	case sharedCell:
		return sharedName
	case fleetCell:
		return fleetName
	}
	return ident.Partition(c).String()
}

// cells are in order, each once.
type cells []cell

func (cs *cells) add(c cell) {
	if i, has := slices.BinarySearch(*cs, c); !has {
		*cs = slices.Insert(*cs, i, c)
	}
}

func (cs *cells) remove(c cell) {
	if i, has := slices.BinarySearch(*cs, c); has {
		*cs = slices.Delete(*cs, i, i+1)
	}
}

// mark is a state of a collection. It does not change, and streams that have the same share it.
type mark struct {
	cell     cell
	mixed    bool // only some releases have reached it, so that the store does not know it
	manifest *manifest.Manifest
	shared   ident.Hash // of a partition: the root of the shared set that it refers to
}

func (m *mark) root() ident.Hash { return m.manifest.Root() }

// target is the state that a client is to have of a collection, and the snapshot it belongs to.
type target struct {
	collection *snapshot.Collection
	shared     *snapshot.Collection // of a partition: what it refers to; else nil
	snapshot   uint64
}

func (t target) sharedRoot() ident.Hash {
	if t.shared == nil {
		return ident.Hash{}
	}
	return t.shared.Root()
}
