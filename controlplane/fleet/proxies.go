package fleet

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"

	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/shared/ident"
)

// ListReports tells another replica what proxies have told this one.
func (f *Fleet) ListReports(_ context.Context, in *controlv1.ListReportsRequest) (*controlv1.ListReportsResponse, error) {
	return &controlv1.ListReportsResponse{Reports: f.heard(in.GetProxies())}, nil
}

// heard is what some proxies have told this replica.
func (f *Fleet) heard(proxies []string) []*controlv1.ProxyReport {
	known := make(map[string]*report, len(proxies))
	for _, r := range f.reports.of(proxies) {
		known[r.proxy] = &r
	}
	var all []*controlv1.ProxyReport
	for _, id := range proxies {
		rejected := map[string]bool{}
		for _, r := range f.tracker.Rejections(id) {
			rejected[r.GetResource()] = true
		}
		p := &controlv1.ProxyReport{Proxy: id}
		r := known[id]
		if r != nil {
			p.LastSeen, p.Reasons, p.Connected = timestamppb.New(r.heard), r.last.GetReasons(), !r.ended
		}
		if p.GetConnected() {
			p.Ready, p.CallsPerSecond, p.Load, p.Stale = r.last.GetReady(), r.last.GetCallsPerSecond(), r.last.GetLoad(), r.last.GetStale()
			s := f.standing(r)
			p.Current, p.Drifted = s.current, s.drifted
			for _, cell := range r.list {
				for _, rejection := range cell.GetRejections() {
					rejected[rejection.GetResource()] = true
				}
			}
		}
		p.Rejected = slices.Sorted(maps.Keys(rejected))
		if r != nil || len(rejected) > 0 {
			all = append(all, p)
		}
	}
	return all
}

// standing is how what a proxy serves stands to what it ought to.
type standing struct {
	current uint32   // partitions in which it serves what the releases let it have
	behind  int      // partitions that it owns, or validates, in which it serves something else
	drifted []string // resources, by name; a partition that serves another state than was accepted is one
}

func (f *Fleet) standing(r *report) standing {
	var s standing
	state, a := f.store.Released(), f.assigned.Load()
	if state == nil {
		return s
	}
	ranks := a.ranks(r.last.GetMember())
	for _, cell := range r.list {
		p := ident.Partition(cell.GetPartition())
		rank := ranks(p)
		if root, err := ident.HashFrom(cell.GetRoot()); err == nil && root == state.View(p, rank).Partition.Root() {
			s.current++
		} else if rank != release.Other {
			s.behind++
		}
		s.drifted = append(s.drifted, cell.GetDrifted()...)
		if len(cell.GetDrifted()) == 0 && f.drift.has(p, r.proxy) {
			s.drifted = append(s.drifted, p.String())
		}
	}
	slices.Sort(s.drifted)
	s.drifted = slices.Compact(s.drifted)
	return s
}

// heardOf is what some proxies have told any replica, by proxy, and the replicas that said so, by id.
func (f *Fleet) heardOf(ctx context.Context, proxies []string) (map[string]*controlv1.ProxyReport, map[string]bool) {
	ctx, cancel := context.WithTimeout(ctx, peerPatience)
	defer cancel()
	var asking sync.WaitGroup
	var mu sync.Mutex // guards merged and answered
	merged, answered := map[string]*controlv1.ProxyReport{}, map[string]bool{f.cfg.Replica.GetId(): true}
	for id, client := range f.peers.clients() {
		asking.Go(func() {
			out, err := client.ListReports(ctx, &controlv1.ListReportsRequest{Proxies: proxies})
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				f.log.Warn("another replica does not tell what it knows", "replica", id, "error", err)
				return
			}
			answered[id] = true
			mergeReports(merged, out.GetReports())
		})
	}
	asking.Wait()
	mergeReports(merged, f.heard(proxies))
	return merged, answered
}

// mergeReports joins what replicas know of the same proxies: the one that heard of it last tells, but all tell what it
// refuses.
func mergeReports(merged map[string]*controlv1.ProxyReport, reports []*controlv1.ProxyReport) {
	for _, r := range reports {
		before := merged[r.GetProxy()]
		rejected := slices.Concat(before.GetRejected(), r.GetRejected())
		slices.Sort(rejected)
		if before.GetLastSeen().AsTime().After(r.GetLastSeen().AsTime()) {
			r = before
		}
		r.Rejected = slices.Compact(rejected)
		merged[r.GetProxy()] = r
	}
}

// Proxies returns the proxies that are alive by id, at most limit of those after one, and how many there are in all: with
// what any replica knows of each. Where the replica that a proxy reports to does not answer, its reasons say so.
func (f *Fleet) Proxies(ctx context.Context, after string, limit int) ([]*adminv1.Proxy, int) {
	members := f.store.Members()
	from, there := slices.BinarySearchFunc(members, after, func(m *recordv1.MemberLease, id string) int {
		return strings.Compare(m.GetMember().GetId(), id)
	})
	if there {
		from++
	}
	return f.proxies(ctx, members[from:min(len(members), from+limit)]), len(members)
}

func (f *Fleet) proxies(ctx context.Context, leases []*recordv1.MemberLease) []*adminv1.Proxy {
	ids := make([]string, len(leases))
	for i, lease := range leases {
		ids[i] = lease.GetMember().GetId()
	}
	reports, answered := f.heardOf(ctx, ids)
	var places map[string]place
	if a := f.assigned.Load(); a != nil {
		places = a.places
	}
	var proxies []*adminv1.Proxy
	for _, lease := range leases {
		id := lease.GetMember().GetId()
		r := reports[id]
		p := &adminv1.Proxy{
			Member: lease.GetMember(), Build: lease.GetBuild(), Replica: lease.GetReplica(), LastSeen: lease.GetSince(),
			Owned: places[id].owned, Loading: places[id].loading,
			Ready: r.GetReady(), Reasons: r.GetReasons(), Current: r.GetCurrent(), Rejected: uint32(len(r.GetRejected())),
			CallsPerSecond: r.GetCallsPerSecond(), Load: r.GetLoad(), Stale: r.GetStale(), Drifted: r.GetDrifted(),
		}
		if r.GetLastSeen() != nil {
			p.LastSeen = r.GetLastSeen()
		}
		switch {
		case r.GetConnected():
		case answered[lease.GetReplica()]:
			p.Reasons = append(p.Reasons, "its reports have ended")
		default:
			p.Reasons = append(p.Reasons, fmt.Sprintf("reports to %s, which does not answer", lease.GetReplica()))
		}
		proxies = append(proxies, p)
	}
	return proxies
}

// Proxy returns one proxy with its partitions by number, and whether there is such a proxy.
func (f *Fleet) Proxy(ctx context.Context, id string) (*adminv1.Proxy, []*adminv1.ProxyPartition, bool) {
	for _, lease := range f.store.Members() {
		if lease.GetMember().GetId() == id {
			return f.proxies(ctx, []*recordv1.MemberLease{lease})[0], f.partitionsOf(ctx, lease.GetMember()), true
		}
	}
	return nil, nil, false
}

// partitionsOf returns the partitions that a proxy owns or loads; of a validator all.
func (f *Fleet) partitionsOf(ctx context.Context, m *configv1.Member) []*adminv1.ProxyPartition {
	state, a := f.store.Released(), f.assigned.Load()
	if state == nil || a == nil {
		return nil
	}
	var list []*adminv1.ProxyPartition
	var held []ident.Partition
	index, placed := a.index[m.GetId()]
	ranks := a.ranks(m)
	for i, entry := range a.assignment.GetPartitions() {
		p := ident.Partition(i)
		rank := ranks(p)
		loading := placed && slices.Contains(entry.GetLoading(), index)
		if rank == release.Other && !loading {
			continue
		}
		v := state.View(p, rank)
		part := &adminv1.ProxyPartition{
			Partition: uint32(p), Loading: loading, WantRoot: v.Partition.Root().String(), WantSnapshot: v.Snapshot,
		}
		if rank != release.Other {
			part.Rank = uint32(max(0, rank))
		}
		held, list = append(held, p), append(list, part)
	}
	seen := f.Observe(held...)
	defer seen.Close()
	seen.await(ctx)
	for i, p := range held {
		c := seen.Cells(p)[m.GetId()]
		list[i].AcceptedRoot, list[i].ServingRoot = text(c.GetAcceptedRoot()), text(c.GetServingRoot())
		list[i].Rejections, list[i].Drifted = c.GetRejections(), c.GetDrifted()
	}
	return list
}

// place is how many partitions one proxy was given.
type place struct{ owned, loading uint32 }

// count counts how many partitions each proxy was given.
func count(a *configv1.Assignment) map[string]place {
	places := make(map[string]place, len(a.GetMembers()))
	members := a.GetMembers()
	for _, entry := range a.GetPartitions() {
		for _, i := range entry.GetOwners() {
			p := places[members[i].GetId()]
			p.owned++
			places[members[i].GetId()] = p
		}
		for _, i := range entry.GetLoading() {
			p := places[members[i].GetId()]
			p.loading++
			places[members[i].GetId()] = p
		}
	}
	return places
}
