package e2e_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/prism-gateway/prism/e2e/harness"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
)

// TestAnotherInstallationTakesNothingAway empties the store of the control plane, which makes it another installation:
// the proxies go on serving what they have, say so, stay out of its fleet, and join it once their state is cleared.
func TestAnotherInstallationTakesNothingAway(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c := harness.Start(t, harness.Options{Proxies: 2, Backends: backends(t)})
	c.Apply(ctx, onRedis("kept"))
	put := func() {
		t.Helper()
		for _, p := range c.Proxies {
			if _, err := p.KeyValue.Put(ctx, &datav1.PutRequest{Namespace: "kept", Id: []byte("a"), Value: []byte("b")}); err != nil {
				t.Errorf("%s: %v", p.ID, err)
			}
		}
	}
	admin := c.Admins[0]
	admin.Kill()
	if err := os.RemoveAll(filepath.Join(c.Dir, "admin-0.etcd")); err != nil {
		t.Fatal(err)
	}
	admin.Start()
	harness.Eventually(t, 20*time.Second, "the emptied control plane is ready", admin.Ready)
	said := func() {
		t.Helper()
		for _, p := range c.Proxies {
			harness.Eventually(t, 60*time.Second, p.ID+" says so", func() error {
				if err := p.Ready(); err != nil {
					return err
				}
				if body := c.Get(p.HTTPAddress, "/readyz"); !strings.Contains(body, "this proxy serves") || !strings.Contains(body, p.StateDir) {
					return fmt.Errorf("/readyz is %s", body)
				}
				if body := c.Get(p.HTTPAddress, "/metrics"); !strings.Contains(body, "prism_subscribe_foreign_endpoints 1") {
					return fmt.Errorf("/metrics does not")
				}
				return nil
			})
		}
		put()
	}
	said()
	for _, p := range c.Proxies { // also when they start from disk
		p.Kill()
		p.Start()
	}
	said()
	if got, err := admin.Operator.ListProxies(ctx, listAll); err != nil || len(got.GetProxies()) != 0 {
		t.Errorf("the other installation has taken in %v, %v", got.GetProxies(), err)
	}
	for _, p := range c.Proxies {
		p.Stop(10 * time.Second)
		if err := os.RemoveAll(p.StateDir); err != nil {
			t.Fatal(err)
		}
		p.Start()
	}
	c.WaitReady(30 * time.Second)
	c.WaitSettled(30 * time.Second)
	c.Apply(ctx, onRedis("kept"))
	put()
}

// TestEmptiedEtcdIsNotTakenForANewOne empties the etcd of all replicas while they are stopped: they wait for a backup, say
// what to do, and write nothing; the proxies serve on. With the backup there all goes on as before.
func TestEmptiedEtcdIsNotTakenForANewOne(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c := harness.Start(t, harness.Options{Admins: 2, Etcd: 1, Proxies: 1, Backends: backends(t)})
	c.Apply(ctx, onRedis("kept"))
	for _, a := range c.Admins {
		a.Kill()
	}
	etcd, err := clientv3.New(clientv3.Config{Endpoints: c.EtcdEndpoints})
	if err != nil {
		t.Fatal(err)
	}
	defer etcd.Close()
	all, err := etcd.Get(ctx, "", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	var backup []clientv3.Op
	for _, kv := range all.Kvs {
		if kv.Lease == 0 {
			backup = append(backup, clientv3.OpPut(string(kv.Key), string(kv.Value)))
		}
	}
	if _, err := etcd.Delete(ctx, "", clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
	for _, a := range c.Admins {
		a.Start()
	}
	for _, a := range c.Admins {
		harness.Eventually(t, 20*time.Second, "the replica says what to do", func() error {
			if err := a.Ready(); err == nil || !strings.Contains(err.Error(), "holds no installation") || !strings.Contains(err.Error(), "--create") {
				return fmt.Errorf("/readyz: %w", err)
			}
			return nil
		})
	}
	put := func() {
		t.Helper()
		if _, err := c.Proxies[0].KeyValue.Put(ctx, &datav1.PutRequest{Namespace: "kept", Id: []byte("a"), Value: []byte("b")}); err != nil {
			t.Errorf("the proxy: %v", err)
		}
	}
	put()
	got, err := etcd.Get(ctx, "", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range got.Kvs {
		t.Errorf("etcd has %s", kv.Key)
	}
	if _, err := etcd.Txn(ctx).Then(backup...).Commit(); err != nil {
		t.Fatal(err)
	}
	for _, a := range c.Admins {
		harness.Eventually(t, 20*time.Second, "the replica goes on", a.Ready)
	}
	c.Apply(ctx, onRedis("later"))
	put()
}
