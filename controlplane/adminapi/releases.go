package adminapi

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/prism-gateway/prism/controlplane/release"
	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/fault"
)

// releases is the part of the store that releases are kept in.
type releases interface {
	Released() *release.State
	Watch() (<-chan struct{}, func())
	Step(ctx context.Context, step func(*release.State) (release.Step, error)) (release.Result, error)
	Ended() []*recordv1.Release // newest first
	Members() []*recordv1.MemberLease
	Releases(ctx context.Context, before uint64, limit int) ([]*recordv1.Release, error)
}

// ListReleases returns a page of releases: those under way, then those that have ended, each newest first.
func (s *Server) ListReleases(ctx context.Context, in *adminv1.ListReleasesRequest) (*adminv1.ListReleasesResponse, error) {
	if err := check(in); err != nil {
		return nil, err
	}
	query := []string{"releases", strconv.FormatBool(in.GetActive())}
	after, err := pageAfter(in.GetPageToken(), query...)
	if err != nil {
		return nil, err
	}
	state, err := s.released()
	if err != nil {
		return nil, err
	}
	page := &releasePage{size: pageSize(in.GetPageSize())}
	ended, number := strings.CutPrefix(after, endedMark)
	last, err := strconv.ParseUint(cmp.Or(ended, "0"), 10, 64)
	if err != nil {
		return nil, badToken()
	}
	if !number {
		for _, r := range slices.Backward(state.Active()) {
			if last != 0 && r.GetSnapshot() >= last {
				continue
			}
			view := releaseView(r, state.Held(r.GetSnapshot()))
			view.WaitsFor = s.waitsFor(r, nil)
			if !page.add(view) {
				return page.response(query), nil
			}
		}
		last = 0
	}
	for !in.GetActive() {
		records, err := s.cfg.Store.Releases(ctx, last, page.left())
		if err != nil {
			return nil, err
		}
		for _, r := range records {
			if last = r.GetSnapshot(); !page.add(releaseView(r, 0)) {
				return page.response(query), nil
			}
		}
		if len(records) == 0 {
			break
		}
	}
	return page.response(nil), nil
}

// endedMark begins the name of the last release of a page when that has ended.
const endedMark = "ended/"

// releasePage is a page of releases in the making.
type releasePage struct {
	size, bytes int
	all         []*adminv1.Release
}

// left is how many more are needed to fill the page and know whether there is another.
func (p *releasePage) left() int { return p.size + 1 - len(p.all) }

// add adds a release, or reports that the page is full.
func (p *releasePage) add(r *adminv1.Release) bool {
	p.bytes += proto.Size(r)
	if n := len(p.all); n == p.size || n > 0 && p.bytes > maxAnswer {
		return false
	}
	p.all = append(p.all, r)
	return true
}

// response is the page; without a query it is the last one.
func (p *releasePage) response(query []string) *adminv1.ListReleasesResponse {
	out := &adminv1.ListReleasesResponse{Releases: p.all}
	if query != nil {
		last := p.all[len(p.all)-1]
		name := strconv.FormatUint(last.GetSnapshot(), 10)
		if last.GetEndedAt() != nil {
			name = endedMark + name
		}
		out.NextPageToken = pageToken(name, query...)
	}
	return out
}

// GetRelease returns one release; with its waves when it is under way.
func (s *Server) GetRelease(ctx context.Context, in *adminv1.GetReleaseRequest) (*adminv1.GetReleaseResponse, error) {
	if err := check(in); err != nil {
		return nil, err
	}
	state, err := s.released()
	if err != nil {
		return nil, err
	}
	snapshot, err := s.named(ctx, state, in.GetSnapshot())
	if err != nil {
		return nil, err
	}
	if r, ok := state.Release(snapshot); ok {
		w := s.watchWaves(snapshot)
		defer w.close()
		w.complete(ctx, state)
		return &adminv1.GetReleaseResponse{Release: w.view(state, r)}, nil
	}
	r, err := s.ended(ctx, snapshot)
	if err != nil {
		return nil, err
	}
	return &adminv1.GetReleaseResponse{Release: releaseView(r, 0)}, nil
}

// WatchRelease streams a release at each change until it has ended.
func (s *Server) WatchRelease(in *adminv1.WatchReleaseRequest, stream grpc.ServerStreamingServer[adminv1.WatchReleaseResponse]) error {
	if err := check(in); err != nil {
		return err
	}
	ctx := stream.Context()
	moved, stop := s.cfg.Store.Watch()
	defer stop()
	state, err := s.released()
	if err != nil {
		return err
	}
	snapshot, err := s.named(ctx, state, in.GetSnapshot())
	if err != nil {
		return err
	}
	w := s.watchWaves(snapshot)
	defer w.close()
	tick := time.NewTicker(countdown)
	defer tick.Stop()
	var last *adminv1.Release
	for due := true; ; {
		state := s.cfg.Store.Released()
		r, ok := state.Release(snapshot)
		if !ok {
			r, err := s.ended(ctx, snapshot)
			if err != nil {
				return err
			}
			return stream.Send(&adminv1.WatchReleaseResponse{Release: releaseView(r, 0)})
		}
		if last == nil {
			w.complete(ctx, state)
		}
		if now := w.view(state, r); due && !proto.Equal(now, last) || !sameRelease(now, last) {
			last = now
			if err := stream.Send(&adminv1.WatchReleaseResponse{Release: now}); err != nil {
				return err
			}
		}
		due = false
		select {
		case <-moved:
		case <-w.changed():
		case <-tick.C:
			due = true
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// countdown is how often it is told anew what a release waits for, when nothing else has changed.
const countdown = 5 * time.Second

// sameRelease leaves out what a release waits for, which changes all the time.
func sameRelease(a, b *adminv1.Release) bool {
	if a == nil || b == nil {
		return a == b
	}
	c := proto.CloneOf(a)
	c.WaitsFor = b.GetWaitsFor()
	return proto.Equal(c, b)
}

// ControlRelease does what a person asks of a release.
func (s *Server) ControlRelease(ctx context.Context, in *adminv1.ControlReleaseRequest) (*adminv1.ControlReleaseResponse, error) {
	if err := check(in); err != nil {
		return nil, err
	}
	if in.GetAction() == adminv1.ReleaseAction_RELEASE_ACTION_PUSH && in.GetNote().GetMessage() == "" {
		return nil, invalid([]fault.Violation{{Field: "note.message", Rule: "release.push_reason", Text: "a push passes the gates by: say why"}})
	}
	if _, err := s.released(); err != nil {
		return nil, err
	}
	note := noteOf(ctx, in.GetNote())
	var snapshot uint64
	result, err := s.cfg.Store.Step(ctx, func(state *release.State) (release.Step, error) {
		var err error
		if snapshot, err = s.target(ctx, state, in.GetSnapshot()); err != nil {
			return release.Step{}, err
		}
		return release.Step{
			Release: snapshot, Do: actions[in.GetAction()], Author: note.author, Reason: note.message,
			RequestID: note.requestID, TraceParent: note.traceParent,
		}, nil
	})
	if err != nil {
		return nil, err
	}
	return &adminv1.ControlReleaseResponse{Release: s.after(result)}, nil
}

// actions are the steps that people ask for.
var actions = map[adminv1.ReleaseAction]release.Action{
	adminv1.ReleaseAction_RELEASE_ACTION_PAUSE:   release.Pause,
	adminv1.ReleaseAction_RELEASE_ACTION_RESUME:  release.Resume,
	adminv1.ReleaseAction_RELEASE_ACTION_ABORT:   release.Abort,
	adminv1.ReleaseAction_RELEASE_ACTION_PUSH:    release.Push,
	adminv1.ReleaseAction_RELEASE_ACTION_CONFIRM: release.Confirm,
}

// after is the release after a step.
func (s *Server) after(result release.Result) *adminv1.Release {
	snapshot := result.Release.GetSnapshot()
	if r, ok := result.State.Release(snapshot); ok {
		view := releaseView(r, result.State.Held(snapshot))
		view.WaitsFor = s.waitsFor(r, nil)
		return view
	}
	return releaseView(result.Release, 0)
}

// released is the state of the releases, or the fault that there is none yet.
func (s *Server) released() (*release.State, error) {
	if _, err := s.head(); err != nil {
		return nil, err
	}
	return s.cfg.Store.Released(), nil
}

// target is the release that a person means to do something to.
func (s *Server) target(ctx context.Context, state *release.State, snapshot uint64) (uint64, error) {
	active := state.Active()
	switch {
	case snapshot == 0 && len(active) == 1:
		return active[0].GetSnapshot(), nil
	case snapshot == 0 && len(active) == 0:
		return 0, noRelease("no release is under way")
	case snapshot == 0:
		var names []string
		for _, r := range active {
			names = append(names, strconv.FormatUint(r.GetSnapshot(), 10))
		}
		if more := len(names) - 10; more > 0 {
			names = append(names[:10], fmt.Sprintf("%d more", more))
		}
		return 0, fault.Newf(fault.FailedPrecondition, fault.Release, "several releases are under way, say which: %s", strings.Join(names, ", ")).
			WithOutcome(fault.NotApplied)
	}
	if _, ok := state.Release(snapshot); ok {
		return snapshot, nil
	}
	r, err := s.ended(ctx, snapshot)
	if err != nil {
		return 0, err
	}
	return 0, fault.Newf(fault.FailedPrecondition, fault.Release, "release %d has ended: %s", snapshot, ending(r)).WithOutcome(fault.NotApplied)
}

// named is the release that a person asks about: the newest one under way, or else the newest, when none is named.
func (s *Server) named(ctx context.Context, state *release.State, snapshot uint64) (uint64, error) {
	if snapshot != 0 {
		return snapshot, nil
	}
	if active := state.Active(); len(active) > 0 {
		return active[len(active)-1].GetSnapshot(), nil
	}
	newest, err := s.cfg.Store.Releases(ctx, 0, 1)
	if err != nil {
		return 0, err
	}
	if len(newest) == 0 {
		return 0, noRelease("there was no release yet: all changes went to the fleet at once")
	}
	return newest[0].GetSnapshot(), nil
}

// ended finds a release that has ended.
func (s *Server) ended(ctx context.Context, snapshot uint64) (*recordv1.Release, error) {
	for _, r := range s.cfg.Store.Ended() {
		if r.GetSnapshot() == snapshot {
			return r, nil
		}
	}
	found, err := s.cfg.Store.Releases(ctx, snapshot+1, 1)
	if err != nil {
		return nil, err
	}
	if len(found) == 0 || found[0].GetSnapshot() != snapshot {
		return nil, noRelease(fmt.Sprintf("there is no release of snapshot %d: it went to all owners at once, is not there, or has left the history", snapshot))
	}
	return found[0], nil
}

func noRelease(text string) error {
	return fault.New(fault.NotFound, fault.Release, text).WithOutcome(fault.NotApplied)
}

// ending says how a release has ended.
func ending(r *recordv1.Release) string {
	text := strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(r.GetState().String(), "RELEASE_STATE_")), "_", " ")
	if r.GetReason() != "" {
		text += ", " + r.GetReason()
	}
	return text
}

// releaseView is a release without its waves.
func releaseView(r *recordv1.Release, pending int) *adminv1.Release {
	out := &adminv1.Release{
		Snapshot: r.GetSnapshot(), State: r.GetState(), Class: r.GetClass(), Policy: r.GetPolicy(), Wave: r.GetWave(), WaveAt: r.GetWaveAt(),
		StartedAt: r.GetStartedAt(), EndedAt: r.GetEndedAt(), ConfirmBy: r.GetConfirmBy(), Objects: r.GetObjects(), Pending: uint32(pending),
		Author: r.GetAuthor(), Reason: r.GetReason(),
	}
	for _, t := range r.GetTakenBack() {
		out.TakenBack = append(out.TakenBack, &adminv1.TakenBackObject{Name: t.GetName(), Why: t.GetWhy()})
	}
	for _, e := range r.GetEvents() {
		out.Events = append(out.Events, &adminv1.ReleaseEvent{At: e.GetAt(), What: e.GetWhat(), Wave: e.GetWave(), Author: e.GetAuthor(), Reason: e.GetReason()})
	}
	return out
}
