package adminapi_test

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	"github.com/prism-gateway/prism/shared/fault"
)

// scoped lets changes of namespaces in use go in waves, and all else at once.
func scoped() release.Policies {
	return release.Policies{Scoped: &configv1.ReleasePolicy{Soak: durationpb.New(time.Minute)}}
}

// released makes a namespace and changes it, and returns the release that the change is in.
func (r *replica) released(t *testing.T, name string) uint64 {
	t.Helper()
	was := r.create(t, request(name))
	return r.update(t, request(name, reads(10)), was.GetVersion()).GetSnapshotVersion()
}

func (r *replica) control(t *testing.T, snapshot uint64, action adminv1.ReleaseAction) *adminv1.Release {
	t.Helper()
	out, err := r.ControlRelease(t.Context(), &adminv1.ControlReleaseRequest{Snapshot: snapshot, Action: action, Note: note("sre", "because")})
	if err != nil {
		t.Fatal(err)
	}
	return out.GetRelease()
}

func TestPeopleSteerReleases(t *testing.T) {
	const (
		paused  = configv1.ReleaseState_RELEASE_STATE_PAUSED
		running = configv1.ReleaseState_RELEASE_STATE_RUNNING
		done    = configv1.ReleaseState_RELEASE_STATE_DONE
		aborted = configv1.ReleaseState_RELEASE_STATE_ABORTED
	)
	for name, tc := range map[string]struct {
		actions []adminv1.ReleaseAction
		want    configv1.ReleaseState
		happens []string
		reads   uint32 // of the namespace at the end
	}{
		"pause":                              {[]adminv1.ReleaseAction{adminv1.ReleaseAction_RELEASE_ACTION_PAUSE}, paused, []string{"started", "paused"}, 10},
		"pause twice":                        {[]adminv1.ReleaseAction{adminv1.ReleaseAction_RELEASE_ACTION_PAUSE, adminv1.ReleaseAction_RELEASE_ACTION_PAUSE}, paused, []string{"started", "paused"}, 10},
		"pause, resume":                      {[]adminv1.ReleaseAction{adminv1.ReleaseAction_RELEASE_ACTION_PAUSE, adminv1.ReleaseAction_RELEASE_ACTION_RESUME}, running, []string{"started", "paused", "resumed"}, 10},
		"push":                               {[]adminv1.ReleaseAction{adminv1.ReleaseAction_RELEASE_ACTION_PUSH}, done, []string{"started", "pushed"}, 10},
		"abort":                              {[]adminv1.ReleaseAction{adminv1.ReleaseAction_RELEASE_ACTION_ABORT}, aborted, []string{"started", "aborted"}, 0},
		"confirm what need not be confirmed": {[]adminv1.ReleaseAction{adminv1.ReleaseAction_RELEASE_ACTION_CONFIRM}, running, []string{"started"}, 10},
	} {
		t.Run(name, func(t *testing.T) {
			r := startUnder(t, scoped())
			r.backends(t, &configv1.Backend{Name: "cache-a", Type: "redis", Endpoints: []string{"a.example.org:6379"}})
			snapshot := r.released(t, "orders")
			var after *adminv1.Release
			for _, action := range tc.actions {
				after = r.control(t, 0, action)
			}
			got, err := r.GetRelease(t.Context(), &adminv1.GetReleaseRequest{Snapshot: snapshot})
			if err != nil {
				t.Fatal(err)
			}
			var happens []string
			for _, e := range got.GetRelease().GetEvents() {
				happens = append(happens, e.GetWhat())
			}
			if after.GetSnapshot() != snapshot || after.GetState() != tc.want || got.GetRelease().GetState() != tc.want || !slices.Equal(happens, tc.happens) {
				t.Errorf("told %v, stands %v, events %q; want %v, %q", after, got, happens, tc.want, tc.happens)
			}
			if reads := r.get(t, "orders").GetRequest().GetNeeds().GetReadRps(); reads != tc.reads {
				t.Errorf("the namespace asks for %d reads/s, want %d", reads, tc.reads)
			}
			if ended := tc.want == done || tc.want == aborted; ended != (len(got.GetRelease().GetWaves()) == 0) || ended != (got.GetRelease().GetWaitsFor() == "") {
				t.Errorf("waves %v, waits for %q", got.GetRelease().GetWaves(), got.GetRelease().GetWaitsFor())
			}
		})
	}
}

func TestWhatCannotBeDoneToAReleaseIsRefused(t *testing.T) {
	r := startUnder(t, scoped())
	r.backends(t, &configv1.Backend{Name: "cache-a", Type: "redis", Endpoints: []string{"a.example.org:6379"}})
	ask := func(snapshot uint64, action adminv1.ReleaseAction, message string) error {
		_, err := r.ControlRelease(t.Context(), &adminv1.ControlReleaseRequest{Snapshot: snapshot, Action: action, Note: note("sre", message)})
		return err
	}
	const pause, push = adminv1.ReleaseAction_RELEASE_ACTION_PAUSE, adminv1.ReleaseAction_RELEASE_ACTION_PUSH
	_, err := r.GetRelease(t.Context(), &adminv1.GetReleaseRequest{})
	refused(t, err, fault.NotFound, fault.Release)
	refused(t, ask(0, pause, ""), fault.NotFound, fault.Release)
	refused(t, ask(1, pause, ""), fault.NotFound, fault.Release)
	refused(t, ask(0, adminv1.ReleaseAction_RELEASE_ACTION_UNSPECIFIED, ""), fault.Invalid, fault.Field)

	first, second := r.released(t, "orders"), r.released(t, "carts")
	if f := refused(t, ask(0, pause, ""), fault.FailedPrecondition, fault.Release); !strings.Contains(f.Text, "say which") {
		t.Error(f.Text)
	}
	if f := refused(t, ask(first, push, ""), fault.Invalid, fault.Field); !slices.Equal(fields(f), []string{"note.message"}) {
		t.Error(fields(f))
	}
	r.control(t, first, push)
	if f := refused(t, ask(first, pause, ""), fault.FailedPrecondition, fault.Release); !strings.Contains(f.Text, "has ended: done, pushed to everybody: because") {
		t.Error(f.Text)
	}
	r.control(t, 0, pause) // the second is the only one now
	if got, err := r.GetRelease(t.Context(), &adminv1.GetReleaseRequest{}); err != nil || got.GetRelease().GetSnapshot() != second || got.GetRelease().GetWaitsFor() != "somebody to resume, push or abort it" {
		t.Errorf("%v, %v", got, err)
	}
}

func TestReleasesAreListed(t *testing.T) {
	r := startUnder(t, scoped())
	r.backends(t, &configv1.Backend{Name: "cache-a", Type: "redis", Endpoints: []string{"a.example.org:6379"}})
	var want []uint64
	for _, name := range []string{"aaa", "bbb", "ccc", "ddd", "eee"} {
		want = append(want, r.released(t, name))
	}
	r.control(t, want[3], adminv1.ReleaseAction_RELEASE_ACTION_ABORT)
	r.control(t, want[1], adminv1.ReleaseAction_RELEASE_ACTION_PUSH)
	order := []uint64{want[4], want[2], want[0], want[3], want[1]} // under way, then ended
	for _, size := range []uint32{0, 1, 2, 3, 5} {
		var got []uint64
		in := &adminv1.ListReleasesRequest{PageSize: size}
		for {
			page, err := r.ListReleases(t.Context(), in)
			if err != nil {
				t.Fatal(err)
			}
			for _, one := range page.GetReleases() {
				got = append(got, one.GetSnapshot())
			}
			if in.PageToken = page.GetNextPageToken(); in.PageToken == "" {
				break
			}
		}
		if !slices.Equal(got, order) {
			t.Errorf("in pages of %d: %v, want %v", size, got, order)
		}
	}
	page, err := r.ListReleases(t.Context(), &adminv1.ListReleasesRequest{Active: true, PageSize: 1})
	if err != nil || len(page.GetReleases()) != 1 || page.GetReleases()[0].GetPending() != 1 || page.GetReleases()[0].GetObjects() != 1 {
		t.Fatalf("%v, %v", page, err)
	}
	_, err = r.ListReleases(t.Context(), &adminv1.ListReleasesRequest{PageToken: page.GetNextPageToken()})
	refused(t, err, fault.Invalid, fault.PageToken)
}

func TestAReleaseIsWatchedUntilItEnds(t *testing.T) {
	r := startUnder(t, scoped())
	r.backends(t, &configv1.Backend{Name: "cache-a", Type: "redis", Endpoints: []string{"a.example.org:6379"}})
	snapshot := r.released(t, "orders")
	stream, err := r.WatchRelease(t.Context(), &adminv1.WatchReleaseRequest{})
	if err != nil {
		t.Fatal(err)
	}
	next := func() configv1.ReleaseState {
		t.Helper()
		got, err := stream.Recv()
		if err != nil || got.GetRelease().GetSnapshot() != snapshot {
			t.Fatalf("%v, %v", got, err)
		}
		return got.GetRelease().GetState()
	}
	if s := next(); s != configv1.ReleaseState_RELEASE_STATE_RUNNING {
		t.Errorf("first %v", s)
	}
	r.control(t, snapshot, adminv1.ReleaseAction_RELEASE_ACTION_PAUSE)
	if s := next(); s != configv1.ReleaseState_RELEASE_STATE_PAUSED {
		t.Errorf("then %v", s)
	}
	r.control(t, snapshot, adminv1.ReleaseAction_RELEASE_ACTION_ABORT)
	if s := next(); s != configv1.ReleaseState_RELEASE_STATE_ABORTED {
		t.Errorf("at last %v", s)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v", err)
	}
	none, err := r.WatchRelease(t.Context(), &adminv1.WatchReleaseRequest{Snapshot: 1})
	if err == nil {
		_, err = none.Recv()
	}
	refused(t, err, fault.NotFound, fault.Release)
}

func TestAPlanSaysHowItWouldGoToTheFleet(t *testing.T) {
	r := startUnder(t, scoped())
	r.backends(t, &configv1.Backend{Name: "cache-a", Type: "redis", Endpoints: []string{"a.example.org:6379"}})
	r.create(t, request("orders"))
	for name, tc := range map[string]struct {
		request *configv1.NamespaceRequest
		class   configv1.ReleaseClass
		atOnce  bool
	}{
		"a new one":       {request("carts"), configv1.ReleaseClass_RELEASE_CLASS_ADDITIVE, true},
		"one in use":      {request("orders", reads(10)), configv1.ReleaseClass_RELEASE_CLASS_SCOPED, false},
		"nothing changes": {request("orders"), configv1.ReleaseClass_RELEASE_CLASS_UNSPECIFIED, false},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := r.PlanNamespaces(t.Context(), &controlv1.PlanNamespacesRequest{Requests: []*configv1.NamespaceRequest{tc.request}})
			if err != nil {
				t.Fatal(err)
			}
			if out.GetClass() != tc.class || out.GetPolicy().GetAtOnce() != tc.atOnce || !tc.atOnce && tc.class != 0 && out.GetPolicy().GetSoak().AsDuration() != time.Minute {
				t.Errorf("%v by %v", out.GetClass(), out.GetPolicy())
			}
		})
	}
}

func TestAChangeTellsTheReleaseThatItGoesIn(t *testing.T) {
	r := startUnder(t, scoped())
	r.backends(t, &configv1.Backend{Name: "cache-a", Type: "redis", Endpoints: []string{"a.example.org:6379"}})
	apply := func(name string, options *controlv1.ReleaseOptions, change ...func(*configv1.Needs)) *controlv1.ApplyNamespacesResponse {
		t.Helper()
		out, err := r.ApplyNamespaces(t.Context(), &controlv1.ApplyNamespacesRequest{Note: note("sre", "because"), Release: options,
			Changes: []*controlv1.NamespaceChange{{Request: request(name, change...)}}})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	made := apply("orders", nil)
	if made.GetRelease() != 0 {
		t.Errorf("what all owners have at once is told to be in release %d", made.GetRelease())
	}
	changed := apply("orders", nil, reads(10))
	if changed.GetRelease() == 0 || changed.GetRelease() != changed.GetSnapshotVersion() {
		t.Errorf("snapshot %d in waves is told to be in release %d", changed.GetSnapshotVersion(), changed.GetRelease())
	}
	if again := apply("orders", nil, reads(10)); again.GetRelease() != 0 {
		t.Errorf("what changes nothing is told to be in release %d", again.GetRelease())
	}
	confirm := &controlv1.ReleaseOptions{AtOnce: true, ConfirmWithin: durationpb.New(time.Minute)}
	if out := apply("carts", confirm); out.GetRelease() == 0 || out.GetRelease() != out.GetSnapshotVersion() {
		t.Errorf("snapshot %d, to be confirmed, is told to be in release %d", out.GetSnapshotVersion(), out.GetRelease())
	}
	back, err := r.RollbackSnapshot(t.Context(), &adminv1.RollbackSnapshotRequest{ToVersion: made.GetSnapshotVersion() - 1, AllowShrink: true, Note: note("sre", "because"), Release: confirm})
	if err != nil || back.GetRelease() != back.GetSnapshot().GetVersion() {
		t.Errorf("the rollback is %v, %v", back, err)
	}
}

func TestABackendTellsWhichChangeWasTakenBack(t *testing.T) {
	r := startUnder(t, release.Policies{Shared: &configv1.ReleasePolicy{Soak: durationpb.New(time.Minute)}})
	cache := func(endpoint string) *configv1.Backend {
		return &configv1.Backend{Name: "cache-a", Type: "redis", Endpoints: []string{endpoint}}
	}
	r.backends(t, cache("a.example.org:6379"))
	r.create(t, request("orders"))
	changed := r.backends(t, cache("b.example.org:6379")).GetRelease()
	step := release.Step{Release: changed, Do: release.TakeBack, Reason: "orders is not ready at proxy-1"}
	if _, err := r.store.Step(t.Context(), func(*release.State) (release.Step, error) { return step, nil }); err != nil {
		t.Fatal(err)
	}
	told := func() *configv1.TakenBack {
		t.Helper()
		out, err := r.GetBackend(t.Context(), &adminv1.GetBackendRequest{Name: "cache-a"})
		if err != nil {
			t.Fatal(err)
		}
		return out.GetBackend().GetTakenBack()
	}
	if back := told(); back.GetSnapshot() != changed || back.GetReason() != step.Reason {
		t.Errorf("taken back is %v, want the change of snapshot %d", back, changed)
	}
	r.backends(t, cache("c.example.org:6379"))
	if back := told(); back != nil {
		t.Errorf("after a later change it is %v", back)
	}
}

// drainedIn deletes a namespace, whose drain goes in waves, and returns the release.
func (r *replica) drainedIn(t *testing.T, name string) uint64 {
	t.Helper()
	out, err := r.DeleteNamespace(t.Context(), &controlv1.DeleteNamespaceRequest{Namespace: name, Note: &controlv1.ChangeNote{Author: "ann", Message: "moved"}})
	if err != nil || out.GetDrained() || out.GetRelease() == 0 || out.GetSnapshotVersion() < out.GetRelease() {
		t.Fatalf("the deletion answers %v, %v; want the release that drains it", out, err)
	}
	if of, pending := r.store.Released().Of("ns/" + name); !pending || of.GetSnapshot() != out.GetRelease() {
		t.Fatalf("it is pending in %v, want %d", of, out.GetRelease())
	}
	o, _ := r.store.Head().Namespace(name)
	config := &configv1.NamespaceConfig{}
	if err := proto.Unmarshal(o.Data, config); err != nil {
		t.Fatal(err)
	}
	if !config.GetDraining() || config.GetRemoval().GetAuthor() != "ann" || config.GetRemoval().GetMessage() != "moved" {
		t.Fatalf("it is %v, want one that drains and is to be removed then", config)
	}
	return out.GetRelease()
}

func TestADeletionInWavesDrainsFirst(t *testing.T) {
	r := startUnder(t, scoped())
	r.backends(t, &configv1.Backend{Name: "cache-a", Type: "redis", Endpoints: []string{"a.example.org:6379"}})
	r.create(t, request("orders"))
	before, _ := r.store.Head().Namespace("orders")
	first := r.drainedIn(t, "orders")
	if again := r.drainedIn(t, "orders"); again != first {
		t.Errorf("asked again it drains in %d, want %d", again, first)
	}
	if _, err := r.ControlRelease(t.Context(), &adminv1.ControlReleaseRequest{Snapshot: first, Action: adminv1.ReleaseAction_RELEASE_ACTION_ABORT}); err != nil {
		t.Fatal(err)
	}
	if o, _ := r.store.Head().Namespace("orders"); o.Hash != before.Hash {
		t.Error("it still drains after the release was aborted")
	}
	r.drainedIn(t, "orders")
	out, err := r.DeleteNamespace(t.Context(), &controlv1.DeleteNamespaceRequest{
		Namespace: "orders", Note: &controlv1.ChangeNote{Message: "now"}, Release: &controlv1.ReleaseOptions{AtOnce: true},
	})
	if err != nil || out.GetRelease() != 0 {
		t.Fatalf("at once: %v, %v", out, err)
	}
	if _, there := r.store.Head().Namespace("orders"); there || len(r.store.Released().Active()) > 0 {
		t.Errorf("it is still there: %v, under way: %v", there, r.store.Released().Active())
	}
}

// One that drains since before there were waves is drained in them anew, so that its removal follows.
func TestADeletionThatWasCutShortGoesOnInWaves(t *testing.T) {
	r := startUnder(t, scoped())
	r.backends(t, &configv1.Backend{Name: "cache-a", Type: "redis", Endpoints: []string{"a.example.org:6379"}})
	r.create(t, request("orders"))
	_, err := r.store.Commit(t.Context(), release.Order{AtOnce: true}, func(base *snapshot.Tree, _ uint64) ([]snapshot.Set, error) {
		o, _ := base.Namespace("orders")
		config := &configv1.NamespaceConfig{}
		if err := proto.Unmarshal(o.Data, config); err != nil {
			return nil, err
		}
		config.Draining = true
		data, err := proto.MarshalOptions{Deterministic: true}.Marshal(config)
		return []snapshot.Set{{Name: o.Name, Data: data, Author: "somebody"}}, err
	})
	if err != nil {
		t.Fatal(err)
	}
	r.drainedIn(t, "orders")
}
