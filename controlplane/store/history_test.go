package store_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	"github.com/prism-gateway/prism/controlplane/store"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/fault"
)

func bareConfig(name string) *configv1.NamespaceConfig {
	return &configv1.NamespaceConfig{Namespace: name, StoragePrefix: name + ".1"}
}

// history makes versions 1 to 5: orders changes in each, carts comes in 2 and goes in 4.
func history(t *testing.T, s *replica) []*snapshot.Tree {
	t.Helper()
	trees := []*snapshot.Tree{s.Head()}
	for v := 1; v <= 5; v++ {
		sets := []snapshot.Set{namespace(t, "orders", fmt.Sprint(v))}
		switch v {
		case 2:
			sets = append(sets, namespace(t, "carts", "1"))
		case 4:
			sets = append(sets, snapshot.Set{Name: "ns/carts"})
		}
		trees = append(trees, commit(t, s, sets...).Tree)
	}
	return trees
}

func TestHistoryIsReadBack(t *testing.T) {
	writer := open(t, store.Config{})
	trees := history(t, writer)
	for name, s := range map[string]*replica{"the writer": writer, "a cold replica": open(t, store.Config{})} {
		for v := uint64(1); v <= 5; v++ {
			tree, err := s.TreeAt(t.Context(), v)
			if err != nil || tree.Root() != trees[v].Root() || tree.Version() != v {
				t.Fatalf("%s: version %d: %v", name, v, err)
			}
			o, ok, err := s.ObjectAt(t.Context(), v, "ns/carts")
			if want, has := trees[v].Namespace("carts"); err != nil || ok != has || o.Hash != want.Hash {
				t.Errorf("%s: carts in version %d: %v, %v, %v", name, v, o, ok, err)
			}
			for w := uint64(1); w <= 5; w++ {
				got, total, err := s.Diff(t.Context(), v, w, "", 1000)
				want := snapshot.Diff(trees[v], trees[w])
				if err != nil || total != uint64(len(want)) || fmt.Sprint(got) != fmt.Sprint(want) {
					t.Errorf("%s: diff of %d and %d: %v of %d, want %v, %v", name, v, w, got, total, want, err)
				}
				for i, after := 0, ""; i < len(want); i++ {
					page, total, err := s.Diff(t.Context(), v, w, after, 1)
					if err != nil || total != uint64(len(want)) || fmt.Sprint(page) != fmt.Sprint(want[i:i+1]) {
						t.Fatalf("%s: diff of %d and %d after %q: %v of %d, %v", name, v, w, after, page, total, err)
					}
					after = page[0].Name
				}
			}
		}
		for _, v := range []uint64{0, 6} {
			if _, err := s.TreeAt(t.Context(), v); !fault.Is(err, fault.Snapshot) {
				t.Errorf("%s: version %d: %v", name, v, err)
			}
		}
		if n, err := s.CountSnapshots(t.Context()); n != 5 || err != nil {
			t.Errorf("%s: %d snapshots, %v", name, n, err)
		}
	}
	for name, tc := range map[string]struct {
		before uint64
		limit  int
		want   string
	}{
		"the newest":          {0, 2, "[5 4]"},
		"the next page":       {4, 2, "[3 2]"},
		"the last page":       {2, 2, "[1]"},
		"past the end":        {1, 2, "[]"},
		"all":                 {0, 100, "[5 4 3 2 1]"},
		"before what will be": {100, 1, "[5]"},
	} {
		page, err := writer.Snapshots(t.Context(), tc.before, tc.limit)
		versions := []uint64{}
		for _, rec := range page {
			versions = append(versions, rec.Version)
		}
		if fmt.Sprint(versions) != tc.want || err != nil {
			t.Errorf("%s: %v, want %s, %v", name, versions, tc.want, err)
		}
	}
}

func TestRollbackOfEverythingIsTheOldRoot(t *testing.T) {
	writer := open(t, store.Config{})
	trees := history(t, writer)
	cold := open(t, store.Config{}) // has none of the old trees in memory
	c, err := cold.Rollback(t.Context(), release.Order{}, 3, snapshot.Note{Author: "ann", Message: "back"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	change := c.Snapshot.Changes[0]
	if c.Tree.Root() != trees[3].Root() || c.Snapshot.Version != 6 || len(c.Snapshot.Changes) != 1 || !c.Changed ||
		change.Kind != recordv1.ChangeKind_CHANGE_KIND_ROLLBACK || change.ToVersion != 3 || change.Author != "ann" {
		t.Errorf("rolled back to %+v", c.Snapshot)
	}
	if tree := wait(t, writer.Store, func(tree *snapshot.Tree) bool { return tree.Version() == 6 }); tree.Root() != trees[3].Root() {
		t.Errorf("followed to %s", tree.Root())
	}
	if again, err := cold.Rollback(t.Context(), release.Order{}, 3, snapshot.Note{}, nil); err != nil || again.Changed || again.Snapshot.Version != 6 {
		t.Errorf("again: %+v, %v", again, err)
	}
	if _, err := cold.Rollback(t.Context(), release.Order{}, 7, snapshot.Note{}, nil); !fault.Is(err, fault.Snapshot) {
		t.Errorf("to the future: %v", err)
	}
	refusal := errors.New("too much would go")
	_, err = cold.Rollback(t.Context(), release.Order{}, 1, snapshot.Note{}, func(base, target *snapshot.Tree) error {
		if base.Len() != 2 || target.Len() != 1 {
			t.Errorf("asked about %d and %d namespaces", base.Len(), target.Len())
		}
		return refusal
	})
	if !errors.Is(err, refusal) || cold.Head().Version() != 6 {
		t.Errorf("refused: %v", err)
	}
}

func TestRollbackOfOneNamespaceIsASet(t *testing.T) {
	s := open(t, store.Config{})
	trees := history(t, s)
	old, _, err := s.ObjectAt(t.Context(), 3, "ns/carts")
	if err != nil {
		t.Fatal(err)
	}
	hash, err := snapshot.RecordHash(old.Data)
	if err != nil {
		t.Fatal(err)
	}
	record, err := s.Object(t.Context(), hash)
	if err != nil {
		t.Fatal(err)
	}
	c := commit(t, s, snapshot.Set{Name: "ns/carts", Data: old.Data, Record: record, ToVersion: 3, Kind: recordv1.ChangeKind_CHANGE_KIND_ROLLBACK})
	carts, _ := c.Tree.Namespace("carts")
	orders, _ := c.Tree.Namespace("orders")
	if before, _ := trees[5].Namespace("orders"); carts.Hash != old.Hash || orders.Hash != before.Hash {
		t.Error("not only carts went back")
	}
}
