package push

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"

	"github.com/prism-gateway/prism/shared/ident"
)

// waitingObjections bounds how many NACKs wait to be told. The tracker knows of those that find no room.
const waitingObjections = 1024

// objection is what a NACK is told as: what is refused by name, or why the partitions are not in effect.
type objection struct {
	node, build string
	rejections  []*configv1.Rejection
	whole       string
	partitions  []ident.Partition
}

// tellObjections passes on what proxies refuse until ctx ends.
func (s *Server) tellObjections(ctx context.Context) {
	for {
		select {
		case r := <-s.objections:
			for _, p := range r.partitions {
				s.refused(r.node, r.build, r.rejections, r.whole, p)
			}
		case <-ctx.Done():
			return
		}
	}
}

// object queues what a NACK says of the states that the response completed.
func (f *feed) object(by map[cell][]*configv1.Rejection, whole string) {
	if f.session.server.refused == nil {
		return
	}
	if whole != "" {
		for _, e := range f.ends {
			f.tell(objection{whole: whole, partitions: f.partitionsOf(e.cell)})
		}
		return
	}
	told := map[*configv1.Rejection]bool{} // one that belongs to several partitions is told once
	for _, c := range slices.Sorted(maps.Keys(by)) {
		var named []*configv1.Rejection
		for _, r := range by[c] {
			switch {
			case r.GetResource() == c.String():
				reason := strings.TrimPrefix(r.GetField()+": "+r.GetReason(), ": ")
				f.tell(objection{whole: cmp.Or(reason, "no reason was given"), partitions: f.partitionsOf(c)})
			case !told[r]:
				told[r] = true
				named = append(named, r)
			}
		}
		if len(named) > 0 {
			f.tell(objection{rejections: named, partitions: f.partitionsOf(c)[:1]})
		}
	}
}

// partitionsOf returns the partition of a cell; for what is shared, all that the stream has, or the first.
func (f *feed) partitionsOf(c cell) []ident.Partition {
	if c != sharedCell {
		return []ident.Partition{ident.Partition(c)}
	}
	held := f.session.namespaces.have
	if len(held) == 0 {
		return []ident.Partition{0}
	}
	partitions := make([]ident.Partition, len(held))
	for i, h := range held {
		partitions[i] = ident.Partition(h.cell)
	}
	return partitions
}

// tell does not wait: a stream that reports is not held up by what is made of the report.
func (f *feed) tell(r objection) {
	r.node, r.build = f.session.node, f.session.build
	select {
	case f.session.server.objections <- r:
	default:
		f.session.server.metrics.untold.Inc()
		f.session.server.log.Warn("a refusal is not passed on: too many wait", "proxy", r.node)
	}
}
