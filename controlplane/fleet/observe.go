package fleet

import (
	"context"

	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"

	"github.com/prism-gateway/prism/shared/ident"
)

// Observation is what all replicas know of some partitions, from Observe until Close. Its methods may be called from any
// goroutine.
type Observation struct {
	view   *view
	cancel func()
}

// Observe begins to follow what all replicas know of some partitions. The caller closes the Observation.
func (f *Fleet) Observe(partitions ...ident.Partition) *Observation {
	ctx, cancel := context.WithCancel(f.closing)
	v := f.newView(partitions...)
	pushed, stopPushed := f.tracker.Watch(partitions...)
	heard, stopHeard := f.reports.watch(partitions)
	replicas, stopReplicas := f.store.WatchFleet()
	v.running.Go(func() {
		defer stopPushed()
		defer stopHeard()
		defer stopReplicas()
		for {
			v.ask(ctx)
			select {
			case <-pushed:
			case <-heard:
			case <-replicas:
			case <-ctx.Done():
				return
			}
			signal(v.moved)
		}
	})
	return &Observation{view: v, cancel: cancel}
}

// Changed is sent to after something about the partitions has changed; signals that nobody took are one. That a proxy
// was heard of again, and that its counters went on, makes no signal.
func (o *Observation) Changed() <-chan struct{} { return o.view.moved }

// Cells is what is known of a partition now, by proxy. It must not be changed.
func (o *Observation) Cells(p ident.Partition) map[string]*controlv1.CellState { return o.view.cells(p) }

// Complete reports whether every replica that can be asked has told all that it knows of the partitions.
func (o *Observation) Complete() bool { return o.view.complete() }

// Close ends the Observation.
func (o *Observation) Close() {
	o.cancel()
	o.view.running.Wait()
}
