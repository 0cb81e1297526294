package release_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/ident"
)

var waves = release.Policies{Scoped: &configv1.ReleasePolicy{}}

func large(i int, content string) snapshot.Set {
	name := fmt.Sprintf("namespace-%06d", i)
	data := encoded(&configv1.NamespaceConfig{Namespace: name, StoragePrefix: content + strings.Repeat("x", 1330),
		Patterns: []*configv1.PatternConfig{{Name: "main", Bindings: []*configv1.Binding{{Slot: "storage-redis", Backend: fmt.Sprintf("redis-%d", i%20)}}}}})
	return snapshot.Set{Name: "ns/" + name, Data: data}
}

func with(b *testing.B, s *release.State, order release.Order, sets ...snapshot.Set) *release.State {
	b.Helper()
	d, _, err := s.Draft(time.Unix(0, 0)).With(order, waves, sets)
	if err != nil {
		b.Fatal(err)
	}
	done, err := d.Done()
	if err != nil {
		b.Fatal(err)
	}
	return done.State
}

// under is 20,000 namespaces in 1,024 partitions, of which so many are pending in one release.
func under(b *testing.B, pending int) *release.State {
	s := release.Settled(snapshot.New(1024))
	for first, content := 0, "1"; first < 20_000; first += 10_000 {
		var sets []snapshot.Set
		for i := first; i < first+10_000; i++ {
			sets = append(sets, large(i, content))
		}
		s = with(b, s, release.Order{AtOnce: true}, sets...)
	}
	if pending > 0 {
		var sets []snapshot.Set
		for i := range pending {
			sets = append(sets, large(i, "2"))
		}
		s = with(b, s, release.Order{}, sets...)
	}
	return s
}

// BenchmarkCommit is one change on a state in which so many others are pending; "tree" is what it costs without releases.
func BenchmarkCommit(b *testing.B) {
	settled := under(b, 0)
	two := []snapshot.Set{large(15_000, "3"), large(15_000, "4")}
	b.Run("tree", func(b *testing.B) {
		b.ReportAllocs()
		tree := settled.Head()
		for i := 0; b.Loop(); i++ {
			next, _, err := tree.With(tree.Version()+1, two[i%2:i%2+1])
			if err != nil {
				b.Fatal(err)
			}
			tree = next
		}
	})
	for _, pending := range []int{0, 1, 10_000} {
		for name, order := range map[string]release.Order{"at once": {AtOnce: true}, "in waves": {}} {
			b.Run(fmt.Sprintf("pending=%d/%s", pending, name), func(b *testing.B) {
				s := under(b, pending)
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					s = with(b, s, order, two[i%2])
				}
			})
		}
	}
}

// BenchmarkStep is one wave of a release that holds 10,000 objects.
func BenchmarkStep(b *testing.B) {
	s := under(b, 10_000)
	id := s.Active()[0].Snapshot
	for name, step := range map[string]release.Step{
		"wave": {Release: id, Do: release.Wave, Wave: 3}, "eject": {Release: id, Do: release.Eject, Objects: []release.Ejected{{Name: "ns/namespace-000007"}}},
		"take back": {Release: id, Do: release.TakeBack}, "push": {Release: id, Do: release.Push},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.Apply(step, time.Unix(0, 0)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkView is what all cells of 1,024 partitions at three ranks see, in each op, while 10,000 objects are pending in
// one release and some in ten others.
func BenchmarkView(b *testing.B) {
	s := under(b, 10_000)
	for i := range 10 {
		s = with(b, s, release.Order{}, large(i, "3"), large(10_000+i, "3"))
	}
	done, err := s.Apply(release.Step{Release: s.Active()[0].Snapshot, Do: release.Wave, Wave: 3}, time.Unix(0, 0))
	if err != nil {
		b.Fatal(err)
	}
	s = done.State
	b.ReportAllocs()
	for b.Loop() {
		for p := range ident.Partition(1024) {
			for rank := range release.Rank(3) {
				if v := s.View(p, rank); v.Partition == nil {
					b.Fatal("nothing is seen")
				}
			}
		}
	}
}
