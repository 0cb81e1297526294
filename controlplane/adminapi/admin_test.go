package adminapi_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/prism-gateway/prism/controlplane/adminapi"
	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	"github.com/prism-gateway/prism/shared/fault"
)

func TestApplyBackends(t *testing.T) {
	r := start(t)
	cache := &configv1.Backend{Name: "cache", Type: "redis", Endpoints: []string{"cache.example.org:6379"}}
	made := r.backends(t, cache, &configv1.Backend{Name: "scratch", Type: "memory"})
	if made.SnapshotVersion != 1 || len(made.Backends) != 2 || !proto.Equal(made.Backends[0].Backend, cache) || len(made.Backends[0].Interfaces) == 0 {
		t.Errorf("made %v", made)
	}
	change := func(b *configv1.Backend, version string) (*adminv1.ApplyBackendsResponse, error) {
		return r.ApplyBackends(t.Context(), &adminv1.ApplyBackendsRequest{Changes: []*adminv1.BackendChange{{Backend: b, Version: version}}})
	}
	t.Run("is repeated safely", func(t *testing.T) {
		if out, err := change(cache, "read-long-ago"); err != nil || out.SnapshotVersion != 1 {
			t.Error(out, err)
		}
	})
	t.Run("holds to the version that was read", func(t *testing.T) {
		other := proto.CloneOf(cache)
		other.Maintenance = true
		_, err := change(other, "read-long-ago")
		refused(t, err, fault.Conflict, fault.Changed)
		if out, err := change(other, made.Backends[0].Version); err != nil || out.SnapshotVersion != 2 || !out.Backends[0].Backend.Maintenance {
			t.Error(out, err)
		}
		_, err = change(&configv1.Backend{Name: "new", Type: "memory"}, made.Backends[0].Version)
		refused(t, err, fault.Conflict, fault.Changed)
		if _, err := change(cache, ""); err != nil {
			t.Error(err)
		}
	})
	t.Run("tells every violation of all", func(t *testing.T) {
		_, err := r.ApplyBackends(t.Context(), &adminv1.ApplyBackendsRequest{Changes: []*adminv1.BackendChange{
			{Backend: &configv1.Backend{Name: "X", Type: "redis", Endpoints: []string{"redis://u:hunter2@cache"}}},
			{},
			{Backend: &configv1.Backend{Name: "twice", Type: "memory", Config: map[string]string{"password": "hunter2"}}},
			{Backend: &configv1.Backend{Name: "twice", Type: "memory"}},
		}})
		f := refused(t, err, fault.Invalid, fault.Field)
		want := []string{"changes[0].backend.endpoints[0]", "changes[0].backend.name", "changes[1].backend", `changes[2].backend.config["password"]`, "changes[3].backend.name"}
		if diff := cmp.Diff(want, fields(f)); diff != "" {
			t.Error(diff)
		}
		if strings.Contains(fmt.Sprint(err, f.Violations), "hunter2") {
			t.Error("the answer repeats a credential")
		}
	})
	t.Run("refuses what this build has no driver for", func(t *testing.T) {
		_, err := change(&configv1.Backend{Name: "log", Type: "kafka", Endpoints: []string{"log:9092"}}, "")
		if f := refused(t, err, fault.FailedPrecondition, fault.NotOffered); !slices.Equal(fields(f), []string{"changes[0].backend.type"}) {
			t.Error(f.Violations)
		}
	})
	t.Run("keeps type and durability while namespaces are bound", func(t *testing.T) {
		r.create(t, request("orders"))
		_, err := change(&configv1.Backend{Name: "cache", Type: "memory"}, "")
		if f := refused(t, err, fault.FailedPrecondition, fault.InUse); !strings.Contains(f.Text, "orders") {
			t.Error(f.Text)
		}
		strong := request("bills", func(n *configv1.Needs) { n.Durability = configv1.Durability_DURABILITY_STRONG })
		disk := &configv1.Backend{Name: "disk", Type: "sqlite", Endpoints: []string{"/var/lib/prism/disk.db"}}
		r.backends(t, disk)
		r.create(t, strong)
		weaker := proto.CloneOf(disk)
		weaker.Config = map[string]string{"synchronous": "normal"}
		_, err = change(weaker, "")
		refused(t, err, fault.FailedPrecondition, fault.InUse)
		moved := proto.CloneOf(cache)
		moved.Endpoints = []string{"elsewhere.example.org:6379"}
		if _, err := change(moved, ""); err != nil {
			t.Errorf("an address may change: %v", err)
		}
	})
}

func TestBackendsAreSeenWithWhatIsOnThem(t *testing.T) {
	r := seeded(t)
	r.create(t, request("orders", reads(100), func(n *configv1.Needs) { n.DataSize, n.WriteRps = "1GiB", 7 }))
	r.create(t, request("bills", reads(50)))
	r.create(t, request("carts", reads(1)))
	reserved := map[string]uint64{}
	token := ""
	for {
		out, err := r.ListBackends(t.Context(), &adminv1.ListBackendsRequest{PageSize: 3, PageToken: token})
		if err != nil || out.TotalCount != 4 {
			t.Fatal(out, err)
		}
		for _, b := range out.Backends {
			reserved[b.Backend.Name] = uint64(b.Reserved.ReadRps)
		}
		if token = out.NextPageToken; token == "" {
			break
		}
	}
	if diff := cmp.Diff(map[string]uint64{"cache-a": 100, "cache-b": 51, "disk": 0, "scratch": 0}, reserved); diff != "" {
		t.Error(diff)
	}
	out, err := r.GetBackend(t.Context(), &adminv1.GetBackendRequest{Name: "cache-a"})
	if err != nil {
		t.Fatal(err)
	}
	if b := out.Backend; b.Namespaces != 1 || b.Reserved.WriteRps != 7 || b.Reserved.DataBytes != 1<<30 || b.Version == "" {
		t.Errorf("%v", b)
	}
	_, err = r.GetBackend(t.Context(), &adminv1.GetBackendRequest{Name: "nope"})
	refused(t, err, fault.NotFound, fault.Object)
}

func TestDeleteBackend(t *testing.T) {
	r := seeded(t)
	for i := range 12 {
		req := request(fmt.Sprintf("ns-%02d", i))
		req.Pattern, req.Needs = "", nil
		req.Patterns = []*configv1.Pattern{{Name: "state", Type: "keyvalue", Slots: []*configv1.Slot{{Name: "storage-sqlite", Prefer: &configv1.Preference{Backend: "disk"}}}}}
		r.create(t, req)
	}
	remove := func(name, version string) (*adminv1.DeleteBackendResponse, error) {
		return r.DeleteBackend(t.Context(), &adminv1.DeleteBackendRequest{Name: name, Version: version, Note: note("operator", "")})
	}
	_, err := remove("disk", "")
	f := refused(t, err, fault.FailedPrecondition, fault.InUse)
	if !strings.Contains(f.Text, "12 namespaces") || !strings.Contains(f.Text, "ns-09 and 2 more") {
		t.Error(f.Text)
	}
	_, err = remove("nope", "")
	refused(t, err, fault.NotFound, fault.Object)
	_, err = remove("cache-a", "read-long-ago")
	refused(t, err, fault.Conflict, fault.Changed)
	if out, err := remove("cache-a", ""); err != nil || out.SnapshotVersion != 14 {
		t.Error(out, err)
	}
	_, err = remove("cache-a", "")
	refused(t, err, fault.NotFound, fault.Object)
}

func TestSnapshots(t *testing.T) {
	r := seeded(t)
	made := r.create(t, request("orders"))
	r.update(t, request("orders", reads(10)), made.Version)
	var versions []uint64
	token := ""
	for {
		out, err := r.ListSnapshots(t.Context(), &adminv1.ListSnapshotsRequest{PageSize: 2, PageToken: token})
		if err != nil || out.TotalCount != 3 {
			t.Fatal(out, err)
		}
		for _, s := range out.Snapshots {
			versions = append(versions, s.Version)
			if s.Head != (s.Version == 3) || s.RecordedAt == nil || len(s.Root) != 64 {
				t.Errorf("%v", s)
			}
		}
		if token = out.NextPageToken; token == "" {
			break
		}
	}
	if !slices.Equal(versions, []uint64{3, 2, 1}) {
		t.Error(versions)
	}
	one, err := r.GetSnapshot(t.Context(), &adminv1.GetSnapshotRequest{Version: 2})
	if err != nil {
		t.Fatal(err)
	}
	if c := one.Snapshot.Changes[0]; c.Kind != "create" || c.Name != "ns/orders" || c.Author != "alice" || c.Message != "needs it" ||
		c.RequestId == "" || c.After != made.Version || c.Before != "" || one.Snapshot.Namespaces != 1 || one.Snapshot.Parent != 1 {
		t.Errorf("%v", one)
	}
	if head, err := r.GetSnapshot(t.Context(), &adminv1.GetSnapshotRequest{}); err != nil || head.Snapshot.Version != 3 {
		t.Error(head, err)
	}
	_, err = r.GetSnapshot(t.Context(), &adminv1.GetSnapshotRequest{Version: 99})
	refused(t, err, fault.NotFound, fault.Snapshot)

	diff, err := r.DiffSnapshots(t.Context(), &adminv1.DiffSnapshotsRequest{FromVersion: 2})
	if err != nil || len(diff.Differences) != 1 {
		t.Fatal(diff, err)
	}
	if d := diff.Differences[0]; d.Kind != "update" || d.Name != "ns/orders" || !slices.Equal(d.Fields, []string{"reservations[0].read_rps: (none) -> 10"}) {
		t.Errorf("%v", d)
	}
	back, err := r.DiffSnapshots(t.Context(), &adminv1.DiffSnapshotsRequest{FromVersion: 3, ToVersion: 1})
	if err != nil || len(back.Differences) != 1 || back.Differences[0].Kind != "delete" {
		t.Error(back, err)
	}
}

func TestThereIsNoSnapshotBeforeTheFirst(t *testing.T) {
	r := start(t)
	out, err := r.GetSnapshot(t.Context(), &adminv1.GetSnapshotRequest{})
	if err != nil || out.Snapshot.Version != 0 || !out.Snapshot.Head {
		t.Error(out, err)
	}
	list, err := r.ListSnapshots(t.Context(), &adminv1.ListSnapshotsRequest{})
	if err != nil || len(list.Snapshots) != 0 {
		t.Error(list, err)
	}
}

func rollback(to uint64, namespace string) *adminv1.RollbackSnapshotRequest {
	return &adminv1.RollbackSnapshotRequest{ToVersion: to, Namespace: namespace, Note: note("operator", "it was better")}
}

func TestRollbackOfEverything(t *testing.T) {
	r := seeded(t) // snapshot 1
	a := r.create(t, request("orders"))
	r.create(t, request("bills"))
	r.create(t, request("carts"))
	r.update(t, request("orders", reads(10)), a.Version)                                                        // 5
	r.backends(t, &configv1.Backend{Name: "cache-c", Type: "redis", Endpoints: []string{"c.example.org:6379"}}) // 6
	r.backends(t, &configv1.Backend{Name: "scratch", Type: "memory", Config: map[string]string{"sweep": "1m"}}) // 7
	out, err := r.RollbackSnapshot(t.Context(), rollback(4, ""))
	if err != nil {
		t.Fatal(err)
	}
	if c := out.Snapshot.Changes[0]; out.Snapshot.Version != 8 || out.Changed != 3 || c.Kind != "rollback" || c.ToVersion != 4 || c.Message != "it was better" {
		t.Errorf("%v", out)
	}
	if got := r.get(t, "orders"); got.Version != a.Version {
		t.Errorf("orders is %v", got)
	}
	if _, err := r.GetBackend(t.Context(), &adminv1.GetBackendRequest{Name: "cache-c"}); err == nil {
		t.Error("a backend that was not there is there")
	}
	t.Run("to what is so already changes nothing", func(t *testing.T) {
		out, err := r.RollbackSnapshot(t.Context(), rollback(4, ""))
		if err != nil || out.Snapshot.Version != 8 || out.Changed != 0 {
			t.Error(out, err)
		}
	})
	t.Run("that removes most namespaces must be meant", func(t *testing.T) {
		_, err := r.RollbackSnapshot(t.Context(), rollback(2, ""))
		if f := refused(t, err, fault.FailedPrecondition, fault.CheckFailed); f.Metadata["guard"] != "allow_shrink" || !strings.Contains(f.Text, "2 of 3") {
			t.Error(f.Text, f.Metadata)
		}
		in := rollback(2, "")
		in.AllowShrink = true
		if out, err := r.RollbackSnapshot(t.Context(), in); err != nil || out.Snapshot.Namespaces != 1 {
			t.Error(out, err)
		}
	})
	t.Run("needs a snapshot that is kept", func(t *testing.T) {
		_, err := r.RollbackSnapshot(t.Context(), rollback(99, ""))
		refused(t, err, fault.NotFound, fault.Snapshot)
		_, err = r.RollbackSnapshot(t.Context(), rollback(0, ""))
		refused(t, err, fault.Invalid, fault.Field)
	})
}

func TestRollbackOfOneNamespace(t *testing.T) {
	r := seeded(t) // snapshot 1
	made := r.create(t, request("orders"))
	r.create(t, request("bills"))
	r.update(t, request("orders", reads(10)), made.Version) // 4
	out, err := r.RollbackSnapshot(t.Context(), rollback(2, "orders"))
	if err != nil {
		t.Fatal(err)
	}
	if c := out.Snapshot.Changes[0]; out.Snapshot.Version != 5 || out.Changed != 1 || c.Kind != "rollback" || c.ToVersion != 2 || c.Name != "ns/orders" {
		t.Errorf("%v", out)
	}
	if got := r.get(t, "orders"); got.Version != made.Version || got.Request.Needs.ReadRps != 0 {
		t.Errorf("orders is %v", got)
	}
	if again, err := r.RollbackSnapshot(t.Context(), rollback(2, "orders")); err != nil || again.Changed != 0 || again.Snapshot.Version != 5 {
		t.Error(again, err)
	}
	t.Run("brings back what was deleted, with its data", func(t *testing.T) {
		before := r.config(t, "orders").StoragePrefix
		if _, err := r.DeleteNamespace(t.Context(), &controlv1.DeleteNamespaceRequest{Namespace: "orders"}); err != nil {
			t.Fatal(err)
		}
		if _, err := r.RollbackSnapshot(t.Context(), rollback(4, "orders")); err != nil {
			t.Fatal(err)
		}
		if c := r.config(t, "orders"); c.StoragePrefix != before || c.Draining {
			t.Errorf("%v", c)
		}
	})
	t.Run("does not go back to draining", func(t *testing.T) {
		_, err := r.RollbackSnapshot(t.Context(), rollback(6, "orders"))
		refused(t, err, fault.FailedPrecondition, fault.NamespaceDraining)
		_, err = r.RollbackSnapshot(t.Context(), rollback(6, "")) // nor does everything with it
		if f := refused(t, err, fault.FailedPrecondition, fault.NamespaceDraining); !strings.Contains(f.Text, `"orders"`) || !strings.Contains(f.Text, "such as 5") {
			t.Error(f.Text)
		}
	})
	t.Run("does not go back to nothing", func(t *testing.T) {
		_, err := r.RollbackSnapshot(t.Context(), rollback(1, "orders"))
		refused(t, err, fault.NotFound, fault.Namespace)
	})
	t.Run("names the backends that are gone", func(t *testing.T) {
		if _, err := r.DeleteNamespace(t.Context(), &controlv1.DeleteNamespaceRequest{Namespace: "orders"}); err != nil {
			t.Fatal(err)
		}
		if _, err := r.DeleteBackend(t.Context(), &adminv1.DeleteBackendRequest{Name: "cache-a"}); err != nil {
			t.Fatal(err)
		}
		_, err := r.RollbackSnapshot(t.Context(), rollback(2, "orders"))
		if f := refused(t, err, fault.FailedPrecondition, fault.NoBackend); !strings.Contains(f.Text, "cache-a is gone") {
			t.Error(f.Text)
		}
		r.backends(t, &configv1.Backend{Name: "cache-a", Type: "memory"})
		_, err = r.RollbackSnapshot(t.Context(), rollback(2, "orders"))
		if f := refused(t, err, fault.FailedPrecondition, fault.NoBackend); !strings.Contains(f.Text, "cache-a was a redis and is a memory") {
			t.Error(f.Text)
		}
	})
}

func TestInitialBackendsAreRegisteredOnce(t *testing.T) {
	initial := func(c *adminapi.Config) { c.InitialBackends = []*configv1.Backend{{Name: "scratch", Type: "memory"}} }
	r := start(t, initial)
	for range 2 {
		if err := r.api.Seed(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if v := r.store.Head().Version(); v != 1 || len(r.store.Head().Backends()) != 1 {
		t.Errorf("snapshot %d, %d backends", v, len(r.store.Head().Backends()))
	}
	if _, err := r.DeleteBackend(t.Context(), &adminv1.DeleteBackendRequest{Name: "scratch"}); err != nil {
		t.Fatal(err)
	}
	if err := r.api.Seed(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := len(r.store.Head().Backends()); n != 0 {
		t.Error("what an operator deleted came back")
	}
}

func TestNewRefuses(t *testing.T) {
	r := start(t)
	if _, err := adminapi.New(adminapi.Config{}); err == nil {
		t.Error("nothing at all")
	}
	if _, err := adminapi.New(adminapi.Config{Store: r.store}); err == nil {
		t.Error("no fleet")
	}
}
