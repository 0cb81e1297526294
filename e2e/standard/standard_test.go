// Package standard_test proves that clients that know nothing of Prism find the owners of a namespace by standard xDS.
package standard_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/xds"

	"github.com/prism-gateway/prism/e2e/harness"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/ident"
	"github.com/prism-gateway/prism/shared/testserver/redisserver"
)

const partitions = 64

// start runs three proxies and gives them namespaces on Redis.
func start(ctx context.Context, t *testing.T, namespaces ...string) *harness.Cluster {
	redis := redisserver.Start(t, redisserver.Options{})
	c := harness.Start(t, harness.Options{
		Partitions: partitions, Owners: 2,
		Backends: []*configv1.Backend{{Name: "redis-main", Type: "redis", Endpoints: []string{redis.Addr()}}},
	})
	var requests []*configv1.NamespaceRequest
	for _, name := range namespaces {
		requests = append(requests, &configv1.NamespaceRequest{Namespace: name, Team: "e2e", Patterns: []*configv1.Pattern{{
			Name: "data", Type: "keyvalue", Needs: &configv1.Needs{Durability: configv1.Durability_DURABILITY_RELAXED},
			Slots: []*configv1.Slot{{Name: "storage-redis", Prefer: &configv1.Preference{Backend: "redis-main"}}},
		}}})
	}
	c.Apply(ctx, requests...)
	return c
}

// target is what follows xds:/// for a namespace.
func target(namespace string) string {
	return fmt.Sprintf("prism.p.%04d", ident.PartitionOf(namespace, partitions))
}

// load calls a namespace until it is stopped: it writes a value and reads it.
type load struct {
	calls   atomic.Int64
	mu      sync.Mutex // guards the rest
	failed  []error
	running sync.WaitGroup
	cancel  context.CancelFunc
}

func begin(ctx context.Context, namespace string, client datav1.KeyValueClient, callers int) *load {
	ctx, cancel := context.WithCancel(ctx)
	l := &load{cancel: cancel}
	for n := range callers {
		l.running.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				if err := l.once(namespace, client, fmt.Sprint(n), fmt.Sprint(i)); err != nil {
					l.mu.Lock()
					l.failed = append(l.failed, err)
					l.mu.Unlock()
				}
			}
		})
	}
	return l
}

// once is not ended by the end of the test: a call is let come to its end.
func (l *load) once(namespace string, client datav1.KeyValueClient, id, value string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	l.calls.Add(1)
	if _, err := client.Put(ctx, &datav1.PutRequest{Namespace: namespace, Id: []byte(id), Key: []byte("k"), Value: []byte(value)}); err != nil {
		return fmt.Errorf("put: %w", err)
	}
	l.calls.Add(1)
	if _, err := client.Get(ctx, &datav1.GetRequest{Namespace: namespace, Id: []byte(id), Key: []byte("k")}); err != nil {
		return fmt.Errorf("get: %w", err)
	}
	return nil
}

// more waits until so many more calls were made.
func (l *load) more(t *testing.T, n int64) {
	t.Helper()
	until := l.calls.Load() + n
	harness.Eventually(t, time.Minute, "calls", func() error {
		if now := l.calls.Load(); now < until {
			return fmt.Errorf("%d of %d", now, until)
		}
		return nil
	})
}

func (l *load) stop() (int64, error) {
	l.cancel()
	l.running.Wait()
	return l.calls.Load(), errors.Join(l.failed[:min(len(l.failed), 10)]...)
}

// moveOwners kills a proxy that owns a namespace first, adds one, and kills the next that does, while calls go on.
func moveOwners(t *testing.T, c *harness.Cluster, namespace string, loads ...*load) {
	t.Helper()
	calls := func() {
		for _, l := range loads {
			l.more(t, 200)
		}
	}
	calls()
	for range 2 {
		harness.Eventually(t, time.Minute, "the first owner of "+namespace, func() error {
			var seen []string
			for _, proxy := range c.Proxies {
				if !proxy.Running() {
					continue
				}
				dump, err := proxy.Dump()
				if err != nil {
					return err
				}
				for _, held := range dump.Partitions {
					if held.Partition == ident.PartitionOf(namespace, partitions).String() {
						seen = append(seen, fmt.Sprint(proxy.ID, " at rank ", held.Rank))
						if held.Rank == 0 {
							proxy.Kill()
							return nil
						}
					}
				}
			}
			return fmt.Errorf("held by %q", seen)
		})
		calls()
		c.WaitSettled(time.Minute)
		calls()
		c.Join()
		c.WaitSettled(time.Minute)
		calls()
	}
}

func TestGRPCClientFollowsOwners(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	c := start(ctx, t, "orders", "invoices")
	resolver, err := xds.NewXDSResolverWithConfigForTesting([]byte(fmt.Sprintf(`{
		"xds_servers": [{"server_uri": %q, "channel_creds": [{"type": "insecure"}], "server_features": ["xds_v3"]}],
		"node": {"id": "e2e"}
	}`, c.Admin().FleetAddress)))
	if err != nil {
		t.Fatal(err)
	}
	var loads []*load
	for _, namespace := range []string{"orders", "invoices"} {
		conn, err := grpc.NewClient("xds:///"+target(namespace), grpc.WithResolvers(resolver), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		loads = append(loads, begin(ctx, namespace, datav1.NewKeyValueClient(conn), 4))
	}
	moveOwners(t, c, "orders", loads...)
	for _, l := range loads {
		calls, err := l.stop()
		t.Logf("%d calls, %d failed", calls, len(l.failed))
		if err != nil {
			t.Errorf("calls failed: %v", err)
		}
	}
}
