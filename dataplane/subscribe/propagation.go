package subscribe

import (
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
)

// maxPropagations bounds what is kept for the next report; of more than that the oldest are not told.
const maxPropagations = 64

// propagations are how long changes took to come into effect, the newest last.
type propagations struct {
	mu   sync.Mutex // guards list
	list []*controlv1.Propagation
}

// arrived measures how long a change took that has come into effect. What a proxy is given when it has nothing, or the
// same again, is no change; and what was committed before the stream began waited for that, and not on its way here.
func (c *Client) arrived(before, now *Partition, began time.Time) {
	if before == nil || !now.CommittedAt.After(began) || now.Snapshot <= before.Snapshot {
		return
	}
	took := max(time.Since(now.CommittedAt), 0) // the clocks are two
	c.metrics.propagation.Observe(took.Seconds())
	c.recent.mu.Lock()
	defer c.recent.mu.Unlock()
	list := c.recent.list
	if n := len(list); n > 0 && list[n-1].GetSnapshotVersion() == now.Snapshot {
		list[n-1].Took = durationpb.New(max(took, list[n-1].GetTook().AsDuration())) // its last partition counts
		return
	}
	if len(list) == maxPropagations {
		list = list[1:]
	}
	c.recent.list = append(list, &controlv1.Propagation{SnapshotVersion: now.Snapshot, Took: durationpb.New(took)})
}

// take returns what was not told yet.
func (p *propagations) take() []*controlv1.Propagation {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := p.list
	p.list = nil
	return list
}
