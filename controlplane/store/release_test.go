package store_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	"github.com/prism-gateway/prism/controlplane/store"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
)

// inWaves lets all classes of changes go in waves.
func inWaves() release.Policies {
	p := &configv1.ReleasePolicy{FirstPercent: 50}
	return release.Policies{Additive: p, Scoped: p, Shared: p, Rollback: p}
}

const atOnce = true

func send(t testing.TB, r *replica, order release.Order, sets ...snapshot.Set) store.Commit {
	t.Helper()
	c, err := r.Commit(t.Context(), order, edit(sets...))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// do makes a step whatever the state.
func do(t testing.TB, r *replica, step release.Step) release.Result {
	t.Helper()
	result, err := r.Step(t.Context(), func(*release.State) (release.Step, error) { return step, nil })
	if err != nil {
		t.Fatal(err)
	}
	return result
}

// released returns the state that a replica has come to once it is as new as all that was acknowledged.
func released(t testing.TB, r *replica) *release.State {
	t.Helper()
	if err := r.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r.Released()
}

// alike holds two states against each other: what every cell sees, and the releases under way.
func alike(t testing.TB, a, b *release.State) {
	t.Helper()
	if a.Head().Version() != b.Head().Version() || a.Head().Root() != b.Head().Root() || a.Stable().Root() != b.Stable().Root() {
		t.Fatalf("snapshot %d of root %s and stable %s, and snapshot %d of root %s and stable %s", a.Head().Version(), a.Head().Root(), a.Stable().Root(),
			b.Head().Version(), b.Head().Root(), b.Stable().Root())
	}
	if !slices.EqualFunc(a.Active(), b.Active(), func(x, y *recordv1.Release) bool { return proto.Equal(x, y) }) {
		t.Fatalf("under way are %v, and %v", a.Active(), b.Active())
	}
	for p := range ident.Partition(a.Head().Partitions()) {
		for _, rank := range []release.Rank{release.Validator, 0, 1, 2, release.Other} {
			v, w := a.View(p, rank), b.View(p, rank)
			if v.Partition.Root() != w.Partition.Root() || v.Shared.Root() != w.Shared.Root() || v.Snapshot != w.Snapshot {
				t.Fatalf("%s at rank %d is seen otherwise", p, rank)
			}
		}
	}
}

// seen is what a cell of a namespace's partition sees as its content.
func seen(t testing.TB, s *release.State, name string, rank release.Rank) string {
	t.Helper()
	o, ok := s.View(ident.PartitionOf(name, s.Head().Partitions()), rank).Partition.Object("ns/" + name)
	if !ok {
		return ""
	}
	var cfg configv1.NamespaceConfig
	if err := proto.Unmarshal(o.Data, &cfg); err != nil {
		t.Fatal(err)
	}
	return cfg.StoragePrefix
}

func TestChangesReachCellsInWaves(t *testing.T) {
	cfg := store.Config{Client: dial(t), Prefix: prefix(t), Partitions: 64, Policies: inWaves()}
	a, b := open(t, cfg), open(t, cfg)
	send(t, a, release.Order{AtOnce: atOnce}, namespace(t, "orders", "1"), namespace(t, "users", "1"))
	c := send(t, a, release.Order{}, namespace(t, "orders", "2"))
	if !c.InRelease || len(c.Snapshot.Changes) != 1 || !c.Snapshot.Changes[0].InRelease {
		t.Fatalf("committed %v", c.Snapshot)
	}
	id := c.Tree.Version()
	send(t, b, release.Order{AtOnce: atOnce}, namespace(t, "users", "2"))
	for wave, want := range [][5]string{
		{"1", "1", "1", "1", "1"}, {"2", "1", "1", "1", "1"}, {"2", "2", "1", "1", "1"}, {"2", "2", "1", "1", "1"}, {"2", "2", "2", "1", "1"}, {"2", "2", "2", "2", "2"},
	} {
		if wave > 0 {
			// Either replica makes steps, and both see them.
			moved := do(t, []*replica{a, b}[wave%2], release.Step{Release: id, Do: release.Wave, Wave: wave})
			if !moved.Changed || moved.Snapshot != nil || moved.Release.Wave != uint32(wave) {
				t.Fatalf("wave %d: %+v", wave, moved)
			}
		}
		for _, r := range []*replica{a, b} {
			s := released(t, r)
			got := [5]string{seen(t, s, "orders", release.Validator), seen(t, s, "orders", 0), seen(t, s, "orders", 1), seen(t, s, "orders", 2), seen(t, s, "orders", release.Other)}
			if got != want {
				t.Errorf("at wave %d the ranks see %v, want %v", wave, got, want)
			}
			for _, rank := range []release.Rank{release.Validator, 0, 2} {
				if got := seen(t, s, "users", rank); got != "2" {
					t.Errorf("what goes at once is seen as %s at rank %d", got, rank)
				}
			}
		}
		alike(t, a.Released(), b.Released())
	}
	if again := do(t, a, release.Step{Release: id, Do: release.Wave, Wave: 3}); again.Changed {
		t.Errorf("a wave that was reached is reached again: %+v", again)
	}
	done := do(t, b, release.Step{Release: id, Do: release.Promote})
	if done.Release.State != configv1.ReleaseState_RELEASE_STATE_DONE || len(done.State.Active()) != 0 || done.State.Stable() != done.State.Head() {
		t.Fatalf("promoted: %+v", done)
	}
	for _, r := range []*replica{a, b} {
		released(t, r)
		ended, err := r.Releases(t.Context(), 0, 10)
		if err != nil || len(ended) != 1 || !proto.Equal(ended[0], done.Release) {
			t.Errorf("ended are stored %v, %v", ended, err)
		}
		if kept := r.Ended(); len(kept) != 1 || !proto.Equal(kept[0], done.Release) {
			t.Errorf("ended are known %v", kept)
		}
	}
	if _, err := a.Step(t.Context(), func(*release.State) (release.Step, error) {
		return release.Step{Release: id, Do: release.Pause}, nil
	}); !fault.Is(err, fault.Release) {
		t.Errorf("a step of a release that has ended: %v", err)
	}
}

func TestWhatIsTakenBackIsASnapshot(t *testing.T) {
	a := open(t, store.Config{Partitions: 8, Policies: inWaves()})
	first := send(t, a, release.Order{AtOnce: atOnce}, namespace(t, "orders", "1"), namespace(t, "users", "1"))
	c := send(t, a, release.Order{}, namespace(t, "orders", "2"), namespace(t, "users", "2"), namespace(t, "carts", "2"))
	id := c.Tree.Version()
	do(t, a, release.Step{Release: id, Do: release.Wave, Wave: 3})
	ejected := do(t, a, release.Step{Release: id, Do: release.Eject, Reason: "refused", Objects: []release.Ejected{
		{Name: "ns/orders", Proxy: "proxy-1", Build: "1.2.3", Rejection: &configv1.Rejection{Resource: "ns/orders", Reason: "bad"}},
	}})
	if s := ejected.Snapshot; s.GetVersion() != id+1 || len(s.Changes) != 1 || s.Changes[0].Kind != recordv1.ChangeKind_CHANGE_KIND_ROLLBACK ||
		s.Changes[0].Author != "prism" || s.Changes[0].ToVersion != id-1 || s.Changes[0].Message != "refused" {
		t.Fatalf("recorded %v", s)
	}
	if got := ejected.Release.TakenBack; len(got) != 1 || got[0].Name != "ns/orders" || got[0].Why.Proxy != "proxy-1" || got[0].Why.BySnapshot != id+1 {
		t.Fatalf("told %v", got)
	}
	if seen(t, a.Released(), "orders", 0) != "1" || seen(t, a.Released(), "users", 0) != "2" || seen(t, a.Released(), "users", 1) != "1" {
		t.Fatal("what was ejected is still seen, or what was not is gone")
	}
	again := do(t, a, release.Step{Release: id, Do: release.Eject, Objects: []release.Ejected{{Name: "ns/orders"}, {Name: "ns/other"}}})
	if again.Changed || again.State.Head().Version() != id+1 {
		t.Errorf("what is not pending is ejected: %+v", again)
	}
	back := do(t, a, release.Step{Release: id, Do: release.Abort, Author: "bob", Reason: "no"})
	if back.Snapshot.GetVersion() != id+2 || back.Snapshot.Changes[0].Author != "bob" || back.Release.State != configv1.ReleaseState_RELEASE_STATE_ABORTED {
		t.Fatalf("aborted: %+v", back)
	}
	if a.Head().Root() != first.Tree.Root() || a.Released().Stable() != a.Head() {
		t.Error("what was taken back is not as it was before")
	}
	if rec, err := a.Snapshot(t.Context(), id+2); err != nil || !proto.Equal(rec, back.Snapshot) {
		t.Errorf("stored %v, %v", rec, err)
	}
}

func TestReplicasAgreeWhileTheyRace(t *testing.T) {
	cfg := store.Config{Client: dial(t), Prefix: prefix(t), Partitions: 16, Policies: inWaves()}
	replicas := []*replica{open(t, cfg), open(t, cfg)}
	names := []string{"ant", "bee", "cat", "dog", "elk", "fox"}
	var racing sync.WaitGroup
	for n, r := range replicas {
		racing.Go(func() {
			for i := range 15 {
				set := namespace(t, names[(i+n)%len(names)], fmt.Sprintf("%d-%d", n, i))
				if _, err := r.Commit(t.Context(), release.Order{AtOnce: i%3 == 0}, edit(set)); err != nil {
					t.Error(err)
				}
			}
		})
		racing.Go(func() {
			for i := range 30 {
				_, err := r.Step(t.Context(), func(s *release.State) (release.Step, error) {
					if len(s.Active()) == 0 {
						return release.Step{}, nil
					}
					under := s.Active()[i%len(s.Active())]
					switch {
					case i%7 == 0:
						return release.Step{Release: under.Snapshot, Do: release.TakeBack, Reason: "test"}, nil
					case i%5 == 0:
						return release.Step{Release: under.Snapshot, Do: release.Eject, Reason: "test",
							Objects: []release.Ejected{{Name: s.Pending(under.Snapshot)[0].Name}}}, nil
					case under.Wave < release.Waves:
						return release.Step{Release: under.Snapshot, Do: release.Wave, Wave: int(under.Wave) + 1}, nil
					}
					return release.Step{Release: under.Snapshot, Do: release.Promote}, nil
				})
				if err != nil && !fault.Is(err, fault.Release) {
					t.Error(err)
				}
			}
		})
	}
	racing.Wait()
	cold := open(t, cfg)
	for _, r := range replicas {
		alike(t, released(t, cold), released(t, r))
		if !slices.EqualFunc(cold.Ended(), r.Ended(), func(x, y *recordv1.Release) bool { return proto.Equal(x, y) }) {
			t.Error("other releases have ended")
		}
	}
	// Every release that began is under way or has ended, once.
	began := map[uint64]bool{}
	records, err := cold.Snapshots(t.Context(), 0, 1000)
	if err != nil {
		t.Fatal(err)
	}
	for _, rec := range records {
		for _, c := range rec.Changes {
			if c.InRelease {
				began[rec.Version] = true
			}
		}
	}
	for _, r := range append(slices.Clone(cold.Ended()), cold.Released().Active()...) {
		if !began[r.Snapshot] {
			t.Errorf("release %d twice, or of nothing", r.Snapshot)
		}
		delete(began, r.Snapshot)
	}
	if len(began) > 0 {
		t.Errorf("lost are the releases %v", slices.Collect(maps.Keys(began)))
	}
}

func TestAReplicaThatStartsFindsTheReleaseAsItIs(t *testing.T) {
	cfg := store.Config{Client: dial(t), Prefix: prefix(t), Partitions: 32, Policies: inWaves()}
	a := open(t, cfg)
	var sets []snapshot.Set
	for i := range 40 {
		sets = append(sets, namespace(t, fmt.Sprintf("name-%d", i), "1"))
	}
	send(t, a, release.Order{AtOnce: atOnce}, sets...)
	before := a.Head().Root()
	sets = nil
	for i := range 20 {
		sets = append(sets, namespace(t, fmt.Sprintf("name-%d", i), "2"))
	}
	id := send(t, a, release.Order{ConfirmWithin: time.Hour}, sets...).Tree.Version()
	do(t, a, release.Step{Release: id, Do: release.Wave, Wave: 2})
	send(t, a, release.Order{AtOnce: atOnce}, namespace(t, "name-39", "2"))
	second := send(t, a, release.Order{}, namespace(t, "name-3", "3"), namespace(t, "name-38", "3")).Tree.Version()
	was := a.Released()
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	b := open(t, cfg)
	alike(t, was, b.Released())
	if r, ok := b.Released().Of("ns/name-3"); !ok || r.Snapshot != second {
		t.Errorf("name-3 is pending in %v", r)
	}
	if r, _ := b.Released().Release(id); r.Objects != 20 || r.LetGo != 1 || r.ConfirmBy == nil {
		t.Errorf("the release is %v", r)
	}
	do(t, b, release.Step{Release: second, Do: release.TakeBack, Reason: "test"})
	do(t, b, release.Step{Release: id, Do: release.TakeBack, Reason: "test"})
	send(t, b, release.Order{AtOnce: atOnce}, namespace(t, "name-39", "1"))
	if b.Head().Root() != before {
		t.Error("when all is taken back it is not as it was")
	}
}

func TestARollbackOfEverythingEndsAllReleases(t *testing.T) {
	for name, order := range map[string]release.Order{"at once": {AtOnce: atOnce}, "in waves": {}, "to be confirmed": {AtOnce: atOnce, ConfirmWithin: time.Hour}} {
		t.Run(name, func(t *testing.T) {
			a := open(t, store.Config{Partitions: 8, Policies: inWaves()})
			send(t, a, release.Order{AtOnce: atOnce}, namespace(t, "orders", "1"))
			send(t, a, release.Order{AtOnce: atOnce}, namespace(t, "orders", "2"), namespace(t, "users", "2"))
			id := send(t, a, release.Order{}, namespace(t, "orders", "3")).Tree.Version()
			do(t, a, release.Step{Release: id, Do: release.Wave, Wave: 3})
			c, err := a.Rollback(t.Context(), order, 1, snapshot.Note{Author: "bob"}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if ended := a.Ended(); len(ended) != 1 || ended[0].Snapshot != id || ended[0].State != configv1.ReleaseState_RELEASE_STATE_SUPERSEDED {
				t.Errorf("ended %v", ended)
			}
			s := a.Released()
			settled := order.AtOnce && order.ConfirmWithin == 0
			if c.InRelease == settled || (s.Stable() == s.Head()) != settled {
				t.Fatalf("in a release: %v, under way: %v", c.InRelease, s.Active())
			}
			if settled {
				if seen(t, s, "orders", 2) != "1" {
					t.Error("a rollback at once is not seen at once")
				}
				return
			}
			if r := s.Active()[0]; !r.Whole || r.Objects != 2 || r.Class != configv1.ReleaseClass_RELEASE_CLASS_ROLLBACK {
				t.Fatalf("the release is %v", r)
			}
			if name == "in waves" && seen(t, s, "orders", 0) != "2" || name == "to be confirmed" && seen(t, s, "orders", 2) != "1" {
				t.Error("a cell sees what has not reached it, or not what has")
			}
			do(t, a, release.Step{Release: c.Tree.Version(), Do: release.Push, Reason: "now"})
			if s := a.Released(); s.Stable() != s.Head() || seen(t, s, "orders", 2) != "1" || seen(t, s, "users", 2) != "" {
				t.Error("what was pushed is not seen by all")
			}
		})
	}
}

func TestASweepSparesWhatIsStable(t *testing.T) {
	now := time.Now()
	var mu sync.Mutex
	clock := func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	later := func(d time.Duration) { mu.Lock(); defer mu.Unlock(); now = now.Add(d) }
	cfg := store.Config{Client: dial(t), Prefix: prefix(t), Partitions: 8, Policies: inWaves(), History: 3, Now: clock}
	a := open(t, cfg)
	var sets []snapshot.Set
	for i := range 30 {
		sets = append(sets, namespace(t, fmt.Sprintf("name-%d", i), "1"))
	}
	send(t, a, release.Order{AtOnce: atOnce}, sets...)
	id := send(t, a, release.Order{}, namespace(t, "name-1", "2"), namespace(t, "name-2", "2")).Tree.Version()
	do(t, a, release.Step{Release: id, Do: release.Wave, Wave: 3})
	for i := range 10 {
		send(t, a, release.Order{AtOnce: atOnce}, namespace(t, fmt.Sprintf("name-%d", 10+i), "2"))
	}
	ended := send(t, a, release.Order{}, namespace(t, "name-3", "2")).Tree.Version()
	do(t, a, release.Step{Release: ended, Do: release.Push, Reason: "test"})
	for range 3 {
		later(2 * time.Hour)
		if _, err := a.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := a.Snapshot(t.Context(), id-1); !fault.Is(err, fault.Snapshot) {
		t.Errorf("an old snapshot without a release is kept: %v", err)
	}
	if _, err := a.Snapshot(t.Context(), id); err != nil {
		t.Errorf("the snapshot of a release under way: %v", err)
	}
	cold := open(t, cfg)
	alike(t, a.Released(), cold.Released())
	do(t, cold, release.Step{Release: id, Do: release.TakeBack, Reason: "test"})
	alike(t, released(t, a), cold.Released())
	if got := contentOf(t, cold.Head(), "name-1"); got != "1" {
		t.Errorf("taken back to %q", got)
	}
	later(2 * time.Hour)
	if _, err := cold.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	again := open(t, cfg)
	alike(t, again.Released(), cold.Released())
	if _, err := again.Snapshot(t.Context(), id); !fault.Is(err, fault.Snapshot) {
		t.Errorf("the snapshot of a release that has ended is kept: %v", err)
	}
	if got := again.Ended(); len(got) != 2 {
		t.Errorf("ended are %v", got)
	}
}

func TestAHeadThatTellsOfNoReleaseIsSettled(t *testing.T) {
	client := dial(t)
	cfg := store.Config{Client: client, Prefix: prefix(t), Partitions: 8, Policies: inWaves()}
	a := open(t, cfg)
	c := send(t, a, release.Order{AtOnce: atOnce}, namespace(t, "orders", "1"))
	key := "/" + prefix(t) + "/head"
	resp, err := client.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	// What releases before this one wrote, byte for byte.
	old := marshal(t, &recordv1.Head{Version: 1, Root: c.Tree.Root().Bytes()})
	if string(resp.Kvs[0].Value) != string(old) {
		t.Errorf("a settled head is stored as %q, want %q", resp.Kvs[0].Value, old)
	}
	if s := open(t, cfg).Released(); s.Stable() != s.Head() || len(s.Active()) != 0 {
		t.Errorf("it is not settled: %v", s.Active())
	}
}

func TestDamageToWhatIsStableIsFound(t *testing.T) {
	for name, damage := range map[string]func(head *recordv1.Head){
		"the root is another":       func(h *recordv1.Head) { h.Stable.Root = h.Root },
		"a group is none":           func(h *recordv1.Head) { h.Stable.Groups = h.Stable.Groups[1:] },
		"a group is missing":        func(h *recordv1.Head) { h.Stable.Groups[0] = ident.HashOf([]byte("x")).Bytes() },
		"no release holds a change": func(h *recordv1.Head) { h.Releases = nil },
		"the release is of nothing": func(h *recordv1.Head) { h.Releases[0].Snapshot = 1 },
		"the release is not made":   func(h *recordv1.Head) { h.Releases[0].Snapshot = 99 },
		"releases are out of order": func(h *recordv1.Head) { h.Releases = append(h.Releases, h.Releases[0]) },
		"nothing is pending":        func(h *recordv1.Head) { h.Stable = nil },
	} {
		t.Run(name, func(t *testing.T) {
			client := dial(t)
			cfg := store.Config{Client: client, Prefix: prefix(t), Partitions: 8, Policies: inWaves()}
			a := open(t, cfg)
			send(t, a, release.Order{AtOnce: atOnce}, namespace(t, "orders", "1"))
			send(t, a, release.Order{}, namespace(t, "orders", "2"), namespace(t, "users", "2"))
			good := a.Released()
			key := "/" + prefix(t) + "/head"
			resp, err := client.Get(t.Context(), key)
			if err != nil {
				t.Fatal(err)
			}
			var head recordv1.Head
			if err := proto.Unmarshal(resp.Kvs[0].Value, &head); err != nil {
				t.Fatal(err)
			}
			damage(&head)
			if _, err := client.Put(t.Context(), key, string(marshal(t, &head))); err != nil {
				t.Fatal(err)
			}
			cfg.Name, cfg.Log = "cold", quiet()
			cold, err := store.New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			if err := cold.Run(t.Context()); fault.From(err).Code != fault.DataLoss || cold.Released() != nil {
				t.Errorf("a cold start ends with %v and shows %v", err, cold.Released())
			}
			if a.Released() != good {
				t.Error("the last good state is gone")
			}
			// Put right, it is followed again.
			if _, err := client.Put(t.Context(), key, string(resp.Kvs[0].Value)); err != nil {
				t.Fatal(err)
			}
			alike(t, released(t, a), good)
		})
	}
}

func TestOnlyTheLeaderMakesAFencedStep(t *testing.T) {
	cfg := store.Config{Client: dial(t), Prefix: prefix(t), Partitions: 8, Policies: inWaves()}
	a := open(t, cfg)
	id := send(t, a, release.Order{}, namespace(t, "orders", "1")).Tree.Version()
	wave := func(n int) error {
		_, err := a.Step(t.Context(), func(*release.State) (release.Step, error) {
			return release.Step{Release: id, Do: release.Wave, Wave: n, Fenced: true}, nil
		})
		return err
	}
	if err := wave(1); fault.From(err).Outcome != fault.NotApplied {
		t.Errorf("a step without leadership: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	leading, ended := make(chan error, 1), make(chan error, 1)
	go func() {
		ended <- a.Lead(ctx, func(ctx context.Context) error {
			leading <- wave(2)
			// The leadership is lost behind its back: its key is gone.
			client := dial(t)
			_, err := client.Delete(ctx, "/"+prefix(t)+"/leader", clientv3.WithPrefix())
			leading <- err
			leading <- wave(3)
			return nil
		})
	}()
	if err := <-leading; err != nil {
		t.Errorf("a step of the leader: %v", err)
	}
	if err := <-leading; err != nil {
		t.Fatal(err)
	}
	if err := <-leading; fault.From(err).Outcome != fault.NotApplied {
		t.Errorf("a step of who was the leader: %v", err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if r, _ := a.Released().Release(id); r.Wave != 2 {
		t.Errorf("at wave %d", r.Wave)
	}
}

func TestTheSnapshotOfATime(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	a := open(t, store.Config{Partitions: 8, Now: func() time.Time { return now }})
	begin := now
	for i := range 20 {
		now = begin.Add(time.Duration(i) * time.Minute)
		send(t, a, release.Order{}, namespace(t, "orders", fmt.Sprint(i)))
	}
	for _, c := range []struct {
		at   time.Duration
		want uint64
	}{{0, 1}, {time.Minute - 1, 1}, {time.Minute, 2}, {10*time.Minute + 1, 11}, {time.Hour, 20}} {
		if rec, err := a.SnapshotAt(t.Context(), begin.Add(c.at)); err != nil || rec.Version != c.want {
			t.Errorf("after %s: %v, %v, want %d", c.at, rec, err, c.want)
		}
	}
	if rec, err := a.SnapshotAt(t.Context(), begin.Add(-1)); !fault.Is(err, fault.Snapshot) {
		t.Errorf("before the first: %v, %v", rec, err)
	}
}

func TestAReleaseTooLargeForOneRecordGoesBackInPieces(t *testing.T) {
	a := open(t, store.Config{Partitions: 64, Policies: inWaves()})
	var sets []snapshot.Set
	for i := range 9000 {
		set := namespace(t, fmt.Sprintf("namespace-%05d", i), "1")
		set.Record, set.Data = nil, marshal(t, bareConfig(set.Name[3:]))
		sets = append(sets, set)
	}
	first := send(t, a, release.Order{}, sets...)
	send(t, a, release.Order{AtOnce: atOnce}, namespace(t, "orders", "1"))
	back := do(t, a, release.Step{Release: first.Tree.Version(), Do: release.TakeBack, Reason: "test"})
	if back.Release.GetState() != configv1.ReleaseState_RELEASE_STATE_ROLLED_BACK || back.State.Head().Len() != 1 || len(back.State.Active()) != 0 {
		t.Fatalf("taken back: %v, %d namespaces left", back.Release.GetState(), back.State.Head().Len())
	}
	if n := back.State.Head().Version() - first.Tree.Version(); n != 3 {
		t.Errorf("%d snapshots since, want one at once and two back", n)
	}
}
