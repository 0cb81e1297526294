package e2e_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/prism-gateway/prism/e2e/harness"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/testserver/redisserver"
)

// backendFault is a way to break the link to a store, or the store.
type backendFault struct {
	name         string
	begin, end   func()
	acks, fails  int          // it lasts until so many calls were acknowledged, or so many failed
	want         fault.Reason // why calls must have failed; empty: none in particular
	namedByOwner bool         // it lasts until the proxies report the namespace
}

// TestStoreFaults breaks the link to one Redis, and the Redis, in one way after the other (LF-12 to LF-16), while clients
// use a namespace on it and others one on a second Redis. Nothing acknowledged is lost, nothing with a token is done
// twice, the second namespace has no failed or slow call, and after each fault all goes on by itself.
// PRISM_STORE_FAULTS is how many rounds there are; one without it.
func TestStoreFaults(t *testing.T) {
	rounds := 1
	if s := os.Getenv("PRISM_STORE_FAULTS"); s != "" {
		var err error
		if rounds, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rounds)*3*time.Minute)
	defer cancel()
	broken, sound := redisserver.Start(t, redisserver.Options{Keep: true}), redisserver.Start(t, redisserver.Options{})
	link := harness.NewRelay(t, broken.Addr())
	c := harness.Start(t, harness.Options{Proxies: 2, Owners: 2, Backends: []*configv1.Backend{
		{Name: "redis-broken", Type: "redis", Endpoints: []string{link.Address}},
		{Name: "redis-sound", Type: "redis", Endpoints: []string{sound.Addr()}},
	}})
	faulty, neighbour := keyvalue("faulty", "redis-broken", "redis"), keyvalue("neighbour", "redis-sound", "redis")
	faulty.Patterns[0].Needs.Interfaces = []string{"keyvalue.counter", "keyvalue.idempotency"}
	faulty.Limits = &configv1.Limits{DefaultDeadline: durationpb.New(400 * time.Millisecond)}
	neighbour.Limits = &configv1.Limits{DefaultDeadline: durationpb.New(2 * time.Second)} // a call that is slower fails
	c.Apply(ctx, faulty, neighbour)

	const writers = 8
	h := newBackendHistory("faulty", writers, clients(c))
	traffic := harness.StartTraffic(ctx, 2, harness.Traffic{Proxies: clients(c), Namespaces: []string{"neighbour"}, Exact: true})
	writing, stop := context.WithCancel(ctx)
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() { h.client(writing, w) })
	}
	defer all.Wait()
	defer stop()
	defer link.Set(harness.Healed)

	set := func(f harness.Fault) func() { return func() { link.Set(f) } }
	healed := set(harness.Healed)
	for round := range rounds {
		for _, f := range []backendFault{
			{name: "latency", begin: set(harness.Fault{Delay: 30 * time.Millisecond}), end: healed, acks: 100, fails: 1000},
			{name: "jitter", begin: jitter(writing, link, uint64(round)), end: healed, acks: 100, fails: 1000},
			{name: "reset in the middle of answers", begin: func() {
				link.Set(harness.Trickle)
				carried := link.Carried()
				harness.Eventually(t, 30*time.Second, "an answer has begun", func() error {
					if now := link.Carried(); now < carried+2 {
						return fmt.Errorf("%d bytes came", now-carried)
					}
					return nil
				})
				link.Set(harness.Cut)
			}, end: healed, acks: 1000, fails: 20},
			{name: "cut", begin: set(harness.Cut), end: healed, acks: 10000, fails: 200, want: fault.BreakerOpen, namedByOwner: true},
			{name: "half-open: requests arrive, answers do not", begin: set(harness.Deaf), end: healed, acks: 10000, fails: 60, want: fault.Backend},
			{name: "half-open: requests do not arrive", begin: set(harness.Fault{Hold: true}), end: healed, acks: 10000, fails: 60, want: fault.Backend},
			{name: "one byte a second", begin: set(harness.Trickle), end: healed, acks: 10000, fails: 60, want: fault.Backend},
			{name: "the store is killed", begin: broken.Kill, end: func() { broken.Restart(t) }, acks: 10000, fails: 200, want: fault.BreakerOpen},
			{name: "the store stands still", begin: func() { broken.Pause(t) }, end: func() { broken.Resume(t) }, acks: 10000, fails: 60, want: fault.Backend},
		} {
			t.Run(f.name, func(t *testing.T) {
				acked, failed, before := h.counts()
				began := time.Now()
				f.begin()
				harness.Eventually(t, 60*time.Second, "calls end while it lasts", func() error {
					a, n, reasons := h.counts()
					if total(a)-total(acked) < f.acks && n-failed < f.fails || f.want != "" && reasons[f.want] == before[f.want] {
						return fmt.Errorf("%d were acknowledged, %d failed: %v", total(a)-total(acked), n-failed, reasons)
					}
					return nil
				})
				if f.namedByOwner {
					harness.Eventually(t, 30*time.Second, "the namespace is reported, and not its neighbour", func() error {
						if said := unready(ctx, t, c, "faulty"); !strings.Contains(said, "redis-broken") {
							return fmt.Errorf("of faulty: %q", said)
						}
						return nil
					})
					if said := unready(ctx, t, c, "neighbour"); said != "" {
						t.Errorf("of the neighbour: %s", said)
					}
				}
				lasted := time.Since(began)
				f.end()
				acked, _, after := h.counts()
				harness.Eventually(t, 60*time.Second, "it goes on by itself through every proxy", func() error {
					now, _, reasons := h.counts()
					for p := range now {
						if now[p] < acked[p]+100 {
							return fmt.Errorf("proxy %d acknowledged %d calls since: %v", p, now[p]-acked[p], reasons)
						}
					}
					return nil
				})
				maps.DeleteFunc(after, func(r fault.Reason, n int) bool { after[r] = n - before[r]; return n == before[r] })
				t.Logf("lasted %v, failed %v; all goes on %v later", lasted.Round(time.Millisecond), after, (time.Since(began) - lasted).Round(time.Millisecond))
			})
		}
	}
	stop()
	all.Wait()
	calls, problems := traffic.Stop()
	none(t, "the neighbour", calls, problems)
	harness.Eventually(t, 30*time.Second, "nothing is reported any more", func() error {
		if said := unready(ctx, t, c, "faulty"); said != "" {
			return fmt.Errorf("of faulty: %s", said)
		}
		return nil
	})
	v := h.check()
	t.Logf("%d attempts, %d acknowledged, %d with a token repeated, %d of unknown outcome; lost %d, duplicated %d, wrong %d",
		v.attempts, v.acknowledged, v.repeated, v.unknown, len(v.lost), len(v.duplicated), len(v.wrong))
	for _, p := range slices.Concat(v.lost, v.duplicated, v.wrong) {
		t.Error(p)
	}
	if v.repeated == 0 || v.unknown == 0 {
		t.Error("nothing was repeated or unknown: the test proves nothing")
	}
	retried := 0.0
	for _, p := range c.Proxies {
		retried += sum(c.Get(p.HTTPAddress, "/metrics"), "prism_proxy_retries_total")
	}
	_, _, reasons := h.counts()
	asked := float64(v.attempts - reasons[fault.BreakerOpen]) // the others did not reach the store
	t.Logf("the proxies retried %.0f times, amplification %.3f", retried, 1+retried/asked)
	if retried > asked/10 || retried == 0 {
		t.Errorf("%.0f retries of %.0f calls, want a tenth at most, and some", retried, asked)
	}
}

// jitter delays each way by another time all the time, until ctx or the next fault.
func jitter(ctx context.Context, link *harness.Relay, seed uint64) func() {
	return func() {
		random := rand.New(rand.NewPCG(seed, 3))
		for range 50 {
			if ctx.Err() != nil {
				return
			}
			link.Set(harness.Fault{Delay: time.Duration(random.IntN(40)) * time.Millisecond})
			time.Sleep(time.Duration(random.IntN(20)) * time.Millisecond) // the fault itself
		}
	}
}

func total(counts []int) (n int) {
	for _, c := range counts {
		n += c
	}
	return n
}

// unready is why a namespace's owners say that it cannot serve.
func unready(ctx context.Context, t *testing.T, c *harness.Cluster, namespace string) (said string) {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.Admin().Control.WatchNamespaceStatus(ctx, &controlv1.WatchNamespaceStatusRequest{Namespace: namespace})
	if err != nil {
		t.Fatal(err)
	}
	in, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range in.GetStatus().GetOwners() {
		if o.GetReason() != "" {
			said += o.GetProxy() + ": " + o.GetReason() + "\n"
		}
	}
	return said
}

// sum adds up the samples of a metric.
func sum(metrics, name string) (total float64) {
	for line := range strings.Lines(metrics) {
		if rest, ok := strings.CutPrefix(line, name); ok && (rest[0] == '{' || rest[0] == ' ') {
			if v, err := strconv.ParseFloat(strings.TrimSpace(rest[strings.LastIndexByte(rest, ' ')+1:]), 64); err == nil {
				total += v
			}
		}
	}
	return total
}
