package simulate

import (
	"context"
	"encoding/binary"
	"math"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/prism-gateway/prism/dataplane/subscribe"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/ident"
)

// proxy is one simulated proxy.
type proxy struct {
	sim       *Simulation
	id        string
	stalls    bool
	validator bool
	client    *subscribe.Client

	connected  atomic.Bool
	assigned   atomic.Bool  // it knows who owns what, and has put that into effect
	streams    atomic.Int64 // of configuration, since the start
	opened     atomic.Int64 // when the newest began, in Unix nanoseconds
	lost       atomic.Int64 // when the last that had been answered ended
	epoch      uint64       // of the assignment in effect; Apply's goroutine only
	assignedAt atomic.Int64 // when it came into effect
	held       atomic.Pointer[map[ident.Partition]*subscribe.Partition]
}

// partitions are those in effect. They must not be changed.
func (p *proxy) partitions() map[ident.Partition]*subscribe.Partition {
	if held := p.held.Load(); held != nil {
		return *held
	}
	return nil
}

// settled is whether the proxy holds its partitions, and they have been the same for a while.
func (p *proxy) settled() bool {
	return p.assigned.Load() && len(p.partitions()) > 0 && len(p.client.Status().Missing) == 0 &&
		time.Since(time.Unix(0, p.assignedAt.Load())) > quiet
}

// apply puts a state into effect: there is nothing to open.
func (p *proxy) apply(ctx context.Context, state subscribe.State) []*configv1.Rejection {
	if p.sim.cfg.Delay > 0 {
		wait(ctx, p.sim.cfg.Delay) // what was begun is finished, also at the end
	}
	former := p.partitions()
	var rejections []*configv1.Rejection
	if p.sim.cfg.Refuse != nil || p.sim.cfg.RefuseShare > 0 {
		for _, n := range state.Changed {
			rejections = append(rejections, p.refuse(former[n], state.Partitions[n])...)
		}
	}
	now, opened := time.Now(), time.Unix(0, p.opened.Load())
	for _, n := range state.Changed {
		is, was := state.Partitions[n], former[n]
		if is == nil {
			continue
		}
		p.sim.counts.applied.Add(1)
		// What was committed before the stream began was not held up by the way that it took here. For a snapshot that goes in
		// waves it is not told, since it says nothing there.
		if was != nil && is.Snapshot > was.Snapshot && (is.CommittedAt.IsZero() || is.CommittedAt.After(opened)) {
			p.sim.counts.effective(is.Snapshot, is.CommittedAt, now)
		}
	}
	p.held.Store(&state.Partitions)
	if state.Epoch != p.epoch {
		p.epoch = state.Epoch
		p.assignedAt.Store(now.UnixNano())
	}
	p.assigned.Store(state.Assignment != nil)
	return rejections
}

// refuse returns what the proxy does not take of a partition, of the members that have changed.
func (p *proxy) refuse(was, is *subscribe.Partition) []*configv1.Rejection {
	if is == nil {
		return nil
	}
	var rejections []*configv1.Rejection
	for resource, o := range is.Members {
		if was != nil && was.Members[resource].Hash == o.Hash {
			continue
		}
		namespace := strings.TrimPrefix(resource, "ns/")
		reason := ""
		switch {
		case p.sim.cfg.Refuse != nil && p.sim.cfg.Refuse.MatchString(namespace):
			reason = "the simulation refuses every namespace of such a name"
		case p.chance(resource, o.Hash) < p.sim.cfg.RefuseShare:
			reason = "the simulation refuses some namespaces by chance"
		default:
			continue
		}
		rejections = append(rejections, &configv1.Rejection{
			Resource: resource, Version: o.Hash.String(), Field: "patterns[0].bindings[0]", Reason: reason,
		})
	}
	return rejections
}

// chance is a number from 0 to 1, always the same for the same proxy and bytes.
func (p *proxy) chance(resource string, version ident.Hash) float64 {
	h := xxhash.New()
	for _, part := range []string{p.id, "\x00", resource, "\x00"} {
		_, _ = h.WriteString(part) // never fails
	}
	sum := xxhash.Sum64(binary.LittleEndian.AppendUint64(version.Bytes(), h.Sum64()))
	return float64(sum) / math.MaxUint64
}

// Readiness is that of a proxy that is ready as soon as it knows what it owns.
func (p *proxy) Readiness() subscribe.Readiness {
	r := subscribe.Readiness{Ready: p.assigned.Load(), Draining: p.sim.ending.Load()}
	if !r.Ready {
		r.Reasons = []string{"no assignment has come yet"}
	}
	return r
}

// Unready is empty: nothing can fail to open.
func (p *proxy) Unready(ident.Partition) []subscribe.Unready { return nil }

// Traffic is empty: nobody calls.
func (p *proxy) Traffic(ident.Partition) subscribe.Traffic { return subscribe.Traffic{} }
