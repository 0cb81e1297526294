package main

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/prism-gateway/prism/e2e/harness"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/testserver/redisserver"
)

const benchNamespace = "bench-redis"

// target is one of the two programs compared.
type target struct {
	name  string
	pid   int
	conns []*grpc.ClientConn
}

// sample is what one stretch of load gave.
type sample struct {
	perSecond float64
	cpu       time.Duration // of the program, per call
	p50, p99  time.Duration
}

// benchData loads both programs in turn with Get of 256-byte values and compares them pair by pair.
func benchData(r *run) {
	store := redisserver.Start(r, redisserver.Options{})
	cluster := harness.Start(r, harness.Options{Proxies: 1, Owners: 1, Backends: []*configv1.Backend{
		{Name: "redis-bench", Type: "redis", Endpoints: []string{store.Addr()}},
	}})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	cluster.Apply(ctx, &configv1.NamespaceRequest{
		Namespace: benchNamespace, Team: "bench", Pattern: "keyvalue",
		Needs: &configv1.Needs{Durability: configv1.Durability_DURABILITY_RELAXED},
	})
	address := harness.FreeAddress(r)
	pass := harness.Run(r, cluster.Dir, "passthrough", harness.Build(r, filepath.Join(cluster.Dir, "passthrough"), "./e2e/passthrough"),
		"--listen", address, "--redis", store.Addr())

	targets := []*target{
		{name: "prism", pid: cluster.Proxies[0].Pid(), conns: dialSeveral(r, cluster.Proxies[0].Address)},
		{name: "pass", pid: pass.Pid(), conns: dialSeveral(r, address)},
	}
	value := make([]byte, 256)
	for _, t := range targets {
		for i := range 1000 {
			client := datav1.NewKeyValueClient(t.conns[0])
			if _, err := client.Put(ctx, &datav1.PutRequest{Namespace: benchNamespace, Id: key(i), Value: value}, grpc.WaitForReady(true)); err != nil {
				r.Fatalf("%s: put: %v", t.name, err)
			}
		}
	}
	for _, clients := range []int{1, 16, 64} {
		var pairs [][2]sample
		for range 5 {
			var pair [2]sample
			for i, t := range targets {
				pair[i] = load(ctx, r, t, clients, r.scaled(4*time.Second))
			}
			pairs = append(pairs, pair)
		}
		prism, base := medianOf(pairs, 0), medianOf(pairs, 1)
		fmt.Printf("  %2d clients  prism %6.0f/s  cpu %5.1f µs  p50 %7v  p99 %7v\n", clients, prism.perSecond, micros(prism.cpu), round(prism.p50), round(prism.p99))
		fmt.Printf("             pass  %6.0f/s  cpu %5.1f µs  p50 %7v  p99 %7v\n", base.perSecond, micros(base.cpu), round(base.p50), round(base.p99))
		fmt.Printf("             ratio (median of pairs)  throughput %.2f (goal A6 ≥ 0.85)  cpu %.2f (goal A1 ≤ 1.20)  p50 %.2f  p99 %.2f\n",
			ratio(pairs, func(s sample) float64 { return s.perSecond }), ratio(pairs, func(s sample) float64 { return float64(s.cpu) }),
			ratio(pairs, func(s sample) float64 { return float64(s.p50) }), ratio(pairs, func(s sample) float64 { return float64(s.p99) }))
	}
	fmt.Println("  goal A3: at most 60 µs of CPU for a call to Redis")
}

func key(i int) []byte { return fmt.Appendf(nil, "item-%04d", i%1000) }

// dialSeveral opens a few connections, as several application processes would.
func dialSeveral(r *run, address string) (conns []*grpc.ClientConn) {
	for range 4 {
		conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			r.Fatalf("%v", err)
		}
		r.Cleanup(func() { _ = conn.Close() })
		conns = append(conns, conn)
	}
	return conns
}

// load calls Get from a number of clients, one call after the other each, after a warm-up of a quarter of the time.
func load(ctx context.Context, r *run, t *target, clients int, d time.Duration) sample {
	var wg sync.WaitGroup
	latencies := make([][]time.Duration, clients)
	warm := time.Now().Add(d / 4)
	end := warm.Add(d)
	errs := make(chan error, clients)
	for c := range clients {
		wg.Go(func() {
			client := datav1.NewKeyValueClient(t.conns[c%len(t.conns)])
			for i := c * 31; ; i++ {
				began := time.Now()
				if began.After(end) {
					return
				}
				out, err := client.Get(ctx, &datav1.GetRequest{Namespace: benchNamespace, Id: key(i)})
				if err != nil || len(out.GetItem().GetValue()) != 256 {
					errs <- fmt.Errorf("%s: get: %v, %d bytes", t.name, err, len(out.GetItem().GetValue()))
					return
				}
				if began.After(warm) {
					latencies[c] = append(latencies[c], time.Since(began))
				}
			}
		})
	}
	time.Sleep(time.Until(warm))
	before := mustCPU(r, t.pid)
	time.Sleep(time.Until(end))
	used := mustCPU(r, t.pid) - before
	wg.Wait()
	select {
	case err := <-errs:
		r.Fatalf("%v", err)
	default:
	}
	all := slices.Concat(latencies...)
	slices.Sort(all)
	if len(all) == 0 {
		r.Fatalf("%s: no call finished", t.name)
	}
	return sample{
		perSecond: float64(len(all)) / d.Seconds(), cpu: used / time.Duration(len(all)),
		p50: all[len(all)/2], p99: all[len(all)*99/100],
	}
}

func mustCPU(r *run, pid int) time.Duration {
	d, err := harness.CPUTime(pid)
	if err != nil {
		r.Fatalf("%v", err)
	}
	return d
}

// ratio is the median over pairs of prism over pass.
func ratio(pairs [][2]sample, of func(sample) float64) float64 {
	var all []float64
	for _, p := range pairs {
		all = append(all, of(p[0])/of(p[1]))
	}
	slices.Sort(all)
	return all[len(all)/2]
}

func medianOf(pairs [][2]sample, side int) (m sample) {
	var list []sample
	for _, p := range pairs {
		list = append(list, p[side])
	}
	slices.SortFunc(list, func(a, b sample) int { return int(a.perSecond - b.perSecond) })
	return list[len(list)/2]
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }

func round(d time.Duration) time.Duration { return d.Round(time.Microsecond) }
