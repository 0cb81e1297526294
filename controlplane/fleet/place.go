package fleet

import (
	"context"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"

	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/shared/ident"
	"github.com/prism-gateway/prism/shared/placement"
)

const (
	// youth is for how long an installation is expected to be still growing its first fleet.
	youth = time.Minute
	// youngDebounce is the debounce until then.
	youngDebounce = 300 * time.Millisecond
	// retryAfter is how long to wait when the store refuses a placement.
	retryAfter = time.Second
)

// Place decides about the fleet until ctx ends, which is no error. It is for the elected replica: run it for as long as
// this one leads, beside Run.
func (f *Fleet) Place(ctx context.Context) error {
	changed, stop := f.store.WatchFleet()
	defer stop()
	assigned, stopAssigned := f.WatchAssignment()
	defer stopAssigned()
	pl := &placer{fleet: f, differs: map[string]time.Time{}}
	defer pl.stopMove()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		wait := pl.step(ctx, time.Now())
		timer.Reset(wait)
		select {
		case <-changed:
		case <-assigned:
		case <-pl.moved():
		case <-timer.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// placer is one leader's memory between its decisions.
type placer struct {
	fleet   *Fleet
	differs map[string]time.Time // since when a proxy is not what the placement says
	move    *move                // the move under way; nil when settled
	epoch   uint64               // of the placement that was recorded last
}

// move is what a leader knows of partitions that move.
type move struct {
	since    time.Time
	snapshot uint64 // the newest when it began
	epoch    uint64
	cells    *Observation
}

func (pl *placer) moved() <-chan struct{} {
	if pl.move == nil {
		return nil
	}
	return pl.move.cells.Changed()
}

func (pl *placer) stopMove() {
	if pl.move != nil {
		pl.move.cells.Close()
		pl.move = nil
	}
}

// step makes the decision that is due, and returns after how long to look again if nothing happens.
func (pl *placer) step(ctx context.Context, now time.Time) time.Duration {
	f := pl.fleet
	current := f.store.Placement()
	if current.GetEpoch() < pl.epoch {
		return retryAfter // what was recorded is on its way, and signals
	}
	live, validators := f.live()
	next, wait := pl.members(current, live, validators, now)
	if next == nil && len(current.GetPrevious()) > 0 {
		var settled bool
		if settled, wait = pl.settled(current, now, wait); settled {
			next = proto.CloneOf(current)
			next.Previous, next.Gone = nil, nil
		}
	} else if len(current.GetPrevious()) == 0 {
		pl.stopMove()
	}
	if next == nil {
		return wait
	}
	next.Epoch = current.GetEpoch() + 1
	if err := f.store.PutPlacement(ctx, next); err != nil {
		f.log.Warn("the placement was not recorded", "epoch", next.Epoch, "error", err)
		return retryAfter
	}
	pl.epoch = next.Epoch
	f.log.Info("placement", "epoch", next.Epoch, "proxies", len(next.Members), "moving", len(next.Previous) > 0)
	return wait
}

// live are the proxies that are alive: those that may own something, and the validators.
func (f *Fleet) live() (owning, validators []*configv1.Member) {
	var live []*configv1.Member
	for _, lease := range f.store.Members() {
		live = append(live, lease.GetMember())
	}
	return apart(live)
}

// apart parts those that may own something from the validators, each by id as they were.
func apart(members []*configv1.Member) (owning, validators []*configv1.Member) {
	for _, m := range members {
		if m.GetValidator() {
			validators = append(validators, m)
		} else {
			owning = append(owning, m)
		}
	}
	return owning, validators
}

// debounce is how long a change of the fleet must last.
func (f *Fleet) debounce(now time.Time) time.Duration {
	if now.Sub(f.store.Installation().GetCreatedAt().AsTime()) < youth {
		return min(f.cfg.Debounce, youngDebounce)
	}
	return f.cfg.Debounce
}

// members decides who is to own partitions: nil when that stays as it is. What a proxy says of itself is taken over at
// once; who comes and who goes must have done so for the debounce, but for those who say that they leave. Validators own
// nothing, so they come and go at once and nothing moves for them.
func (pl *placer) members(current *recordv1.Placement, live, validators []*configv1.Member, now time.Time) (*recordv1.Placement, time.Duration) {
	const forever = time.Hour
	owning, judges := apart(current.GetMembers())
	placed, alive := byID(owning), byID(live)
	debounce, wait := pl.fleet.debounce(now), forever
	if current == nil {
		debounce = 0
	}
	due := func(id string) bool {
		since, known := pl.differs[id]
		if !known {
			since, pl.differs[id] = now, now
		}
		left := debounce - now.Sub(since)
		if left > 0 {
			wait = min(wait, left)
		}
		return left <= 0
	}
	var members []*configv1.Member
	refreshed, changed := !slices.EqualFunc(judges, validators, func(a, b *configv1.Member) bool { return proto.Equal(a, b) }), false
	for _, m := range owning {
		l, ok := alive[m.GetId()]
		switch {
		case ok && !l.GetDraining():
			delete(pl.differs, m.GetId())
			if placement.MemberOf(l) != placement.MemberOf(m) {
				changed = true // its zone
			} else if !proto.Equal(l, m) {
				refreshed = true
			}
			members = append(members, l)
		case ok: // drains
			changed = true
		case due(m.GetId()):
			changed = true
		default:
			members = append(members, m)
		}
	}
	for _, l := range live {
		if placed[l.GetId()] != nil || l.GetDraining() {
			continue
		}
		if due(l.GetId()) {
			changed = true
			members = append(members, l)
		}
	}
	for id := range pl.differs { // came and went before it was due
		if placed[id] == nil && alive[id] == nil {
			delete(pl.differs, id)
		}
	}
	if len(members) == 0 {
		return nil, wait // never is everything taken from everybody
	}
	next := &recordv1.Placement{Owners: uint32(pl.fleet.cfg.Owners), Previous: current.GetPrevious()}
	if changed && len(next.Previous) == 0 {
		next.Previous = owning
	}
	stay := byID(members)
	for _, m := range next.Previous {
		// Who was gone once in a move has to load anew when it comes back.
		if alive[m.GetId()] == nil && stay[m.GetId()] == nil || slices.Contains(current.GetGone(), m.GetId()) {
			next.Gone = append(next.Gone, m.GetId())
		}
	}
	if !changed && !refreshed && slices.Equal(next.Gone, current.GetGone()) {
		return nil, wait
	}
	byName := func(a, b *configv1.Member) int { return strings.Compare(a.GetId(), b.GetId()) }
	slices.SortFunc(members, byName)
	next.Members = slices.SortedFunc(slices.Values(slices.Concat(members, validators)), byName)
	for _, m := range members {
		delete(pl.differs, m.GetId())
	}
	if len(next.Gone) == 0 && samePlaces(next.Previous, members) {
		next.Previous = nil // it is as it was before the move
	}
	return next, wait
}

// settled reports whether every owner that loads a partition serves it, or has been given enough time.
func (pl *placer) settled(current *recordv1.Placement, now time.Time, wait time.Duration) (bool, time.Duration) {
	f := pl.fleet
	a := f.assigned.Load()
	if a == nil || a.placement.GetEpoch() != current.GetEpoch() {
		return false, wait // Run will have it in a moment, and signals
	}
	var loading []ident.Partition
	for p, entry := range a.assignment.GetPartitions() {
		if len(entry.GetLoading()) > 0 {
			loading = append(loading, ident.Partition(p))
		}
	}
	if len(loading) == 0 {
		return true, wait
	}
	if pl.move == nil || pl.move.epoch != current.GetEpoch() {
		pl.begin(current.GetEpoch(), loading, now)
	}
	left := f.cfg.MoveDeadline - now.Sub(pl.move.since)
	if left <= 0 {
		f.log.Warn("partitions move although not all new owners serve them", "epoch", current.GetEpoch())
		return true, wait
	}
	state := f.store.Released()
	for _, p := range loading {
		view := state.View(p, release.Other)
		wanted := max(1, min(pl.move.snapshot, view.Snapshot)) // a release may hold back what is newer
		cells := pl.move.cells.Cells(p)
		for _, m := range pick(a.assignment, a.assignment.GetPartitions()[p].GetLoading()) {
			c := cells[m.GetId()]
			root, err := ident.HashFrom(c.GetServingRoot())
			current := err == nil && root == view.Partition.Root()
			if c == nil || !current && c.GetSnapshotVersion() < wanted {
				return false, min(wait, left)
			}
		}
	}
	return true, wait
}

// begin starts to observe the partitions that move. The time a move is given counts from its first epoch.
func (pl *placer) begin(epoch uint64, loading []ident.Partition, now time.Time) {
	since := now
	if pl.move != nil {
		since = pl.move.since
	}
	pl.stopMove()
	pl.move = &move{since: since, epoch: epoch, snapshot: pl.fleet.store.Head().Version(), cells: pl.fleet.Observe(loading...)}
}

func byID(members []*configv1.Member) map[string]*configv1.Member {
	by := make(map[string]*configv1.Member, len(members))
	for _, m := range members {
		by[m.GetId()] = m
	}
	return by
}

// samePlaces reports whether two fleets are given the same.
func samePlaces(a, b []*configv1.Member) bool {
	return slices.EqualFunc(a, b, func(x, y *configv1.Member) bool { return placement.MemberOf(x) == placement.MemberOf(y) })
}
