package fleet

import (
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"

	"github.com/prism-gateway/prism/shared/ident"
)

// Proxies returns the fleet by id: all that are alive, and what is known of each. How ready a proxy is and how far it is
// with its partitions is known by the replica that it reports to.
func (f *Fleet) Proxies() []*adminv1.Proxy {
	reports := f.reports.known()
	places := f.places()
	tree := f.store.Head()
	var proxies []*adminv1.Proxy
	for _, lease := range f.store.Members() {
		id := lease.GetMember().GetId()
		p := &adminv1.Proxy{
			Member: lease.GetMember(), Build: lease.GetBuild(), Replica: lease.GetReplica(), LastSeen: lease.GetSince(),
			Owned: places[id].owned, Loading: places[id].loading,
		}
		refused := map[string]bool{}
		for _, r := range f.tracker.Rejections(id) {
			refused[r.GetResource()] = true
		}
		if r, ok := reports[id]; ok {
			p.Ready, p.Reasons, p.CallsPerSecond = r.last.GetReady() && !r.ended, r.last.GetReasons(), r.last.GetCallsPerSecond()
			p.LastSeen = timestamppb.New(r.heard)
			for partition, cell := range r.cells {
				if root, err := ident.HashFrom(cell.GetRoot()); err == nil && tree != nil && root == tree.Collection(partition).Root() {
					p.Current++
				}
				for _, rejection := range cell.GetRejections() {
					refused[rejection.GetResource()] = true
				}
			}
		}
		p.Rejected = uint32(len(refused))
		proxies = append(proxies, p)
	}
	return proxies
}

// Proxy returns one proxy with its partitions by number, and whether there is such a proxy.
func (f *Fleet) Proxy(id string) (*adminv1.Proxy, []*adminv1.ProxyPartition, bool) {
	for _, p := range f.Proxies() {
		if p.GetMember().GetId() == id {
			return p, f.partitionsOf(id), true
		}
	}
	return nil, nil, false
}

func (f *Fleet) partitionsOf(id string) []*adminv1.ProxyPartition {
	tree, a := f.store.Head(), f.Assignment()
	var list []*adminv1.ProxyPartition
	if tree == nil {
		return nil
	}
	add := func(p ident.Partition, rank int, loading bool) {
		c := f.local(p)[id]
		root := func(data []byte) string {
			h, err := ident.HashFrom(data)
			if err != nil {
				return ""
			}
			return h.String()
		}
		list = append(list, &adminv1.ProxyPartition{
			Partition: uint32(p), Rank: uint32(rank), Loading: loading, WantRoot: tree.Collection(p).Root().String(),
			AcceptedRoot: root(c.GetAcceptedRoot()), ServingRoot: root(c.GetServingRoot()), Rejections: c.GetRejections(),
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
