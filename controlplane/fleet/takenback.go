package fleet

import (
	"context"
	"time"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"

	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
)

// readPatience is how long a status waits for what only the store has: it is told without it when the store is gone.
const readPatience = 300 * time.Millisecond

// takenBack remembers of one object which change of it was taken back last.
type takenBack struct {
	state *release.State    // by which it was looked for
	ended *recordv1.Release // the newest that had ended then
	found *configv1.TakenBack
	left  ident.Hash // the object as it was left by that
	read  bool       // left is known
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
		t.left, t.read = ident.Hash{}, false
	}
	t.found = found
	return found
}

// leftAs returns the object as it was left when it was taken back, and whether that is known.
func (t *takenBack) leftAs(ctx context.Context, s store, name string) (ident.Hash, bool) {
	if t.read || t.found == nil {
		return t.left, t.read
	}
	ctx, cancel := context.WithTimeout(ctx, readPatience)
	defer cancel()
	record, err := s.Snapshot(ctx, t.found.GetBySnapshot())
	if err != nil {
		return t.left, false // asked again next time
	}
	for _, c := range record.GetChanges() {
		if c.GetName() != name {
			continue
		}
		if hash, err := ident.HashFrom(c.GetAfter()); err == nil {
			t.left, t.read = hash, true
		}
	}
	return t.left, t.read
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
