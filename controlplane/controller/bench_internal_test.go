package controller

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/ident"
)

// still is a store and a fleet in which nothing happens, and where every cell serves what it is to have.
type still struct {
	store
	fleet
	state      *release.State
	assignment *configv1.Assignment
	members    []*recordv1.MemberLease
	cells      []map[string]*controlv1.CellState
}

func (s *still) Released() *release.State                                { return s.state }
func (s *still) Members() []*recordv1.MemberLease                        { return s.members }
func (s *still) Assignment() *configv1.Assignment                        { return s.assignment }
func (s *still) Cells(p ident.Partition) map[string]*controlv1.CellState { return s.cells[p] }
func (s *still) Changed() <-chan struct{}                                { return nil }
func (s *still) Moved() []ident.Partition                                { return nil }
func (s *still) Complete() bool                                          { return true }
func (s *still) Close()                                                  {}

// waiting is a release of 1,000 namespaces whose fourth wave is held, on a fleet of 30 proxies with three owners of each
// partition.
func waiting(b *testing.B, partitions uint32) (*still, *recordv1.Release) {
	b.Helper()
	const proxies = 30
	policies := release.Policies{Scoped: &configv1.ReleasePolicy{Soak: durationpb.New(time.Hour)}}
	state := release.Settled(snapshot.New(partitions))
	for _, content := range []string{"old", "new"} {
		var sets []snapshot.Set
		for i := range 1000 {
			name := fmt.Sprintf("namespace-%d", i)
			data, err := proto.Marshal(&configv1.NamespaceConfig{Namespace: name, StoragePrefix: content})
			if err != nil {
				b.Fatal(err)
			}
			sets = append(sets, snapshot.Set{Name: snapshot.NamespacePrefix + name, Data: data})
		}
		draft, _, err := state.Draft(time.Now()).With(release.Order{}, policies, sets)
		if err != nil {
			b.Fatal(err)
		}
		done, err := draft.Done()
		if err != nil {
			b.Fatal(err)
		}
		state = done.State
	}
	done, err := state.Apply(release.Step{Release: state.Head().Version(), Do: release.Wave, Wave: release.WaveRank1}, time.Now())
	if err != nil {
		b.Fatal(err)
	}
	s := &still{state: done.State, assignment: &configv1.Assignment{}}
	for i := range proxies {
		m := &configv1.Member{Id: fmt.Sprintf("proxy-%d", i)}
		s.assignment.Members = append(s.assignment.Members, m)
		s.members = append(s.members, &recordv1.MemberLease{Member: m})
	}
	for p := range ident.Partition(partitions) {
		owners, cells := &configv1.PartitionOwners{}, map[string]*controlv1.CellState{}
		for rank := range release.Rank(3) {
			owner := (uint32(p) + uint32(rank)) % proxies
			owners.Owners = append(owners.Owners, owner)
			v, proxy := s.state.View(p, rank), s.assignment.GetMembers()[owner].GetId()
			root, shared := v.Partition.Root().Bytes(), v.Shared.Root().Bytes()
			cells[proxy] = &controlv1.CellState{
				Proxy: proxy, Partition: uint32(p), Build: "v3", LastSeen: timestamppb.Now(), SnapshotVersion: v.Snapshot,
				SentRoot: root, AcceptedRoot: root, AcceptedSharedRoot: shared, ServingRoot: root, ServingSharedRoot: shared,
				Traffic: &controlv1.Traffic{Calls: 1000, Since: timestamppb.Now()},
			}
		}
		s.assignment.Partitions, s.cells = append(s.assignment.Partitions, owners), append(s.cells, cells)
	}
	r, ok := s.state.Release(s.state.Head().Version())
	if !ok {
		b.Fatal("no release is under way")
	}
	return s, r
}

// BenchmarkLook is what the leader does each time that something was heard of a release of 1,000 namespaces.
func BenchmarkLook(b *testing.B) {
	for _, partitions := range []uint32{32, 1024} {
		b.Run(fmt.Sprintf("partitions=%d", partitions), func(b *testing.B) {
			s, r := waiting(b, partitions)
			f := &follower{
				Controller: &Controller{cfg: Config{
					Store: s, Fleet: s, Lease: time.Hour, Observe: func(...ident.Partition) Observation { return s },
				}, log: slog.New(slog.NewTextHandler(io.Discard, nil))},
				snapshot: r.GetSnapshot(),
			}
			b.ReportAllocs()
			now := time.Now()
			for b.Loop() {
				if wait := f.bring(context.Background(), s.state, r, now); wait < 0 {
					b.Fatal("it does not wait")
				}
			}
			if f.hold == nil || f.hold.held.IsZero() {
				b.Fatal("not all cells serve it")
			}
		})
	}
}
