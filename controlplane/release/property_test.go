package release_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
)

const partitions = 8

var ranks = []release.Rank{release.Validator, 0, 1, 2, release.Other}

// world is a state with its history.
type world struct {
	state   *release.State
	trees   []*snapshot.Tree // by version
	changes map[uint64][]*recordv1.Change
	now     time.Time
	content int
}

func newWorld() *world {
	tree := snapshot.New(partitions)
	return &world{state: release.Settled(tree), trees: []*snapshot.Tree{tree}, changes: map[uint64][]*recordv1.Change{}, now: time.Unix(1_700_000_000, 0)}
}

// take makes a transition the state.
func (w *world) take(rt *rapid.T, t release.Transition, changes []*recordv1.Change) {
	if v := t.State.Head().Version(); v != w.state.Head().Version() {
		if v != w.state.Head().Version()+1 || len(changes) == 0 {
			rt.Fatalf("snapshot %d follows %d with %d changes", v, w.state.Head().Version(), len(changes))
		}
		w.trees, w.changes[v] = append(w.trees, t.State.Head()), changes
	} else if len(changes) > 0 || t.State.Head().Root() != w.state.Head().Root() {
		rt.Fatalf("head changes under the number %d", v)
	}
	for _, r := range t.Ended {
		if r.EndedAt == nil || r.State < configv1.ReleaseState_RELEASE_STATE_DONE {
			rt.Fatalf("ended, and %v", r)
		}
		if _, ok := t.State.Release(r.Snapshot); ok {
			rt.Fatalf("release %d has ended and is under way", r.Snapshot)
		}
	}
	for _, r := range w.state.Active() {
		_, under := t.State.Release(r.Snapshot)
		if ended := slices.ContainsFunc(t.Ended, func(e *recordv1.Release) bool { return e.Snapshot == r.Snapshot }); under == ended {
			rt.Fatalf("release %d is under way: %v, and ended: %v", r.Snapshot, under, ended)
		}
	}
	w.state = t.State
}

func namespaceData(name string, content int, backends ...string) []byte {
	cfg := &configv1.NamespaceConfig{Namespace: name, StoragePrefix: fmt.Sprint(content)}
	if len(backends) > 0 {
		p := &configv1.PatternConfig{Name: "main"}
		for _, b := range backends {
			p.Bindings = append(p.Bindings, &configv1.Binding{Slot: "storage-" + b, Backend: b})
		}
		cfg.Patterns = []*configv1.PatternConfig{p}
	}
	return encoded(cfg)
}

func encoded(m proto.Message) []byte {
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic(err)
	}
	return data
}

func backendData(content int) []byte {
	return encoded(&configv1.Backend{Name: "b", Type: fmt.Sprint(content)})
}

// sets draws what a request does to a tree, the way the pipeline would: bound to what is there, and deleting nothing
// that is used.
func (w *world) sets(rt *rapid.T, base *snapshot.Tree) []snapshot.Set {
	var backends []string
	for _, b := range base.Backends() {
		backends = append(backends, b.ShortName())
	}
	var sets []snapshot.Set
	names := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{
		"ns/a", "ns/b", "ns/c", "ns/d", "ns/e", "ns/f", "backend/x", "backend/y", "backend/z",
	}), 1, 4, rapid.ID).Draw(rt, "names")
	for _, name := range names {
		w.content++
		set := snapshot.Set{Name: name, Author: "ann"}
		_, there := base.Object(name)
		gone := there && rapid.IntRange(0, 4).Draw(rt, "gone") == 0
		switch {
		case name[:3] == "ns/" && !gone:
			var bound []string
			if len(backends) > 0 {
				bound = rapid.SliceOfNDistinct(rapid.SampledFrom(backends), 0, 2, rapid.ID).Draw(rt, "bound")
			}
			set.Data = namespaceData(name[3:], w.content, bound...)
		case name[:3] != "ns/" && gone:
			if base.Usage(name[8:]).Namespaces > 0 || slices.ContainsFunc(sets, func(s snapshot.Set) bool { return s.Data != nil }) {
				continue
			}
			backends = slices.DeleteFunc(slices.Clone(backends), func(b string) bool { return b == name[8:] })
		case name[:3] != "ns/":
			set.Data = backendData(w.content)
		}
		sets = append(sets, set)
	}
	return sets
}

func policies(rt *rapid.T) release.Policies {
	draw := func() *configv1.ReleasePolicy {
		if rapid.Bool().Draw(rt, "at once") {
			return nil
		}
		return &configv1.ReleasePolicy{FirstPercent: 50}
	}
	return release.Policies{Additive: draw(), Scoped: draw(), Shared: draw(), Rollback: draw()}
}

func order(rt *rapid.T) release.Order {
	o := release.Order{AtOnce: rapid.IntRange(0, 3).Draw(rt, "order") == 0}
	if rapid.IntRange(0, 5).Draw(rt, "confirm") == 0 {
		o.ConfirmWithin = time.Minute
	}
	return o
}

// commit records several requests together.
func (w *world) commit(rt *rapid.T) {
	d := w.state.Draft(w.now)
	var all []*recordv1.Change
	everywhere := map[string][]byte{} // what went at once, last
	for range rapid.IntRange(1, 3).Draw(rt, "requests") {
		before := d.Head()
		o, p := order(rt), policies(rt)
		sets := w.sets(rt, before)
		next, changes, err := d.With(o, p, sets)
		if err != nil {
			if !fault.Is(err, fault.InUse) && err != release.ErrApart {
				rt.Fatal(err)
			}
			continue
		}
		at := o.AtOnce || p.Of(release.Classify(before, sets)).AtOnce
		for _, c := range changes {
			delete(everywhere, c.Name)
			if at && o.ConfirmWithin == 0 {
				if c.InRelease {
					rt.Fatalf("%s goes at once and is in a release", c.Name)
				}
				everywhere[c.Name] = c.After
			}
		}
		d, all = next, append(all, changes...)
	}
	done, err := d.Done()
	if err != nil {
		rt.Fatal(err)
	}
	w.take(rt, done, all)
	for name, after := range everywhere {
		if _, pending := w.state.Of(name); pending {
			rt.Fatalf("%s went at once and is pending", name)
		}
		if o, _ := w.state.Stable().Object(name); !slices.Equal(o.Hash.Bytes(), after) {
			rt.Fatalf("%s went at once and is not stable", name)
		}
	}
}

func (w *world) rollback(rt *rapid.T) {
	target := w.trees[rapid.IntRange(0, len(w.trees)-1).Draw(rt, "to")]
	o, p := order(rt), policies(rt)
	d, changes, err := w.state.Draft(w.now).Rollback(o, p, target, snapshot.Note{Author: "ann"})
	if err != nil {
		rt.Fatal(err)
	}
	done, err := d.Done()
	if err != nil {
		rt.Fatal(err)
	}
	was := w.state.Stable()
	w.take(rt, done, changes)
	if w.state.Head().Root() != target.Root() {
		rt.Fatal("the head is not what was gone back to")
	}
	if len(changes) == 0 {
		return
	}
	if at := (o.AtOnce || p.Rollback == nil) && o.ConfirmWithin == 0; at != (len(w.state.Active()) == 0) && was.Root() != target.Root() {
		rt.Fatalf("at once: %v, and under way: %v", at, w.state.Active())
	}
}

// step makes some step of some release.
func (w *world) step(rt *rapid.T) {
	if len(w.state.Active()) == 0 {
		return
	}
	r := rapid.SampledFrom(w.state.Active()).Draw(rt, "release")
	s := release.Step{Release: r.Snapshot, Do: rapid.SampledFrom([]release.Action{
		release.Wave, release.Wave, release.Wave, release.Promote, release.TakeBack, release.Eject, release.Eject, release.Pause,
		release.Resume, release.Push, release.Abort, release.Confirm,
	}).Draw(rt, "action"), Wave: int(r.Wave) + rapid.IntRange(1, 2).Draw(rt, "waves"), Reason: "because"}
	if s.Wave > release.Waves {
		s.Wave = release.Waves
	}
	pending := w.state.Pending(r.Snapshot)
	for _, d := range pending {
		if rapid.Bool().Draw(rt, "ejected") {
			s.Objects = append(s.Objects, release.Ejected{Name: d.Name})
		}
	}
	done, err := w.state.Apply(s, w.now)
	if err != nil {
		if !fault.Is(err, fault.Release) {
			rt.Fatal(err)
		}
		return
	}
	before := w.state
	w.take(rt, done, done.Changes)
	switch s.Do {
	case release.TakeBack, release.Abort:
		w.wentBack(rt, before, pending)
	case release.Eject:
		w.wentBack(rt, before, slices.DeleteFunc(pending, func(d release.Pending) bool {
			return !slices.ContainsFunc(s.Objects, func(o release.Ejected) bool { return o.Name == d.Name })
		}))
	case release.Push, release.Promote:
		for _, d := range pending {
			if o, _ := w.state.Stable().Object(d.Name); o.Hash != d.After.Hash {
				rt.Fatalf("%s was promoted and is not stable", d.Name)
			}
		}
	}
}

// wentBack holds what was taken back against what was stable. What was made and is still used stays, and is stable then.
func (w *world) wentBack(rt *rapid.T, before *release.State, objects []release.Pending) {
	for _, d := range objects {
		if _, pending := w.state.Of(d.Name); pending {
			rt.Fatalf("%s was taken back and is pending", d.Name)
		}
		o, _ := w.state.Head().Object(d.Name)
		used := d.Before.Hash.IsZero() && d.Name[:3] != "ns/" && w.state.Head().Usage(d.Name[8:]).Namespaces > 0
		if o.Hash != d.Before.Hash && !used {
			rt.Fatalf("%s was taken back and is not as it was stable", d.Name)
		}
	}
}

// check holds the state against what must always be so.
func (w *world) check(rt *rapid.T) {
	s := w.state
	head, stable := s.Head(), s.Stable()
	if (len(s.Active()) == 0) != (head.Root() == stable.Root()) {
		rt.Fatalf("%d releases under way, stable %s of %s", len(s.Active()), stable.Root(), head.Root())
	}
	if head.Version() != stable.Version() {
		rt.Fatalf("stable has the number %d, not %d", stable.Version(), head.Version())
	}
	held := 0
	for _, r := range s.Active() {
		n := len(s.Pending(r.Snapshot))
		if n == 0 || n != s.Held(r.Snapshot) || r.EndedAt != nil || int(r.Objects) < 1 {
			rt.Fatalf("release %d holds %d, %d: %v", r.Snapshot, n, s.Held(r.Snapshot), r)
		}
		held += n
		for _, p := range r.First {
			if p >= partitions {
				rt.Fatalf("first %v", r.First)
			}
		}
	}
	if differ := len(snapshot.Diff(stable, head)); differ != held {
		rt.Fatalf("%d objects differ, and releases hold %d", differ, held)
	}
	for p := range ident.Partition(partitions) {
		for _, rank := range ranks {
			w.checkView(rt, s, p, rank)
		}
	}
	w.checkReplay(rt)
}

func (w *world) checkView(rt *rapid.T, s *release.State, p ident.Partition, rank release.Rank) {
	v := s.View(p, rank)
	sees := func(c, stable, head *snapshot.Collection) {
		names := map[string]bool{}
		for _, c := range []*snapshot.Collection{c, stable, head} {
			for i := range c.Len() {
				names[c.At(i).Name] = true
			}
		}
		for name := range names {
			want, _ := head.Object(name)
			if r, pending := s.Of(name); pending && (!s.Reached(r.Snapshot, p, rank) || want.Hash.IsZero() && name[:3] != "ns/") {
				want, _ = stable.Object(name)
			}
			if got, _ := c.Object(name); got.Hash != want.Hash {
				rt.Fatalf("%s at rank %d sees %s as %q, want %q", p, rank, name, got.Data, want.Data)
			}
		}
	}
	sees(v.Partition, s.Stable().Collection(p), s.Head().Collection(p))
	sees(v.Shared, s.Stable().Shared(), s.Head().Shared())
	for i := range v.Partition.Len() {
		bound, err := v.Partition.At(i).Bound()
		if err != nil {
			rt.Fatal(err)
		}
		for _, b := range bound {
			if _, ok := v.Shared.Object("backend/" + b); !ok {
				rt.Fatalf("%s at rank %d: %s is bound to %s, which is not there", p, rank, v.Partition.At(i).Name, b)
			}
		}
	}
	withheld := head(s)
	for _, r := range s.Active() {
		if !s.Reached(r.Snapshot, p, rank) && slices.Contains(s.Concerned(r.Snapshot), p) {
			withheld = r.Snapshot - 1
			break
		}
	}
	if v.Snapshot != withheld {
		rt.Fatalf("%s at rank %d is told snapshot %d, want %d", p, rank, v.Snapshot, withheld)
	}
	if again := s.View(p, rank); again != v {
		rt.Fatal("a view is made twice")
	}
}

func head(s *release.State) uint64 { return s.Head().Version() }

// checkReplay makes the state anew from what is stored of it.
func (w *world) checkReplay(rt *rapid.T) {
	var stored []*recordv1.Release
	for _, r := range w.state.Active() {
		data, err := proto.Marshal(r)
		if err != nil {
			rt.Fatal(err)
		}
		var read recordv1.Release
		if err := proto.Unmarshal(data, &read); err != nil {
			rt.Fatal(err)
		}
		stored = append(stored, &read)
	}
	for name, prev := range map[string]*release.State{"cold": release.Settled(snapshot.New(partitions)), "warm": w.state} {
		again, err := release.Load(prev, w.state.Head(), w.state.Stable(), stored, func(v uint64) ([]*recordv1.Change, error) { return w.changes[v], nil })
		if err != nil {
			rt.Fatal(name, err)
		}
		for p := range ident.Partition(partitions) {
			for _, rank := range ranks {
				a, b := w.state.View(p, rank), again.View(p, rank)
				if a.Partition.Root() != b.Partition.Root() || a.Shared.Root() != b.Shared.Root() || a.Snapshot != b.Snapshot {
					rt.Fatalf("%s: %s at rank %d sees otherwise", name, p, rank)
				}
			}
		}
	}
}

func TestWhateverHappensCellsSeeWhatHasReachedThem(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld()
		for range rapid.IntRange(1, 25).Draw(rt, "moves") {
			w.now = w.now.Add(time.Second)
			switch rapid.IntRange(0, 9).Draw(rt, "move") {
			case 0:
				w.rollback(rt)
			case 1, 2, 3, 4:
				w.commit(rt)
			default:
				w.step(rt)
			}
			w.check(rt)
		}
	})
}
