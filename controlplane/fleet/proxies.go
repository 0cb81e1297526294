package fleet

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"

	"github.com/prism-gateway/prism/shared/ident"
)

// ListReports tells another replica what proxies have told this one.
func (f *Fleet) ListReports(context.Context, *controlv1.ListReportsRequest) (*controlv1.ListReportsResponse, error) {
	return &controlv1.ListReportsResponse{Reports: f.heard()}, nil
}

// heard is what proxies that are alive have told this replica.
func (f *Fleet) heard() []*controlv1.ProxyReport {
	reports, tree := f.reports.known(), f.store.Head()
	var all []*controlv1.ProxyReport
	for _, lease := range f.store.Members() {
		id := lease.GetMember().GetId()
		rejected := map[string]bool{}
		for _, r := range f.tracker.Rejections(id) {
			rejected[r.GetResource()] = true
		}
		p := &controlv1.ProxyReport{Proxy: id}
		r, known := reports[id]
		if known {
			p.LastSeen, p.Reasons, p.Connected = timestamppb.New(r.heard), r.last.GetReasons(), !r.ended
		}
		if p.GetConnected() {
			p.Ready, p.CallsPerSecond = r.last.GetReady(), r.last.GetCallsPerSecond()
			for partition, cell := range r.cells {
				if root, err := ident.HashFrom(cell.GetRoot()); err == nil && tree != nil && root == tree.Collection(partition).Root() {
					p.Current++
				}
				for _, rejection := range cell.GetRejections() {
					rejected[rejection.GetResource()] = true
				}
			}
		}
		p.Rejected = slices.Sorted(maps.Keys(rejected))
		if known || len(rejected) > 0 {
			all = append(all, p)
		}
	}
	return all
}

// heardOf is what proxies have told any replica, by proxy, and the replicas that said so, by id.
func (f *Fleet) heardOf(ctx context.Context) (map[string]*controlv1.ProxyReport, map[string]bool) {
	ctx, cancel := context.WithTimeout(ctx, peerPatience)
	defer cancel()
	var asking sync.WaitGroup
	var mu sync.Mutex // guards merged and answered
	merged, answered := map[string]*controlv1.ProxyReport{}, map[string]bool{f.cfg.Replica.GetId(): true}
	for id, client := range f.peers.clients() {
		asking.Go(func() {
			out, err := client.ListReports(ctx, &controlv1.ListReportsRequest{})
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
	mergeReports(merged, f.heard())
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

// Proxies returns the fleet by id: all that are alive, and what any replica knows of each. Where the replica that a proxy
// reports to does not answer, its reasons say so.
func (f *Fleet) Proxies(ctx context.Context) []*adminv1.Proxy {
	reports, answered := f.heardOf(ctx)
	places := f.places()
	var proxies []*adminv1.Proxy
	for _, lease := range f.store.Members() {
		id := lease.GetMember().GetId()
		r := reports[id]
		p := &adminv1.Proxy{
			Member: lease.GetMember(), Build: lease.GetBuild(), Replica: lease.GetReplica(), LastSeen: lease.GetSince(),
			Owned: places[id].owned, Loading: places[id].loading,
			Ready: r.GetReady(), Reasons: r.GetReasons(), Current: r.GetCurrent(), Rejected: uint32(len(r.GetRejected())),
			CallsPerSecond: r.GetCallsPerSecond(),
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
	for _, p := range f.Proxies(ctx) {
		if p.GetMember().GetId() == id {
			return p, f.partitionsOf(ctx, id), true
		}
	}
	return nil, nil, false
}

func (f *Fleet) partitionsOf(ctx context.Context, id string) []*adminv1.ProxyPartition {
	tree, a := f.store.Head(), f.Assignment()
	if tree == nil {
		return nil
	}
	var list []*adminv1.ProxyPartition
	var held []ident.Partition
	add := func(p ident.Partition, rank int, loading bool) {
		held = append(held, p)
		list = append(list, &adminv1.ProxyPartition{
			Partition: uint32(p), Rank: uint32(rank), Loading: loading, WantRoot: tree.Collection(p).Root().String(),
		})
	}
	for i, entry := range a.GetPartitions() {
		for rank, m := range pick(a, entry.GetOwners()) {
			if m.GetId() == id {
				add(ident.Partition(i), rank, false)
			}
		}
		for _, m := range pick(a, entry.GetLoading()) {
			if m.GetId() == id {
				add(ident.Partition(i), 0, true)
			}
		}
	}
	seen := f.Observe(held...)
	defer seen.Close()
	seen.await(ctx)
	root := func(data []byte) string {
		h, err := ident.HashFrom(data)
		if err != nil {
			return ""
		}
		return h.String()
	}
	for i, p := range held {
		c := seen.Cells(p)[id]
		list[i].AcceptedRoot, list[i].ServingRoot, list[i].Rejections = root(c.GetAcceptedRoot()), root(c.GetServingRoot()), c.GetRejections()
	}
	return list
}

// place is how many partitions one proxy was given.
type place struct{ owned, loading uint32 }

// places is how many partitions each proxy was given.
func (f *Fleet) places() map[string]place {
	a := f.Assignment()
	places := map[string]place{}
	for _, entry := range a.GetPartitions() {
		for _, m := range pick(a, entry.GetOwners()) {
			p := places[m.GetId()]
			p.owned++
			places[m.GetId()] = p
		}
		for _, m := range pick(a, entry.GetLoading()) {
			p := places[m.GetId()]
			p.loading++
			places[m.GetId()] = p
		}
	}
	return places
}
