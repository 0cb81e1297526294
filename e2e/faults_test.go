package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/prism-gateway/prism/e2e/harness"
	"github.com/prism-gateway/prism/e2e/history"
	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/fault/faultgrpc"
)

// TestControlPlaneFaults breaks the control plane in one way after the other, while clients that never try again use
// namespaces through every proxy, and others change namespaces through every replica. No call fails or is answered from
// elsewhere, no acknowledged change is lost, and after each fault a change reaches every owner.
func TestControlPlaneFaults(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	c := harness.Start(t, harness.Options{Admins: 3, Etcd: 3, Relays: true, Backends: backends(t)})
	steady := []string{"steady-0", "steady-1", "steady-2", "steady-3"}
	var all []*configv1.NamespaceRequest
	for _, n := range steady {
		all = append(all, keyvalue(n, "redis-main", "redis"))
	}
	const bulk = 1000 // enough that loading everything again would show
	for i := range bulk {
		r := keyvalue(fmt.Sprintf("bulk-%04d", i), "redis-main", "redis")
		r.Description = strings.Repeat("x", 1000)
		all = append(all, r)
	}
	if _, err := c.Admin().Control.ApplyNamespaces(ctx, applying(all...)); err != nil {
		t.Fatal(err)
	}
	for _, n := range steady {
		change(ctx, t, c.Admins[0], n)
	}
	traffic := harness.StartTraffic(ctx, 4, harness.Traffic{Proxies: clients(c), Namespaces: steady, Exact: true})
	h, changing := history.New(history.Config{Request: onRedis}), []string{"changing-0", "changing-1", "changing-2"}
	writing, stop := context.WithCancel(ctx)
	var writers sync.WaitGroup
	for w := range 3 {
		writers.Go(func() {
			random := rand.New(rand.NewPCG(11, uint64(w)))
			for writing.Err() == nil {
				h.Attempt(ctx, random, c.Admins[random.IntN(len(c.Admins))], w, changing[random.IntN(len(changing))])
				time.Sleep(20 * time.Millisecond) // a pace that leaves the machine to the proxies
			}
		})
	}
	goesOn := func(t *testing.T) {
		t.Helper()
		waitCalls(ctx, t, traffic, traffic.Calls()+200)
	}

	t.Run("the leading replica is killed", func(t *testing.T) {
		killed := leader(t, c)
		killed.Kill()
		change(ctx, t, c.Admin(), steady[0])
		goesOn(t)
		killed.Start()
		c.WaitReady(30 * time.Second)
		leader(t, c)
	})
	t.Run("the leading etcd node is killed", func(t *testing.T) {
		killed := etcdLeader(ctx, t, c)
		c.Etcd[killed].Kill()
		change(ctx, t, c.Admins[1], steady[1])
		goesOn(t)
		c.Etcd[killed].Start()
	})
	t.Run("a replica is cut off from etcd", func(t *testing.T) {
		cut, other := c.Admins[0], c.Admins[1]
		read, err := cut.Control.GetNamespace(ctx, &controlv1.GetNamespaceRequest{Namespace: steady[0]})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { harness.Set(harness.Healed, c.Links.Etcd[0]...) })
		harness.Set(harness.Blackhole, c.Links.Etcd[0]...)
		told := map[string]fault.Outcome{}
		for i := range 3 {
			message := fmt.Sprintf("cut off %d", i)
			r := keyvalue(steady[0], "redis-main", "redis")
			r.Description = message
			// The replica answers within 2 s; a caller that waits twice as long hears it from the replica.
			call, end := context.WithTimeout(ctx, 4*time.Second)
			began := time.Now()
			_, err := cut.Control.UpdateNamespace(call, &controlv1.UpdateNamespaceRequest{
				Request: r, Version: read.GetNamespace().GetVersion(), Note: &controlv1.ChangeNote{Author: "e2e", Message: message},
			})
			end()
			told[message] = faultgrpc.FromStatus(err).Outcome
			t.Logf("a write was answered after %v: %v, outcome %q", time.Since(began).Round(10*time.Millisecond), err, told[message])
			if status.Code(err) != codes.Unavailable || told[message] == "" {
				t.Errorf("the answer to a write is %v, outcome %q", err, told[message])
			}
		}
		// A proxy that comes now and finds only this replica is given what the replica has.
		late := c.Join()
		harness.Set(harness.Cut, c.Links.Fleet[len(c.Links.Fleet)-1][1:]...)
		harness.Eventually(t, 30*time.Second, "a new proxy is given the assignment", func() error {
			if body, err := late.Dump(); err != nil || body.Epoch == 0 {
				return fmt.Errorf("epoch %d, %v", body.Epoch, err)
			}
			return nil
		})
		for _, f := range []func() error{
			func() error {
				_, err := cut.Control.ListNamespaces(ctx, &controlv1.ListNamespacesRequest{})
				return err
			},
			func() error { _, err := cut.Operator.ListProxies(ctx, listAll); return err },
			func() error {
				_, err := cut.Operator.GetOwners(ctx, &adminv1.GetOwnersRequest{Namespace: steady[0]})
				return err
			},
			func() error {
				out, err := cut.Control.GetNamespace(ctx, &controlv1.GetNamespaceRequest{Namespace: steady[1], WithStatus: true})
				if err == nil && len(out.GetNamespace().GetStatus().GetOwners()) == 0 {
					err = errors.New("no status")
				}
				return err
			},
			func() error {
				stream, err := cut.Control.WatchNamespaceStatus(ctx, &controlv1.WatchNamespaceStatusRequest{Namespace: steady[0]})
				if err == nil {
					_, err = stream.Recv()
				}
				return err
			},
		} {
			if err := f(); err != nil {
				t.Errorf("it does not read: %v", err)
			}
		}
		goesOn(t)
		apply(ctx, t, other, steady[2])
		harness.Set(harness.Healed, c.Links.Etcd[0]...)
		harness.Set(harness.Healed, c.Links.Fleet[len(c.Links.Fleet)-1]...)
		change(ctx, t, cut, steady[0])
		page, err := other.Operator.NamespaceHistory(ctx, &adminv1.NamespaceHistoryRequest{Namespace: steady[0], PageSize: 1000})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range page.GetSnapshots() {
			for _, ch := range s.GetChanges() {
				if told[ch.GetMessage()] == fault.NotApplied {
					t.Errorf("%q was told to be not applied and is in snapshot %d", ch.GetMessage(), s.GetVersion())
				}
			}
		}
	})
	t.Run("the proxies are cut off from all replicas", func(t *testing.T) {
		all := slices.Concat(c.Links.Fleet...)
		t.Cleanup(func() { harness.Set(harness.Healed, all...) })
		harness.Set(harness.Blackhole, all...)
		version := apply(ctx, t, c.Admins[1], steady[3])
		harness.Eventually(t, time.Minute, "the proxies know that they are alone", func() error {
			for _, p := range c.Proxies {
				if metric(c.Get(p.HTTPAddress, "/metrics"), "prism_subscribe_connected") != "0" {
					return fmt.Errorf("%s does not", p.ID)
				}
			}
			return nil
		})
		goesOn(t)
		harness.Set(harness.Healed, all...)
		c.WaitSettled(time.Minute)
		live(ctx, t, c.Admins[1], steady[3], version)
	})
	t.Run("etcd forgets what a replica has missed", func(t *testing.T) {
		missing := c.Admins[2]
		t.Cleanup(func() { harness.Set(harness.Healed, c.Links.Etcd[2]...) })
		harness.Set(harness.Blackhole, c.Links.Etcd[2]...)
		for i := range 20 {
			apply(ctx, t, c.Admins[i%2], steady[i%len(steady)])
		}
		etcd := etcdClient(t, c)
		at, err := etcd.Get(ctx, "/prism/head")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := etcd.Compact(ctx, at.Header.GetRevision()); err != nil {
			t.Fatal(err)
		}
		carried := func() (n int64) {
			for _, l := range c.Links.Etcd[2] {
				n += l.Carried()
			}
			return n
		}
		before := carried()
		harness.Set(harness.Healed, c.Links.Etcd[2]...)
		change(ctx, t, missing, steady[0])
		if got := carried() - before; got > bulk*500 {
			t.Errorf("%d bytes were read after the gap, about as much as all of it", got)
		} else {
			t.Logf("%d bytes were read after the gap", got)
		}
	})
	stop()
	writers.Wait()
	calls, problems := traffic.Stop()
	none(t, "five faults of the control plane", calls, problems)
	c.WaitReady(time.Minute)
	for _, p := range h.Check(ctx, t, c.Admins[1], 50) {
		t.Error(p)
	}
	sameEverywhere(ctx, t, c, append(changing, steady...))
}

// TestEtcdWiped removes all that etcd holds from under a running fleet. Nothing is published in its place, no write is
// taken, the proxies go on, and each replica says what has happened and what to do; one that is restarted over the empty
// store waits for a backup.
func TestEtcdWiped(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	c := harness.Start(t, harness.Options{Admins: 2, Etcd: 3, Backends: backends(t)})
	c.Apply(ctx, keyvalue("kept", "redis-main", "redis"))
	write := updating(ctx, t, c.Admins[0], "kept")
	traffic := harness.StartTraffic(ctx, 4, harness.Traffic{Proxies: clients(c), Namespaces: []string{"kept"}, Exact: true})
	waitCalls(ctx, t, traffic, 200)
	for i, e := range c.Etcd {
		e.Kill()
		if err := os.RemoveAll(filepath.Join(c.Dir, fmt.Sprintf("etcd%d", i))); err != nil {
			t.Fatal(err)
		}
	}
	for _, e := range c.Etcd {
		e.Start()
	}
	for i, a := range c.Admins {
		harness.Eventually(t, time.Minute, fmt.Sprintf("admin-%d says what to do", i), func() error {
			_, err := a.Control.UpdateNamespace(ctx, write)
			if err == nil {
				t.Fatal("a write was taken")
			}
			if log := string(a.Log()); !strings.Contains(log, "restore etcd from a backup") {
				return fmt.Errorf("the log does not; a write is answered %w", err)
			}
			if metric(c.Get(a.HTTPAddress, "/metrics"), "prism_store_ready") != "0" {
				return fmt.Errorf("it counts as following the store")
			}
			return nil
		})
		if out, err := a.Control.ListNamespaces(ctx, &controlv1.ListNamespacesRequest{}); err != nil || out.GetTotalCount() != 1 {
			t.Errorf("admin-%d lists %v, %v", i, out, err)
		}
	}
	waitCalls(ctx, t, traffic, traffic.Calls()+200)

	c.Admins[0].Kill()
	c.Admins[0].Start()
	waitCalls(ctx, t, traffic, traffic.Calls()+400)
	c.Admins[1].Kill()
	harness.Eventually(t, time.Minute, "the restarted replica waits for a backup", func() error {
		if err := c.Admins[0].Ready(); err == nil || !strings.Contains(err.Error(), "holds no installation") {
			return fmt.Errorf("/readyz: %w", err)
		}
		return nil
	})
	for _, p := range c.Proxies {
		if metric(c.Get(p.HTTPAddress, "/metrics"), "prism_subscribe_connected") != "0" {
			t.Errorf("%s follows a control plane that lost everything", p.ID)
		}
	}
	waitCalls(ctx, t, traffic, traffic.Calls()+200)
	calls, problems := traffic.Stop()
	none(t, "etcd wiped", calls, problems)
}

func applying(requests ...*configv1.NamespaceRequest) *controlv1.ApplyNamespacesRequest {
	in := &controlv1.ApplyNamespacesRequest{Note: &controlv1.ChangeNote{Author: "e2e"}}
	for _, r := range requests {
		in.Changes = append(in.Changes, &controlv1.NamespaceChange{Request: r})
	}
	return in
}

// updating is a change of a namespace that its owners will notice.
func updating(ctx context.Context, t *testing.T, a *harness.Admin, namespace string) *controlv1.UpdateNamespaceRequest {
	t.Helper()
	read, err := a.Control.GetNamespace(ctx, &controlv1.GetNamespaceRequest{Namespace: namespace})
	if err != nil {
		t.Fatal(err)
	}
	r := read.GetNamespace().GetRequest()
	if r.Limits == nil {
		r.Limits = &configv1.Limits{Concurrency: 1000}
	}
	r.Limits.Concurrency++
	return &controlv1.UpdateNamespaceRequest{Request: r, Version: read.GetNamespace().GetVersion(), Note: &controlv1.ChangeNote{Author: "e2e"}}
}

// apply changes a namespace through a replica, as often as it says to come back, and returns the snapshot.
func apply(ctx context.Context, t *testing.T, a *harness.Admin, namespace string) (snapshot uint64) {
	t.Helper()
	harness.Eventually(t, time.Minute, "a change of "+namespace, func() error {
		out, err := a.Control.UpdateNamespace(ctx, updating(ctx, t, a, namespace))
		snapshot = out.GetNamespace().GetSnapshotVersion()
		return err
	})
	return snapshot
}

// live waits until every owner serves a snapshot of a namespace, as a replica tells it.
func live(ctx context.Context, t *testing.T, a *harness.Admin, namespace string, snapshot uint64) {
	t.Helper()
	harness.Eventually(t, time.Minute, namespace+" is live", func() error {
		out, err := a.Control.GetNamespace(ctx, &controlv1.GetNamespaceRequest{Namespace: namespace, WithStatus: true})
		if err != nil {
			return err
		}
		if s := out.GetNamespace().GetStatus(); !s.GetLive() || s.GetSnapshotVersion() < snapshot || len(s.GetOwners()) == 0 {
			return fmt.Errorf("snapshot %d wanted: %v", snapshot, s)
		}
		return nil
	})
}

// change changes a namespace through a replica and waits until every owner serves it.
func change(ctx context.Context, t *testing.T, a *harness.Admin, namespace string) {
	t.Helper()
	live(ctx, t, a, namespace, apply(ctx, t, a, namespace))
}

func etcdClient(t *testing.T, c *harness.Cluster) *clientv3.Client {
	t.Helper()
	etcd, err := clientv3.New(clientv3.Config{Endpoints: c.EtcdEndpoints, DialTimeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = etcd.Close() })
	return etcd
}

// etcdLeader returns which node leads.
func etcdLeader(ctx context.Context, t *testing.T, c *harness.Cluster) (leader int) {
	t.Helper()
	etcd := etcdClient(t, c)
	harness.Eventually(t, 30*time.Second, "an etcd node leads", func() error {
		for i, endpoint := range c.EtcdEndpoints {
			out, err := etcd.Status(ctx, endpoint)
			if err != nil {
				return err
			}
			if out.Leader == out.Header.GetMemberId() {
				leader = i
				return nil
			}
		}
		return fmt.Errorf("none of %d does", len(c.Etcd))
	})
	return leader
}
