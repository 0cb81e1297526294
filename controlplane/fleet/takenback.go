package fleet

import (
	"context"
	"slices"
	"time"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"

	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/shared/fault"
)

// readPatience is how long a status waits for what only the store has: it is told without it when the store is gone.
const readPatience = 300 * time.Millisecond

// snapshotsAtOnce is how many snapshots are asked for together.
const snapshotsAtOnce = 64

// takenBack remembers of one object which change of it was taken back last.
type takenBack struct {
	state *release.State    // by which it was looked for
	ended *recordv1.Release // the newest that had ended then
	found *configv1.TakenBack
	read  uint64 // the newest snapshot of those after that which has been read
	later bool   // one of those changed the object
}

// newest returns the change of an object that was taken back last, nil when none was.
func (t *takenBack) newest(state *release.State, ended []*recordv1.Release, name string) *configv1.TakenBack {
	var last *recordv1.Release
	if len(ended) > 0 {
		last = ended[0]
	}
	if t.state == state && t.ended == last {
		return t.found
	}
	t.state, t.ended = state, last
	var found *configv1.TakenBack
	for _, list := range [][]*recordv1.Release{state.Active(), ended} {
		for _, r := range list {
			for _, back := range r.GetTakenBack() {
				if back.GetName() == name && back.GetWhy().GetBySnapshot() >= found.GetBySnapshot() {
					found = back.GetWhy()
				}
			}
		}
	}
	if found.GetBySnapshot() != t.found.GetBySnapshot() {
		t.read, t.later = found.GetBySnapshot(), false
	}
	t.found = found
	return found
}

// outdated reports whether the object has been changed since it was taken back, as far as the snapshots up to version
// can be read. What sets everything back is such a change.
func (t *takenBack) outdated(ctx context.Context, s store, name string, version uint64) bool {
	ctx, cancel := context.WithTimeout(ctx, readPatience)
	defer cancel()
	for t.found != nil && !t.later && t.read < version {
		to := min(version, t.read+snapshotsAtOnce)
		records, err := s.Snapshots(ctx, to+1, int(to-t.read))
		if err != nil {
			break // goes on here next time
		}
		t.read = to
		t.later = slices.ContainsFunc(records, func(r *recordv1.Snapshot) bool {
			return slices.ContainsFunc(r.GetChanges(), func(c *recordv1.Change) bool { return c.GetName() == name || c.GetName() == "" })
		})
	}
	return t.later
}

// TakenBack returns the change of an object that was taken back last; nil when none was, or it has been changed since.
func (f *Fleet) TakenBack(ctx context.Context, name string) *configv1.TakenBack {
	state := f.store.Released()
	if state == nil {
		return nil
	}
	t := &takenBack{}
	if t.newest(state, f.store.Ended(), name) == nil || t.outdated(ctx, f.store, name, state.Head().Version()) {
		return nil
	}
	return t.found
}

// gone is the error of a namespace that is not there because the change that made it was taken back.
func gone(namespace string, t *configv1.TakenBack) error {
	f := fault.Newf(fault.FailedPrecondition, fault.TakenBack, "namespace %q was made by snapshot %d and taken back by snapshot %d: %s",
		namespace, t.GetSnapshot(), t.GetBySnapshot(), t.GetReason())
	for _, detail := range []struct{ key, value string }{
		{"resource", t.GetRejection().GetResource()}, {"field", t.GetRejection().GetField()}, {"reason", t.GetRejection().GetReason()},
		{"proxy", t.GetProxy()}, {"build", t.GetBuild()},
	} {
		if detail.value != "" {
			f = f.With(detail.key, detail.value)
		}
	}
	return f
}
