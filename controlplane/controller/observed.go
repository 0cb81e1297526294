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
		o.Observation = nil
	}
}

// surveyed are the cells of a release as they were listed, before anything was known of them.
type surveyed struct {
	state      *release.State
	assignment *configv1.Assignment
	cells      []gate.Cell
}

// survey lists the cells of a release with what is known of them. They are good until it is called again.
func (f *follower) survey(state *release.State, assignment *configv1.Assignment) []gate.Cell {
	if f.surveyed.state != state || f.surveyed.assignment != assignment {
		f.surveyed = surveyed{state, assignment, gate.Survey(state, f.snapshot, assignment)}
	}
	f.cells = append(f.cells[:0], f.surveyed.cells...)
	gate.Missing(f.cells, f.cfg.Store.Members())
	pending := gate.Pending(state, f.snapshot)
	known := map[ident.Partition]map[string]*controlv1.CellState{}
	for i := range f.cells {
		c := &f.cells[i]
		states, ok := known[c.Partition]
		if !ok {
			states = f.observed.Cells(c.Partition)
			known[c.Partition] = states
		}
		c.Observe(states[c.Proxy], pending)
	}
	return f.cells
}
