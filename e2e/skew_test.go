package e2e_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/prism-gateway/prism/e2e/harness"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/client"
)

// TestRollingUpgrade takes a Prism of the previous version to this one, a proxy first, then the replicas, then the other
// proxies, under traffic. In each of the mixtures a change through every replica reaches every proxy, no stream to the
// control plane ends for it, and no call fails that a client's retry does not save.
func TestRollingUpgrade(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	oldAdmin, oldProxy := previous(t)
	newAdmin, newProxy := harness.Program(t, "bin/prism-admin", "make build"), harness.Program(t, "bin/prism-proxy", "make build")
	c := harness.Start(t, harness.Options{Admins: 2, Etcd: 1, AdminProgram: oldAdmin, ProxyProgram: oldProxy, Previous: true, Backends: backends(t)})
	names := []string{"upgraded-0", "upgraded-1"}
	for _, n := range names {
		c.Apply(ctx, onRedis(n))
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
	traffic := harness.StartTraffic(ctx, 3, harness.Traffic{Proxies: []datav1.KeyValueClient{retrying.KeyValue}, Namespaces: names, Retry: true, Exact: true})

	streams := func() map[string]string {
		ended := map[string]string{}
		for _, p := range c.Proxies {
			ended[p.ID] = metric(c.Get(p.HTTPAddress, "/metrics"), "prism_subscribe_reconnects_total")
		}
		return ended
	}
	works := func(mixture string) {
		t.Helper()
		c.WaitReady(time.Minute)
		c.WaitSettled(time.Minute)
		harness.Eventually(t, 30*time.Second, "all are connected", func() error {
			for _, p := range c.Proxies {
				if metric(c.Get(p.HTTPAddress, "/metrics"), "prism_subscribe_connected") != "1" {
					return fmt.Errorf("%s is not", p.ID)
				}
			}
			return nil
		})
		before := streams()
		for i, a := range c.Admins {
			for range 5 {
				apply(ctx, t, a, names[i])
			}
			out, err := a.Control.GetNamespace(ctx, &controlv1.GetNamespaceRequest{Namespace: names[i]})
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range c.Proxies {
				harness.Eventually(t, 30*time.Second, mixture+": a change arrives", func() error {
					return proxy{p}.serves(names[i], out.GetNamespace().GetVersion())
				})
			}
		}
		for _, p := range c.Proxies {
			for _, n := range names {
				if _, err := p.KeyValue.Put(ctx, &datav1.PutRequest{Namespace: n, Id: []byte("through"), Key: []byte(p.ID), Value: []byte(mixture)}, grpc.WaitForReady(true)); err != nil {
					t.Errorf("%s: put %s through %s: %v", mixture, n, p.ID, err)
				}
			}
		}
		for id, ended := range streams() {
			if ended != before[id] {
				t.Errorf("%s: streams of %s ended: %s, and before the changes %s", mixture, id, ended, before[id])
			}
		}
		waitCalls(ctx, t, traffic, traffic.Calls()+200)
	}
	upgrade := func(p *harness.Process, program string) {
		t.Helper()
		if !p.Stop(20 * time.Second) {
			t.Errorf("%s did not stop by itself", p.Name())
		}
		p.Replace(program)
		p.Start()
	}
	works("all of the previous version")
	upgrade(c.Proxies[0].Process, newProxy)
	works("a new proxy beside old replicas")
	upgrade(c.Admins[0].Process, newAdmin)
	works("an old and a new replica")
	upgrade(c.Admins[1].Process, newAdmin)
	works("old proxies beside new replicas")
	for _, p := range c.Proxies[1:] {
		upgrade(p.Process, newProxy)
		c.WaitReady(time.Minute)
	}
	works("all of this version")
	for i, a := range c.Admins { // replicas of two versions do not tell each other how far proxies are
		change(ctx, t, a, names[i])
	}
	calls, problems := traffic.Stop()
	none(t, "a rolling upgrade", calls, problems)
}

// previous builds the programs of the version before this one: that of the newest tag below HEAD, or, in a repository
// without tags, of the commit that the file previous names.
func previous(t *testing.T) (admin, proxy string) {
	t.Helper()
	root := harness.Root(t)
	git := func(args ...string) (string, error) {
		out, err := exec.Command("git", append([]string{"-C", root}, args...)...).Output()
		return strings.TrimSpace(string(out)), err
	}
	version, err := git("describe", "--tags", "--abbrev=0", "HEAD^")
	if err != nil {
		pinned, err := os.ReadFile(filepath.Join(root, "e2e", "previous"))
		if err != nil {
			t.Fatal(err)
		}
		version = strings.TrimSpace(string(pinned))
	}
	if _, err := git("cat-file", "-e", version+"^{commit}"); err != nil {
		t.Fatalf("version %s is not in this repository; run: git fetch --unshallow --tags", version)
	}
	t.Logf("the previous version is %s", version)
	dir := t.TempDir()
	archive := filepath.Join(dir, "previous.tar")
	if _, err := git("archive", "--output", archive, version); err != nil {
		t.Fatalf("git archive %s: %v", version, err)
	}
	source := filepath.Join(dir, "source")
	if err := os.Mkdir(source, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("tar", "-xf", archive, "-C", source).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", dir, "./controlplane/cmd/prism-admin", "./dataplane/cmd/prism-proxy")
	build.Dir = source
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building version %s: %v\n%s", version, err, out)
	}
	return filepath.Join(dir, "prism-admin"), filepath.Join(dir, "prism-proxy")
}
