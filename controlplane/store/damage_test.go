package store_test

import (
	"context"
	"io"
	"log/slog"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	"github.com/prism-gateway/prism/controlplane/store"
	"github.com/prism-gateway/prism/shared/fault"
)

// all returns the keys under a prefix and their values.
func all(t testing.TB, client *clientv3.Client, under string) map[string]string {
	t.Helper()
	resp, err := client.Get(t.Context(), under, clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, kv := range resp.Kvs {
		found[string(kv.Key)] = string(kv.Value)
	}
	return found
}

func put(t testing.TB, client *clientv3.Client, key, value string) {
	t.Helper()
	if _, err := client.Put(t.Context(), key, value); err != nil {
		t.Fatal(err)
	}
}

func remove(t testing.TB, client *clientv3.Client, key string, opts ...clientv3.OpOption) {
	t.Helper()
	if _, err := client.Delete(t.Context(), key, opts...); err != nil {
		t.Fatal(err)
	}
}

// TestDamageIsFoundAndNamed damages each kind of key and starts cold.
func TestDamageIsFoundAndNamed(t *testing.T) {
	gone := func(t *testing.T, client *clientv3.Client, key, _ string) { remove(t, client, key) }
	altered := func(t *testing.T, client *clientv3.Client, key, value string) {
		put(t, client, key, value[:len(value)-1]+string(value[len(value)-1]^1))
	}
	cut := func(t *testing.T, client *clientv3.Client, key, value string) {
		put(t, client, key, value[:len(value)/2])
	}
	empty := func(t *testing.T, client *clientv3.Client, key, _ string) { put(t, client, key, "") }
	for name, tc := range map[string]struct {
		kind   string
		damage func(t *testing.T, client *clientv3.Client, key, value string)
	}{
		"an altered object":  {"/o/", altered},
		"a cut object":       {"/o/", cut},
		"a deleted object":   {"/o/", gone},
		"a cut manifest":     {"/m/", cut},
		"a deleted manifest": {"/m/", gone},
		"an altered group":   {"/g/", altered},
		"a deleted group":    {"/g/", gone},
		"an emptied group":   {"/g/", empty},
		"a deleted snapshot": {"/s/", gone},
		"an altered root":    {"/s/", cut},
		"an emptied record":  {"/s/", empty},
		"a deleted head":     {"/head", gone},
		"an emptied head":    {"/head", empty},
		"a deleted install":  {"/install", gone},
		"an emptied install": {"/install", empty},
	} {
		t.Run(name, func(t *testing.T) {
			client, under := dial(t), "/"+prefix(t)
			good := open(t, store.Config{})
			// A namespace without a record, so that every object is one that a cold start needs.
			bare := namespace(t, "orders", "1")
			bare.Data, bare.Record = marshal(t, bareConfig("orders")), nil
			commit(t, good, bare)
			if err := good.stop(); err != nil {
				t.Fatal(err)
			}
			var damaged []string
			for key, value := range all(t, client, under+tc.kind) {
				tc.damage(t, client, key, value)
				damaged = append(damaged, key)
			}
			if len(damaged) != 1 {
				t.Fatalf("damaged %v, want one key", damaged)
			}
			s, err := store.New(store.Config{Client: client, Prefix: under, Name: "cold", Log: quiet()})
			if err != nil {
				t.Fatal(err)
			}
			err = s.Run(t.Context())
			if fault.From(err).Code != fault.DataLoss || s.Head() != nil || s.Ready() == nil {
				t.Fatalf("started with %v, head %v", err, s.Head())
			}
			// A head without content names snapshot 0, whose root is known.
			if !strings.Contains(err.Error(), damaged[0]) {
				t.Errorf("%v does not name %s", err, damaged[0])
			}
			if _, err := s.Commit(t.Context(), release.Order{}, edit(bare)); !fault.Is(err, fault.NotLoaded) {
				t.Errorf("committed to what is damaged: %v", err)
			}
		})
	}
}

// told is a log that tells when the store is in trouble, and when it no longer is.
type told struct {
	slog.Handler
	messages chan string
}

func newTold() told {
	return told{slog.NewTextHandler(io.Discard, nil), make(chan string, 1000)}
}

func (l told) Handle(_ context.Context, r slog.Record) error {
	l.messages <- r.Message
	return nil
}

func (l told) wait(t *testing.T, message string) {
	t.Helper()
	for {
		select {
		case got := <-l.messages:
			if got == message {
				return
			}
		case <-t.Context().Done():
			t.Fatalf("never told %q", message)
		}
	}
}

func TestARunningReplicaKeepsItsTreeWhenEtcdIsWiped(t *testing.T) {
	log, client := newTold(), dial(t)
	s := open(t, store.Config{Log: slog.New(log)})
	c := commit(t, s, namespace(t, "orders", "1"))
	saved := all(t, client, "/"+prefix(t)+"/")
	remove(t, client, "/"+prefix(t)+"/", clientv3.WithPrefix())
	log.wait(t, "store not followed")
	if s.Head() != c.Tree || fault.From(s.Ready()).Code != fault.DataLoss {
		t.Errorf("head %v, ready %v", s.Head(), s.Ready())
	}
	if _, err := s.Commit(t.Context(), release.Order{}, edit(namespace(t, "orders", "2"))); err == nil {
		t.Error("committed to an etcd that was wiped")
	}
	// Once etcd is restored, all goes on.
	for key, value := range saved {
		if !strings.HasSuffix(key, "/head") {
			put(t, client, key, value)
		}
	}
	put(t, client, "/"+prefix(t)+"/head", saved["/"+prefix(t)+"/head"])
	log.wait(t, "store followed again")
	if c := commit(t, s, namespace(t, "orders", "2")); c.Snapshot.Version != 2 {
		t.Errorf("version %d after the restore", c.Snapshot.Version)
	}
}

func TestAHeadThatGoesBackIsNotFollowed(t *testing.T) {
	log, client := newTold(), dial(t)
	s := open(t, store.Config{Log: slog.New(log)})
	commit(t, s, namespace(t, "orders", "1"))
	key := "/" + prefix(t) + "/head"
	old := all(t, client, key)[key]
	c := commit(t, s, namespace(t, "orders", "2"))
	put(t, client, key, old)
	log.wait(t, "store not followed")
	if s.Head() != c.Tree || s.Ready() == nil {
		t.Errorf("head of version %d, ready %v", s.Head().Version(), s.Ready())
	}
}

func TestAHalfWrittenCommitIsInvisible(t *testing.T) {
	s, client := open(t, store.Config{}), dial(t)
	c := commit(t, s, namespace(t, "orders", "1"))
	next, _, err := c.Tree.With(2, []snapshot.Set{namespace(t, "orders", "2")})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range next.Missing(c.Tree) {
		put(t, client, "/"+prefix(t)+"/"+string(rune(n.Kind))+"/"+n.Hash.String(), string(n.Data))
	}
	if cold := open(t, store.Config{}); cold.Head().Root() != c.Tree.Root() || s.Head() != c.Tree {
		t.Errorf("loaded %s, want %s", cold.Head().Root(), c.Tree.Root())
	}
}
