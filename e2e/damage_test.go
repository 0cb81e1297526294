package e2e_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/prism-gateway/prism/e2e/harness"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
)

// TestHalfWrittenObjectIsFound cuts an object in etcd short: a replica that starts finds it by its hash, says which key
// it is, and pushes nothing; the proxies go on with what they have. Once the object is whole again all is well.
func TestHalfWrittenObjectIsFound(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c := harness.Start(t, harness.Options{Etcd: 1, Backends: backends(t)})
	c.Apply(ctx, keyvalue("whole", "redis-main", "redis"))
	etcd, err := clientv3.New(clientv3.Config{Endpoints: c.EtcdEndpoints, DialTimeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer etcd.Close()
	objects, err := etcd.Get(ctx, "/prism/o/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	// Of the objects, the namespace's configuration is the one that holds its storage prefix.
	var key, whole string
	for _, kv := range objects.Kvs {
		if strings.Contains(string(kv.Value), "whole.") {
			key, whole = string(kv.Key), string(kv.Value)
		}
	}
	if key == "" {
		t.Fatalf("none of %d objects is the namespace's", len(objects.Kvs))
	}
	admin := c.Admins[0]
	admin.Kill()
	if _, err := etcd.Put(ctx, key, whole[:len(whole)/2]); err != nil {
		t.Fatal(err)
	}
	admin.Start()
	harness.Eventually(t, 20*time.Second, "the replica says which object is damaged", func() error {
		if err := admin.Ready(); err == nil {
			return fmt.Errorf("it is ready")
		} else if !strings.Contains(err.Error(), key) && !strings.Contains(string(admin.Log()), key) {
			return err
		}
		return nil
	})
	for _, p := range c.Proxies {
		if _, err := p.KeyValue.Put(ctx, &datav1.PutRequest{Namespace: "whole", Id: []byte("a"), Value: []byte("b")}); err != nil {
			t.Errorf("%s: %v", p.ID, err)
		}
	}
	if _, err := etcd.Put(ctx, key, whole); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 30*time.Second, "the replica is ready", func() error {
		if !admin.Running() { // it may have given up a moment ago
			admin.Start()
		}
		return admin.Ready()
	})
	c.WaitReady(30 * time.Second)
}
