package routing_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/prism-gateway/prism/dataplane/limit"
	"github.com/prism-gateway/prism/dataplane/routing"
	"github.com/prism-gateway/prism/shared/ident"
)

// use counts how often it was let go.
type use struct{ released atomic.Int64 }

// Release counts.
func (u *use) Retain()  { u.released.Add(-1) }
func (u *use) Release() { u.released.Add(1) }

// Unready is never.
func (u *use) Unready() string { return "" }

func route(name string, uses ...routing.Use) *routing.Route {
	return &routing.Route{Namespace: name, Limits: limit.New(limit.Bounds{}), Uses: uses}
}

func partition(n ident.Partition, routes ...*routing.Route) *routing.Partition {
	p := &routing.Partition{Number: n, Routes: map[string]*routing.Route{}}
	for _, r := range routes {
		p.Routes[r.Namespace] = r
	}
	return p
}

func TestLookupAnswers(t *testing.T) {
	const count = 8
	fleet := &routing.Fleet{Self: 0, Members: []routing.Peer{{ID: "a"}}}
	held := ident.PartitionOf("orders", count)
	other := "a"
	for i := 0; ident.PartitionOf(other, count) == held; i++ {
		other = fmt.Sprintf("other-%d", i)
	}
	absent := "b"
	for i := 0; ident.PartitionOf(absent, count) != held; i++ {
		absent = fmt.Sprintf("absent-%d", i)
	}
	parts := map[ident.Partition]*routing.Partition{held: partition(held, route("orders"))}
	for _, c := range []struct {
		name      string
		table     *routing.Table
		namespace string
		want      routing.Answer
	}{
		{"before anything is known", routing.NewTable(0), "orders", routing.Starting},
		{"without an assignment", routing.NewTable(count), "orders", routing.Starting},
		{"a namespace of a partition held", routing.NewTable(count).With(parts, fleet), "orders", routing.Found},
		{"no namespace in a partition held", routing.NewTable(count).With(parts, fleet), absent, routing.Absent},
		{"a partition of others", routing.NewTable(count).With(parts, fleet), other, routing.NotOwned},
		{"a partition that was dropped", routing.NewTable(count).With(parts, fleet).With(map[ident.Partition]*routing.Partition{held: nil}, fleet), "orders", routing.NotOwned},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, _, got := c.table.Lookup(c.namespace)
			if got != c.want || (r != nil) != (c.want == routing.Found) {
				t.Errorf("answer %d, route %v; want %d", got, r, c.want)
			}
		})
	}
}

func TestAReplacedTableIsLetGoByItsLastUser(t *testing.T) {
	routes := routing.New(nil)
	first, second := &use{}, &use{}
	a, b := route("orders", first), route("orders", second)
	fleet := &routing.Fleet{}
	base := routing.NewTable(1)
	publish := func(r *routing.Route, gone ...*routing.Route) {
		routes.Publish(base.With(map[ident.Partition]*routing.Partition{0: partition(0, r)}, fleet), gone)
	}
	publish(a)
	oldest := routes.Acquire()
	publish(a) // a table between, which changes nothing
	between := routes.Acquire()
	publish(b, a)
	if r, _, _ := oldest.Table().Lookup("orders"); r != a {
		t.Error("a pinned table changed")
	}
	routes.Release(between)
	if n := first.released.Load(); n != 0 {
		t.Errorf("released %d times while an older table with the route is pinned", n)
	}
	routes.Release(oldest)
	if n := first.released.Load(); n != 1 {
		t.Errorf("released %d times after the last pin, want 1", n)
	}
	if n := second.released.Load(); n != 0 {
		t.Errorf("the route in effect was released %d times", n)
	}
	if n := routes.Undrained(); n != 0 {
		t.Errorf("%d tables undrained, want none", n)
	}
}

// TestNoRouteIsUsedAfterItWasLetGo has many readers pin, use and release while tables are replaced.
func TestNoRouteIsUsedAfterItWasLetGo(t *testing.T) {
	const swaps, readers = 2000, 8
	routes := routing.New(nil)
	fleet := &routing.Fleet{}
	base := routing.NewTable(1)
	uses := make([]*use, swaps)
	current := route("orders", &use{})
	routes.Publish(base.With(map[ident.Partition]*routing.Partition{0: partition(0, current)}, fleet), nil)

	stop := make(chan struct{})
	var wg sync.WaitGroup
	var looked atomic.Int64
	for range readers {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				pin := routes.Acquire()
				r, _, answer := pin.Table().Lookup("orders")
				if answer != routing.Found {
					t.Error("the namespace was away for a moment")
				} else if r.Uses[0].(*use).released.Load() != 0 {
					t.Error("a pinned route was let go")
				}
				routes.Release(pin)
				looked.Add(1)
			}
		})
	}
	for i := range swaps {
		for looked.Load() < int64(i) { // readers and swaps go on side by side
		}
		uses[i] = &use{}
		next := route("orders", uses[i])
		routes.Publish(base.With(map[ident.Partition]*routing.Partition{0: partition(0, next)}, fleet), []*routing.Route{current})
		current = next
	}
	close(stop)
	wg.Wait()
	for i, u := range uses[:swaps-1] {
		if n := u.released.Load(); n != 1 {
			t.Fatalf("route %d was let go %d times, want 1", i, n)
		}
	}
	if n := routes.Undrained(); n != 0 {
		t.Errorf("%d tables undrained, want none", n)
	}
}

func TestReadingTheTableAllocatesNothing(t *testing.T) {
	routes := routing.New(nil)
	routes.Publish(routing.NewTable(1).With(map[ident.Partition]*routing.Partition{0: partition(0, route("orders"))}, &routing.Fleet{}), nil)
	if n := testing.AllocsPerRun(1000, func() {
		pin := routes.Acquire()
		pin.Table().Lookup("orders")
		routes.Release(pin)
	}); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
}

func BenchmarkAcquireLookupRelease(b *testing.B) {
	const count = 1024
	routes := routing.New(nil)
	parts := map[ident.Partition]*routing.Partition{}
	names := make([]string, 10000)
	for i := range names {
		names[i] = fmt.Sprintf("namespace-%05d", i)
		p := ident.PartitionOf(names[i], count)
		if parts[p] == nil {
			parts[p] = partition(p)
		}
		parts[p].Routes[names[i]] = route(names[i])
	}
	routes.Publish(routing.NewTable(count).With(parts, &routing.Fleet{}), nil)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			pin := routes.Acquire()
			if _, _, a := pin.Table().Lookup(names[i%len(names)]); a != routing.Found {
				b.Error("not found")
			}
			routes.Release(pin)
		}
	})
}
