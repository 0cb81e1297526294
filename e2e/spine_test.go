// Package e2e_test proves the real programs against real servers, as their users meet them.
package e2e_test

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/prism-gateway/prism/e2e/harness"
	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/testserver/redisserver"
)

// keyvalue is a namespace bound to one backend.
func keyvalue(name, backend, backendType string) *configv1.NamespaceRequest {
	return &configv1.NamespaceRequest{Namespace: name, Team: "e2e", Patterns: []*configv1.Pattern{{
		Name: "data", Type: "keyvalue",
		Needs: &configv1.Needs{Durability: configv1.Durability_DURABILITY_RELAXED, Interfaces: []string{"keyvalue.scan"}},
		Slots: []*configv1.Slot{{Name: "storage-" + backendType, Prefer: &configv1.Preference{Backend: backend}}},
	}}}
}

// backends are a Redis server and a SQLite file.
func backends(t *testing.T) []*configv1.Backend {
	redis := redisserver.Start(t, redisserver.Options{})
	return []*configv1.Backend{
		{Name: "redis-main", Type: "redis", Endpoints: []string{redis.Addr()}},
		{Name: "sqlite-main", Type: "sqlite", Endpoints: []string{filepath.Join(t.TempDir(), "main.db")}},
		{Name: "memory-main", Type: "memory"},
	}
}

func clients(c *harness.Cluster) (all []datav1.KeyValueClient) {
	for _, p := range c.Proxies {
		all = append(all, p.KeyValue)
	}
	return all
}

func none(t *testing.T, what string, calls int64, problems []string) {
	t.Helper()
	t.Logf("%s: %d calls, %d problems", what, calls, len(problems))
	for i, p := range problems {
		if i == 20 {
			t.Errorf("and %d more", len(problems)-i)
			break
		}
		t.Error(p)
	}
	if calls < 100 {
		t.Errorf("%s: only %d calls: the test proves nothing", what, calls)
	}
}

// TestChangesUnderTraffic changes a namespace 200 times, rolls it all back, and deletes another one, while clients
// use it and its neighbours through every proxy: no call fails and no answer is another namespace's.
func TestChangesUnderTraffic(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	c := harness.Start(t, harness.Options{Backends: backends(t)})
	first := c.Apply(ctx, keyvalue("moving", "redis-main", "redis"), keyvalue("standing", "redis-main", "redis"),
		keyvalue("filed", "sqlite-main", "sqlite"), keyvalue("leaving", "redis-main", "redis"))

	traffic := harness.StartTraffic(ctx, 8, harness.Traffic{Proxies: clients(c), Namespaces: []string{"moving", "standing", "filed"}})
	waitCalls(ctx, t, traffic, 500)
	var last uint64
	for n := range 200 {
		req := keyvalue("moving", "redis-main", "redis")
		if n%2 == 0 {
			req = keyvalue("moving", "sqlite-main", "sqlite")
		}
		req.Limits = &configv1.Limits{Concurrency: uint32(1000 + n)}
		out, err := c.Admin().Control.ApplyNamespaces(ctx, &controlv1.ApplyNamespacesRequest{Changes: []*controlv1.NamespaceChange{{Request: req}}})
		if err != nil {
			t.Fatalf("change %d: %v", n, err)
		}
		last = out.GetSnapshotVersion()
		if n%10 == 9 { // most changes follow each other at once; now and then one is waited for
			c.WaitLive(ctx, "moving", last)
		}
	}
	c.WaitLive(ctx, "moving", last)
	if want := first.GetSnapshotVersion() + 200; last != want {
		t.Errorf("after 200 changes the snapshot is %d, want %d", last, want)
	}

	back, err := c.Admin().Operator.RollbackSnapshot(ctx, &adminv1.RollbackSnapshotRequest{ToVersion: first.GetSnapshotVersion(), Note: &controlv1.ChangeNote{Author: "e2e"}})
	if err != nil {
		t.Fatalf("rollback: %v", err)
	}
	c.WaitLive(ctx, "moving", back.GetSnapshot().GetVersion())
	was, err := c.Admin().Operator.GetSnapshot(ctx, &adminv1.GetSnapshotRequest{Version: first.GetSnapshotVersion()})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := back.GetSnapshot().GetRoot(), was.GetSnapshot().GetRoot(); got != want {
		t.Errorf("after the rollback the root is %s, want %s", got, want)
	}
	if _, err := c.Admin().Control.DeleteNamespace(ctx, &controlv1.DeleteNamespaceRequest{Namespace: "leaving"}); err != nil {
		t.Fatalf("delete: %v", err)
	}
	waitCalls(ctx, t, traffic, traffic.Calls()+500)
	calls, problems := traffic.Stop()
	none(t, "200 changes, a rollback and a deletion", calls, problems)

	for _, p := range c.Proxies {
		harness.Eventually(t, 5*time.Second, "the deleted namespace is gone from "+p.ID, func() error {
			_, err := p.KeyValue.Get(ctx, &datav1.GetRequest{Namespace: "leaving", Id: []byte("x")})
			if status.Code(err) == codes.NotFound {
				return nil
			}
			return status.Errorf(codes.Internal, "got %v", err)
		})
	}
}

func waitCalls(ctx context.Context, t *testing.T, tr *harness.Load, n int64) {
	t.Helper()
	harness.Eventually(t, 60*time.Second, "calls", func() error {
		if tr.Calls() >= n {
			return nil
		}
		if ctx.Err() != nil {
			t.Fatal(ctx.Err())
		}
		return status.Errorf(codes.Internal, "%d of %d", tr.Calls(), n)
	})
}

// TestEveryProxyAnswers writes through each proxy and reads through each other, owner or not.
func TestEveryProxyAnswers(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c := harness.Start(t, harness.Options{Proxies: 4, Owners: 2, Backends: backends(t)})
	names := map[string]string{"on-redis": "redis", "on-sqlite": "sqlite", "on-memory": "memory"}
	for name, backend := range names {
		r := keyvalue(name, backend+"-main", backend)
		if backend == "memory" {
			r.Patterns[0].Needs.Durability = configv1.Durability_DURABILITY_NONE
		}
		c.Apply(ctx, r)
	}
	for name := range names {
		for _, w := range c.Proxies {
			value := []byte(name + " through " + w.ID)
			if _, err := w.KeyValue.Put(ctx, &datav1.PutRequest{Namespace: name, Id: []byte(w.ID), Key: []byte{0, 255}, Value: value}); err != nil {
				t.Fatalf("put %s through %s: %v", name, w.ID, err)
			}
			for _, r := range c.Proxies {
				out, err := r.KeyValue.Get(ctx, &datav1.GetRequest{Namespace: name, Id: []byte(w.ID), Key: []byte{0, 255}})
				if err != nil || string(out.GetItem().GetValue()) != string(value) {
					t.Errorf("get %s through %s: %q, %v; want %q", name, r.ID, out.GetItem().GetValue(), err, value)
				}
			}
		}
	}
}
