package fleet

import (
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"

	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
)

// Report keeps a proxy in the fleet for as long as it reports, and for its lease after.
func (f *Fleet) Report(stream controlv1.FleetService_ReportServer) error {
	if f.store.Head() == nil {
		return fault.New(fault.Unavailable, fault.NotLoaded, "this replica has not loaded the configuration yet").WithRetry(time.Second)
	}
	messages := make(chan *controlv1.ReportRequest)
	ended := make(chan error, 1)
	go func() {
		for {
			m, err := stream.Recv()
			if err != nil {
				ended <- err
				return
			}
			select {
			case messages <- m:
			case <-stream.Context().Done():
				ended <- stream.Context().Err()
				return
			}
		}
	}()
	r := &registration{fleet: f}
	defer func() {
		if r.report != nil {
			f.reports.end(r.report)
		}
	}()
	for {
		select {
		case <-f.closing.Done():
			return fault.New(fault.Unavailable, fault.Draining, "this replica is stopping").WithRetry(100 * time.Millisecond)
		case err := <-ended:
			if errors.Is(err, io.EOF) {
				return r.leave(stream.Context())
			}
			return err
		case m := <-messages:
			answer, err := r.take(stream.Context(), m)
			if err != nil {
				return err
			}
			if answer != nil {
				if err := stream.Send(answer); err != nil {
					return err
				}
			}
		}
	}
}

// registration is one report stream. It belongs to its handler's goroutine.
type registration struct {
	fleet  *Fleet
	report *report
	member *configv1.Member // as it is in the store
	since  *timestamppb.Timestamp
	kept   time.Time

	keep, release func(context.Context) error
}

// take notes one message and keeps the proxy's lease. It returns the first answer of a stream.
func (r *registration) take(ctx context.Context, m *controlv1.ReportRequest) (*controlv1.ReportResponse, error) {
	id := m.GetMember().GetId()
	if id == "" || r.report != nil && r.report.proxy != id {
		return nil, fault.New(fault.Invalid, fault.Field, "member.id: every message of a stream must name the same proxy")
	}
	for _, cell := range m.GetCells() {
		if err := r.fleet.checkPartition(cell.GetPartition()); err != nil {
			return nil, fault.Newf(fault.Invalid, fault.Field, "cells: %v", err)
		}
	}
	var answer *controlv1.ReportResponse
	if r.report == nil {
		r.report = r.fleet.reports.begin(id)
		r.since = timestamppb.Now()
		answer = &controlv1.ReportResponse{
			Heartbeat: durationpb.New(r.fleet.cfg.Lease / 4), Lease: durationpb.New(r.fleet.cfg.Lease),
		}
	}
	r.fleet.reports.update(r.report, m)
	if err := r.lease(ctx, m); err != nil {
		// The proxy serves all the same, and reports again soon.
		r.fleet.log.Warn("a proxy's lease was not prolonged", "proxy", id, "error", err)
	}
	return answer, nil
}

// lease puts the proxy into the store or prolongs its stay.
func (r *registration) lease(ctx context.Context, m *controlv1.ReportRequest) error {
	if r.keep != nil && proto.Equal(r.member, m.GetMember()) {
		if time.Since(r.kept) < r.fleet.cfg.Lease/8 {
			return nil
		}
		err := r.keep(ctx)
		if err == nil {
			r.kept = time.Now()
			return nil
		}
	}
	keep, release, err := r.fleet.store.PutMember(ctx, &recordv1.MemberLease{
		Member: m.GetMember(), Build: m.GetBuild(), Replica: r.fleet.cfg.Replica.GetId(), Since: r.since,
	}, r.fleet.cfg.Lease)
	if err != nil {
		return err
	}
	r.keep, r.release, r.member, r.kept = keep, release, m.GetMember(), time.Now()
	return nil
}

// leave takes a proxy out at once that has drained and ended its stream in good order. Any other may come back.
func (r *registration) leave(ctx context.Context) error {
	if r.release == nil || !r.member.GetDraining() {
		return nil
	}
	return r.release(ctx)
}

// report is what a proxy has said of itself.
type report struct {
	proxy string

	// Guarded by reports.mu.
	last  *controlv1.ReportRequest // without cells
	heard time.Time
	ended bool
	cells map[ident.Partition]*controlv1.CellReport
}

// reports are those of all proxies that report to this replica.
type reports struct {
	changed func(ident.Partition) // is called after what is reported of a partition has changed, with mu held
	lease   time.Duration         // after what silence a proxy counts as gone

	mu      sync.Mutex // guards all below
	byProxy map[string]*report
	byCell  map[ident.Partition]map[string]*report
}

func newReports(changed func(ident.Partition), lease time.Duration) reports {
	return reports{
		changed: changed, lease: lease,
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

// update takes what one message says. A report that was replaced changes nothing.
func (r *reports) update(of *report, m *controlv1.ReportRequest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.byProxy[of.proxy] != of {
		return
	}
	of.heard = time.Now()
	of.last = proto.CloneOf(m)
	of.last.Cells, of.last.Dropped = nil, nil
	for _, cell := range m.GetCells() {
		p := ident.Partition(cell.GetPartition())
		of.cells[p] = cell
		r.putLocked(of, p)
	}
	for _, dropped := range m.GetDropped() {
		if p := ident.Partition(dropped); of.cells[p] != nil {
			r.dropLocked(of, p)
		}
	}
}

func (r *reports) putLocked(of *report, p ident.Partition) {
	if r.byCell[p] == nil {
		r.byCell[p] = map[string]*report{}
	}
	r.byCell[p][of.proxy] = of
	r.changed(p)
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

// prune forgets ended reports of proxies that are no members any more.
func (r *reports) prune(members []*recordv1.MemberLease) {
	r.mu.Lock()
	defer r.mu.Unlock()
	alive := make(map[string]bool, len(members))
	for _, m := range members {
		alive[m.GetMember().GetId()] = true
	}
	for proxy, known := range r.byProxy {
		if known.ended && !alive[proxy] {
			r.removeLocked(proxy)
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
		for _, rejection := range cell.GetRejections() {
			same := func(o *configv1.Rejection) bool { return o.GetResource() == rejection.GetResource() }
			if !slices.ContainsFunc(c.GetRejections(), same) {
				c.Rejections = append(c.Rejections, rejection)
			}
		}
	}
}

// known returns the reports, by proxy.
func (r *reports) known() map[string]report {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make(map[string]report, len(r.byProxy))
	for proxy, known := range r.byProxy {
		c := *known
		c.cells = maps.Clone(known.cells)
		all[proxy] = c
	}
	return all
}
