package fleet

import (
	"context"
	"time"

	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"

	"github.com/prism-gateway/prism/shared/ident"
)

// Observation is what all replicas know of some partitions, from Observe until Close. Its methods may be called from any
// goroutine.
type Observation struct {
	fleet      *Fleet
	partitions []ident.Partition
	follower   *follower
	forget     func()
}

// Observe begins to follow what all replicas know of some partitions. It returns at once. The caller closes the
// Observation; any number may be open, also of the same partitions.
func (f *Fleet) Observe(partitions ...ident.Partition) *Observation {
	return &Observation{
		fleet: f, partitions: partitions,
		follower: f.anywhere.follow(partitions...),
		forget:   f.peers.want(partitions),
	}
}

// Changed is sent to after something about the partitions has changed, and after Complete may have; signals that nobody
// took are one. That a proxy was heard of again, and that its counters went on, makes no signal.
func (o *Observation) Changed() <-chan struct{} { return o.follower.changed }

// Moved returns the partitions that have changed since it was called last, in order. Who calls it and then asks for their
// Cells misses nothing.
func (o *Observation) Moved() []ident.Partition { return o.fleet.anywhere.take(o.follower) }

// Cells is what is known of a partition now, by proxy. The map is the caller's; the states must not be changed.
func (o *Observation) Cells(p ident.Partition) map[string]*controlv1.CellState {
	cells := o.fleet.local(p)
	o.fleet.peers.add(p, cells)
	return cells
}

// Complete reports whether every replica that can be asked has told all that it knows of the partitions.
func (o *Observation) Complete() bool { return o.fleet.peers.complete(o.partitions) }

// Close ends the Observation.
func (o *Observation) Close() {
	o.fleet.anywhere.end(o.follower)
	o.forget()
}

// peerPatience is how long is waited for other replicas before it is told without them.
const peerPatience = time.Second

// await returns when the Observation is complete, or after the patience for that: those that do not answer are then not
// waited for by anybody until they do.
func (o *Observation) await(ctx context.Context) {
	patience := time.NewTimer(peerPatience)
	defer patience.Stop()
	for !o.Complete() {
		select {
		case <-o.Changed():
		case <-patience.C:
			o.fleet.peers.giveUp(o.partitions)
			return
		case <-ctx.Done():
			return
		}
	}
}
