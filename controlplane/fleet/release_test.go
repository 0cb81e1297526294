package fleet_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"

	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	"github.com/prism-gateway/prism/controlplane/store"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
)

// step makes a step of a release.
func (r *replica) step(t *testing.T, s release.Step) release.Result {
	t.Helper()
	result, err := r.store.Step(t.Context(), func(*release.State) (release.Step, error) { return s, nil })
	if err != nil {
		t.Fatal(err)
	}
	return result
}

// serveView reports that a proxy serves what the releases let it have.
func (p *proxy) serveView(r *replica) {
	state, a := r.store.Released(), r.fleet.Assignment()
	var cells []*controlv1.CellReport
	for i, entry := range a.GetPartitions() {
		rank := release.Other
		for n, owner := range entry.GetOwners() {
			if a.GetMembers()[owner].GetId() == p.member.GetId() {
				rank = release.Rank(n)
			}
		}
		v := state.View(ident.Partition(i), rank)
		cells = append(cells, &controlv1.CellReport{Partition: uint32(i), Root: v.Partition.Root().Bytes(), SnapshotVersion: v.Snapshot})
	}
	p.send(cells...)
}

// statusUntil waits until a namespace's status is as wanted.
func (r *replica) statusUntil(t *testing.T, what, namespace string, holds func(*configv1.NamespaceStatus) bool) *configv1.NamespaceStatus {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var last *configv1.NamespaceStatus
	if err := r.fleet.WatchStatus(ctx, namespace, func(s *configv1.NamespaceStatus) bool {
		last = s
		return holds(s)
	}); err != nil {
		t.Fatalf("%s: %v; the last is %v", what, err, last)
	}
	return last
}

func stages(s *configv1.NamespaceStatus) string {
	var all []string
	for _, o := range s.GetOwners() {
		all = append(all, strings.TrimPrefix(o.GetStage().String(), "STAGE_"))
	}
	return strings.Join(all, " ")
}

func TestStatusWhileAChangeGoesInWaves(t *testing.T) {
	waves := &configv1.ReleasePolicy{Soak: durationpb.New(30 * time.Second)}
	config := store.Config{Partitions: partitions, Policies: release.Policies{Scoped: waves, Rollback: waves}}
	r := startWith(t, config, etcd(t), "replica-1", long)
	a, b := join(t, r, "a"), join(t, r, "b")
	serve := func() {
		a.serveView(r)
		b.serveView(r)
	}
	first := commit(t, r, "orders")
	a.serve(first)
	b.serve(first)
	r.until(t, "both own everything", settled("a", "b"))
	serve()
	r.statusUntil(t, "what is new goes at once", "orders", func(s *configv1.NamespaceStatus) bool { return s.GetLive() && s.GetRelease() == nil })

	version := commit(t, r, "orders").Version()
	serve()
	held := r.statusUntil(t, "nobody may have it", "orders", func(s *configv1.NamespaceStatus) bool { return stages(s) == "PENDING PENDING" })
	if rel := held.GetRelease(); rel.GetSnapshot() != version || rel.GetState() != configv1.ReleaseState_RELEASE_STATE_RUNNING || rel.GetWaves() != 5 || held.GetSnapshotVersion() != version {
		t.Errorf("status %v", held)
	}
	if want := fmt.Sprintf("waits for wave 4 of release %d (rank 1)", version); !strings.Contains(held.GetSummary(), want) {
		t.Errorf("summary %q; want %q in it", held.GetSummary(), want)
	}

	r.step(t, release.Step{Release: version, Do: release.Wave, Wave: release.WaveRank0})
	serve()
	half := r.statusUntil(t, "rank 0 has it", "orders", func(s *configv1.NamespaceStatus) bool { return stages(s) == "SERVING PENDING" })
	if half.GetLive() || half.GetRelease().GetWave() != release.WaveRank0 || !strings.HasPrefix(half.GetRelease().GetWaitsFor(), "wave 4 (rank 1)") {
		t.Errorf("status %v", half)
	}
	r.step(t, release.Step{Release: version, Do: release.Pause, Author: "alice", Reason: "lunch"})
	r.statusUntil(t, "it is held", "orders", func(s *configv1.NamespaceStatus) bool {
		return s.GetRelease().GetState() == configv1.ReleaseState_RELEASE_STATE_PAUSED && s.GetRelease().GetWaitsFor() == "somebody to resume it: lunch"
	})
	r.step(t, release.Step{Release: version, Do: release.Resume, Author: "alice"})

	refused := &configv1.Rejection{Resource: "ns/orders", Field: "patterns[0]", Reason: "no driver"}
	r.step(t, release.Step{Release: version, Do: release.Eject, Reason: "a refused it", Objects: []release.Ejected{
		{Name: "ns/orders", Rejection: refused, Proxy: "a", Build: "build-1"},
	}})
	serve()
	back := r.statusUntil(t, "it was taken back", "orders", func(s *configv1.NamespaceStatus) bool { return s.GetLive() && s.GetTakenBack() != nil })
	before, _ := first.Namespace("orders")
	if tb := back.GetTakenBack(); back.GetRelease() != nil || back.GetVersion() != before.Hash.String() || tb.GetSnapshot() != version ||
		tb.GetProxy() != "a" || tb.GetBuild() != "build-1" || !proto.Equal(tb.GetRejection(), refused) {
		t.Errorf("status %v", back)
	}

	again := commit(t, r, "orders").Version()
	r.statusUntil(t, "a later change that is not live yet", "orders", func(s *configv1.NamespaceStatus) bool {
		return !s.GetLive() && s.GetTakenBack().GetSnapshot() == version
	})
	r.step(t, release.Step{Release: again, Do: release.Push, Author: "alice", Reason: "now"})
	serve()
	r.statusUntil(t, "a later change that is live", "orders", func(s *configv1.NamespaceStatus) bool { return s.GetLive() && s.GetTakenBack() == nil })
}

func TestStatusOfANamespaceWhoseCreationWasTakenBack(t *testing.T) {
	config := store.Config{Partitions: partitions, Policies: release.Policies{Additive: &configv1.ReleasePolicy{}}}
	r := startWith(t, config, etcd(t), "replica-1", long)
	version := commit(t, r, "orders").Version()
	watching := make(chan error, 1)
	begun := make(chan struct{}, 1)
	go func() {
		watching <- r.fleet.WatchStatus(t.Context(), "orders", func(*configv1.NamespaceStatus) bool {
			select {
			case begun <- struct{}{}:
			default:
			}
			return false
		})
	}()
	wait(t, begun, "it is watched")
	r.step(t, release.Step{Release: version, Do: release.Eject, Reason: "a refused it", Objects: []release.Ejected{
		{Name: "ns/orders", Proxy: "a", Build: "build-1", Rejection: &configv1.Rejection{Resource: "backend/main", Field: "type", Reason: "no driver"}},
	}})
	_, asked := r.fleet.Status(t.Context(), "orders")
	for what, err := range map[string]error{"who watches": <-watching, "who asks later": asked} {
		f := fault.From(err)
		if f == nil || f.Code != fault.FailedPrecondition || f.Reason != fault.TakenBack {
			t.Errorf("%s is told %v", what, err)
			continue
		}
		for key, want := range map[string]string{"resource": "backend/main", "field": "type", "reason": "no driver", "proxy": "a", "build": "build-1"} {
			if f.Metadata[key] != want {
				t.Errorf("%s is told %s %q, want %q", what, key, f.Metadata[key], want)
			}
		}
	}
	if _, err := r.fleet.Status(t.Context(), "nobody"); !fault.Is(err, fault.Namespace) {
		t.Errorf("one that never was: %v", err)
	}
	if _, err := r.store.Commit(t.Context(), release.Order{AtOnce: true}, func(*snapshot.Tree, uint64) ([]snapshot.Set, error) {
		data, err := proto.Marshal(&configv1.NamespaceConfig{Namespace: "orders"})
		return []snapshot.Set{{Name: "ns/orders", Data: data}}, err
	}); err != nil {
		t.Fatal(err)
	}
	if s, err := r.fleet.Status(t.Context(), "orders"); err != nil || s.GetTakenBack().GetSnapshot() != version {
		t.Errorf("made again: %v, %v", s, err)
	}
}

// TestStatusAfterACreationWasTakenBack tells why there is no namespace until something later has changed it.
func TestStatusAfterACreationWasTakenBack(t *testing.T) {
	put := func(t *testing.T, r *replica, text string, atOnce bool) uint64 {
		t.Helper()
		c, err := r.store.Commit(t.Context(), release.Order{AtOnce: atOnce}, func(*snapshot.Tree, uint64) ([]snapshot.Set, error) {
			if text == "" {
				return []snapshot.Set{{Name: "ns/orders"}}, nil
			}
			data, err := proto.Marshal(&configv1.NamespaceConfig{Namespace: "orders", Team: text})
			return []snapshot.Set{{Name: "ns/orders", Data: data}}, err
		})
		if err != nil {
			t.Fatal(err)
		}
		return c.Tree.Version()
	}
	create := func(t *testing.T, r *replica) { put(t, r, "accounts", true) }
	remove := func(t *testing.T, r *replica) { put(t, r, "", true) }
	takeback := func(t *testing.T, r *replica) {
		r.step(t, release.Step{Release: put(t, r, "payments", false), Do: release.TakeBack, Reason: "it is bad"})
	}
	rollback := func(to uint64) func(*testing.T, *replica) {
		return func(t *testing.T, r *replica) {
			if _, err := r.store.Rollback(t.Context(), release.Order{AtOnce: true}, to, snapshot.Note{Author: "sre"}, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	other := func(t *testing.T, r *replica) { commit(t, r, "others") }
	type steps []func(*testing.T, *replica)
	for what, tc := range map[string]struct {
		steps steps
		want  fault.Reason
	}{
		"taken back":                                     {steps{takeback}, fault.TakenBack},
		"taken back, then others changed":                {steps{takeback, other, other}, fault.TakenBack},
		"taken back, made again and deleted":             {steps{takeback, create, remove}, fault.Namespace},
		"taken back, made again, deleted, taken back":    {steps{takeback, create, remove, takeback}, fault.TakenBack},
		"made, deleted and taken back":                   {steps{create, remove, takeback}, fault.TakenBack},
		"taken back, made again, everything rolled back": {steps{takeback, create, rollback(2)}, fault.Namespace},
		"taken back twice":                               {steps{takeback, takeback}, fault.TakenBack},
	} {
		t.Run(what, func(t *testing.T) {
			config := store.Config{Partitions: partitions, Policies: release.Policies{Additive: &configv1.ReleasePolicy{}}}
			r := startWith(t, config, etcd(t), "replica-1", long)
			for _, step := range tc.steps {
				step(t, r)
			}
			for range 2 {
				if s, err := r.fleet.Status(t.Context(), "orders"); !fault.Is(err, tc.want) {
					t.Errorf("status %v, %v; want the reason %v", s, err, tc.want)
				}
			}
			if back := r.fleet.TakenBack(t.Context(), "ns/orders"); (back.GetReason() == "it is bad") != (tc.want == fault.TakenBack) {
				t.Errorf("what was taken back is %v", back)
			}
		})
	}
}

func TestValidatorsOwnNothing(t *testing.T) {
	r := start(t, etcd(t), "replica-1", long)
	tree := commit(t, r, "orders")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := controlv1.NewFleetServiceClient(r.conn).Report(ctx)
	if err != nil {
		t.Fatal(err)
	}
	v := &proxy{t: t, member: &configv1.Member{Id: "judge", Validator: true}, stream: stream}
	v.serve(tree)
	r.untilMembers(t, "judge")
	join(t, r, "a").serve(tree)
	r.until(t, "the other owns everything", settled("a"))
	r.until(t, "the assignment tells of it", func(a *configv1.Assignment) bool {
		return slices.ContainsFunc(a.GetMembers(), func(m *configv1.Member) bool { return m.GetId() == "judge" && m.GetValidator() })
	})
	p, parts, ok := r.fleet.Proxy(t.Context(), "judge")
	if !ok || p.GetOwned() != 0 || len(parts) != partitions || p.GetCurrent() != partitions {
		t.Errorf("%v with %d partitions", p, len(parts))
	}
}
