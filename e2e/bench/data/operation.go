package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/prism-gateway/prism/e2e/harness"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/testserver/redisserver"
)

// coldStart measures E5: a proxy with 1,000 namespaces, one of whose stores is away, from its start to ready.
func coldStart(r *run) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	redis, away := redisserver.Start(r, redisserver.Options{}), redisserver.Start(r, redisserver.Options{})
	cluster := harness.Start(r, harness.Options{Proxies: 1, Owners: 1, Backends: []*configv1.Backend{
		{Name: "here", Type: "redis", Endpoints: []string{redis.Addr()}}, {Name: "away", Type: "redis", Endpoints: []string{away.Addr()}},
	}})
	var requests []*configv1.NamespaceRequest
	for n := range 1000 {
		requests = append(requests, &configv1.NamespaceRequest{
			Namespace: fmt.Sprintf("start-%04d", n), Team: "bench", Pattern: "keyvalue", Needs: &configv1.Needs{Durability: configv1.Durability_DURABILITY_RELAXED},
		})
	}
	cluster.Apply(ctx, requests...)
	away.Stop(r)
	proxy := cluster.Proxies[0]
	var longest time.Duration
	for range repeats {
		if !proxy.Stop(10 * time.Second) {
			r.Fatalf("the proxy does not stop")
		}
		began := time.Now()
		proxy.Start()
		for proxy.Ready() != nil {
			time.Sleep(2 * time.Millisecond)
			if time.Since(began) > time.Minute {
				r.Fatalf("the proxy is not ready after a minute: %v", proxy.Ready())
			}
		}
		longest = max(longest, time.Since(began))
	}
	r.table.add("E5", "proxy started → ready, 1,000 namespaces, a store away, the longest of 5", longest.Round(time.Millisecond).String(), "≤ 2 s", "from disk")
}

// neighbour measures E7: what a namespace at ten times its rate does to another on the same store.
func neighbour(r *run) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	redis := redisserver.Start(r, redisserver.Options{})
	cluster := harness.Start(r, harness.Options{Proxies: 1, Owners: 1, Backends: []*configv1.Backend{{Name: "redis", Type: "redis", Endpoints: []string{redis.Addr()}}}})
	needs := &configv1.Needs{Durability: configv1.Durability_DURABILITY_RELAXED}
	const quota = 300
	cluster.Apply(ctx,
		&configv1.NamespaceRequest{Namespace: benchNamespace, Team: "bench", Pattern: "keyvalue", Needs: needs},
		&configv1.NamespaceRequest{Namespace: "loud", Team: "bench", Pattern: "keyvalue", Needs: needs, Limits: &configv1.Limits{Rps: quota}})
	conns := dialSeveral(r, cluster.Proxies[0].Address)
	fill(ctx, r, conns[0])
	victim := &target{name: "victim", get: grpcGet(conns)}
	loud := datav1.NewKeyValueClient(dialSeveral(r, cluster.Proxies[0].Address)[0])
	var alone, beside pairs
	refused := 0
	for range repeats {
		alone = append(alone, []sample{open(ctx, r, victim, victim.get, 500, r.scaled(3*time.Second))})
		noisy, stop := context.WithCancel(ctx)
		done := make(chan int)
		go func() {
			n := 0
			for tick := time.NewTicker(time.Second / (10 * quota)); ; {
				select {
				case <-noisy.Done():
					tick.Stop()
					done <- n
					return
				case <-tick.C:
					if _, err := loud.Get(noisy, &datav1.GetRequest{Namespace: "loud", Id: key(1)}); status.Code(err) == codes.ResourceExhausted {
						n++
					}
				}
			}
		}()
		beside = append(beside, []sample{open(ctx, r, victim, victim.get, 500, r.scaled(3*time.Second))})
		stop()
		refused += <-done
	}
	a, b := alone.of(0, p99), beside.of(0, p99)
	r.table.add("E7", "p99 of a namespace beside one at up to ten times its rate, over alone", fmt.Sprintf("%.2f", b/a), "≤ 1.2",
		fmt.Sprintf("alone %s, beside %s; %d calls of the other were refused", us(a), us(b), refused))
}

// amplification measures E8: what the proxy asks of a store that is away, over what it is asked.
func amplification(r *run) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	redis := redisserver.Start(r, redisserver.Options{Keep: true})
	cluster := harness.Start(r, harness.Options{Proxies: 1, Owners: 1, Backends: []*configv1.Backend{{Name: "redis", Type: "redis", Endpoints: []string{redis.Addr()}}}})
	cluster.Apply(ctx, &configv1.NamespaceRequest{
		Namespace: benchNamespace, Team: "bench", Pattern: "keyvalue", Needs: &configv1.Needs{Durability: configv1.Durability_DURABILITY_RELAXED},
	})
	proxy := cluster.Proxies[0]
	conns := dialSeveral(r, proxy.Address)
	fill(ctx, r, conns[0])
	redis.Stop(r)
	get := grpcGet(conns)
	var broken, refused int
	var slowest time.Duration
	const calls = 5000
	for i := range calls {
		began := time.Now()
		err := get(ctx, i)
		slowest = max(slowest, time.Since(began))
		switch {
		case err == nil:
			r.Fatalf("a store that is away answers")
		case strings.Contains(err.Error(), "refused until"):
			refused++
		default:
			broken++
		}
	}
	retries := 0.0
	for _, line := range strings.Split(body(r, "http://"+proxy.HTTPAddress+"/metrics"), "\n") {
		if value, ok := strings.CutPrefix(line, "prism_proxy_retries_total "); ok {
			retries, _ = strconv.ParseFloat(value, 64)
		}
	}
	r.table.add("E8", "calls that reach a store that is away, over those that the proxy was asked for", fmt.Sprintf("%.3f", (float64(broken)+retries)/calls), "≤ 1.1",
		fmt.Sprintf("%d calls: %d refused at once by the breaker, %.0f retries, slowest %v", calls, refused, retries, slowest.Round(time.Millisecond)))
	began := time.Now()
	redis.Restart(r)
	for err := get(ctx, 0); err != nil; err = get(ctx, 0) {
		time.Sleep(5 * time.Millisecond)
		if time.Since(began) > time.Minute {
			r.Fatalf("the store is back for a minute and not used: %v", err)
		}
	}
	r.table.add("", "store back → the first call succeeds", time.Since(began).Round(time.Millisecond).String(), "", "")
}
