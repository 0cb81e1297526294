package release

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/prism-gateway/prism/controlplane/snapshot"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/fault"
)

// Draft is a snapshot in the making: a state, and the changes that are to be recorded together on it. It is immutable.
type Draft struct {
	from         *State
	head, stable *snapshot.Tree
	version      uint64
	now          time.Time
	dirty        bool // something changes

	waved   []string // names that go in waves
	whole   bool     // everything does, or did at once
	class   configv1.ReleaseClass
	policy  *configv1.ReleasePolicy
	confirm time.Duration
	author  string
}

// ErrApart refuses a change that must have a snapshot of its own, or cannot be in that of another.
var ErrApart = errors.New("release: the change cannot be recorded with the others")

// Draft begins a snapshot of the next number that is recorded now.
func (s *State) Draft(now time.Time) *Draft {
	return &Draft{from: s, head: s.head, stable: s.stable, version: s.head.Version() + 1, now: now}
}

// Head is the tree as the changes so far leave it.
func (d *Draft) Head() *snapshot.Tree { return d.head }

// Version is the number of the snapshot.
func (d *Draft) Version() uint64 { return d.version }

// InRelease reports whether some of the changes go in waves.
func (d *Draft) InRelease() bool { return d.policy != nil }

// With returns the draft with another request in it, and what that changes: nothing when it is so already, and then
// the draft is d itself.
func (d *Draft) With(order Order, policies Policies, sets []snapshot.Set) (*Draft, []*recordv1.Change, error) {
	head, changes, err := d.head.With(d.version, sets)
	if err != nil || len(changes) == 0 {
		return d, nil, err
	}
	class := Classify(d.head, sets)
	policy := policies.Of(class)
	policy.AtOnce = policy.AtOnce || order.AtOnce
	waved := !policy.AtOnce || order.ConfirmWithin > 0
	if err := d.accepts(waved, order.ConfirmWithin); err != nil {
		return nil, nil, err
	}
	next := *d
	next.head, next.dirty = head, true
	if !waved && d.stable == d.head { // nothing is pending
		next.stable = head
		return &next, changes, nil
	}
	if waved {
		next.waved = slices.Clip(d.waved)
		for _, c := range changes {
			next.waved = append(next.waved, c.Name)
		}
	}
	if err := next.settle(d.head, changes, waved); err != nil {
		return nil, nil, err
	}
	if !waved {
		return &next, changes, nil
	}
	pending := false
	for _, c := range changes {
		o, _ := next.stable.Object(c.Name)
		c.InRelease = !slices.Equal(o.Hash.Bytes(), c.After)
		pending = pending || c.InRelease
	}
	if pending {
		next.join(class, policy, order.ConfirmWithin, changes[0].Author)
	}
	return &next, changes, nil
}

// accepts reports whether a change can be in the snapshot.
func (d *Draft) accepts(waved bool, confirm time.Duration) error {
	switch {
	case d.whole, waved && d.policy != nil && (confirm > 0 || d.confirm > 0):
		return ErrApart
	case waved && d.policy == nil && len(d.from.active) >= MaxActive:
		return fault.Newf(fault.Exhausted, fault.Release, "%d releases are under way: wait for one to end, or end one", len(d.from.active)).
			WithRetry(30 * time.Second).WithOutcome(fault.NotApplied)
	}
	return nil
}

// join makes a change part of the snapshot's release.
func (d *Draft) join(class configv1.ReleaseClass, policy *configv1.ReleasePolicy, confirm time.Duration, author string) {
	if d.policy == nil {
		d.author, d.confirm = author, confirm
	}
	if d.policy == nil || Graver(d.class, class) != d.class {
		d.class, d.policy = class, policy
	}
}

// settle brings into the stable tree what every owner is to have of some changes: all of them, or, of those that go in
// waves, what they rely on. base is the newest tree before them.
func (d *Draft) settle(base *snapshot.Tree, changes []*recordv1.Change, waved bool) error {
	own := d.waved // what is in the release of this snapshot
	if !waved {
		own = nil
	}
	steady := map[string]snapshot.Object{}
	for _, c := range changes {
		o, there := d.head.Object(c.Name)
		o.Name = c.Name
		if !waved {
			steady[c.Name] = o
		} else if was, ok := base.Object(c.Name); ok && !isNamespace(c.Name) && !slices.Contains(d.waved[:len(d.waved)-len(changes)], c.Name) {
			// Others may be bound to a backend that was made and is pending; only its change goes in waves.
			if _, stable := d.stable.Object(c.Name); !stable && there {
				steady[c.Name] = was
			}
		}
		bound, err := o.Bound()
		if err != nil {
			return err
		}
		for _, b := range bound {
			name := snapshot.BackendPrefix + b
			if _, ok := d.stable.Object(name); ok || slices.Contains(own, name) {
				continue
			}
			if made, ok := d.head.Object(name); ok {
				steady[name] = made
			}
		}
	}
	stable, err := d.stable.Put(d.version, values(steady))
	if err != nil {
		return err
	}
	d.stable = stable
	for _, c := range changes {
		backend, ok := strings.CutPrefix(c.Name, snapshot.BackendPrefix)
		if !ok || len(c.After) > 0 {
			continue
		}
		if n := d.stable.Usage(backend).Namespaces; n > 0 {
			return fault.Newf(fault.FailedPrecondition, fault.InUse,
				"backend %q is still used by %d namespaces whose releases are under way: wait for them, or push them", backend, n).
				WithOutcome(fault.NotApplied)
		}
	}
	return nil
}

func isNamespace(name string) bool { return strings.HasPrefix(name, snapshot.NamespacePrefix) }

func values(objects map[string]snapshot.Object) []snapshot.Object {
	out := make([]snapshot.Object, 0, len(objects))
	for _, o := range objects {
		out = append(out, o)
	}
	return out
}

// Rollback returns the draft of a snapshot that is what an older one was, and the one change that the history tells of
// it. Every release under way ends with it: what it held goes back, or is part of the new one.
func (d *Draft) Rollback(order Order, policies Policies, target *snapshot.Tree, note snapshot.Note) (*Draft, []*recordv1.Change, error) {
	head, changes, err := d.head.RollbackTo(target, d.version, note)
	if err != nil || len(changes) == 0 {
		return d, nil, err
	}
	if d.dirty {
		return nil, nil, ErrApart
	}
	next := *d
	next.head, next.dirty, next.whole = head, true, true
	policy := policies.Of(configv1.ReleaseClass_RELEASE_CLASS_ROLLBACK)
	policy.AtOnce = policy.AtOnce || order.AtOnce
	if policy.AtOnce && order.ConfirmWithin == 0 || d.stable.Root() == head.Root() {
		next.stable = head
		return &next, changes, nil
	}
	changes[0].InRelease = true
	next.join(configv1.ReleaseClass_RELEASE_CLASS_ROLLBACK, policy, order.ConfirmWithin, note.Author)
	return &next, changes, nil
}

// Transition is a state and how it was come to from another.
type Transition struct {
	State *State
	// Changes are those of the snapshot that is State's head; none when the step before it made no snapshot.
	Changes []*recordv1.Change
	// Ended are the releases that have ended by it, as they are to be kept.
	Ended []*recordv1.Release
}

// Done returns what the draft comes to. Its changes are those that With and Rollback returned.
func (d *Draft) Done() (Transition, error) {
	if !d.dirty {
		return Transition{State: d.from}, nil
	}
	active, claims := d.from.active, d.from.claims
	end := func(r *recordv1.Release) {
		end(r, d.now, configv1.ReleaseState_RELEASE_STATE_SUPERSEDED, "superseded", "", fmt.Sprintf("snapshot %d changed the last of it again", d.version))
	}
	if d.policy == nil {
		state, ended, err := d.from.follow(d.head, d.stable, active, claims, end)
		return Transition{State: state, Ended: ended}, err
	}
	own := d.release()
	c := &claim{release: d.version, whole: d.whole, names: make(map[string]struct{}, len(d.waved))}
	for _, name := range d.waved {
		c.names[name] = struct{}{}
	}
	state, ended, err := d.from.follow(d.head, d.stable, append(slices.Clip(active), own), append(slices.Clip(claims), c), end)
	if err != nil {
		return Transition{}, err
	}
	// What is newest may have become what is stable again: then there is nothing to release.
	ended = slices.DeleteFunc(ended, func(r *recordv1.Release) bool { return r.Snapshot == own.Snapshot })
	if _, ok := state.index(own.Snapshot); ok {
		own.Objects = uint32(state.Held(own.Snapshot))
		for _, p := range First(own.Snapshot, state.Concerned(own.Snapshot), own.Policy.FirstPercent) {
			own.First = append(own.First, uint32(p))
		}
	}
	return Transition{State: state, Ended: ended}, nil
}

// release is the release of what the draft holds.
func (d *Draft) release() *recordv1.Release {
	r := &recordv1.Release{
		Snapshot: d.version, State: configv1.ReleaseState_RELEASE_STATE_RUNNING, Class: d.class, Policy: d.policy, Whole: d.whole,
		StartedAt: timestamppb.New(d.now), Author: d.author,
	}
	happened(r, d.now, "started", d.author, "")
	if d.confirm > 0 {
		r.ConfirmBy = timestamppb.New(d.now.Add(d.confirm))
	}
	if d.policy.AtOnce {
		r.Wave, r.WaveAt = WaveAll, r.StartedAt
		happened(r, d.now, "wave", "", "")
	}
	return r
}
