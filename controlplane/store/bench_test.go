package store_test

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	"github.com/prism-gateway/prism/controlplane/store"
	"github.com/prism-gateway/prism/controlplane/store/embedded"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/ident"
)

// sized is a namespace whose configuration is of 1.4 KiB, on one of 20 backends.
func sized(b *testing.B, i int, content string) snapshot.Set {
	name, backend := fmt.Sprintf("namespace-%06d", i), fmt.Sprintf("redis-%d", i%20)
	record := marshal(b, &recordv1.NamespaceRecord{Author: "ann", Request: &configv1.NamespaceRequest{Namespace: name, Team: content}})
	return snapshot.Set{Name: "ns/" + name, Author: "ann", Record: record, Data: marshal(b, &configv1.NamespaceConfig{
		Namespace: name, StoragePrefix: name + strings.Repeat("x", 1270), RecordHash: ident.HashOf(record).Bytes(),
		Patterns:     []*configv1.PatternConfig{{Name: "main", Bindings: []*configv1.Binding{{Slot: "storage-redis", Backend: backend}}}},
		Reservations: []*configv1.Reservation{{Backend: backend, WriteRps: 5}},
	})}
}

// filled is a durable etcd with n namespaces, and a store that committed them.
func filled(b *testing.B, n int) (*embedded.Server, *replica) {
	b.Helper()
	server, err := embedded.Start(embedded.Config{Dir: b.TempDir(), Log: quiet()})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { server.Close() })
	s := open(b, store.Config{Client: dial(b, server.Endpoint())})
	const step = 2500
	for first := 0; first < n; first += step {
		var sets []snapshot.Set
		for i := first; i < min(first+step, n); i++ {
			sets = append(sets, sized(b, i, "1"))
		}
		if _, err := s.Commit(b.Context(), release.Order{}, edit(sets...)); err != nil {
			b.Fatal(err)
		}
	}
	return server, s
}

// BenchmarkCommit is one change at a time, and as many together as 64 callers make.
func BenchmarkCommit(b *testing.B) {
	for _, n := range []int{10_000, 100_000} {
		b.Run(fmt.Sprintf("namespaces=%d", n), func(b *testing.B) {
			_, s := filled(b, n)
			b.Run("one", func(b *testing.B) {
				for i := 0; b.Loop(); i++ {
					if _, err := s.Commit(b.Context(), release.Order{}, edit(sized(b, i%n, fmt.Sprint("one", i, b.N)))); err != nil {
						b.Fatal(err)
					}
				}
			})
			b.Run("callers=64", func(b *testing.B) {
				b.SetParallelism(64 / runtime.GOMAXPROCS(0))
				before := s.Head().Version()
				b.RunParallel(func(loop *testing.PB) {
					for i := 0; loop.Next(); i++ {
						if _, err := s.Commit(b.Context(), release.Order{}, edit(sized(b, i%n, fmt.Sprintf("%p%d", loop, i)))); err != nil {
							b.Error(err)
							return
						}
					}
				})
				b.ReportMetric(float64(b.N)/float64(s.Head().Version()-before), "changes/snapshot")
			})
			b.Run("rollback", func(b *testing.B) {
				to := s.Head().Version()
				for i := 0; b.Loop(); i++ {
					b.StopTimer()
					var sets []snapshot.Set
					for k := range 2500 {
						sets = append(sets, sized(b, k, fmt.Sprint("back", i, k)))
					}
					if _, err := s.Commit(b.Context(), release.Order{}, edit(sets...)); err != nil {
						b.Fatal(err)
					}
					b.StartTimer()
					if _, err := s.Rollback(b.Context(), release.Order{}, to, snapshot.Note{}, nil); err != nil {
						b.Fatal(err)
					}
					to = s.Head().Version()
				}
			})
		})
	}
}

func BenchmarkColdLoad(b *testing.B) {
	const n = 100_000
	server, s := filled(b, n)
	if err := s.stop(); err != nil {
		b.Fatal(err)
	}
	client := dial(b, server.Endpoint())
	under := prefix(b)
	for b.Loop() {
		before := heap()
		cold := open(b, store.Config{Client: client, Prefix: under})
		if cold.Head().Len() != n {
			b.Fatal(cold.Head().Len())
		}
		b.StopTimer()
		b.ReportMetric(float64(heap()-before)/n/1024, "KiB/namespace")
		if err := cold.stop(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkPending is one change at a time while 10,000 other objects are pending in a release.
func BenchmarkPending(b *testing.B) {
	const n, pending = 20_000, 10_000
	for name, set := range map[string]func(i int) (release.Order, snapshot.Set){
		"at once": func(i int) (release.Order, snapshot.Set) {
			return release.Order{AtOnce: true}, sized(b, pending+i%pending, fmt.Sprint("new", i, b.N))
		},
		"in waves": func(i int) (release.Order, snapshot.Set) {
			return release.Order{}, sized(b, pending+i%100, fmt.Sprint("new", i, b.N))
		},
	} {
		b.Run(name, func(b *testing.B) {
			server, filler := filled(b, n)
			s := open(b, store.Config{Client: dial(b, server.Endpoint()), Policies: release.Policies{Scoped: &configv1.ReleasePolicy{}}})
			if err := filler.stop(); err != nil {
				b.Fatal(err)
			}
			var sets []snapshot.Set
			for i := range pending {
				sets = append(sets, sized(b, i, "pending"))
			}
			if _, err := s.Commit(b.Context(), release.Order{}, edit(sets...)); err != nil {
				b.Fatal(err)
			}
			for i := 0; b.Loop(); i++ {
				o, one := set(i)
				if _, err := s.Commit(b.Context(), o, edit(one)); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(len(s.Released().Active())), "releases")
		})
	}
}
