package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/prism-gateway/prism/e2e/harness"
	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"
	bootstrapv1 "github.com/prism-gateway/prism/protos/prism/bootstrap/v1"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
)

// inWaves is a policy of short waves for changes of what is in use.
func inWaves(soak time.Duration) func(*bootstrapv1.AdminConfig) {
	return func(c *bootstrapv1.AdminConfig) {
		p := &configv1.ReleasePolicy{
			FirstPercent: 5, Soak: durationpb.New(soak), Silence: durationpb.New(20 * time.Second), MinCalls: 20, MaxLatencyFactor: 1000,
		}
		c.Release = &bootstrapv1.ReleaseConfig{Scoped: p, Shared: p, Rollback: p}
	}
}

// withoutSQLite builds a prism-proxy that has no driver for SQLite, as one of an older build has none for what came later:
// it refuses namespaces that the control plane accepts.
func withoutSQLite(t *testing.T) string {
	t.Helper()
	drivers := filepath.Join(harness.Root(t), "dataplane", "driver", "builtin", "builtin.go")
	text, err := os.ReadFile(drivers)
	if err != nil {
		t.Fatal(err)
	}
	fewer := regexp.MustCompile(`(?m)^.*driver/sqlite".*\n|sqlite\.Driver\(\),? ?`).ReplaceAll(text, nil)
	if bytes.Contains(fewer, []byte("sqlite")) {
		t.Fatalf("there is more of SQLite in %s than was taken out:\n%s", drivers, fewer)
	}
	dir := t.TempDir()
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{drivers: filepath.Join(dir, "builtin.go")}})
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"builtin.go": fewer, "overlay.json": overlay} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return harness.Build(t, filepath.Join(dir, "prism-proxy"), "./dataplane/cmd/prism-proxy", "-overlay", filepath.Join(dir, "overlay.json"))
}

// TestPoisonedNamespace files 1,000 changes in one, of which one is accepted and cannot work on any proxy. It is refused
// by the validator, or without one by the owner of rank 0, and taken back by itself; nobody else is ever given it; its
// author is told field and reason; the other 999 go live.
func TestPoisonedNamespace(t *testing.T) {
	program := withoutSQLite(t)
	for _, c := range []struct {
		name       string
		validators int
	}{{"with a validator", 1}, {"without one", 0}} {
		t.Run(c.name, func(t *testing.T) { poisoned(t, program, c.validators) })
	}
}

func poisoned(t *testing.T, program string, validators int) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	c := harness.Start(t, harness.Options{
		ProxyProgram: program, Validators: validators, Partitions: 64, Backends: backends(t), Configure: inWaves(300 * time.Millisecond),
	})
	const total = 1000
	var all []*configv1.NamespaceRequest
	for i := range total - 1 {
		all = append(all, onRedis(fmt.Sprintf("healthy-%04d", i)))
	}
	all = append(all, onRedis("poisoned"))
	if _, err := c.Admin().Control.ApplyNamespaces(ctx, applying(all...)); err != nil {
		t.Fatal(err)
	}
	live(ctx, t, c.Admin(), "poisoned", 0)
	before := versionOf(ctx, t, c, "poisoned")

	for i := range all[:total-1] {
		all[i].Limits = &configv1.Limits{Concurrency: 77}
	}
	all[total-1] = keyvalue("poisoned", "sqlite-main", "sqlite")
	traffic := harness.StartTraffic(ctx, 4, harness.Traffic{Proxies: clients(c), Namespaces: []string{"poisoned", "healthy-0001"}, Exact: true})
	watching, stop := context.WithCancel(ctx)
	var watcher sync.WaitGroup
	serving := map[string]bool{} // versions of the poisoned namespace that were ever served, by proxy
	watcher.Go(func() {
		for watching.Err() == nil {
			for _, p := range c.Proxies {
				if d, err := p.Dump(); err == nil {
					ns, _ := d.Namespace("poisoned")
					serving[p.ID+" "+ns.Version] = true
				}
			}
		}
	})
	out, err := prismctl(ctx, t, c.Admin(), "namespace", "apply", "--wait", "-f", file(t, all...))
	if err == nil {
		t.Errorf("apply --wait succeeded:\n%s", out)
	}
	for _, want := range []string{"poisoned", "patterns[0].bindings[0].backend", "no driver for sqlite"} {
		if !strings.Contains(out, want) {
			t.Errorf("apply --wait does not tell %q:\n%.3000s", want, out)
		}
	}
	harness.Eventually(t, time.Minute, "the release is done", func() error {
		r, err := newestRelease(ctx, c)
		if err != nil || r.GetState() != configv1.ReleaseState_RELEASE_STATE_DONE {
			return fmt.Errorf("%v, %w", r, err)
		}
		if len(r.GetTakenBack()) != 1 || r.GetObjects() != total {
			t.Fatalf("of %d objects these were taken back: %v", r.GetObjects(), r.GetTakenBack())
		}
		return nil
	})
	stop()
	watcher.Wait()
	calls, problems := traffic.Stop()
	none(t, "a poisoned release", calls, problems)

	status, err := prismctl(ctx, t, c.Admin(), "namespace", "status", "poisoned")
	if err != nil || !strings.Contains(status, "no driver for sqlite") || !strings.Contains(status, "patterns[0].bindings[0].backend") {
		t.Errorf("status, %v, does not tell why:\n%s", err, status)
	}
	if got := versionOf(ctx, t, c, "poisoned"); got != before {
		t.Errorf("the namespace is at %s, not what it was", got)
	}
	for served := range serving {
		if !strings.HasSuffix(served, " "+before) {
			t.Errorf("a proxy served another version: %s", served)
		}
	}
	// Who refused it was given it: one proxy at most, and with a validator no owner.
	owners, err := c.Admin().Operator.GetOwners(ctx, &adminv1.GetOwnersRequest{Namespace: "poisoned"})
	if err != nil {
		t.Fatal(err)
	}
	allowed := owners.GetOwners()[0].GetId()
	if validators > 0 {
		allowed = "validator-0"
	}
	given := 0
	for _, p := range append(slices.Clone(c.Proxies), c.Validators...) {
		if !strings.Contains(string(p.Log()), "no driver for sqlite") {
			continue
		}
		if given++; p.ID != allowed {
			t.Errorf("%s was given it, only %s may be", p.ID, allowed)
		}
	}
	if given != 1 {
		t.Errorf("%d proxies say that they refused it", given)
	}
	for _, p := range c.Proxies {
		harness.Eventually(t, 20*time.Second, "the others are live on "+p.ID, func() error {
			d, err := p.Dump()
			if err != nil {
				return err
			}
			served := map[string]string{}
			for _, part := range d.Partitions {
				for _, ns := range part.Namespaces {
					served[ns.Name] = ns.Version
				}
			}
			for name, want := range versions(ctx, t, c) {
				if served[name] != want {
					return fmt.Errorf("%s is at %q, not %q", name, served[name], want)
				}
			}
			return nil
		})
	}
}

// versions are those of all namespaces, by name.
func versions(ctx context.Context, t *testing.T, c *harness.Cluster) map[string]string {
	t.Helper()
	found := map[string]string{}
	for token := ""; ; {
		page, err := c.Admin().Control.ListNamespaces(ctx, &controlv1.ListNamespacesRequest{PageSize: 1000, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range page.GetNamespaces() {
			found[n.GetNamespace()] = n.GetVersion()
		}
		if token = page.GetNextPageToken(); token == "" {
			return found
		}
	}
}

// TestReleasesAreSteered takes releases through all that can happen to them.
func TestReleasesAreSteered(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	dead := harness.FreeAddress(t) // where nothing listens
	all := append(backends(t), &configv1.Backend{Name: "redis-dead", Type: "redis", Endpoints: []string{dead}})
	all = append(all, &configv1.Backend{Name: "redis-shared", Type: "redis", Endpoints: all[0].GetEndpoints()})
	c := harness.Start(t, harness.Options{Admins: 3, Etcd: 1, Relays: true, Backends: all, Configure: inWaves(time.Second)})
	names := []string{"victim", "bystander"}
	for _, n := range names {
		c.Apply(ctx, onRedis(n))
	}
	c.Apply(ctx, keyvalue("sharing", "redis-shared", "redis"))
	limited := func(namespace string, n uint32, options *controlv1.ReleaseOptions) uint64 {
		t.Helper()
		r := onRedis(namespace)
		r.Limits = &configv1.Limits{Concurrency: n}
		in := applying(r)
		in.Release, in.Note.Message = options, "steered"
		out, err := c.Admin().Control.ApplyNamespaces(ctx, in)
		if err != nil {
			t.Fatal(err)
		}
		return out.GetSnapshotVersion()
	}
	do := func(snapshot uint64, action adminv1.ReleaseAction) {
		t.Helper()
		_, err := c.Admin().Operator.ControlRelease(ctx, &adminv1.ControlReleaseRequest{
			Snapshot: snapshot, Action: action, Note: &controlv1.ChangeNote{Author: "e2e", Message: "steered"},
		})
		if err != nil {
			t.Fatalf("%v: %v", action, err)
		}
	}
	until := func(snapshot uint64, state configv1.ReleaseState) *adminv1.Release {
		t.Helper()
		var r *adminv1.Release
		harness.Eventually(t, time.Minute, state.String(), func() error {
			out, err := c.Admin().Operator.GetRelease(ctx, &adminv1.GetReleaseRequest{Snapshot: snapshot})
			if r = out.GetRelease(); err != nil || r.GetState() != state {
				return fmt.Errorf("%v, %w", r, err)
			}
			return nil
		})
		return r
	}
	servedBy := func(namespace string) (ids []string) {
		t.Helper()
		want := versionOf(ctx, t, c, namespace)
		for _, p := range c.Proxies {
			if p := (proxy{p}); p.serves(namespace, want) == nil {
				ids = append(ids, p.ID)
			}
		}
		return ids
	}
	const (
		paused  = configv1.ReleaseState_RELEASE_STATE_PAUSED
		done    = configv1.ReleaseState_RELEASE_STATE_DONE
		aborted = configv1.ReleaseState_RELEASE_STATE_ABORTED
		back    = configv1.ReleaseState_RELEASE_STATE_ROLLED_BACK
	)
	traffic := harness.StartTraffic(ctx, 3, harness.Traffic{Proxies: clients(c), Namespaces: []string{"bystander"}, Exact: true})

	t.Run("paused and resumed", func(t *testing.T) {
		r := limited("bystander", 101, nil)
		do(r, adminv1.ReleaseAction_RELEASE_ACTION_PAUSE)
		held := until(r, paused)
		waitCalls(ctx, t, traffic, traffic.Calls()+500)
		if now := until(r, paused); now.GetWave() != held.GetWave() {
			t.Errorf("paused at wave %d it is at wave %d", held.GetWave(), now.GetWave())
		}
		if by := servedBy("bystander"); len(by) > 1 {
			t.Errorf("at wave %d %v serve it", held.GetWave(), by)
		}
		do(r, adminv1.ReleaseAction_RELEASE_ACTION_RESUME)
		until(r, done)
		live(ctx, t, c.Admin(), "bystander", r)
	})
	t.Run("aborted", func(t *testing.T) {
		before := versionOf(ctx, t, c, "bystander")
		r := limited("bystander", 102, nil)
		do(r, adminv1.ReleaseAction_RELEASE_ACTION_ABORT)
		until(r, aborted)
		if got := versionOf(ctx, t, c, "bystander"); got != before {
			t.Errorf("it is at %s, not what it was", got)
		}
		live(ctx, t, c.Admin(), "bystander", 0)
	})
	t.Run("pushed", func(t *testing.T) {
		r := limited("bystander", 103, nil)
		do(r, adminv1.ReleaseAction_RELEASE_ACTION_PAUSE)
		do(r, adminv1.ReleaseAction_RELEASE_ACTION_PUSH)
		until(r, done)
		live(ctx, t, c.Admin(), "bystander", r)
	})
	t.Run("not confirmed in time", func(t *testing.T) {
		before := versionOf(ctx, t, c, "bystander")
		r := limited("bystander", 104, &controlv1.ReleaseOptions{ConfirmWithin: durationpb.New(2 * time.Second)})
		if got := until(r, back); got.GetReason() == "" {
			t.Errorf("it does not say why: %v", got)
		}
		if got := versionOf(ctx, t, c, "bystander"); got != before {
			t.Errorf("it is at %s, not what it was", got)
		}
	})
	t.Run("confirmed", func(t *testing.T) {
		r := limited("bystander", 105, &controlv1.ReleaseOptions{ConfirmWithin: durationpb.New(time.Minute)})
		do(r, adminv1.ReleaseAction_RELEASE_ACTION_CONFIRM)
		until(r, done)
		live(ctx, t, c.Admin(), "bystander", r)
	})
	t.Run("the leader is killed on the way", func(t *testing.T) {
		r := limited("bystander", 106, nil)
		killed := leader(t, c)
		killed.Kill()
		until(r, done)
		live(ctx, t, c.Admin(), "bystander", r)
		killed.Start()
		c.WaitReady(30 * time.Second)
	})
	t.Run("the leader is cut off on the way", func(t *testing.T) {
		r := limited("bystander", 107, nil)
		cut := slices.Index(c.Admins, leader(t, c))
		around := slices.Clone(c.Links.Etcd[cut])
		for _, links := range c.Links.Fleet { // proxies that stay with it are given nothing new, so that the release could not go on
			around = append(around, links[cut])
		}
		t.Cleanup(func() { harness.Set(harness.Healed, around...) })
		harness.Set(harness.Blackhole, c.Links.Etcd[cut]...)
		harness.Set(harness.Cut, around[len(c.Links.Etcd[cut]):]...)
		other := c.Admins[(cut+1)%len(c.Admins)]
		harness.Eventually(t, time.Minute, "another goes on", func() error {
			out, err := other.Operator.GetRelease(ctx, &adminv1.GetReleaseRequest{Snapshot: r})
			if err != nil || out.GetRelease().GetState() != done {
				return fmt.Errorf("%v, %w", out, err)
			}
			return nil
		})
		harness.Set(harness.Healed, around...)
		live(ctx, t, c.Admins[cut], "bystander", r)
	})
	calls, problems := traffic.Stop()
	none(t, "releases steered", calls, problems)

	// A change that makes calls fail is taken back by itself, and only the owner of the first wave ever failed.
	hurts := func(t *testing.T, namespace string, change func() uint64) {
		owners, err := c.Admin().Operator.GetOwners(ctx, &adminv1.GetOwnersRequest{Namespace: namespace})
		if err != nil {
			t.Fatal(err)
		}
		first := owners.GetOwners()[0].GetId()
		var mu sync.Mutex
		failed := map[string]int{}
		using, stop := context.WithCancel(ctx)
		defer stop()
		var users sync.WaitGroup
		for _, p := range c.Proxies {
			users.Go(func() {
				for using.Err() == nil {
					_, err := p.KeyValue.Put(ctx, &datav1.PutRequest{Namespace: namespace, Id: []byte(p.ID), Value: []byte("x")})
					mu.Lock()
					if err != nil {
						failed[p.ID]++
					}
					mu.Unlock()
					time.Sleep(2 * time.Millisecond) // a pace that leaves the machine to the proxies
				}
			})
		}
		r := until(change(), back)
		live(ctx, t, c.Admin(), namespace, 0)
		stop()
		users.Wait()
		t.Logf("taken back at wave %d because %s; failed calls: %v", r.GetWave(), r.GetReason(), failed)
		if r.GetReason() == "" {
			t.Error("it does not say why")
		}
		for id, n := range failed {
			if id != first {
				t.Errorf("%s failed %d times, and only %s was in the first wave", id, n, first)
			}
		}
	}
	t.Run("a namespace that fails", func(t *testing.T) {
		hurts(t, "victim", func() uint64 {
			out, err := c.Admin().Control.ApplyNamespaces(ctx, applying(keyvalue("victim", "redis-dead", "redis")))
			if err != nil {
				t.Fatal(err)
			}
			return out.GetSnapshotVersion()
		})
	})
	t.Run("a backend that fails", func(t *testing.T) {
		hurts(t, "sharing", func() uint64 {
			out, err := c.Admin().Operator.ApplyBackends(ctx, &adminv1.ApplyBackendsRequest{Changes: []*adminv1.BackendChange{{
				Backend: &configv1.Backend{Name: "redis-shared", Type: "redis", Endpoints: []string{dead}},
			}}})
			if err != nil {
				t.Fatal(err)
			}
			return out.GetSnapshotVersion()
		})
	})
	t.Run("one of several that cannot serve", func(t *testing.T) {
		limits := onRedis("bystander")
		limits.Limits = &configv1.Limits{Concurrency: 108}
		out, err := c.Admin().Control.ApplyNamespaces(ctx, applying(keyvalue("victim", "redis-dead", "redis"), limits))
		if err != nil {
			t.Fatal(err)
		}
		r := until(out.GetSnapshotVersion(), done)
		if b := r.GetTakenBack(); len(b) != 1 || b[0].GetName() != "ns/victim" || !strings.HasPrefix(b[0].GetWhy().GetReason(), "not ready at ") {
			t.Errorf("taken back: %v", b)
		}
		live(ctx, t, c.Admin(), "victim", 0)
		live(ctx, t, c.Admin(), "bystander", out.GetSnapshotVersion())
	})
	t.Run("a deletion that is aborted", func(t *testing.T) {
		before := versionOf(ctx, t, c, "victim")
		out, err := c.Admin().Control.DeleteNamespace(ctx, &controlv1.DeleteNamespaceRequest{Namespace: "victim"})
		if err != nil || out.GetRelease() == 0 {
			t.Fatalf("%v, %v", out, err)
		}
		do(out.GetRelease(), adminv1.ReleaseAction_RELEASE_ACTION_ABORT)
		if got := versionOf(ctx, t, c, "victim"); got != before {
			t.Errorf("it is at %s, not what it was", got)
		}
		live(ctx, t, c.Admin(), "victim", 0)
	})
	t.Run("a deletion", func(t *testing.T) {
		killed := leader(t, c)
		asked := c.Admins[(slices.Index(c.Admins, killed)+1)%len(c.Admins)]
		out, err := asked.Control.DeleteNamespace(ctx, &controlv1.DeleteNamespaceRequest{Namespace: "victim"})
		if err != nil {
			t.Fatal(err)
		}
		killed.Kill() // another finishes what it began
		if text, err := prismctl(ctx, t, asked, "namespace", "delete", "victim", "--wait"); err != nil || !strings.Contains(text, fmt.Sprint(out.GetRelease())) {
			t.Errorf("prismctl: %v\n%s", err, text)
		}
		for _, p := range c.Proxies {
			harness.Eventually(t, 20*time.Second, "no proxy has it", func() error {
				d, err := p.Dump()
				if _, there := d.Namespace("victim"); err != nil || there {
					return fmt.Errorf("%s has it: %v, %w", p.ID, there, err)
				}
				return nil
			})
		}
		killed.Start()
		c.WaitReady(30 * time.Second)
	})
}

// proxy is a proxy that is asked what it serves.
type proxy struct{ *harness.Proxy }

// serves fails unless the proxy serves a version of a namespace.
func (p proxy) serves(namespace, version string) error {
	d, err := p.Dump()
	if err != nil {
		return err
	}
	if ns, ok := d.Namespace(namespace); !ok || ns.Version != version {
		return fmt.Errorf("%s serves %q of %s, not %s", p.ID, ns.Version, namespace, version)
	}
	return nil
}

func versionOf(ctx context.Context, t *testing.T, c *harness.Cluster, namespace string) string {
	t.Helper()
	out, err := c.Admin().Control.GetNamespace(ctx, &controlv1.GetNamespaceRequest{Namespace: namespace})
	if err != nil {
		t.Fatal(err)
	}
	return out.GetNamespace().GetVersion()
}

func newestRelease(ctx context.Context, c *harness.Cluster) (*adminv1.Release, error) {
	out, err := c.Admin().Operator.ListReleases(ctx, &adminv1.ListReleasesRequest{PageSize: 1})
	if err != nil {
		return nil, err
	}
	if len(out.GetReleases()) == 0 {
		return nil, errors.New("there is no release")
	}
	return out.GetReleases()[0], nil
}

// prismctl runs it against a replica and returns all that it printed.
func prismctl(ctx context.Context, t *testing.T, a *harness.Admin, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(ctx, harness.Program(t, "bin/prismctl", "make build"), append([]string{"--admin", a.Address}, args...)...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// file writes requests as one file.
func file(t *testing.T, requests ...*configv1.NamespaceRequest) string {
	t.Helper()
	var text strings.Builder
	for _, r := range requests {
		data, err := protojson.Marshal(r) // JSON is YAML too
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&text, "---\n%s\n", data)
	}
	path := filepath.Join(t.TempDir(), "requests.yaml")
	if err := os.WriteFile(path, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
