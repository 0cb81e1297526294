package store_test

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	"github.com/prism-gateway/prism/controlplane/store"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
)

// clock is one that tests put forward.
type clock struct{ ahead atomic.Int64 }

func (c *clock) now() time.Time          { return time.Now().Add(time.Duration(c.ahead.Load())) }
func (c *clock) forward(d time.Duration) { c.ahead.Add(int64(d)) }

func sweep(t *testing.T, s *replica) store.Swept {
	t.Helper()
	swept, err := s.Sweep(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return swept
}

// nodesOf are the keys, without the prefix, of all that trees refer to.
func nodesOf(t *testing.T, trees ...*snapshot.Tree) []string {
	t.Helper()
	keys := map[string]bool{}
	for _, tree := range trees {
		for _, n := range tree.Missing() {
			keys[string(rune(n.Kind))+"/"+n.Hash.String()] = true
			if n.Namespace {
				h, err := snapshot.RecordHash(n.Data)
				if err != nil {
					t.Fatal(err)
				}
				keys["o/"+h.String()] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(keys))
}

func storedNodes(t *testing.T) []string {
	t.Helper()
	client, under := dial(t), "/"+prefix(t)+"/"
	var keys []string
	for _, kind := range []string{"g/", "m/", "o/"} {
		for key := range all(t, client, under+kind) {
			keys = append(keys, key[len(under):])
		}
	}
	slices.Sort(keys)
	return keys
}

func TestSweepKeepsTheHistoryAndNothingElse(t *testing.T) {
	clock := &clock{}
	s := open(t, store.Config{History: 3, Now: clock.now})
	trees := history(t, s)
	stray := ident.HashOf([]byte("stray"))
	put(t, dial(t), "/"+prefix(t)+"/o/"+stray.String(), "stray")
	if swept := sweep(t, s); swept.Snapshots != 2 || swept.Nodes != 0 {
		t.Errorf("within the grace: %+v", swept)
	}
	if _, err := s.Object(t.Context(), stray); err != nil {
		t.Errorf("what may belong to a commit under way is gone: %v", err)
	}
	clock.forward(2 * time.Hour)
	if swept := sweep(t, s); swept.Snapshots != 0 || swept.Nodes == 0 {
		t.Errorf("after the grace: %+v", swept)
	}
	if got, want := storedNodes(t), nodesOf(t, trees[3:]...); !slices.Equal(got, want) {
		t.Errorf("stored %v, want %v", got, want)
	}
	cold := open(t, store.Config{})
	for v := uint64(3); v <= 5; v++ {
		if tree, err := cold.TreeAt(t.Context(), v); err != nil || tree.Root() != trees[v].Root() {
			t.Errorf("version %d: %v", v, err)
		}
	}
	if _, err := cold.Rollback(t.Context(), release.Order{}, 2, snapshot.Note{}, nil); !fault.Is(err, fault.Snapshot) {
		t.Errorf("rollback to what has left the history: %v", err)
	}
	if _, err := cold.Object(t.Context(), stray); !fault.Is(err, fault.Object) {
		t.Errorf("the stray object: %v", err)
	}
}

func TestSweepByAgeKeepsTheNewest(t *testing.T) {
	clock := &clock{}
	s := open(t, store.Config{HistoryAge: 24 * time.Hour, Now: clock.now})
	history(t, s)
	clock.forward(23 * time.Hour)
	if swept := sweep(t, s); swept.Snapshots != 0 {
		t.Errorf("a day is not over: %+v", swept)
	}
	clock.forward(2 * time.Hour)
	if swept := sweep(t, s); swept.Snapshots != 4 {
		t.Errorf("a day later: %+v", swept)
	}
	if got, want := storedNodes(t), nodesOf(t, s.Head()); !slices.Equal(got, want) {
		t.Errorf("stored %v, want %v", got, want)
	}
	commit(t, s, namespace(t, "orders", "6"))
}

// TestSweepBesideCommits sweeps without a pause, and with no grace to speak of, while two replicas make again what they
// made and unmade before, and roll back to versions that are about to leave the history.
func TestSweepBesideCommits(t *testing.T) {
	clock := &clock{}
	a, b := open(t, store.Config{History: 4, Now: clock.now}), open(t, store.Config{History: 4, Now: clock.now})
	commit(t, a, namespace(t, "orders", "0"))
	done := make(chan struct{})
	var sweeping sync.WaitGroup
	sweeping.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				clock.forward(2 * time.Hour)
				if _, err := a.Sweep(t.Context()); err != nil {
					t.Error(err)
				}
			}
		}
	})
	var group sync.WaitGroup
	for n, r := range []*replica{a, b} {
		group.Go(func() {
			for i := range 60 {
				if _, err := r.Commit(t.Context(), release.Order{}, edit(namespace(t, fmt.Sprintf("orders-%d", n), fmt.Sprint(i%3)))); err != nil {
					t.Error(err)
				}
				if i%5 == 4 {
					back := max(r.Head().Version(), 4) - 3
					if _, err := r.Rollback(t.Context(), release.Order{}, back, snapshot.Note{}, nil); err != nil && !fault.Is(err, fault.Snapshot) {
						t.Error(err)
					}
				}
			}
		})
	}
	group.Wait()
	close(done)
	sweeping.Wait()
	cold := open(t, store.Config{})
	if cold.Head().Root() != a.Head().Root() && cold.Head().Root() != b.Head().Root() {
		t.Errorf("cold %s, a %s, b %s", cold.Head().Root(), a.Head().Root(), b.Head().Root())
	}
	history, err := cold.Snapshots(t.Context(), 0, 1000)
	if err != nil {
		t.Fatal(err)
	}
	for _, rec := range history {
		if _, err := cold.TreeAt(t.Context(), rec.Version); err != nil {
			t.Errorf("version %d: %v", rec.Version, err)
		}
	}
	for o := range cold.Head().Namespaces("", "") {
		h, err := snapshot.RecordHash(o.Data)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := cold.Object(t.Context(), h); err != nil {
			t.Errorf("the record of %s: %v", o.Name, err)
		}
	}
}
