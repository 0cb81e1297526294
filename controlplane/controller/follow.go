package controller

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/release/gate"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/telemetry"
)

const (
	// pace is how much lies at least between two judgements that were caused by what others did, and times how much
	// longer than a judgement took, so that a release of everything on a large fleet leaves the replica time for others.
	pace  = 25 * time.Millisecond
	times = 10
	// look is how often a wave that is held is looked at when nobody tells anything: that calls go on makes no signal.
	look = time.Second
	// retryAfter is how long to wait when the store does not take a step.
	retryAfter = 200 * time.Millisecond
	// forever is when nothing is to be done until something happens.
	forever = time.Hour
)

// follower brings one release forward.
type follower struct {
	*Controller
	snapshot uint64
	observed observed
	hold     *hold // the wave that is held; nil before it is judged
	lost     lost
	surveyed surveyed
	cells    []gate.Cell
	ejected  int // how much has gone back because namespaces could not serve
}

// follow brings a release forward until it has ended or ctx does.
func (c *Controller) follow(ctx context.Context, snapshot uint64) {
	f := &follower{Controller: c, snapshot: snapshot}
	defer f.observed.close()
	moved, stopMoved := c.cfg.Store.Watch()
	defer stopMoved()
	assigned, stopAssigned := c.cfg.Fleet.WatchAssignment()
	defer stopAssigned()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		state := c.cfg.Store.Released()
		r, ok := state.Release(snapshot)
		if !ok {
			return
		}
		began := time.Now()
		timer.Reset(f.bring(ctx, state, r, began))
		took := time.Since(began)
		select {
		case <-moved:
		case <-assigned:
		case <-f.observed.changed():
		case <-timer.C:
			continue
		case <-ctx.Done():
			return
		}
		if !pause(ctx, max(pace, times*took)) {
			return
		}
	}
}

// bring does what is due, and returns after how long to look again if nothing happens.
func (f *follower) bring(ctx context.Context, state *release.State, r *recordv1.Release, now time.Time) time.Duration {
	wait := forever
	if by := r.GetConfirmBy(); by != nil {
		left := by.AsTime().Sub(now)
		if left <= 0 {
			return f.takeBack(ctx, r, "nobody has confirmed it by "+by.AsTime().UTC().Format(time.RFC3339))
		}
		wait = min(wait, left)
	}
	switch {
	case r.GetState() == configv1.ReleaseState_RELEASE_STATE_PAUSED:
		return wait // what happens until somebody resumes is judged by that person
	case r.GetPolicy().GetAtOnce():
		return f.finish(ctx, r, wait)
	}
	assignment := f.cfg.Fleet.Assignment()
	if assignment == nil {
		return wait // there is no fleet, or this replica does not know it yet
	}
	if left := f.observed.of(f.cfg.Observe, state.Concerned(f.snapshot), now, f.cfg.Lease); left > 0 {
		return min(wait, left)
	}
	cells := f.survey(state, assignment, now)
	f.lost.look(cells, f.cfg.Store.Members())
	wave := int(r.GetWave())
	switch {
	case f.hold != nil && f.hold.wave > wave:
		return min(wait, look) // its beginning was recorded, and signals when it is known
	case wave == 0:
		return f.advance(ctx, r, cells, now)
	case wave == release.WaveAll && !has(cells, wave):
		return f.finish(ctx, r, wait)
	case f.hold == nil || f.hold.wave != wave:
		f.hold = newHold(wave, now) // somebody else began it: how the cells were before is not known any more
	}
	f.hold.look(cells, now)
	gate.Excuse(state, r, cells)
	if step := stepFor(state, f.snapshot, refusals(cells)); step.Do == release.Eject {
		return f.step(ctx, r, step, func(result release.Result) { // the replica that heard of it has not come to it
			f.log.Warn("release takes back what is refused", "snapshot", f.snapshot, "by_snapshot", result.Snapshot.GetVersion(),
				"objects", len(step.Objects), telemetry.KeyReason, step.Reason)
		})
	}
	verdict := gate.Judge(gate.Input{
		Snapshot: f.snapshot, Wave: f.hold.wave, Policy: r.GetPolicy(), Cells: cells, Held: f.hold.held, Silence: f.cfg.Lease, Now: now,
		Lost: f.lost.names(),
	})
	switch verdict.Outcome {
	case gate.Fail:
		return f.takeBack(ctx, r, fmt.Sprintf("wave %d (%s): %s", f.hold.wave, release.WaveName(f.hold.wave), verdict.Reason))
	case gate.Part:
		return f.eject(ctx, state, r, cells, verdict)
	case gate.Pass:
		if wave < release.WaveAll {
			return f.advance(ctx, r, cells, now)
		}
		return f.finish(ctx, r, wait)
	}
	if verdict.Serving && f.hold.held.IsZero() {
		f.hold.held = now
		return 0
	}
	return min(wait, look, verdict.Until.Sub(now))
}

// advance begins the next wave that has cells, and the last one when none has.
func (f *follower) advance(ctx context.Context, r *recordv1.Release, cells []gate.Cell, now time.Time) time.Duration {
	next := gate.NextWave(cells, int(r.GetWave()))
	before := newHold(next, now)
	before.look(cells, now)
	before.begin()
	return f.step(ctx, r, release.Step{Do: release.Wave, Wave: next}, func(release.Result) {
		f.hold = before
		f.log.Info("release wave", "snapshot", f.snapshot, "wave", next, "name", release.WaveName(next), "cells", count(cells, next))
	})
}

// finish ends a release that everybody has, unless it is to be confirmed first.
func (f *follower) finish(ctx context.Context, r *recordv1.Release, wait time.Duration) time.Duration {
	if r.GetConfirmBy() != nil {
		return wait
	}
	return f.step(ctx, r, release.Step{Do: release.Promote}, func(release.Result) {
		f.log.Info("release done", "snapshot", f.snapshot)
	})
}

func (f *follower) takeBack(ctx context.Context, r *recordv1.Release, reason string) time.Duration {
	return f.step(ctx, r, release.Step{Do: release.TakeBack, Reason: reason}, func(result release.Result) {
		f.log.Warn("release taken back", "snapshot", f.snapshot, "by_snapshot", result.Snapshot.GetVersion(), telemetry.KeyReason, reason)
	})
}

// eject takes back what keeps namespaces from being served, and holds the wave anew without it.
func (f *follower) eject(ctx context.Context, state *release.State, r *recordv1.Release, cells []gate.Cell, v gate.Verdict) time.Duration {
	objects, more := gate.Cure(state, f.snapshot, cells, v.Unready, f.ejected)
	if len(objects) == 0 {
		return f.takeBack(ctx, r, fmt.Sprintf("wave %d (%s): %s", f.hold.wave, release.WaveName(f.hold.wave), v.Reason))
	}
	step := release.Step{Do: release.Eject, Objects: objects, Reason: v.Reason}
	return f.step(ctx, r, step, func(result release.Result) {
		f.ejected += more
		f.hold.anew()
		f.log.Warn("release takes back what cannot serve", "snapshot", f.snapshot, "by_snapshot", result.Snapshot.GetVersion(),
			"objects", len(objects), telemetry.KeyReason, v.Reason)
	})
}

// errMoved says that a release is not as it was when a step was decided on.
var errMoved = errors.New("controller: the release has moved")

// step makes a step of the leader's, unless the release has moved since it was decided on.
func (f *follower) step(ctx context.Context, r *recordv1.Release, step release.Step, made func(release.Result)) time.Duration {
	step.Release, step.Fenced = f.snapshot, true
	result, err := f.cfg.Store.Step(ctx, func(s *release.State) (release.Step, error) {
		now, ok := s.Release(f.snapshot)
		if !ok || now.GetWave() != r.GetWave() || now.GetState() != r.GetState() || !proto.Equal(now.GetConfirmBy(), r.GetConfirmBy()) {
			return release.Step{}, errMoved
		}
		return step, nil
	})
	switch {
	case err == nil:
		if result.Changed {
			made(result)
		}
		return look // that it moved is signalled
	case errors.Is(err, errMoved), fault.From(err).Reason == fault.Release:
		return look // likewise
	case ctx.Err() == nil:
		f.log.Warn("a step of a release was not made", "snapshot", f.snapshot, telemetry.Error(err))
	}
	return retryAfter
}

// refusals are what the cells that a release has reached refuse of it.
func refusals(cells []gate.Cell) []refusal {
	var all []refusal
	for i := range cells {
		if c := &cells[i]; c.Reached && len(c.Rejections) > 0 {
			all = append(all, refusal{proxy: c.Proxy, build: c.Build, partition: c.Partition, rejections: c.Rejections})
		}
	}
	return all
}

// has reports whether a wave has cells.
func has(cells []gate.Cell, wave int) bool { return count(cells, wave) > 0 }

func count(cells []gate.Cell, wave int) int {
	n := 0
	for i := range cells {
		if cells[i].Wave == wave {
			n++
		}
	}
	return n
}

// pause waits, and reports whether ctx goes on.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
