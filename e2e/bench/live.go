package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/prism-gateway/prism/e2e/harness"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
)

// fill applies namespaces on the memory backend, a thousand at a time.
func fill(ctx context.Context, r *run, c *harness.Cluster, from, to int) {
	for from < to {
		in := &controlv1.ApplyNamespacesRequest{Note: &controlv1.ChangeNote{Author: "bench"}}
		for ; from < to && len(in.Changes) < 1000; from++ {
			in.Changes = append(in.Changes, &controlv1.NamespaceChange{Request: request(from, time.Hour)})
		}
		if _, err := c.Admin().Control.ApplyNamespaces(ctx, in); err != nil {
			r.Fatalf("fill: %v", err)
		}
	}
}

// request is a namespace of the usual size.
func request(i int, ttl time.Duration) *configv1.NamespaceRequest {
	return &configv1.NamespaceRequest{
		Namespace: fmt.Sprintf("bench-%06d", i), Team: "bench", Pattern: "keyvalue",
		Description: "A namespace as teams file them, with a line or two about what it is for and whom to ask.",
		Needs: &configv1.Needs{
			Durability: configv1.Durability_DURABILITY_NONE, ReadRps: 10, WriteRps: 1, DataSize: "1MiB",
			Ttl: durationpb.New(ttl), Interfaces: []string{"keyvalue.scan"},
		},
	}
}

var memoryBackend = &configv1.Backend{Name: "memory-bench", Type: "memory"}

// benchLive changes one namespace after the other and takes the time until the control plane knows that every owner
// serves the change.
func benchLive(r *run) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	c := harness.Start(r, harness.Options{Proxies: 3, Backends: []*configv1.Backend{memoryBackend}})
	namespaces, changes := 10_000, 1000
	if r.quick {
		namespaces, changes = 1000, 100
	}
	fill(ctx, r, c, 0, namespaces)
	for _, i := range []int{0, namespaces - 1} {
		c.WaitLive(ctx, request(i, time.Hour).GetNamespace(), 0+1)
	}
	admin := c.Admins[0]
	cpu := mustCPU(r, admin.Pid())
	var accepted, served []time.Duration
	for n := range changes {
		req := request(n*7%namespaces, time.Hour+time.Duration(n+1)*time.Second)
		watching, done := context.WithCancel(ctx)
		watch, err := admin.Control.WatchNamespaceStatus(watching, &controlv1.WatchNamespaceStatusRequest{Namespace: req.GetNamespace()})
		if err == nil {
			_, err = watch.Recv()
		}
		if err != nil {
			r.Fatalf("watch: %v", err)
		}
		began := time.Now()
		out, err := admin.Control.ApplyNamespaces(ctx, &controlv1.ApplyNamespacesRequest{Changes: []*controlv1.NamespaceChange{{Request: req}}})
		if err != nil {
			r.Fatalf("change: %v", err)
		}
		accepted = append(accepted, time.Since(began))
		for {
			in, err := watch.Recv()
			if err == io.EOF || err != nil {
				r.Fatalf("watch: %v", err)
			}
			if s := in.GetStatus(); s.GetLive() && s.GetSnapshotVersion() >= out.GetSnapshotVersion() {
				break
			}
		}
		served = append(served, time.Since(began))
		done()
	}
	used := (mustCPU(r, admin.Pid()) - cpu) / time.Duration(changes)
	print := func(name string, d []time.Duration, goal string) {
		slices.Sort(d)
		fmt.Printf("  %-34s p50 %8v  p99 %8v  max %8v  %s\n", name, round(d[len(d)/2]), round(d[len(d)*99/100]), round(d[len(d)-1]), goal)
	}
	print("call returned", accepted, "")
	print("call began → all owners serve it", served, "(goal L1: p50 ≤ 8 ms, p99 ≤ 30 ms on 3 × 4 cores)")
	fmt.Printf("  prism-admin with embedded etcd: %v of CPU for a change\n", round(used))
}

// benchMemory fills an installation and takes prism-admin's memory at each size, after a restart, so that only what it
// keeps is counted.
func benchMemory(r *run) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	sizes := []int{10_000, 100_000}
	if r.quick {
		sizes = []int{1000, 10_000}
	}
	// etcd is a process of its own, so that its memory is not counted.
	c := harness.Start(r, harness.Options{Proxies: 1, Etcd: 1, Backends: []*configv1.Backend{memoryBackend}})
	for _, p := range c.Proxies {
		p.Kill() // a proxy would only share the machine
	}
	measure := func() int64 {
		c.Admins[0].Kill()
		c.Admins[0].Start()
		c.WaitReady(2 * time.Minute)
		rss, err := harness.RSS(c.Admins[0].Pid())
		if err != nil {
			r.Fatalf("%v", err)
		}
		return rss
	}
	empty, done := measure(), 0
	fmt.Printf("  %7d namespaces  RSS %6.1f MiB\n", 0, mib(empty))
	for _, size := range sizes {
		began := time.Now()
		fill(ctx, r, c, done, size)
		done = size
		filled := time.Since(began)
		began = time.Now()
		rss := measure()
		fmt.Printf("  %7d namespaces  RSS %6.1f MiB, %4.2f KiB each over an empty one (goal M2: 100,000 within 300 MiB)  filled in %v, loaded in %v\n",
			size, mib(rss), float64(rss-empty)/1024/float64(size), filled.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
	}
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }

func mustCPU(r *run, pid int) time.Duration {
	d, err := harness.CPUTime(pid)
	if err != nil {
		r.Fatalf("%v", err)
	}
	return d
}

func round(d time.Duration) time.Duration { return d.Round(time.Microsecond) }
