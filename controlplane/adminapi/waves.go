package adminapi

import (
	"context"
	"fmt"
	"time"

	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/release/gate"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/ident"
)

// Observation is what all replicas know of some partitions.
type Observation interface {
	// Changed is sent to after something has changed.
	Changed() <-chan struct{}
	// Cells is what is known of a partition, by proxy.
	Cells(p ident.Partition) map[string]*controlv1.CellState
	// Complete reports whether all who can be asked have answered.
	Complete() bool
	// Close ends the observation.
	Close()
}

// releaseOf is the release that a change goes in; 0 when every owner has it at once, and nobody is to confirm it.
func releaseOf(c snapshot.Commit) uint64 {
	if !c.InRelease {
		return 0
	}
	return c.Snapshot.GetVersion()
}

// patience is how long other replicas are waited for before a release is told.
const patience = time.Second

// waves follows the cells of one release.
type waves struct {
	server   *Server
	snapshot uint64
	seen     Observation // nil until something concerns it
}

func (s *Server) watchWaves(snapshot uint64) *waves { return &waves{server: s, snapshot: snapshot} }

func (w *waves) close() {
	if w.seen != nil {
		w.seen.Close()
	}
}

func (w *waves) changed() <-chan struct{} {
	if w.seen == nil {
		return nil
	}
	return w.seen.Changed()
}

// complete waits until all replicas have told what they know, but not for ever.
func (w *waves) complete(ctx context.Context, state *release.State) {
	concerned := state.Concerned(w.snapshot)
	if len(concerned) == 0 {
		return
	}
	w.seen = w.server.cfg.Observe(concerned...)
	enough := time.NewTimer(patience)
	defer enough.Stop()
	for !w.seen.Complete() {
		select {
		case <-w.seen.Changed():
		case <-enough.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// cells are those of the release, with what is known of them.
func (w *waves) cells(state *release.State, r *recordv1.Release) []gate.Cell {
	cells := gate.Survey(state, w.snapshot, w.server.cfg.Fleet.Assignment())
	gate.Missing(cells, w.server.cfg.Store.Members())
	if w.seen == nil {
		return cells
	}
	pending := gate.Pending(state, w.snapshot)
	known := map[ident.Partition]map[string]*controlv1.CellState{}
	for i := range cells {
		c := &cells[i]
		if _, ok := known[c.Partition]; !ok {
			known[c.Partition] = w.seen.Cells(c.Partition)
		}
		c.Observe(known[c.Partition][c.Proxy], pending)
		c.Since = r.GetWaveAt().AsTime()
	}
	gate.Excuse(state, r, cells)
	return cells
}

// view is a release with its waves.
func (w *waves) view(state *release.State, r *recordv1.Release) *adminv1.Release {
	out := releaseView(r, state.Held(w.snapshot))
	cells := w.cells(state, r)
	for n := 1; n <= release.Waves; n++ {
		out.Waves = append(out.Waves, &adminv1.ReleaseWave{Wave: uint32(n), Name: release.WaveName(n), Reached: uint32(n) <= r.GetWave()})
	}
	for i := range cells {
		tell(out.Waves[cells[i].Wave-1], &cells[i], w.snapshot)
	}
	out.WaitsFor = w.server.waitsFor(r, cells)
	return out
}

// tell counts how far a cell is.
func tell(wave *adminv1.ReleaseWave, c *gate.Cell, snapshot uint64) {
	wave.Cells++
	if !c.Reached {
		return
	}
	serves := c.Serves(snapshot)
	if serves {
		wave.Serving++
	}
	if serves || c.Has(c.Accepted) {
		wave.Accepted++
	}
	if serves || c.Has(c.Accepted) || c.Has(c.Sent) {
		wave.Sent++
	}
	if len(c.Rejections) > 0 {
		wave.Refused++
	}
}

// waitsFor says what a release under way waits for, as far as that is known without its cells when they are nil. Calls
// are judged by the elected replica alone.
func (s *Server) waitsFor(r *recordv1.Release, cells []gate.Cell) string {
	now := s.cfg.Now()
	switch {
	case r.GetState() == configv1.ReleaseState_RELEASE_STATE_PAUSED:
		return "somebody to resume, push or abort it"
	case r.GetPolicy().GetAtOnce():
		return confirmation(r)
	case r.GetWave() == 0:
		return "its first wave"
	case cells == nil:
		if left := r.GetWaveAt().AsTime().Add(r.GetPolicy().GetSoak().AsDuration()).Sub(now); left > 0 {
			return gate.Held(left)
		}
		return fmt.Sprintf("the checks of wave %d (%s)", r.GetWave(), release.WaveName(int(r.GetWave())))
	}
	v := gate.Judge(gate.Input{
		Snapshot: r.GetSnapshot(), Wave: int(r.GetWave()), Policy: r.GetPolicy(), Cells: cells, Held: r.GetWaveAt().AsTime(),
		Silence: time.Hour, Now: now,
	})
	switch {
	case v.Outcome != gate.Pass:
		return v.Reason
	case int(r.GetWave()) < release.WaveAll:
		return "the elected replica to begin the next wave"
	case r.GetConfirmBy() != nil:
		return confirmation(r)
	}
	return "the elected replica to end it"
}

func confirmation(r *recordv1.Release) string {
	return fmt.Sprintf("somebody to confirm it by %s", r.GetConfirmBy().AsTime().UTC().Format(time.RFC3339))
}
