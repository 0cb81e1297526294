package push

import (
	"fmt"
	"slices"
	"testing"
	"time"

	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"

	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	"github.com/prism-gateway/prism/shared/ident"
	"github.com/prism-gateway/prism/shared/manifest"
)

// BenchmarkHold measures what each lock is held for at the most, with 1,000 proxies of which one subscribes to all 1,024
// partitions. None of it depends on how many namespaces there are.
func BenchmarkHold(b *testing.B) {
	const proxies, partitions = 1000, 1024
	tree := snapshot.New(partitions)
	m, err := newMetrics(nil)
	if err != nil {
		b.Fatal(err)
	}
	s := &Server{sessions: map[*session]struct{}{}, metrics: m, history: newHistory(), diffs: newMemo()}
	s.shown.Store(&state{released: release.Settled(tree), news: newNews(&recordv1.Snapshot{}, partitions)})
	tracker := NewTracker()
	tracker.Listen(func(ident.Partition) {})
	var marks []*mark
	for c := range cell(partitions) {
		marks = append(marks, &mark{cell: c, manifest: manifest.Empty})
	}
	join := func(id string, held []*mark) *session {
		one := &session{server: s, node: id, tracked: tracker.open(id, "")}
		one.namespaces = newFeed(one, NamespaceType)
		for _, m := range held {
			one.namespaces.have = append(one.namespaces.have, holding{cell: m.cell, at: m})
			s.subscribe(one, m.cell)
		}
		s.join(one)
		tracker.sent(one.tracked, held)
		return one
	}
	for i := range proxies - 1 {
		join(fmt.Sprintf("proxy-%04d", i), marks[i:min(i+3, partitions)])
	}
	all := join("validator", marks)

	for _, section := range []struct {
		name    string
		prepare func(turn int)
		hold    func(turn int)
	}{
		{"server, who is there", nil, func(int) { s.everybody() }},
		{"server, a validator leaves", func(int) {
			s.leave(all)
			s.join(all)
			for _, m := range marks {
				s.subscribe(all, m.cell)
			}
		}, func(int) { s.leave(all) }},
		{"tracker, a page is sent to a validator", nil, func(int) { tracker.sent(all.tracked, marks[:400]) }},
		{"tracker, it is acknowledged", nil, func(int) { tracker.answered(all.tracked, marks[:400], nil, "") }},
		{"tracker, a validator leaves", func(int) {
			all.tracked = tracker.open("validator", "")
			tracker.sent(all.tracked, marks)
		}, func(int) { tracker.closed(all.tracked) }},
		{"tracker, a partition is asked for", nil, func(int) { tracker.Cells(500) }},
		{"state, a sentinel is made", nil, func(turn int) {
			if _, err := s.shown.Load().ending(0, target{collection: tree.Collection(0), snapshot: uint64(turn)}, false); err != nil {
				b.Fatal(err)
			}
		}},
		{"history, a state is kept", func(turn int) { marks[0] = &mark{manifest: one(b, turn)} }, func(int) { s.history.keep(marks[0]) }},
		{"memo, room is made for everything", func(int) {
			for turn := range memoSteps {
				key := step{cell: cell(turn)}
				s.diffs.known[key] = &computing{diff: &difference{}}
				s.diffs.order = append(s.diffs.order, key)
			}
		}, func(turn int) {
			key := step{cell: -3}
			big := &computing{diff: unchanged, size: memoResources + 1}
			s.diffs.known[key], s.diffs.order, s.diffs.resources = big, append(s.diffs.order, key), big.size
			s.diffs.computed(key, &computing{})
		}},
	} {
		b.Run(section.name, func(b *testing.B) {
			var held []time.Duration
			for turn := 0; b.Loop(); turn++ {
				if section.prepare != nil {
					section.prepare(turn)
				}
				began := time.Now()
				section.hold(turn)
				held = append(held, time.Since(began))
			}
			slices.Sort(held)
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(held[len(held)/2].Nanoseconds())/1000, "p50-µs")
			b.ReportMetric(float64(held[len(held)*99/100].Nanoseconds())/1000, "p99-µs")
		})
	}
}

// one is a manifest of which there is no other.
func one(b *testing.B, i int) *manifest.Manifest {
	m, err := manifest.New([]manifest.Entry{{Name: "ns/one", Hash: ident.HashOf(fmt.Append(nil, i))}})
	if err != nil {
		b.Fatal(err)
	}
	return m
}
