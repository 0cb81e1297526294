package fleet_test

import (
	"log/slog"
	"testing"
	"time"

	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"

	"github.com/prism-gateway/prism/controlplane/fleet"
	"github.com/prism-gateway/prism/controlplane/fleet/journal"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
)

func TestWhatAProxyServedIsToldByAnyReplica(t *testing.T) {
	server := etcd(t)
	noted := func(c *fleet.Config) {
		j, err := journal.New(journal.Config{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		c.Journal = j
	}
	first, second := start(t, server, "replica-1", long, noted), start(t, server, "replica-2", long, noted)
	before := time.Now()
	at := ident.PartitionOf("orders", partitions)
	o := first.fleet.Observe(at)
	defer o.Close()
	seen := func(root []byte) func() bool {
		return func() bool { return string(o.Cells(at)["a"].GetServingRoot()) == string(root) }
	}
	served := func(r *replica, when time.Time) *adminv1.ServedPartition {
		t.Helper()
		all, err := r.fleet.Served(t.Context(), "a", when, "orders")
		if err != nil || len(all) != 1 {
			t.Fatalf("served %v, %v", all, err)
		}
		return all[0]
	}

	one := commit(t, first, "orders")
	a := join(t, first, "a")
	a.serve(one)
	eventually(t, o, "it serves the first", seen(one.Collection(at).Root().Bytes()))
	then := time.Now()
	two := commit(t, first, "orders")
	a.serve(two)
	eventually(t, o, "it serves the second", seen(two.Collection(at).Root().Bytes()))
	a.die()
	again := join(t, second, "a") // and reports to the other replica from now on
	again.serve(two)
	again.send(&controlv1.CellReport{Partition: uint32(at), Root: two.Collection(at).Root().Bytes(), SnapshotVersion: two.Version() + 1})
	eventually(t, o, "the other replica knows", func() bool { return o.Cells(at)["a"].GetSnapshotVersion() == two.Version()+1 })

	old, _ := one.Namespace("orders")
	now, _ := two.Namespace("orders")
	for _, r := range []*replica{first, second} {
		if s := served(r, then); s.GetNamespaceVersion() != old.Hash.String() || s.GetRoot() != one.Collection(at).Root().String() ||
			s.GetSnapshotVersion() != one.Version() || s.GetSince().AsTime().After(then) || s.GetUnknown() != "" {
			t.Errorf("then it served %v", s)
		}
		if s := served(r, time.Now()); s.GetNamespaceVersion() != now.Hash.String() || s.GetSnapshotVersion() != two.Version()+1 || s.GetSince().AsTime().Before(then) {
			t.Errorf("now it serves %v", s)
		}
		if _, err := r.fleet.Served(t.Context(), "a", before.Add(-time.Hour), ""); fault.From(err).Code != fault.NotFound {
			t.Errorf("before everything: %v", err)
		}
		if _, err := r.fleet.Served(t.Context(), "b", time.Now(), ""); fault.From(err).Code != fault.NotFound {
			t.Errorf("one that never was: %v", err)
		}
	}
	all, err := second.fleet.Served(t.Context(), "a", then, "")
	if err != nil || len(all) != 1 {
		t.Errorf("what holds something: %v, %v", all, err)
	}
}

func TestWithoutAJournalNobodyKnows(t *testing.T) {
	r := start(t, etcd(t), "replica-1")
	if _, err := r.fleet.Served(t.Context(), "a", time.Now(), ""); fault.From(err).Code != fault.FailedPrecondition {
		t.Errorf("got %v", err)
	}
}
