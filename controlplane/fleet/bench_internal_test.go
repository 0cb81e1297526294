package fleet

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"

	"github.com/prism-gateway/prism/controlplane/push"
	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	"github.com/prism-gateway/prism/shared/ident"
	"github.com/prism-gateway/prism/shared/manifest"
)

// still is a store in which nothing happens.
type still struct {
	store
	state   *release.State
	members []*recordv1.MemberLease
	placed  *recordv1.Placement
}

func (s *still) Head() *snapshot.Tree             { return s.state.Head() }
func (s *still) Released() *release.State         { return s.state }
func (s *still) Ended() []*recordv1.Release       { return nil }
func (s *still) Watch() (<-chan struct{}, func()) { return nil, func() {} }
func (s *still) Members() []*recordv1.MemberLease { return s.members }
func (s *still) Replicas() []*recordv1.Replica    { return nil }
func (s *still) Placement() *recordv1.Placement   { return s.placed }
func (s *still) Manifest(context.Context, ident.Hash) (*manifest.Manifest, error) {
	return nil, errNotKept
}

// BenchmarkTenThousandProxies measures what one replica does that knows of 10,000 proxies with ten partitions each.
func BenchmarkTenThousandProxies(b *testing.B) {
	const proxies, partitions, namespaces = 10_000, 32_768, 10_000
	var sets []snapshot.Set
	for i := range namespaces {
		name := fmt.Sprintf("team-%d", i)
		data, err := proto.Marshal(&configv1.NamespaceConfig{Namespace: name})
		if err != nil {
			b.Fatal(err)
		}
		sets = append(sets, snapshot.Set{Name: snapshot.NamespacePrefix + name, Data: data})
	}
	tree, _, err := snapshot.New(partitions).With(1, sets)
	if err != nil {
		b.Fatal(err)
	}
	kept := &still{state: release.Settled(tree), placed: &recordv1.Placement{Epoch: 1, Owners: 3}}
	for i := range proxies {
		m := &configv1.Member{Id: fmt.Sprintf("proxy-%05d", i), Address: "127.0.0.1:1"}
		kept.members = append(kept.members, &recordv1.MemberLease{Member: m, Replica: "replica-1"})
		kept.placed.Members = append(kept.placed.Members, m)
	}
	f, err := New(Config{
		Store: kept, Tracker: push.NewTracker(), Replica: &recordv1.Replica{Id: "replica-1"}, Lease: time.Hour,
		Registerer: prometheus.NewRegistry(), Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		b.Fatal(err)
	}
	f.follow()
	of := map[string][]*controlv1.CellReport{}
	for p, entry := range f.Assignment().GetPartitions() {
		for _, m := range pick(f.Assignment(), entry.GetOwners()) {
			of[m.GetId()] = append(of[m.GetId()], &controlv1.CellReport{
				Partition: uint32(p), Root: tree.Collection(ident.Partition(p)).Root().Bytes(), SnapshotVersion: 1,
				Traffic: &controlv1.Traffic{Calls: 1, Took: durationpb.New(time.Millisecond)},
			})
		}
	}
	open := map[string]*report{}
	say := func(lease *recordv1.MemberLease) {
		id := lease.GetMember().GetId()
		if open[id] == nil {
			open[id] = f.reports.begin(id)
		}
		f.reports.update(open[id], &controlv1.ReportRequest{Member: lease.GetMember(), Ready: true, Cells: of[id]})
	}
	for _, lease := range kept.members {
		say(lease)
	}
	b.Run("status", func(b *testing.B) {
		b.ReportAllocs()
		for i := range b.N {
			name := fmt.Sprintf("team-%d", i%namespaces)
			if s, err := f.Status(b.Context(), name); err != nil || len(s.GetOwners()) != 3 || !s.GetLive() {
				b.Fatalf("%v, %v", s, err)
			}
		}
	})
	b.Run("heartbeat", func(b *testing.B) {
		b.ReportAllocs()
		for i := range b.N {
			say(kept.members[i%proxies])
		}
	})
	b.Run("list", func(b *testing.B) {
		b.ReportAllocs()
		for range b.N {
			if all, _ := f.Proxies(b.Context(), "", proxies); len(all) != proxies {
				b.Fatal(len(all))
			}
		}
	})
	b.Run("show", func(b *testing.B) {
		b.ReportAllocs()
		for i := range b.N {
			if _, _, ok := f.Proxy(b.Context(), kept.members[i%proxies].GetMember().GetId()); !ok {
				b.Fatal("it is not there")
			}
		}
	})
	b.Run("scrape", func(b *testing.B) {
		b.ReportAllocs()
		for range b.N {
			if _, err := f.cfg.Registerer.(*prometheus.Registry).Gather(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("observation of everything", func(b *testing.B) {
		b.ReportAllocs()
		all := make([]ident.Partition, partitions)
		for i := range all {
			all[i] = ident.Partition(i)
		}
		o := f.Observe(all...)
		defer o.Close()
		for b.Loop() {
			for _, p := range all {
				if len(o.Cells(p)) != 3 {
					b.Fatal("cells are missing")
				}
			}
		}
	})
}
