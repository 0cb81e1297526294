package e2e_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/prism-gateway/prism/e2e/harness"
	"github.com/prism-gateway/prism/e2e/history"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
)

// TestHistorySurvivesFaults has clients create, update, delete, bring back and roll back namespaces through three replicas
// over three etcd nodes, while nodes and replicas are killed and replicas are cut off from etcd, wholly and one way.
// Every acknowledged change is in the history exactly once; no refused one is there; what nobody acknowledged is there
// wholly or not at all; the whole is linearizable; and in the end every owner serves what every replica tells.
func TestHistorySurvivesFaults(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	c := harness.Start(t, harness.Options{Admins: 3, Etcd: 3, Relays: true, Backends: backends(t)})
	names := make([]string, 5)
	for i := range names {
		names[i] = fmt.Sprintf("contended-%d", i)
	}
	h := history.New(history.Config{Request: onRedis})
	const workers, total = 5, 500
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(7, uint64(w)))
			for h.Begun() < total && ctx.Err() == nil {
				h.Attempt(ctx, random, c.Admins[random.IntN(len(c.Admins))], w, names[random.IntN(len(names))])
			}
		})
	}
	reach := func(n int64) {
		harness.Eventually(t, 2*time.Minute, "more changes", func() error { return atLeast(h.Begun(), n) })
	}
	reach(80)
	leader(t, c).Kill()
	reach(150)
	c.Etcd[0].Kill()
	reach(220)
	c.Etcd[0].Start()
	for _, a := range c.Admins {
		if !a.Running() {
			a.Start()
		}
	}
	harness.Set(harness.Blackhole, c.Links.Etcd[1]...)
	reach(290)
	harness.Set(harness.Deaf, c.Links.Etcd[1]...)
	reach(330)
	harness.Set(harness.Healed, c.Links.Etcd[1]...)
	reach(400)
	harness.Set(harness.Cut, c.Links.Etcd[2]...)
	reach(440)
	harness.Set(harness.Healed, c.Links.Etcd[2]...)
	wg.Wait()
	c.WaitReady(time.Minute)
	for _, p := range h.Check(ctx, t, c.Admins[2], 150) {
		t.Error(p)
	}
	sameEverywhere(ctx, t, c, names)
}

// sameEverywhere holds what the replicas tell of namespaces against each other, and waits until every owner serves it.
func sameEverywhere(ctx context.Context, t *testing.T, c *harness.Cluster, names []string) {
	t.Helper()
	for _, n := range names {
		var first *configv1.NamespaceResponse
		for i, a := range c.Admins {
			harness.Eventually(t, 20*time.Second, fmt.Sprintf("admin-%d tells the same of %s", i, n), func() error {
				got, err := a.Control.GetNamespace(ctx, &controlv1.GetNamespaceRequest{Namespace: n})
				if err != nil && status.Code(err) != codes.NotFound {
					return err
				}
				if i == 0 {
					first = got.GetNamespace()
				}
				if got.GetNamespace().GetVersion() != first.GetVersion() {
					return fmt.Errorf("%q, and at admin-0 %q", got.GetNamespace().GetVersion(), first.GetVersion())
				}
				return nil
			})
		}
		if first != nil {
			c.WaitLive(ctx, n, first.GetSnapshotVersion())
		}
	}
}

// leader returns the replica that is elected, once there is one.
func leader(t *testing.T, c *harness.Cluster) (elected *harness.Admin) {
	t.Helper()
	harness.Eventually(t, 30*time.Second, "a replica leads", func() error {
		for _, a := range c.Admins {
			if a.Running() && metric(c.Get(a.HTTPAddress, "/metrics"), "prism_store_leader") == "1" {
				elected = a
				return nil
			}
		}
		return fmt.Errorf("none of %d does", len(c.Admins))
	})
	return elected
}

func atLeast(got, want int64) error {
	if got < want {
		return fmt.Errorf("%d of %d", got, want)
	}
	return nil
}

// onRedis is a namespace on Redis.
func onRedis(name string) *configv1.NamespaceRequest { return keyvalue(name, "redis-main", "redis") }
