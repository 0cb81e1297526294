package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/prism-gateway/prism/e2e/harness"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/client"
)

// TestControlPlaneGone kills prism-admin: the proxies go on; one that is restarted meanwhile serves from disk; when the
// control plane is back nothing is sent again that has not changed.
func TestControlPlaneGone(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	c := harness.Start(t, harness.Options{Backends: backends(t)})
	names := []string{"kept-one", "kept-two", "kept-three"}
	for _, n := range names {
		c.Apply(ctx, keyvalue(n, "redis-main", "redis"))
	}
	third := c.Proxies[2]
	harness.Eventually(t, 10*time.Second, "what the proxies have is on disk", func() error {
		if got := metric(c.Get(third.HTTPAddress, "/metrics"), "prism_subscribe_unsaved"); got != "0" {
			return fmt.Errorf("unsaved is %q", got)
		}
		return nil
	})
	c.Admins[0].Kill()

	traffic := harness.StartTraffic(ctx, 4, harness.Traffic{Proxies: clients(c)[:2], Namespaces: names, Exact: true})
	waitCalls(ctx, t, traffic, 300)
	third.Kill()
	third.Start()
	harness.Eventually(t, 20*time.Second, "a proxy restarted without a control plane is ready", third.Ready)
	for _, n := range names {
		if _, err := third.KeyValue.Put(ctx, &datav1.PutRequest{Namespace: n, Id: []byte("from disk"), Value: []byte(n)}, grpc.WaitForReady(true)); err != nil {
			t.Errorf("put %s: %v", n, err)
		}
	}

	c.Admins[0].Start()
	c.WaitReady(30 * time.Second)
	harness.Eventually(t, 30*time.Second, "the proxies are connected again", func() error {
		for _, p := range c.Proxies {
			if metric(c.Get(p.HTTPAddress, "/metrics"), "prism_subscribe_connected") != "1" {
				return fmt.Errorf("%s is not", p.ID)
			}
		}
		return nil
	})
	waitCalls(ctx, t, traffic, traffic.Calls()+300)
	calls, problems := traffic.Stop()
	none(t, "without a control plane", calls, problems)

	// What is sent after the restart is counted by the new process from zero: the proxies had everything. The change below
	// shows that the counter counts, and that all is well.
	before := metric(c.Get(c.Admins[0].HTTPAddress, "/metrics"), `prism_push_resources_total{kind="namespace"}`)
	if before != "0" && before != "" {
		t.Errorf("%s resources were sent again though nothing had changed", before)
	}
	changed := keyvalue("kept-one", "redis-main", "redis")
	changed.Limits = &configv1.Limits{Concurrency: 77}
	c.Apply(ctx, changed)
	if after := metric(c.Get(c.Admins[0].HTTPAddress, "/metrics"), `prism_push_resources_total{kind="namespace"}`); after != "6" {
		t.Errorf("after one change %q resources were sent, want 6: the namespace and the sentinel to each owner", after)
	}
}

// metric returns the value of the sample of that name, with its labels.
func metric(metrics, name string) string {
	for line := range strings.Lines(metrics) {
		if sample, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && sample == name {
			return value
		}
	}
	return ""
}

// TestProxyKilled kills a proxy under load: a client that retries loses nothing; the partitions move to the others, and
// back when it returns.
func TestProxyKilled(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	c := harness.Start(t, harness.Options{Proxies: 4, Owners: 2, Backends: backends(t)})
	var names []string
	for i := range 8 {
		names = append(names, fmt.Sprintf("spread-%d", i))
		c.Apply(ctx, keyvalue(names[i], "redis-main", "redis"))
	}
	var addresses []string
	for _, p := range c.Proxies {
		addresses = append(addresses, p.Address)
	}
	retrying, err := client.Dial(client.Config{Endpoints: addresses})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = retrying.Close() })
	traffic := harness.StartTraffic(ctx, 4, harness.Traffic{Proxies: []datav1.KeyValueClient{retrying.KeyValue}, Namespaces: names, Retry: true, Exact: true})
	waitCalls(ctx, t, traffic, 300)

	victim := c.Proxies[1]
	victim.Kill()
	waitCalls(ctx, t, traffic, traffic.Calls()+300)
	owned := func(id string) (n uint32, moving bool, err error) {
		out, err := c.Admin().Operator.ListProxies(ctx, listAll)
		if err != nil {
			return 0, false, err
		}
		for _, p := range out.GetProxies() {
			if p.GetMember().GetId() == id {
				n = p.GetOwned()
			}
		}
		return n, out.GetMoving(), nil
	}
	harness.Eventually(t, 30*time.Second, "the partitions have moved away", func() error {
		n, moving, err := owned(victim.ID)
		if err != nil || n > 0 || moving {
			return fmt.Errorf("%d owned, moving %v, %v", n, moving, err)
		}
		return nil
	})
	waitCalls(ctx, t, traffic, traffic.Calls()+300)
	victim.Start()
	harness.Eventually(t, 30*time.Second, "the partitions have come back", func() error {
		n, moving, err := owned(victim.ID)
		if err != nil || n == 0 || moving {
			return fmt.Errorf("%d owned, moving %v, %v", n, moving, err)
		}
		return nil
	})
	waitCalls(ctx, t, traffic, traffic.Calls()+300)
	calls, problems := traffic.Stop()
	none(t, "a proxy killed and back", calls, problems)
}

// TestProxyStopsGracefully stops a proxy with SIGTERM under load: calls under way end well, and a retrying client sees
// no failure.
func TestProxyStopsGracefully(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c := harness.Start(t, harness.Options{Backends: backends(t)})
	c.Apply(ctx, keyvalue("served", "redis-main", "redis"))
	var addresses []string
	for _, p := range c.Proxies {
		addresses = append(addresses, p.Address)
	}
	retrying, err := client.Dial(client.Config{Endpoints: addresses})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = retrying.Close() })
	traffic := harness.StartTraffic(ctx, 4, harness.Traffic{Proxies: []datav1.KeyValueClient{retrying.KeyValue}, Namespaces: []string{"served"}, Retry: true, Exact: true})
	waitCalls(ctx, t, traffic, 200)
	if !c.Proxies[0].Stop(20 * time.Second) {
		t.Error("the proxy did not stop by itself")
	}
	waitCalls(ctx, t, traffic, traffic.Calls()+200)
	calls, problems := traffic.Stop()
	none(t, "a proxy stopped", calls, problems)
}

// TestDamagedStateIsRefetched damages every file of a proxy's last good state: it says so, takes nothing of it for
// good, and fetches it again.
func TestDamagedStateIsRefetched(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c := harness.Start(t, harness.Options{Backends: backends(t)})
	c.Apply(ctx, keyvalue("precious", "redis-main", "redis"))
	p := c.Proxies[0]
	if _, err := p.KeyValue.Put(ctx, &datav1.PutRequest{Namespace: "precious", Id: []byte("a"), Value: []byte("b")}); err != nil {
		t.Fatal(err)
	}
	p.Kill()
	damaged := 0
	err := filepath.WalkDir(p.StateDir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil || len(data) == 0 {
			return err
		}
		data[len(data)/2] ^= 0x40
		damaged++
		return os.WriteFile(path, data, 0o600)
	})
	if err != nil || damaged == 0 {
		t.Fatalf("damaged %d files: %v", damaged, err)
	}
	p.Start()
	harness.Eventually(t, 20*time.Second, "the proxy is ready again", p.Ready)
	out, err := p.KeyValue.Get(ctx, &datav1.GetRequest{Namespace: "precious", Id: []byte("a")}, grpc.WaitForReady(true))
	if err != nil || string(out.GetItem().GetValue()) != "b" {
		t.Errorf("get: %v, %v", out, err)
	}
	if log := string(p.Log()); !strings.Contains(log, "is refused and will be fetched anew") {
		t.Error("the log does not tell that it was refused")
	}
}

// TestRejectedVersionShows binds a namespace to a backend that the proxies cannot open: the namespace's status says
// which field and why, within a second or so, and the version before goes on serving.
func TestRejectedVersionShows(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	bad := &configv1.Backend{Name: "sqlite-bad", Type: "sqlite", Endpoints: []string{"/nonexistent-directory/of/prism.db"}}
	c := harness.Start(t, harness.Options{Backends: append(backends(t), bad)})
	c.Apply(ctx, keyvalue("watched", "redis-main", "redis"))
	out, err := c.Admin().Control.ApplyNamespaces(ctx, &controlv1.ApplyNamespacesRequest{Changes: []*controlv1.NamespaceChange{{Request: keyvalue("watched", "sqlite-bad", "sqlite")}}})
	if err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 10*time.Second, "the status says what is wrong", func() error {
		got, err := c.Admin().Control.GetNamespace(ctx, &controlv1.GetNamespaceRequest{Namespace: "watched", WithStatus: true})
		if err != nil {
			return err
		}
		s := got.GetNamespace().GetStatus()
		if s.GetLive() || s.GetSnapshotVersion() < out.GetSnapshotVersion() || !strings.Contains(s.GetSummary(), "sqlite-bad") {
			return errors.New(s.String())
		}
		return nil
	})
}
