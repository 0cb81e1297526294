package push_test

import (
	"fmt"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/prism-gateway/prism/controlplane/push"
	"github.com/prism-gateway/prism/controlplane/snapshot"
)

// crowded is a replica with a crowd that has everything.
type crowded struct {
	*crowd
	source  *source
	names   []string // of namespaces
	proxies int

	heap, stack float64 // bytes that a stream takes, with its connection
}

// gather returns when all proxies have everything.
func gather(b *testing.B, proxies, namespaces int) *crowded {
	c := &crowded{source: newSource(crowdPartitions), proxies: proxies}
	sets := []snapshot.Set{{Name: "backend/store", Data: object(b, "backend/store", "redis:0")}}
	for i := range namespaces {
		name := fmt.Sprintf("ns/team-%05d", i)
		c.names = append(c.names, name)
		sets = append(sets, snapshot.Set{Name: name, Data: object(b, name, fmt.Sprintf("%01400d", i))})
	}
	c.source.edit(b, sets)
	r := start(b, c.source, func(c *push.Config) { c.StreamsPerSecond, c.StreamBurst = 1e6, 1e6 })
	before := memory()
	c.crowd = newCrowd(b, r.address, proxies)
	c.await(b, c.cells)
	after := memory()
	c.heap = float64(after.HeapAlloc-before.HeapAlloc) / float64(proxies)
	c.stack = float64(after.StackInuse-before.StackInuse) / float64(proxies)
	return c
}

func memory() (m runtime.MemStats) {
	runtime.GC()
	runtime.GC() // what finalizers and pools kept
	runtime.ReadMemStats(&m)
	return m
}

// used is how much CPU this process has taken.
func used(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// turns shows states in turn, and returns after each when so many changes of partitions are acknowledged.
func (c *crowded) turns(b *testing.B, changes, pushes int, trees []*snapshot.Tree) {
	b.ReportAllocs()
	before := used(b)
	for i := 0; b.Loop(); i++ {
		c.source.moved(func() {
			c.source.tree = trees[i%len(trees)]
			c.source.revision++
		})
		c.await(b, changes)
	}
	b.ReportMetric(float64((used(b)-before).Microseconds())/float64(b.N*pushes), "CPU-µs/push")
	b.ReportMetric(c.heap/1024, "heap-KiB/stream")
	b.ReportMetric(c.stack/1024, "stack-KiB/stream")
}

// BenchmarkUpdate measures one namespace's change, from the publication to the third acknowledgement.
func BenchmarkUpdate(b *testing.B) {
	for _, size := range []struct{ proxies, namespaces int }{{100, 10_000}, {1000, 10_000}, {1000, 100_000}} {
		b.Run(fmt.Sprintf("%d streams, %d namespaces", size.proxies, size.namespaces), func(b *testing.B) {
			c := gather(b, size.proxies, size.namespaces)
			var trees []*snapshot.Tree
			for i := range 2 { // two states to go between, so that only the push is measured
				trees = append(trees, c.source.set(b, c.names[0], fmt.Sprintf("%01400d", -i-1)))
				c.await(b, crowdOwners)
			}
			c.turns(b, crowdOwners, crowdOwners, trees)
		})
	}
}

// BenchmarkShared measures the change of a backend, from the publication until each proxy has acknowledged its
// partitions. That is two pushes to each: the set, and what refers to it.
func BenchmarkShared(b *testing.B) {
	for _, proxies := range []int{100, 1000} {
		b.Run(fmt.Sprintf("%d streams", proxies), func(b *testing.B) {
			c := gather(b, proxies, 10_000)
			var trees []*snapshot.Tree
			for i := range 12 { // more than a client keeps, so that each change sends the set
				trees = append(trees, c.source.set(b, "backend/store", fmt.Sprint("redis:", i+1)))
				c.await(b, c.cells)
			}
			c.turns(b, c.cells, 2*proxies, trees)
		})
	}
}

// BenchmarkReconnect measures that all proxies open new streams with the states that they have, until each was answered.
func BenchmarkReconnect(b *testing.B) {
	c := gather(b, 1000, 10_000)
	resources := 0
	before := used(b)
	for b.Loop() {
		resources += c.again(b)
	}
	b.ReportMetric(float64((used(b)-before).Microseconds())/float64(b.N*c.proxies), "CPU-µs/stream")
	b.ReportMetric(float64(resources)/float64(b.N), "resources")
}
