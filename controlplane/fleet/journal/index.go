package journal

import (
	"cmp"
	"iter"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"

	"github.com/prism-gateway/prism/shared/ident"
)

// index is what proxies serve, by proxy.
type index map[string]*proxy

type proxy struct {
	begun time.Time
	cells map[ident.Partition]Cell
}

func (p *proxy) sorted() []Cell {
	return slices.SortedFunc(maps.Values(p.cells), func(a, b Cell) int { return cmp.Compare(a.Partition, b.Partition) })
}

// note takes an entry and returns it as it is written: with what was served before in mind.
func (x index) note(e Entry) *recordv1.JournalEntry {
	out := &recordv1.JournalEntry{At: timestamppb.New(e.At), Proxy: e.Proxy, Gone: e.Gone}
	var before map[ident.Partition]Cell
	if known := x[e.Proxy]; known != nil {
		before = known.cells
	}
	if e.Begins {
		out.Begun = out.At
	}
	for _, c := range e.Cells {
		c.Since = e.At
		if old, ok := before[c.Partition]; ok {
			c.Other = e.At
			if old.Root == c.Root && old.Shared == c.Shared && old.Snapshot == c.Snapshot {
				c.Since, c.Other = old.Since, old.Other
			}
		}
		out.Cells = append(out.Cells, encodeCell(c))
	}
	for _, p := range e.Dropped {
		out.Dropped = append(out.Dropped, uint32(p))
	}
	x.take(out)
	return out
}

// take learns what an entry says.
func (x index) take(e *recordv1.JournalEntry) {
	if e.GetProxy() == "" {
		return
	}
	if e.GetGone() {
		delete(x, e.GetProxy())
		return
	}
	p := x[e.GetProxy()]
	if p == nil || e.GetBegun() != nil {
		p = &proxy{begun: e.GetBegun().AsTime(), cells: make(map[ident.Partition]Cell, len(e.GetCells()))}
		x[e.GetProxy()] = p
	}
	for _, c := range e.GetCells() {
		cell := decodeCell(c)
		p.cells[cell.Partition] = cell
	}
	for _, d := range e.GetDropped() {
		delete(p.cells, ident.Partition(d))
	}
}

// all are entries that say all that is known.
func (x index) all(now *timestamppb.Timestamp) iter.Seq[*recordv1.JournalEntry] {
	return func(yield func(*recordv1.JournalEntry) bool) {
		for name, p := range x {
			e := &recordv1.JournalEntry{At: now, Proxy: name, Begun: timestamppb.New(p.begun)}
			for _, c := range p.cells {
				e.Cells = append(e.Cells, encodeCell(c))
			}
			if !yield(e) {
				return
			}
		}
	}
}

func encodeCell(c Cell) *recordv1.JournalCell {
	out := &recordv1.JournalCell{
		Partition: uint32(c.Partition), Root: c.Root.Bytes(), SharedRoot: c.Shared.Bytes(), SnapshotVersion: c.Snapshot,
		Since: timestamppb.New(c.Since),
	}
	if !c.Other.IsZero() {
		out.Other = timestamppb.New(c.Other)
	}
	return out
}

// decodeCell reads what encodeCell made. A hash that is none, which a checksum lets nobody see, reads as nothing.
func decodeCell(in *recordv1.JournalCell) Cell {
	root, _ := ident.HashFrom(in.GetRoot())
	shared, _ := ident.HashFrom(in.GetSharedRoot())
	c := Cell{
		Partition: ident.Partition(in.GetPartition()), Root: root, Shared: shared, Snapshot: in.GetSnapshotVersion(), Since: in.GetSince().AsTime(),
	}
	if in.GetOther() != nil {
		c.Other = in.GetOther().AsTime()
	}
	return c
}
