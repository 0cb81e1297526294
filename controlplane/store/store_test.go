package store_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"google.golang.org/protobuf/proto"

	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	"github.com/prism-gateway/prism/controlplane/store"
	"github.com/prism-gateway/prism/controlplane/store/embedded"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
)

// etcd serves all tests of the package that do not break it, each under its own prefix.
var etcd *embedded.Server

func TestMain(m *testing.M) {
	if os.Getenv(asEtcd) != "" {
		etcdmain.Main(os.Args)
		return
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "prism-store")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	if etcd, err = embedded.Start(embedded.Config{Dir: dir, Volatile: true, Log: quiet()}); err != nil {
		panic(err)
	}
	defer etcd.Close()
	return m.Run()
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func dial(t testing.TB, endpoints ...string) *clientv3.Client {
	t.Helper()
	if len(endpoints) == 0 {
		endpoints = []string{etcd.Endpoint()}
	}
	client, err := store.Dial(store.DialConfig{Endpoints: endpoints})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

// prefix is for all replicas of one run of one test.
func prefix(t testing.TB) string { return fmt.Sprintf("%s-%p", t.Name(), t) }

// replica is a running store.
type replica struct {
	*store.Store
	stop func() error // returns what Run did
}

// open runs a store and returns when it has loaded.
func open(t testing.TB, cfg store.Config) *replica {
	t.Helper()
	r := start(t, cfg)
	wait(t, r.Store, func(*snapshot.Tree) bool { return true })
	return r
}

// start runs a store, by default one for this test on the shared etcd.
func start(t testing.TB, cfg store.Config) *replica {
	t.Helper()
	if cfg.Client == nil {
		cfg.Client = dial(t)
	}
	if cfg.Prefix == "" {
		cfg.Prefix = prefix(t)
	}
	if cfg.Name == "" {
		cfg.Name = "replica"
	}
	if cfg.Log == nil {
		cfg.Log = quiet()
	}
	s, err := store.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	r := &replica{Store: s, stop: sync.OnceValue(func() error { cancel(); return <-ended })}
	t.Cleanup(func() {
		if err := r.stop(); err != nil && !t.Failed() && fault.From(err).Code != fault.DataLoss {
			t.Error(err)
		}
	})
	return r
}

// wait returns when the head is as it is wanted.
func wait(t testing.TB, s *store.Store, wanted func(*snapshot.Tree) bool) *snapshot.Tree {
	t.Helper()
	moved, stop := s.Watch()
	defer stop()
	for {
		select {
		case <-moved:
			if tree := s.Head(); wanted(tree) {
				return tree
			}
		case <-t.Context().Done():
			t.Fatal("the test ended before the head was as wanted")
		}
	}
}

func marshal(t testing.TB, m proto.Message) []byte {
	t.Helper()
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// namespace is the set of a namespace whose configuration and record hold content.
func namespace(t testing.TB, name, content string) snapshot.Set {
	t.Helper()
	record := marshal(t, &recordv1.NamespaceRecord{Author: "ann", Request: &configv1.NamespaceRequest{Namespace: name, Team: content}})
	return snapshot.Set{Name: "ns/" + name, Author: "ann", Record: record, Data: marshal(t, &configv1.NamespaceConfig{
		Namespace: name, StoragePrefix: content, RecordHash: ident.HashOf(record).Bytes(),
	})}
}

// edit is the edit that sets what it is told.
func edit(sets ...snapshot.Set) snapshot.Edit {
	return func(*snapshot.Tree, uint64) ([]snapshot.Set, error) { return sets, nil }
}

func commit(t testing.TB, s *replica, sets ...snapshot.Set) store.Commit {
	t.Helper()
	c, err := s.Commit(t.Context(), release.Order{}, edit(sets...))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func contentOf(t testing.TB, tree *snapshot.Tree, name string) string {
	t.Helper()
	o, ok := tree.Namespace(name)
	if !ok {
		return ""
	}
	var cfg configv1.NamespaceConfig
	if err := proto.Unmarshal(o.Data, &cfg); err != nil {
		t.Fatal(err)
	}
	return cfg.StoragePrefix
}

func TestAnInstallationThatIsMissingIsWaitedFor(t *testing.T) {
	client := dial(t)
	waits := start(t, store.Config{Existing: true})
	ctx, cancel := context.WithCancel(t.Context())
	led := make(chan error, 1)
	go func() { led <- waits.Lead(ctx, func(context.Context) error { return errors.New("it leads") }) }()
	for err := waits.Ready(); !strings.Contains(fmt.Sprint(err), etcd.Endpoint()+" holds no installation under /"+prefix(t)); err = waits.Ready() {
		if f := fault.From(err); f.Reason != fault.NotLoaded {
			t.Fatal(err)
		}
	}
	cancel()
	if err := <-led; err != nil {
		t.Error(err)
	}
	if got, err := client.Get(t.Context(), "/"+prefix(t), clientv3.WithPrefix(), clientv3.WithCountOnly()); err != nil || got.Count != 0 {
		t.Errorf("etcd has %d keys, %v", got.Count, err)
	}
	made := open(t, store.Config{})
	if wait(t, waits.Store, func(*snapshot.Tree) bool { return true }); waits.Installation().Id != made.Installation().Id {
		t.Errorf("installations %v and %v", waits.Installation(), made.Installation())
	}
}

func TestANewInstallationIsEmptyAndCreatedOnce(t *testing.T) {
	a, b := open(t, store.Config{Partitions: 64}), open(t, store.Config{})
	if a.Head().Version() != 0 || a.Head().Len() != 0 || a.Revision() == 0 || a.Ready() != nil {
		t.Errorf("version %d, %d namespaces, revision %d, ready %v", a.Head().Version(), a.Head().Len(), a.Revision(), a.Ready())
	}
	if a.Installation().Id == "" || a.Installation().Id != b.Installation().Id || b.Installation().Partitions != 64 {
		t.Errorf("installations %v and %v", a.Installation(), b.Installation())
	}
	for i := range 3 { // all at once
		prefix := fmt.Sprint(prefix(t), "/beside-", i)
		beside := []*replica{start(t, store.Config{Prefix: prefix}), start(t, store.Config{Prefix: prefix}), start(t, store.Config{Prefix: prefix})}
		for _, r := range beside {
			wait(t, r.Store, func(*snapshot.Tree) bool { return true })
			if r.Installation().Id != beside[0].Installation().Id {
				t.Errorf("installations %v and %v", r.Installation(), beside[0].Installation())
			}
		}
	}
	other, err := store.New(store.Config{Client: dial(t), Prefix: prefix(t), Name: "other", Partitions: 128, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Run(t.Context()); fault.From(err).Code != fault.FailedPrecondition || other.Head() != nil {
		t.Errorf("with another number of partitions: %v", err)
	}
}

func TestACommitIsKeptAndFollowed(t *testing.T) {
	a, b := open(t, store.Config{}), open(t, store.Config{})
	backend := snapshot.Set{Name: "backend/redis-main", Data: marshal(t, &configv1.Backend{Name: "redis-main"})}
	c := commit(t, a, namespace(t, "orders", "1"), backend)
	if !c.Changed || c.Tree != a.Head() || c.Revision != a.Revision() || c.Snapshot.Version != 1 || len(c.Snapshot.Changes) != 2 {
		t.Errorf("commit %+v", c)
	}
	commit(t, a, namespace(t, "orders", "2"))
	followed := wait(t, b.Store, func(tree *snapshot.Tree) bool { return tree.Version() == 2 })
	cold := open(t, store.Config{}).Head()
	for name, tree := range map[string]*snapshot.Tree{"followed": followed, "loaded cold": cold} {
		if tree.Root() != a.Head().Root() || contentOf(t, tree, "orders") != "2" || len(tree.Backends()) != 1 {
			t.Errorf("%s: root %s, want %s", name, tree.Root(), a.Head().Root())
		}
	}
	if b.Revision() != a.Revision() {
		t.Errorf("revisions %d and %d", b.Revision(), a.Revision())
	}
	cfg, _ := followed.Namespace("orders")
	hash, err := snapshot.RecordHash(cfg.Data)
	if err != nil {
		t.Fatal(err)
	}
	if record, err := b.Object(t.Context(), hash); err != nil || ident.HashOf(record) != hash {
		t.Errorf("record: %v", err)
	}
}

func TestAnEditThatChangesNothingMakesNoSnapshot(t *testing.T) {
	a := open(t, store.Config{})
	first := commit(t, a, namespace(t, "orders", "1"))
	again := commit(t, a, namespace(t, "orders", "1"))
	if again.Changed || again.Tree != first.Tree || again.Snapshot.CommitId != first.Snapshot.CommitId {
		t.Errorf("again: %+v", again)
	}
}

func TestAFailingEditIsAnsweredAlone(t *testing.T) {
	a := open(t, store.Config{})
	refusal := errors.New("not today")
	var group sync.WaitGroup
	for i := range 20 {
		group.Go(func() {
			_, err := a.Commit(t.Context(), release.Order{}, func(*snapshot.Tree, uint64) ([]snapshot.Set, error) {
				if i%2 == 0 {
					return nil, refusal
				}
				return []snapshot.Set{namespace(t, fmt.Sprintf("orders-%d", i), "1")}, nil
			})
			if (i%2 == 0) != errors.Is(err, refusal) || i%2 == 1 && err != nil {
				t.Errorf("edit %d: %v", i, err)
			}
		})
	}
	group.Wait()
	if a.Head().Len() != 10 {
		t.Errorf("%d namespaces, want 10", a.Head().Len())
	}
}

// TestAnEditSeesWhatOtherReplicasDid holds what a replica answers without writing: it must not be told from a stale tree.
func TestAnEditSeesWhatOtherReplicasDid(t *testing.T) {
	a, b := open(t, store.Config{}), open(t, store.Config{})
	for i := range 50 {
		name := fmt.Sprintf("orders-%d", i)
		commit(t, a, namespace(t, name, "1"))
		missing := errors.New("missing")
		_, err := b.Commit(t.Context(), release.Order{}, func(base *snapshot.Tree, _ uint64) ([]snapshot.Set, error) {
			if _, ok := base.Namespace(name); !ok {
				return nil, missing
			}
			return nil, nil
		})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		commit(t, a, namespace(t, name, "2"))
		if err := b.Sync(t.Context()); err != nil || contentOf(t, b.Head(), name) != "2" {
			t.Fatalf("after Sync: %q, %v", contentOf(t, b.Head(), name), err)
		}
	}
}

func TestACommitOfManyObjectsIsOne(t *testing.T) {
	a, b := open(t, store.Config{}), open(t, store.Config{})
	var sets []snapshot.Set
	for i := range 3000 {
		sets = append(sets, namespace(t, fmt.Sprintf("orders-%d", i), "1"))
	}
	c := commit(t, a, sets...)
	if c.Snapshot.Version != 1 || c.Tree.Len() != 3000 {
		t.Fatalf("version %d of %d namespaces", c.Snapshot.Version, c.Tree.Len())
	}
	tree := wait(t, b.Store, func(tree *snapshot.Tree) bool { return tree.Version() == 1 })
	if tree.Root() != c.Tree.Root() {
		t.Errorf("followed to %s, want %s", tree.Root(), c.Tree.Root())
	}
}

func TestWhatIsTooLargeIsRefusedAlone(t *testing.T) {
	a := open(t, store.Config{})
	var many []snapshot.Set
	for i := range 30_000 {
		many = append(many, snapshot.Set{Name: fmt.Sprintf("ns/orders-%d", i), Data: marshal(t, &configv1.NamespaceConfig{Namespace: fmt.Sprintf("orders-%d", i)})})
	}
	for name, sets := range map[string][]snapshot.Set{
		"an object":       {namespace(t, "orders", strings.Repeat("x", 2<<20))},
		"the history":     many,
		"text not UTF-8":  {{Name: "backend/a", Data: []byte{}, Author: "\xff"}},
		"a name of no it": {{Name: "nothing"}, {Name: "nothing"}},
	} {
		if _, err := a.Commit(t.Context(), release.Order{}, edit(sets...)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	commit(t, a, namespace(t, "orders", "1"))
}

// TestReplicasCommitTogether makes three replicas add to one counter and to names of their own.
func TestReplicasCommitTogether(t *testing.T) {
	const edits = 60
	var replicas []*replica
	for range 3 {
		replicas = append(replicas, open(t, store.Config{}))
	}
	var group sync.WaitGroup
	for n, r := range replicas {
		for i := range edits {
			group.Go(func() {
				_, err := r.Commit(t.Context(), release.Order{}, func(base *snapshot.Tree, _ uint64) ([]snapshot.Set, error) {
					count := namespace(t, "counter", contentOf(t, base, "counter")+"x")
					count.Message = fmt.Sprintf("%d/%d", n, i)
					return []snapshot.Set{count, namespace(t, fmt.Sprintf("orders-%d-%d", n, i), "1")}, nil
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
	}
	group.Wait()
	for _, r := range replicas {
		if err := r.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := len(contentOf(t, r.Head(), "counter")); got != 3*edits || r.Head().Len() != 3*edits+1 || r.Head().Root() != replicas[0].Head().Root() {
			t.Errorf("counted to %d in %d namespaces", got, r.Head().Len())
		}
	}
	once(t, replicas[0].Store, 3*edits)
}

// once finds every message of the changes of `counter` once, in a history without gaps.
func once(t *testing.T, s *store.Store, want int) {
	t.Helper()
	head := s.Head().Version()
	history, err := s.Snapshots(t.Context(), 0, int(head)+1)
	if err != nil {
		t.Fatal(err)
	}
	if uint64(len(history)) != head {
		t.Fatalf("%d snapshots up to version %d", len(history), head)
	}
	told := map[string]bool{}
	for i, rec := range history {
		if rec.Version != head-uint64(i) || rec.Parent != rec.Version-1 {
			t.Errorf("snapshot %d of parent %d stands %d from the end", rec.Version, rec.Parent, i)
		}
		for _, c := range rec.Changes {
			if c.Name != "ns/counter" {
				continue
			}
			if told[c.Message] {
				t.Errorf("%s was recorded twice", c.Message)
			}
			told[c.Message] = true
		}
	}
	if len(told) != want {
		t.Errorf("%d changes recorded, want %d", len(told), want)
	}
}
