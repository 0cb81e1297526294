package release_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
)

var start = time.Unix(1_700_000_000, 0)

// all lets every class go in waves.
func all() release.Policies {
	p := &configv1.ReleasePolicy{FirstPercent: 50}
	return release.Policies{Additive: p, Scoped: p, Shared: p, Rollback: p}
}

var now = release.Order{AtOnce: true}

// history is a state that grows.
type history struct {
	*testing.T
	*release.State
	ended []*recordv1.Release
}

func begin(t *testing.T) *history {
	return &history{T: t, State: release.Settled(snapshot.New(64))}
}

func (h *history) take(done release.Transition, err error) release.Transition {
	h.Helper()
	if err != nil {
		h.Fatal(err)
	}
	h.State, h.ended = done.State, append(h.ended, done.Ended...)
	return done
}

// commit records one request and returns the number of its snapshot.
func (h *history) commit(order release.Order, sets ...snapshot.Set) uint64 {
	h.Helper()
	d, _, err := h.Draft(start).With(order, all(), sets)
	if err != nil {
		h.Fatal(err)
	}
	h.take(d.Done())
	return h.Head().Version()
}

func (h *history) step(s release.Step) release.Transition {
	h.Helper()
	return h.take(h.Apply(s, start.Add(time.Minute)))
}

func (h *history) refuse(s release.Step) {
	h.Helper()
	if done, err := h.Apply(s, start); !fault.Is(err, fault.Release) {
		h.Errorf("%+v gives %+v, %v", s, done, err)
	}
}

func (h *history) release(id uint64) *recordv1.Release {
	h.Helper()
	if r, ok := h.Release(id); ok {
		return r
	}
	i := slices.IndexFunc(h.ended, func(r *recordv1.Release) bool { return r.Snapshot == id })
	if i < 0 {
		h.Fatalf("there is no release %d", id)
	}
	return h.ended[i]
}

func space(name string, content int, backends ...string) snapshot.Set {
	return snapshot.Set{Name: "ns/" + name, Data: namespaceData(name, content, backends...), Author: "ann"}
}

func store(name string, content int) snapshot.Set {
	return snapshot.Set{Name: "backend/" + name, Data: backendData(content)}
}

func gone(name string) snapshot.Set { return snapshot.Set{Name: name} }

func whatHappened(r *recordv1.Release) string {
	var out []string
	for _, e := range r.Events {
		out = append(out, e.What)
	}
	return strings.Join(out, ",")
}

func TestClassesOfRequests(t *testing.T) {
	h := begin(t)
	h.commit(now, store("used", 1), store("spare", 1), snapshot.Set{Name: "profile/gold", Data: []byte("1")})
	h.commit(now, space("orders", 1, "used"))
	back := space("orders", 0)
	back.Kind = recordv1.ChangeKind_CHANGE_KIND_ROLLBACK
	for name, c := range map[string]struct {
		sets []snapshot.Set
		want configv1.ReleaseClass
	}{
		"nothing":                             {nil, configv1.ReleaseClass_RELEASE_CLASS_ADDITIVE},
		"a new namespace and backend":         {[]snapshot.Set{space("users", 1), store("new", 1)}, configv1.ReleaseClass_RELEASE_CLASS_ADDITIVE},
		"a backend that nobody uses":          {[]snapshot.Set{store("spare", 2)}, configv1.ReleaseClass_RELEASE_CLASS_ADDITIVE},
		"what is so already":                  {[]snapshot.Set{space("orders", 1, "used"), store("used", 1)}, configv1.ReleaseClass_RELEASE_CLASS_ADDITIVE},
		"a namespace that is there":           {[]snapshot.Set{space("users", 1), space("orders", 2)}, configv1.ReleaseClass_RELEASE_CLASS_SCOPED},
		"a deletion":                          {[]snapshot.Set{gone("ns/orders")}, configv1.ReleaseClass_RELEASE_CLASS_SCOPED},
		"a backend that is used":              {[]snapshot.Set{space("orders", 2), store("used", 2)}, configv1.ReleaseClass_RELEASE_CLASS_SHARED},
		"a profile that is there":             {[]snapshot.Set{{Name: "profile/gold", Data: []byte("2")}}, configv1.ReleaseClass_RELEASE_CLASS_SHARED},
		"a namespace that goes back":          {[]snapshot.Set{back}, configv1.ReleaseClass_RELEASE_CLASS_ROLLBACK},
		"one that goes back and one that not": {[]snapshot.Set{back, gone("ns/orders")}, configv1.ReleaseClass_RELEASE_CLASS_SCOPED},
	} {
		t.Run(name, func(t *testing.T) {
			if got := release.Classify(h.Head(), c.sets); got != c.want {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

func TestPoliciesAreCompleted(t *testing.T) {
	if got := release.Complete(nil); !got.AtOnce || got.Soak.AsDuration() != 30*time.Second {
		t.Errorf("no policy is %v", got)
	}
	want := &configv1.ReleasePolicy{FirstPercent: 5, Soak: durationpb.New(30 * time.Second), Silence: durationpb.New(30 * time.Second),
		MaxFailedPoints: 1, MaxLatencyFactor: 2, MinCalls: 100}
	if got := release.Complete(&configv1.ReleasePolicy{}); !proto.Equal(got, want) {
		t.Errorf("an empty policy is %v, want %v", got, want)
	}
	own := &configv1.ReleasePolicy{FirstPercent: 7, Soak: durationpb.New(0), Silence: durationpb.New(time.Second), MaxFailedPoints: 3, MaxLatencyFactor: 4, MinCalls: 5}
	if got := release.Complete(own); !proto.Equal(got, own) || got == own {
		t.Errorf("a policy that is complete is %v", got)
	}
	p := release.Policies{Scoped: own}
	if !proto.Equal(p.Of(configv1.ReleaseClass_RELEASE_CLASS_SCOPED), own) || !p.Of(configv1.ReleaseClass_RELEASE_CLASS_SHARED).AtOnce {
		t.Error("policies are not told by class")
	}
}

func TestTheFirstPartitionsRotate(t *testing.T) {
	var concerned []ident.Partition
	for p := range ident.Partition(100) {
		concerned = append(concerned, p)
	}
	for _, c := range []struct{ of, percent, want int }{{100, 5, 5}, {100, 100, 100}, {10, 5, 1}, {1, 1, 1}, {30, 5, 2}, {0, 5, 0}} {
		if got := release.First(7, concerned[:c.of], uint32(c.percent)); len(got) != c.want || !slices.IsSorted(got) {
			t.Errorf("%d percent of %d are %v, want %d", c.percent, c.of, got, c.want)
		}
	}
	chosen := map[ident.Partition]bool{}
	for version := range uint64(200) {
		for _, p := range release.First(version, concerned, 5) {
			chosen[p] = true
		}
	}
	if len(chosen) < 95 {
		t.Errorf("200 releases began with %d of 100 partitions", len(chosen))
	}
}

func TestARankIsReachedByItsWave(t *testing.T) {
	h := begin(t)
	id := h.commit(release.Order{}, space("orders", 1), space("users", 1))
	firsts := h.release(id).First
	if len(firsts) != 1 || len(h.Concerned(id)) != 2 {
		t.Fatalf("first are %v of %v", firsts, h.Concerned(id))
	}
	first := ident.Partition(firsts[0])
	other := h.Concerned(id)[0]
	if other == first {
		other = h.Concerned(id)[1]
	}
	for _, c := range []struct {
		p    ident.Partition
		rank release.Rank
		want int
	}{
		{first, release.Validator, 1}, {other, release.Validator, 1}, {first, 0, 2}, {other, 0, 3}, {first, 1, 4}, {other, 1, 4}, {first, 2, 5}, {first, release.Other, 5},
	} {
		if got := h.WaveOf(id, c.p, c.rank); got != c.want {
			t.Errorf("wave of %s at rank %d is %d, want %d", c.p, c.rank, got, c.want)
		}
	}
	if h.WaveOf(id+1, first, 0) != 0 || !h.Reached(id+1, first, 0) || h.Reached(id, first, 0) {
		t.Error("a release that is not under way")
	}
}

func TestAChangeOfWhatIsPendingTakesItOver(t *testing.T) {
	h := begin(t)
	h.commit(now, space("orders", 1), space("users", 1))
	one := h.commit(release.Order{}, space("orders", 2), space("users", 2))
	h.step(release.Step{Release: one, Do: release.Wave, Wave: 3})
	two := h.commit(release.Order{}, space("orders", 3))
	if r, _ := h.Of("ns/orders"); r.GetSnapshot() != two || h.release(one).LetGo != 1 || h.Held(one) != 1 {
		t.Fatalf("orders is pending in %v, and %v", r, h.release(one))
	}
	v := h.View(ident.PartitionOf("orders", 64), 0)
	if o, _ := v.Partition.Object("ns/orders"); string(o.Data) != string(namespaceData("orders", 1)) || v.Snapshot != two-1 {
		t.Errorf("what starts over is seen as %q up to %d", o.Data, v.Snapshot)
	}
	three := h.commit(now, space("users", 3))
	r := h.release(one)
	if r.State != configv1.ReleaseState_RELEASE_STATE_SUPERSEDED || r.LetGo != 2 || r.Objects != 2 || whatHappened(r) != "started,wave,superseded" ||
		!strings.Contains(r.Reason, fmt.Sprint(three)) {
		t.Errorf("what holds nothing any more is %v", r)
	}
	h.commit(now, space("orders", 1))
	if len(h.Active()) != 0 || h.Stable() != h.Head() {
		t.Errorf("under way is %v", h.Active())
	}
}

func TestWhatComesBackToWhatIsStableNeedsNoRelease(t *testing.T) {
	h := begin(t)
	h.commit(now, space("orders", 1))
	one := h.commit(release.Order{}, space("orders", 2))
	h.commit(release.Order{}, space("orders", 1))
	if len(h.Active()) != 0 || len(h.ended) != 1 || h.release(one).State != configv1.ReleaseState_RELEASE_STATE_SUPERSEDED {
		t.Errorf("under way is %v, ended %v", h.Active(), h.ended)
	}
}

func TestBackendsAreThereForWhoeverIsBoundToThem(t *testing.T) {
	p := ident.PartitionOf("orders", 64)
	has := func(h *history, rank release.Rank, backend string) bool {
		_, ok := h.View(p, rank).Shared.Object("backend/" + backend)
		return ok
	}
	t.Run("one that is made goes with what uses it", func(t *testing.T) {
		h := begin(t)
		h.commit(release.Order{}, store("a", 1), space("orders", 1))
		d, _, err := h.Draft(start).With(release.Order{}, all(), []snapshot.Set{store("b", 1)})
		if err != nil {
			t.Fatal(err)
		}
		if d, _, err = d.With(release.Order{}, all(), []snapshot.Set{space("users", 1, "b")}); err != nil {
			t.Fatal(err)
		}
		h.take(d.Done())
		if has(h, 1, "b") || h.Held(h.Head().Version()) != 2 {
			t.Error("it is seen before its wave")
		}
	})
	t.Run("one that is made and used by others is stable", func(t *testing.T) {
		h := begin(t)
		one := h.commit(release.Order{}, store("a", 1), store("b", 1))
		h.commit(now, space("orders", 1, "a"))
		if !has(h, 2, "a") || has(h, 2, "b") || h.release(one).LetGo != 1 {
			t.Errorf("release %v", h.release(one))
		}
		h.step(release.Step{Release: one, Do: release.TakeBack})
		if _, ok := h.Head().Object("backend/a"); !ok {
			t.Error("it was taken back from under who uses it")
		}
	})
	t.Run("one that goes back takes its namespaces along", func(t *testing.T) {
		h := begin(t)
		d, _, err := h.Draft(start).With(release.Order{}, all(), []snapshot.Set{store("a", 1)})
		if err != nil {
			t.Fatal(err)
		}
		if d, _, err = d.With(release.Order{}, all(), []snapshot.Set{space("orders", 1, "a"), space("users", 1)}); err != nil {
			t.Fatal(err)
		}
		h.take(d.Done())
		done := h.step(release.Step{Release: 1, Do: release.Eject, Objects: []release.Ejected{{Name: "backend/a", Proxy: "p1"}}})
		r := h.release(1)
		if len(done.Changes) != 2 || len(r.TakenBack) != 2 || r.TakenBack[0].Why.Proxy != "p1" || h.Held(1) != 1 {
			t.Errorf("taken back %v, release %v", done.Changes, r)
		}
	})
	t.Run("one that stable namespaces use is not deleted", func(t *testing.T) {
		h := begin(t)
		h.commit(now, store("a", 1), space("users", 1))
		h.commit(now, space("orders", 1, "a"))
		one := h.commit(release.Order{}, space("orders", 2))
		for _, order := range []release.Order{now, {}} {
			if _, _, err := h.Draft(start).With(order, all(), []snapshot.Set{gone("backend/a")}); !fault.Is(err, fault.InUse) {
				t.Errorf("deleted: %v", err)
			}
		}
		h.step(release.Step{Release: one, Do: release.Push})
		two := h.commit(release.Order{}, gone("backend/a"))
		h.step(release.Step{Release: two, Do: release.Wave, Wave: 5})
		if !has(h, 2, "a") {
			t.Error("it is gone before its release is done")
		}
		h.step(release.Step{Release: two, Do: release.Promote})
		if has(h, 0, "a") || has(h, 2, "a") {
			t.Error("it is there after its release is done")
		}
	})
}

func TestAPushedReleaseSaysSo(t *testing.T) {
	for reason, want := range map[string]string{"incident 123": "pushed to everybody: incident 123", "": "pushed to everybody"} {
		h := begin(t)
		h.commit(now, space("orders", 1))
		id := h.commit(release.Order{}, space("orders", 2))
		ended := h.step(release.Step{Release: id, Do: release.Push, Author: "sre", Reason: reason}).Ended
		if len(ended) != 1 || ended[0].GetReason() != want {
			t.Errorf("ended %v; want the reason %q", ended, want)
		}
	}
}

func TestStepsMakeSense(t *testing.T) {
	h := begin(t)
	id := h.commit(release.Order{}, space("orders", 1))
	h.refuse(release.Step{Release: id + 1, Do: release.Pause})
	h.refuse(release.Step{Release: id, Do: release.Promote})
	h.step(release.Step{Release: id, Do: release.Pause, Author: "bob", Reason: "wait"})
	if r := h.release(id); r.State != configv1.ReleaseState_RELEASE_STATE_PAUSED || r.Reason != "wait" {
		t.Errorf("paused: %v", r)
	}
	h.refuse(release.Step{Release: id, Do: release.Wave, Wave: 1})
	for _, s := range []release.Step{{Release: id, Do: release.Pause}, {Release: id, Do: release.Confirm}} {
		if before := h.State; h.step(s).State != before {
			t.Errorf("%+v changes something", s)
		}
	}
	h.step(release.Step{Release: id, Do: release.Resume})
	h.step(release.Step{Release: id, Do: release.Wave, Wave: 5})
	if before := h.State; h.step(release.Step{Release: id, Do: release.Wave, Wave: 2}).State != before {
		t.Error("a wave goes back")
	}
	h.step(release.Step{Release: id, Do: release.Promote})
	if r := h.release(id); r.State != configv1.ReleaseState_RELEASE_STATE_DONE || whatHappened(r) != "started,paused,resumed,wave,done" || r.EndedAt == nil {
		t.Errorf("done: %v", r)
	}
}

func TestWhatIsToBeConfirmed(t *testing.T) {
	confirmed := release.Order{AtOnce: true, ConfirmWithin: time.Hour}
	t.Run("is seen by all and can be taken back", func(t *testing.T) {
		h := begin(t)
		id := h.commit(confirmed, space("orders", 1))
		r := h.release(id)
		if r.Wave != 5 || !r.ConfirmBy.AsTime().Equal(start.Add(time.Hour)) || h.View(ident.PartitionOf("orders", 64), release.Other).Partition.Len() != 1 {
			t.Fatalf("release %v", r)
		}
		h.refuse(release.Step{Release: id, Do: release.Promote})
		h.step(release.Step{Release: id, Do: release.TakeBack, Reason: "not confirmed"})
		if h.Head().Len() != 0 || h.release(id).State != configv1.ReleaseState_RELEASE_STATE_ROLLED_BACK {
			t.Errorf("taken back: %v", h.release(id))
		}
	})
	t.Run("at once is done when it is", func(t *testing.T) {
		h := begin(t)
		id := h.commit(confirmed, space("orders", 1))
		h.step(release.Step{Release: id, Do: release.Confirm, Author: "bob"})
		if r := h.release(id); r.State != configv1.ReleaseState_RELEASE_STATE_DONE || r.ConfirmBy != nil || whatHappened(r) != "started,wave,confirmed" {
			t.Errorf("confirmed: %v", r)
		}
	})
	t.Run("in waves goes on when it is", func(t *testing.T) {
		h := begin(t)
		id := h.commit(release.Order{ConfirmWithin: time.Hour}, space("orders", 1))
		h.step(release.Step{Release: id, Do: release.Confirm})
		if r := h.release(id); r.ConfirmBy != nil || r.Wave != 0 || r.EndedAt != nil {
			t.Errorf("confirmed: %v", r)
		}
	})
	t.Run("has a release of its own", func(t *testing.T) {
		h := begin(t)
		d, _, err := h.Draft(start).With(release.Order{}, all(), []snapshot.Set{space("orders", 1)})
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := d.With(confirmed, all(), []snapshot.Set{space("users", 1)}); !errors.Is(err, release.ErrApart) {
			t.Errorf("it is with another: %v", err)
		}
		if _, _, err := d.With(now, all(), []snapshot.Set{space("users", 1)}); err != nil {
			t.Errorf("what goes at once is not with it: %v", err)
		}
		if _, _, err := d.Rollback(now, all(), snapshot.New(64), snapshot.Note{}); !errors.Is(err, release.ErrApart) {
			t.Errorf("a rollback of everything is with another: %v", err)
		}
	})
}

func TestOneReleaseForAllWavesOfASnapshot(t *testing.T) {
	h := begin(t)
	h.commit(now, store("a", 1), space("orders", 1))
	h.commit(now, space("users", 1, "a"))
	d := h.Draft(start)
	policies := all()
	policies.Shared = &configv1.ReleasePolicy{FirstPercent: 33}
	for _, set := range []snapshot.Set{space("new", 1), space("orders", 2), store("a", 2), space("newer", 1)} {
		var err error
		if d, _, err = d.With(release.Order{}, policies, []snapshot.Set{set}); err != nil {
			t.Fatal(err)
		}
	}
	h.take(d.Done())
	r := h.release(h.Head().Version())
	if r.Class != configv1.ReleaseClass_RELEASE_CLASS_SHARED || r.Policy.FirstPercent != 33 || r.Objects != 4 || len(h.Active()) != 1 {
		t.Errorf("release %v", r)
	}
	for _, name := range []string{"users", "orders", "new", "newer"} {
		if !slices.Contains(h.Concerned(r.Snapshot), ident.PartitionOf(name, 64)) {
			t.Errorf("the partition of %s is not concerned", name)
		}
	}
}

func TestWhatIsKeptOfAReleaseIsBounded(t *testing.T) {
	h := begin(t)
	var sets []snapshot.Set
	for i := range 150 {
		sets = append(sets, space(fmt.Sprintf("name-%d", i), 1))
	}
	id := h.commit(release.Order{}, sets...)
	for i := range 120 {
		h.step(release.Step{Release: id, Do: release.Eject, Reason: strings.Repeat("ü", 1000) + "\xff", Objects: []release.Ejected{{Name: fmt.Sprintf("ns/name-%d", i)}}})
	}
	r := h.release(id)
	if len(r.TakenBack) != 100 || len(r.Events) != 50 || r.Events[0].What != "started" || r.LetGo != 120 || len(r.Events[49].Reason) > 310 {
		t.Errorf("%d taken back, %d events, %d let go, a reason of %d", len(r.TakenBack), len(r.Events), r.LetGo, len(r.Events[49].Reason))
	}
	if _, err := proto.Marshal(r); err != nil {
		t.Error(err)
	}
	for len(h.Active()) < release.MaxActive {
		h.commit(release.Order{}, space(fmt.Sprintf("more-%d", len(h.Active())), 1))
	}
	if _, _, err := h.Draft(start).With(release.Order{}, all(), []snapshot.Set{space("too-many", 1)}); !fault.Is(err, fault.Release) {
		t.Errorf("too many releases: %v", err)
	}
	h.commit(now, space("still", 1))
}

func TestTheLastThatIsEjectedEndsItsRelease(t *testing.T) {
	h := begin(t)
	id := h.commit(release.Order{}, space("orders", 1))
	h.step(release.Step{Release: id, Do: release.Eject, Reason: "refused", Objects: []release.Ejected{{Name: "ns/orders"}}})
	if r := h.release(id); r.State != configv1.ReleaseState_RELEASE_STATE_ROLLED_BACK || r.Reason != "refused" || h.Head().Len() != 0 || len(h.Active()) != 0 {
		t.Errorf("release %v", r)
	}
}

func TestWhatIsNotTouchedIsShared(t *testing.T) {
	h := begin(t)
	h.commit(now, space("orders", 1), space("users", 1))
	one := h.commit(release.Order{}, space("orders", 2))
	h.step(release.Step{Release: one, Do: release.Wave, Wave: 3})
	p := ident.PartitionOf("orders", 64)
	before := h.View(p, 0).Partition
	h.commit(release.Order{}, space("users", 2))
	if h.View(p, 0).Partition != before {
		t.Error("what a cell sees is made anew by a change elsewhere")
	}
	// Two releases in one partition, of which one has reached a cell: mixed once, for all states after.
	var other string
	for i := 0; ; i++ {
		if other = fmt.Sprintf("name-%d", i); ident.PartitionOf(other, 64) == p {
			break
		}
	}
	h.commit(release.Order{}, space(other, 1))
	mixed := h.View(p, 0).Partition
	if mixed == h.Head().Collection(p) || mixed == h.Stable().Collection(p) {
		t.Fatal("it is not mixed")
	}
	h.commit(now, space("users", 3))
	if h.View(p, 0).Partition != mixed {
		t.Error("what is mixed is mixed anew")
	}
	if n := testing.AllocsPerRun(100, func() { h.View(p, 0) }); n > 0 {
		t.Errorf("a view allocates %v times", n)
	}
}
