package fleet

import (
	"bytes"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"

	"github.com/prism-gateway/prism/controlplane/fleet/journal"
	"github.com/prism-gateway/prism/shared/ident"
)

// report is what a proxy has said of itself.
type report struct {
	proxy string

	// Guarded by reports.mu.
	last  *controlv1.ReportRequest // without cells
	heard time.Time
	ended bool
	cells map[ident.Partition]*controlv1.CellReport // each is not changed once it is here

	list []*controlv1.CellReport // the cells of a copy
}

// reports are those of all proxies that report to this replica.
type reports struct {
	// These are called with mu held, and return at once: changed when what is reported of a partition has changed, noted
	// when something else is served.
	changed func(ident.Partition)
	noted   func(journal.Entry)

	lease time.Duration // after what silence a proxy counts as gone

	mu      sync.Mutex // guards all below
	byProxy map[string]*report
	byCell  map[ident.Partition]map[string]*report
}

func newReports(lease time.Duration, changed func(ident.Partition), noted func(journal.Entry)) reports {
	return reports{
		changed: changed, noted: noted, lease: lease,
		byProxy: map[string]*report{},
		byCell:  map[ident.Partition]map[string]*report{},
	}
}

// begin starts a proxy's report anew.
func (r *reports) begin(proxy string) *report {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.removeLocked(proxy)
	added := &report{proxy: proxy, cells: map[ident.Partition]*controlv1.CellReport{}, last: &controlv1.ReportRequest{}}
	r.byProxy[proxy] = added
	return added
}

// current reports whether a report is the one that is known of its proxy.
func (r *reports) current(of *report) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.byProxy[of.proxy] == of
}

func (r *reports) removeLocked(proxy string) {
	old, ok := r.byProxy[proxy]
	if !ok {
		return
	}
	delete(r.byProxy, proxy)
	for p := range old.cells {
		r.dropLocked(old, p)
	}
}

func (r *reports) dropLocked(of *report, p ident.Partition) {
	delete(of.cells, p)
	delete(r.byCell[p], of.proxy)
	if len(r.byCell[p]) == 0 {
		delete(r.byCell, p)
	}
	r.changed(p)
}

// update takes what one message says, and the message. A report that was replaced changes nothing.
func (r *reports) update(of *report, m *controlv1.ReportRequest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.byProxy[of.proxy] != of {
		return
	}
	now := time.Now()
	begins, back := of.heard.IsZero(), now.Sub(of.heard) > r.lease
	of.heard, of.last = now, m
	if back && !begins { // it counted as silent
		for p := range of.cells {
			r.changed(p)
		}
	}
	entry := journal.Entry{Proxy: of.proxy, At: now, Begins: begins}
	for _, cell := range m.GetCells() {
		p := ident.Partition(cell.GetPartition())
		before := of.cells[p]
		of.cells[p] = cell
		if r.byCell[p] == nil {
			r.byCell[p] = map[string]*report{}
		}
		r.byCell[p][of.proxy] = of
		if before == nil || !sameServed(before, cell) {
			serves(&entry, cell)
			r.changed(p)
		} else if !sameReport(before, cell) {
			r.changed(p)
		}
	}
	for _, n := range m.GetDropped() {
		if p := ident.Partition(n); of.cells[p] != nil {
			entry.Dropped = append(entry.Dropped, p)
			r.dropLocked(of, p)
		}
	}
	m.Cells, m.Dropped, m.Propagation = nil, nil, nil // kept elsewhere
	if begins || len(entry.Cells)+len(entry.Dropped) > 0 {
		r.noted(entry)
	}
}

// serves adds to an entry what is served of a partition. To serve nothing of it is to have dropped it.
func serves(e *journal.Entry, cell *controlv1.CellReport) {
	p := ident.Partition(cell.GetPartition())
	root, err := ident.HashFrom(cell.GetRoot())
	shared, sharedErr := ident.HashFrom(cell.GetSharedRoot())
	switch {
	case err == nil && sharedErr == nil && !root.IsZero():
		e.Cells = append(e.Cells, journal.Cell{Partition: p, Root: root, Shared: shared, Snapshot: cell.GetSnapshotVersion()})
	case !e.Begins:
		e.Dropped = append(e.Dropped, p)
	}
}

// sameServed reports whether a proxy serves the same by two reports of a cell.
func sameServed(a, b *controlv1.CellReport) bool {
	return bytes.Equal(a.GetRoot(), b.GetRoot()) && bytes.Equal(a.GetSharedRoot(), b.GetSharedRoot()) &&
		a.GetSnapshotVersion() == b.GetSnapshotVersion()
}

// sameReport reports whether two reports of a cell in which the same is served tell the same, but for counters.
func sameReport(a, b *controlv1.CellReport) bool {
	return slices.EqualFunc(a.GetUnready(), b.GetUnready(), equal) &&
		slices.EqualFunc(a.GetRejections(), b.GetRejections(), equal) && slices.Equal(a.GetDrifted(), b.GetDrifted())
}

// end notes that a stream has ended. What it said last stays known, but no longer counts as what is served.
func (r *reports) end(of *report) {
	r.mu.Lock()
	defer r.mu.Unlock()
	of.ended = true
	for p := range of.cells {
		r.changed(p)
	}
}

// prune forgets ended reports of proxies that are no members any more. It asks who is only when there is any to forget.
func (r *reports) prune(members func() []*recordv1.MemberLease) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var ended []*report
	for _, known := range r.byProxy {
		if known.ended {
			ended = append(ended, known)
		}
	}
	if len(ended) == 0 {
		return
	}
	alive := map[string]bool{}
	for _, m := range members() {
		alive[m.GetMember().GetId()] = true
	}
	for _, known := range ended {
		if !alive[known.proxy] {
			r.removeLocked(known.proxy)
			r.noted(journal.Entry{Proxy: known.proxy, At: time.Now(), Gone: true})
		}
	}
}

// add adds what was reported of a partition to what was pushed of it.
func (r *reports) add(p ident.Partition, cells map[string]*controlv1.CellState) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for proxy, known := range r.byCell[p] {
		c := cells[proxy]
		if c == nil {
			c = &controlv1.CellState{Proxy: proxy, Partition: uint32(p)}
			cells[proxy] = c
		}
		c.LastSeen = timestamppb.New(known.heard)
		c.Build = known.last.GetBuild()
		if known.ended {
			continue
		}
		cell := known.cells[p]
		c.ServingRoot, c.ServingSharedRoot = cell.GetRoot(), cell.GetSharedRoot()
		c.SnapshotVersion, c.Unready = cell.GetSnapshotVersion(), cell.GetUnready()
		c.Traffic, c.Drifted = cell.GetTraffic(), cell.GetDrifted()
		for _, rejection := range cell.GetRejections() {
			same := func(o *configv1.Rejection) bool { return o.GetResource() == rejection.GetResource() }
			if !slices.ContainsFunc(c.GetRejections(), same) {
				c.Rejections = append(c.Rejections, rejection)
			}
		}
	}
}

// of returns copies of the reports of some proxies, of those that report here.
func (r *reports) of(proxies []string) []report {
	r.mu.Lock()
	defer r.mu.Unlock()
	known := make([]report, 0, len(proxies))
	for _, proxy := range proxies {
		if one := r.byProxy[proxy]; one != nil {
			known = append(known, one.copy())
		}
	}
	return known
}

// all returns copies of all reports.
func (r *reports) all() []report {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]report, 0, len(r.byProxy))
	for _, one := range r.byProxy {
		all = append(all, one.copy())
	}
	return all
}

// copy is the report without its cells by partition, but with a list of them.
func (r *report) copy() report {
	c := *r
	c.cells = nil
	c.list = make([]*controlv1.CellReport, 0, len(r.cells))
	for _, cell := range r.cells {
		c.list = append(c.list, cell)
	}
	return c
}
