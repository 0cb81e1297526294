package controller

import (
	"time"

	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/release/gate"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	"github.com/prism-gateway/prism/shared/ident"
)

// observed is what is followed of the partitions that a release concerns. The zero value follows nothing.
type observed struct {
	Observation
	partitions map[ident.Partition]bool
	since      time.Time
	known      map[ident.Partition]map[string]*controlv1.CellState // what was told of those that have not changed since
	renewed    time.Time
}

// of sees to it that partitions are followed, and returns how long to wait at most until all has been told of them.
func (o *observed) of(observe func(...ident.Partition) Observation, partitions []ident.Partition, now time.Time, patience time.Duration) time.Duration {
	more := false
	for _, p := range partitions {
		more = more || !o.partitions[p]
	}
	if more {
		o.close()
		o.Observation, o.partitions, o.since = observe(partitions...), map[ident.Partition]bool{}, now
		for _, p := range partitions {
			o.partitions[p] = true
		}
	}
	if o.Observation == nil || o.Complete() {
		return 0
	}
	return patience - now.Sub(o.since)
}

// changed is nil while nothing is followed.
func (o *observed) changed() <-chan struct{} {
	if o.Observation == nil {
		return nil
	}
	return o.Changed()
}

func (o *observed) close() {
	if o.Observation != nil {
		o.Close()
		o.Observation, o.known = nil, nil
	}
}

// renew forgets what has changed, and all of it so often that counters, which make no signal, are not older than a look.
func (o *observed) renew(now time.Time) {
	if o.Observation == nil {
		return // nothing is concerned
	}
	moved := o.Moved()
	if o.known == nil || now.Sub(o.renewed) >= look {
		o.known, o.renewed = make(map[ident.Partition]map[string]*controlv1.CellState, len(o.partitions)), now
		return
	}
	for _, p := range moved {
		delete(o.known, p)
	}
}

// told is what is known of a partition, by proxy.
func (o *observed) told(p ident.Partition) map[string]*controlv1.CellState {
	cells, ok := o.known[p]
	if !ok {
		cells = o.Cells(p)
		o.known[p] = cells
	}
	return cells
}

// surveyed are the cells of a release as they were listed, before anything was known of them.
type surveyed struct {
	state      *release.State
	assignment *configv1.Assignment
	cells      []gate.Cell
}

// survey lists the cells of a release with what is known of them. They are good until it is called again.
func (f *follower) survey(state *release.State, assignment *configv1.Assignment, now time.Time) []gate.Cell {
	if f.surveyed.state != state || f.surveyed.assignment != assignment {
		f.surveyed = surveyed{state, assignment, gate.Survey(state, f.snapshot, assignment)}
	}
	f.cells = append(f.cells[:0], f.surveyed.cells...)
	gate.Missing(f.cells, f.cfg.Store.Members())
	pending := gate.Pending(state, f.snapshot)
	f.observed.renew(now)
	for i := range f.cells {
		c := &f.cells[i]
		c.Observe(f.observed.told(c.Partition)[c.Proxy], pending)
	}
	return f.cells
}
