package assembly_test

import (
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/prism-gateway/prism/dataplane/assembly/statetest"
	"github.com/prism-gateway/prism/dataplane/routing"
	"github.com/prism-gateway/prism/dataplane/subscribe"
	"github.com/prism-gateway/prism/shared/ident"
)

// TestWhatTheTableHasLostIsFoundAndMadeAnew edits the table in memory, as damage would.
func TestWhatTheTableHasLostIsFoundAndMadeAnew(t *testing.T) {
	for _, c := range []struct {
		name   string
		damage func(*routing.Partition)
		want   []string
	}{
		{"nothing is lost", func(*routing.Partition) {}, nil},
		{"a route is missing", func(p *routing.Partition) { delete(p.Routes, "orders") }, []string{"ns/orders"}},
		{"a route that nobody has asked for", func(p *routing.Partition) { p.Routes["stray"] = &routing.Route{Namespace: "stray"} }, []string{"ns/stray"}},
		{"another namespace's route", func(p *routing.Partition) { p.Routes["orders"] = p.Routes["profiles"] }, []string{"ns/orders"}},
		{"a route of other bytes", func(p *routing.Partition) { p.Routes["orders"].Config.Hash[3] ^= 1 }, []string{"ns/orders"}},
		{"a bound that has changed", func(p *routing.Partition) { p.Routes["orders"].Concurrency++ }, []string{"ns/orders"}},
		{"a deadline that has changed", func(p *routing.Partition) { p.Routes["orders"].MaxDeadline += time.Second }, []string{"ns/orders"}},
		{"a namespace that drains by itself", func(p *routing.Partition) { p.Routes["orders"].Draining = true }, []string{"ns/orders"}},
		{"the pattern of another namespace", func(p *routing.Partition) { p.Routes["orders"].KeyValue = p.Routes["profiles"].KeyValue }, []string{"ns/orders"}},
		{"the partition of another root", func(p *routing.Partition) { p.Root[0] ^= 1 }, []string{"p/0000"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, s := start(t), statetest.New(t, 1, self)
			s.Backend(main)
			s.Namespace(keyvalue("orders"))
			s.Namespace(keyvalue("profiles"))
			state := s.State()
			if refused := b.Apply(t.Context(), state); refused != nil {
				t.Fatal(refused)
			}
			c.damage(b.routes.Current().Partition(0))
			if got := b.Check(0, state.Partitions[0]); !slices.Equal(got, c.want) {
				t.Fatalf("found %q, want %q", got, c.want)
			}
			state.Changed = []ident.Partition{0}
			if refused := b.Apply(t.Context(), state); refused != nil {
				t.Fatal(refused)
			}
			if got := b.Check(0, state.Partitions[0]); got != nil {
				t.Errorf("after it was made anew: %q", got)
			}
		})
	}
}

func TestAPartitionThatTheTableHasNotIsFound(t *testing.T) {
	b, s := start(t), statetest.New(t, 2, self)
	s.Backend(main)
	state := s.State()
	if got := b.Check(1, state.Partitions[1]); got != nil {
		t.Errorf("before there is an assignment: %q", got)
	}
	one := state
	one.Changed, one.Partitions = []ident.Partition{0}, map[ident.Partition]*subscribe.Partition{0: state.Partitions[0]}
	if refused := b.Apply(t.Context(), one); refused != nil {
		t.Fatal(refused)
	}
	if got := b.Check(1, state.Partitions[1]); !slices.Equal(got, []string{"p/0001"}) {
		t.Errorf("found %q", got)
	}
}

// BenchmarkLookOver looks at all of 10,000 namespaces once, bytes and routes: what a proxy does in ten seconds.
func BenchmarkLookOver(b *testing.B) {
	a, s := start(b), statetest.New(b, 1024, self)
	s.Backend(main)
	for i := range 10_000 {
		s.Namespace(keyvalue(fmt.Sprintf("namespace-%05d", i)))
	}
	state := s.State()
	if refused := a.Apply(b.Context(), state); refused != nil {
		b.Fatal(refused)
	}
	b.ReportAllocs()
	for b.Loop() {
		for n, p := range state.Partitions {
			for name, o := range p.Members {
				if ident.HashOf(o.Data) != o.Hash {
					b.Fatal(name)
				}
			}
			if drifted := a.Check(n, p); drifted != nil {
				b.Fatal(drifted)
			}
		}
	}
}

// heap is what is in use after a collection, in bytes.
func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkMemory measures what a namespace takes that nobody calls: its bytes, its place in the state and its route.
func BenchmarkMemory(b *testing.B) {
	for _, count := range []int{10_000, 100_000} {
		b.Run(fmt.Sprint(count), func(b *testing.B) {
			for b.Loop() {
				before := heap()
				a, s := start(b), statetest.New(b, 1024, self)
				s.Backend(main)
				for i := range count {
					s.Namespace(keyvalue(fmt.Sprintf("namespace-%06d", i)))
				}
				state := s.State()
				s = nil
				held := heap()
				if refused := a.Apply(b.Context(), state); refused != nil {
					b.Fatal(refused)
				}
				after := heap()
				b.ReportMetric(float64(after-before)/float64(count), "B/namespace")
				b.ReportMetric(float64(after-held)/float64(count), "B/route")
				if a.routes.Current().Partition(0) == nil || state.Partitions[0] == nil {
					b.Fatal("nothing is held")
				}
			}
		})
	}
}
