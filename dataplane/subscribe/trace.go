package subscribe

import (
	"slices"
	"time"

	"github.com/prism-gateway/prism/shared/telemetry"
	"github.com/prism-gateway/prism/shared/telemetry/trace"
)

// trace records that changes came into effect: a span for each request that they came from, linked to the others that came
// into effect with it. It is called before the cells are noted as in effect. What a proxy is given when it has nothing, or
// the same again, is no change.
func (l *loop) trace(b *batch, took time.Duration) {
	if l.c.cfg.Tracer == nil {
		return
	}
	spans := map[string]*applied{} // by the request's trace context
	var parents []string
	for _, g := range b.cells {
		parent := g.version.sentinel.GetTraceParent()
		if parent == "" || g.cell.applied == nil || g.partition.Snapshot <= g.cell.applied.Snapshot {
			continue
		}
		a := spans[parent]
		if a == nil {
			a = &applied{}
			spans[parent] = a
			parents = append(parents, parent)
		}
		a.snapshot = max(a.snapshot, g.partition.Snapshot)
		a.partitions++
		a.refused += len(g.refused)
	}
	end := time.Now()
	for i, parent := range parents {
		a := spans[parent]
		l.c.cfg.Tracer.Record(trace.Span{
			Name: "apply", Start: end.Add(-took), End: end, Parent: parent, Links: slices.Concat(parents[:i], parents[i+1:]),
			Attributes: []any{
				"prism." + telemetry.KeyProxy, l.c.cfg.Node.ID, "prism.snapshot", a.snapshot, "prism.partitions", a.partitions,
				"prism.refused", a.refused, "prism.replica_address", l.endpoint(),
			},
		})
	}
}

// applied is what came into effect of one request.
type applied struct {
	snapshot            uint64
	partitions, refused int
}

// endpoint is the connected replica's, empty while there is none.
func (l *loop) endpoint() string {
	if l.session == nil {
		return ""
	}
	return l.session.endpoint
}
