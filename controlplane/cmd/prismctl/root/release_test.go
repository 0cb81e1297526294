package root_test

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	"github.com/prism-gateway/prism/shared/fault"
)

// waves is the policy of the releases below.
func waves() *configv1.ReleasePolicy {
	return &configv1.ReleasePolicy{FirstPercent: 5, Soak: durationpb.New(30 * time.Second), Silence: durationpb.New(20 * time.Second),
		MaxFailedPoints: 1, MaxLatencyFactor: 2, MinCalls: 100}
}

// underWay is release 42 in its third wave.
func underWay() *adminv1.Release {
	return &adminv1.Release{
		Snapshot: 42, State: configv1.ReleaseState_RELEASE_STATE_RUNNING, Class: configv1.ReleaseClass_RELEASE_CLASS_SHARED, Policy: waves(),
		Wave: 3, WaveAt: moment, StartedAt: moment, Objects: 3, Pending: 2, Author: "sre", WaitsFor: "held 20 s more",
		Waves: []*adminv1.ReleaseWave{
			{Wave: 1, Name: "validators", Cells: 3, Sent: 3, Accepted: 3, Serving: 3, Reached: true},
			{Wave: 3, Name: "rank 0", Cells: 3, Sent: 3, Accepted: 2, Serving: 1, Refused: 1, Reached: true},
			{Wave: 5, Name: "everybody", Cells: 6},
		},
		TakenBack: []*adminv1.TakenBackObject{{Name: "ns/orders", Why: refused()}},
		Events:    []*adminv1.ReleaseEvent{{At: moment, What: "started", Author: "sre"}, {At: moment, What: "wave", Wave: 1}},
	}
}

func refused() *configv1.TakenBack {
	return &configv1.TakenBack{Snapshot: 42, BySnapshot: 43, Proxy: "proxy-1", Build: "v3", At: moment, Reason: "proxy-1 refused ns/orders",
		Rejection: &configv1.Rejection{Resource: "ns/orders", Field: "patterns[0]", Reason: "no such driver"}}
}

// endedAs is a release that has ended.
func endedAs(s configv1.ReleaseState, reason string) *adminv1.Release {
	r := underWay()
	r.State, r.Reason, r.EndedAt, r.WaitsFor, r.Waves, r.Pending = s, reason, moment, "", nil, 0
	if s == configv1.ReleaseState_RELEASE_STATE_ROLLED_BACK {
		r.Events = append(r.Events, &adminv1.ReleaseEvent{At: moment, What: "taken back", Wave: 3, Reason: reason})
	}
	return r
}

func (p *peer) ListReleases(_ context.Context, req *adminv1.ListReleasesRequest) (*adminv1.ListReleasesResponse, error) {
	p.note(req)
	old := endedAs(configv1.ReleaseState_RELEASE_STATE_ROLLED_BACK, "3.2 % of 1,250 calls failed")
	old.Snapshot = 41
	return &adminv1.ListReleasesResponse{Releases: []*adminv1.Release{underWay(), old}}, nil
}

// GetRelease knows 41 and 42, and nothing of the snapshots that went to all owners at once.
func (p *peer) GetRelease(_ context.Context, req *adminv1.GetReleaseRequest) (*adminv1.GetReleaseResponse, error) {
	p.note(req)
	switch req.GetSnapshot() {
	case 0, 42:
		return &adminv1.GetReleaseResponse{Release: underWay()}, nil
	case 41:
		return &adminv1.GetReleaseResponse{Release: endedAs(configv1.ReleaseState_RELEASE_STATE_ABORTED, "the dashboards are red")}, nil
	}
	return nil, fault.Newf(fault.NotFound, fault.Release, "there is no release of snapshot %d", req.GetSnapshot())
}

func (p *peer) ControlRelease(_ context.Context, req *adminv1.ControlReleaseRequest) (*adminv1.ControlReleaseResponse, error) {
	p.note(req)
	if req.GetSnapshot() == 0 {
		return nil, fault.New(fault.FailedPrecondition, fault.Release, "releases 40 and 42 are under way; say which")
	}
	r := underWay()
	switch req.GetAction() {
	case adminv1.ReleaseAction_RELEASE_ACTION_PAUSE:
		r.State, r.WaitsFor = configv1.ReleaseState_RELEASE_STATE_PAUSED, "somebody to resume, push or abort it"
	case adminv1.ReleaseAction_RELEASE_ACTION_CONFIRM:
		r.Events = append(r.Events, &adminv1.ReleaseEvent{At: moment, What: "confirmed", Wave: 3, Author: "sre"})
	}
	return &adminv1.ControlReleaseResponse{Release: r}, nil
}

// WatchRelease ends well for 40, well for most of 42 and badly for 41.
func (p *peer) WatchRelease(req *adminv1.WatchReleaseRequest, stream adminv1.AdminService_WatchReleaseServer) error {
	if req.GetSnapshot() == 7 {
		return fault.New(fault.NotFound, fault.Release, "there is no release of snapshot 7")
	}
	last := endedAs(configv1.ReleaseState_RELEASE_STATE_DONE, "")
	switch req.GetSnapshot() {
	case 40:
		last.TakenBack = nil
	case 41:
		last = endedAs(configv1.ReleaseState_RELEASE_STATE_ROLLED_BACK, "3.2 % of 1,250 calls failed")
	}
	for _, r := range []*adminv1.Release{underWay(), last} {
		if err := stream.Send(&adminv1.WatchReleaseResponse{Release: r}); err != nil {
			return err
		}
	}
	return nil
}

// inWaves answers apply of a namespace whose release takes it back, is aborted, or takes it away because it was new.
func inWaves(name string) (*controlv1.ApplyNamespacesResponse, bool) {
	snapshot, ok := map[string]uint64{"taken-back": 42, "aborted": 41, "orders": 42}[name]
	if !ok {
		return nil, false
	}
	n := profiles()
	n.Namespace = name
	return &controlv1.ApplyNamespacesResponse{SnapshotVersion: snapshot, Release: snapshot, Results: []*controlv1.NamespacePlan{{Action: controlv1.PlanAction_PLAN_ACTION_UPDATE, Namespace: n}}}, true
}

// watchInWaves streams the status of such a namespace.
func watchInWaves(name string, send func(*configv1.NamespaceStatus) error) (bool, error) {
	held := liveness(1)
	held.Release = &configv1.ReleaseStatus{Snapshot: 42, State: configv1.ReleaseState_RELEASE_STATE_RUNNING, Wave: 3, Waves: 5, WaveAt: moment,
		WaitsFor: "wave 3 (rank 0), held 20 s more"}
	switch name {
	case "taken-back":
		back := liveness(2)
		back.TakenBack = refused()
		if err := send(held); err != nil {
			return true, err
		}
		return true, send(back)
	case "aborted":
		return true, send(liveness(2))
	case "orders":
		if err := send(held); err != nil {
			return true, err
		}
		return true, fault.New(fault.NotFound, fault.Namespace, `there is no namespace "orders"`)
	}
	return false, nil
}
