package simulate

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prism-gateway/prism/shared/ident"
)

// quiet is for how long nothing of a snapshot came into effect before it counts as everywhere.
const quiet = 2 * time.Second

// Report is how things stand. Counters are since the start.
type Report struct {
	// Elapsed is since the start, in seconds.
	Elapsed float64 `json:"elapsed_seconds"`
	// Proxies is how many there are, validators too; Connected, how many of them have a stream of configuration; Owning, how many hold
	// partitions.
	Proxies   int `json:"proxies"`
	Connected int `json:"connected"`
	Owning    int `json:"owning"`
	// Cells is how many partitions all proxies hold together.
	Cells int `json:"cells"`
	// Snapshot is the newest in effect anywhere.
	Snapshot uint64 `json:"snapshot"`
	// Applied is how many new states of cells came into effect.
	Applied uint64 `json:"applied"`
	// Responses and Resources are what was received, but for assignments and what ends a change; Resumed is how many of the
	// Resources were the answer to what a proxy that came back had already.
	Responses uint64 `json:"responses"`
	Resources uint64 `json:"resources"`
	Resumed   uint64 `json:"resumed_resources"`
	// ResumedBytes is the size of those answers; AskedMax, of the largest question that a proxy came back with.
	ResumedBytes uint64 `json:"resumed_bytes"`
	AskedMax     uint64 `json:"asked_bytes_max"`
	// Received and Sent are the bytes of all messages, reports to the fleet too.
	Received uint64 `json:"received_bytes"`
	Sent     uint64 `json:"sent_bytes"`
	// Nacks is how many responses were refused in part; Reconnects, how many streams were opened again.
	Nacks      uint64 `json:"nacks"`
	Reconnects uint64 `json:"reconnects"`
	// Away is from the end of a stream until the answer that tells the proxy that it is current again.
	Away Latency `json:"away"`
	// InEffect is from the commit of a snapshot until it was in effect on a cell, for each cell that it changed; Everywhere is
	// until the last of them. In what Next returns these
	// two are of the time since the call before, else since the start.
	InEffect   Latency `json:"in_effect"`
	Everywhere Latency `json:"everywhere"`
	// Snapshots are those that have been everywhere since the call before.
	Snapshots []Spread `json:"snapshots,omitempty"`
	// Partitions is how each stands, when it was asked for.
	Partitions []Partition `json:"partitions,omitempty"`
	// Final is whether it is the summary of the whole.
	Final bool `json:"final"`
}

// Latency sums up times, in seconds. Quantiles are exact to 4 %, the rest is exact.
type Latency struct {
	Count uint64  `json:"count"`
	P50   float64 `json:"p50_seconds"`
	P99   float64 `json:"p99_seconds"`
	Max   float64 `json:"max_seconds"`
}

// Spread is how a snapshot came into effect.
type Spread struct {
	Snapshot uint64 `json:"snapshot"`
	// Committed is when it was recorded, by the control plane's clock; absent when it goes in waves.
	Committed time.Time `json:"committed_at,omitzero"`
	// Cells is how many it changed here.
	Cells int `json:"cells"`
	// First and Last are when it was in effect on the first and on the last of them.
	First time.Time `json:"first_at"`
	Last  time.Time `json:"last_at"`
}

// Partition is how a partition stands on the proxies that hold it.
type Partition struct {
	Partition uint32 `json:"partition"`
	Proxies   int    `json:"proxies"`
	// Namespaces is how many are in effect on the proxy that has most.
	Namespaces int `json:"namespaces"`
	// Oldest and Newest are the snapshots in effect.
	Oldest uint64 `json:"oldest_snapshot"`
	Newest uint64 `json:"newest_snapshot"`
	// Roots is how many different states there are: 1 when all agree.
	Roots int `json:"roots"`
}

// counts are what the proxies add to.
type counts struct {
	began                                           time.Time
	applied, responses, resources, resumed          atomic.Uint64
	received, sent, nacks, reconnects, resumedBytes atomic.Uint64

	mu                      sync.Mutex // guards what follows
	cells, everywhere       histogram  // since the start
	cellsNow, everywhereNow histogram  // since the last report
	spreads                 map[uint64]*spread
	away                    histogram // since the start
	askedMax                uint64
}

type spread struct {
	committed, first, last time.Time
	cells                  int
}

func newCounts(now time.Time) *counts { return &counts{began: now, spreads: map[uint64]*spread{}} }

// effective notes that a snapshot is in effect on a cell.
func (c *counts) effective(snapshot uint64, committed, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !committed.IsZero() {
		c.cells.add(now.Sub(committed))
		c.cellsNow.add(now.Sub(committed))
	}
	s := c.spreads[snapshot]
	if s == nil {
		s = &spread{committed: committed, first: now}
		c.spreads[snapshot] = s
	}
	s.last = now
	s.cells++
}

// asked notes how large the question was that a proxy came back with.
func (c *counts) asked(bytes int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.askedMax = max(c.askedMax, uint64(bytes))
}

// back notes for how long a proxy was away.
func (c *counts) back(after time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.away.add(after)
}

// settleLocked takes out the snapshots of which nothing has come into effect since before.
func (c *counts) settleLocked(before time.Time) []Spread {
	var out []Spread
	for _, snapshot := range slices.Sorted(maps.Keys(c.spreads)) {
		s := c.spreads[snapshot]
		if s.last.After(before) {
			continue
		}
		delete(c.spreads, snapshot)
		if !s.committed.IsZero() {
			c.everywhere.add(s.last.Sub(s.committed))
			c.everywhereNow.add(s.last.Sub(s.committed))
		}
		out = append(out, Spread{Snapshot: snapshot, Committed: s.committed, Cells: s.cells, First: s.first, Last: s.last})
	}
	return out
}

// Next is how things stand, with the times since the call before.
func (s *Simulation) Next(now time.Time) Report {
	r := s.report(now)
	c := s.counts
	c.mu.Lock()
	defer c.mu.Unlock()
	r.Snapshots = c.settleLocked(now.Add(-quiet))
	r.Away, r.AskedMax = c.away.latency(), c.askedMax
	r.InEffect, r.Everywhere = c.cellsNow.latency(), c.everywhereNow.latency()
	c.cellsNow, c.everywhereNow = histogram{}, histogram{}
	return r
}

// Summary is how things stand, with the times since the start; every snapshot counts as everywhere. With partitions it lists
// them.
func (s *Simulation) Summary(now time.Time, partitions bool) Report {
	r := s.report(now)
	c := s.counts
	c.mu.Lock()
	defer c.mu.Unlock()
	r.Snapshots = c.settleLocked(now)
	r.Away, r.AskedMax = c.away.latency(), c.askedMax
	r.InEffect, r.Everywhere = c.cells.latency(), c.everywhere.latency()
	if partitions {
		r.Partitions = s.partitions()
	}
	r.Final = true
	return r
}

func (s *Simulation) report(now time.Time) Report {
	c := s.counts
	r := Report{
		Elapsed: now.Sub(c.began).Seconds(), Proxies: len(s.proxies),
		Applied: c.applied.Load(), Responses: c.responses.Load(), Resources: c.resources.Load(), Resumed: c.resumed.Load(), ResumedBytes: c.resumedBytes.Load(),
		Received: c.received.Load(), Sent: c.sent.Load(), Nacks: c.nacks.Load(), Reconnects: c.reconnects.Load(),
	}
	for _, p := range s.proxies {
		if p.connected.Load() {
			r.Connected++
		}
		held := p.partitions()
		if len(held) > 0 {
			r.Owning++
		}
		r.Cells += len(held)
		for _, state := range held {
			r.Snapshot = max(r.Snapshot, state.Snapshot)
		}
	}
	return r
}

// partitions tells how each partition that somebody holds stands, in order.
func (s *Simulation) partitions() []Partition {
	by := map[ident.Partition]*Partition{}
	roots := map[ident.Partition]map[[2]ident.Hash]bool{}
	for _, p := range s.proxies {
		for n, state := range p.partitions() {
			of := by[n]
			if of == nil {
				of = &Partition{Partition: uint32(n), Oldest: math.MaxUint64}
				by[n], roots[n] = of, map[[2]ident.Hash]bool{}
			}
			of.Proxies++
			of.Namespaces = max(of.Namespaces, len(state.Members))
			of.Oldest, of.Newest = min(of.Oldest, state.Snapshot), max(of.Newest, state.Snapshot)
			roots[n][[2]ident.Hash{state.Root, state.SharedRoot}] = true
			of.Roots = len(roots[n])
		}
	}
	out := make([]Partition, 0, len(by))
	for _, of := range by {
		out = append(out, *of)
	}
	slices.SortFunc(out, func(a, b Partition) int { return cmp.Compare(a.Partition, b.Partition) })
	return out
}
