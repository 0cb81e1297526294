package release

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/prism-gateway/prism/controlplane/snapshot"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
)

// Action is what a step does.
type Action int

// The actions. The zero Action does nothing.
const (
	_ Action = iota
	// Wave brings the release to a later wave.
	Wave
	// Promote ends a release that has reached everybody: what it holds is stable. One that is to be confirmed is not
	// promoted before.
	Promote
	// TakeBack ends a release and sets what it holds back to what is stable, because Prism found a reason.
	TakeBack
	// Eject takes back some objects, because Prism found a reason, and what cannot be without them. The rest goes on.
	Eject
	// Pause holds the wave that is reached.
	Pause
	// Resume lets waves go on.
	Resume
	// Push gives what the release holds to everybody now and ends it.
	Push
	// Abort is TakeBack by a person.
	Abort
	// Confirm says that a release is good, so that it is not taken back at its deadline. It ends one that was to wait
	// for nothing else.
	Confirm
)

// Step is one move of a release.
type Step struct {
	// Release is the snapshot that names the release.
	Release uint64
	Do      Action
	// Wave is, for Wave, the wave to come to.
	Wave int
	// Objects are, for Eject, what is taken back.
	Objects []Ejected
	// Author is the person who asked for it, empty when Prism does it by itself.
	Author string
	// Reason is why, for people.
	Reason string
	// RequestID and TraceParent are those of the request, where there was one.
	RequestID, TraceParent string
	// Fenced makes the step only while this replica is the leader.
	Fenced bool
}

// Ejected is an object that is taken back by itself, by its whole name, and what is known of the reason.
type Ejected struct {
	Name      string
	Rejection *configv1.Rejection
	Proxy     string
	Build     string
	// Reason is why, for people; empty when the step says it.
	Reason string
}

// Result is what became of a step.
type Result struct {
	// State is the state after it.
	State *State
	// Release is the release after it, ended or not; nil when the step was none.
	Release *recordv1.Release
	// Snapshot is what the step recorded; nil when it took nothing back.
	Snapshot *recordv1.Snapshot
	// Changed is false when everything was so already.
	Changed bool
}

// What is kept of a release's past.
const (
	maxEvents    = 50
	maxTakenBack = 100
	maxReason    = 300     // bytes
	maxStored    = 120_000 // bytes of all releases under way, which are stored with a snapshot's record
)

// Apply makes a step. What it takes back is recorded by a snapshot of the next number. A step that was made already
// changes nothing, and then the state is s itself; one that makes no sense as the release stands is a fault.
func (s *State) Apply(step Step, now time.Time) (Transition, error) {
	n, ok := s.index(step.Release)
	if !ok {
		return Transition{}, fault.Newf(fault.NotFound, fault.Release, "no release %d is under way", step.Release).WithOutcome(fault.NotApplied)
	}
	r := s.active[n]
	none := Transition{State: s}
	running := r.State == configv1.ReleaseState_RELEASE_STATE_RUNNING
	switch step.Do {
	case Wave:
		switch {
		case step.Wave > Waves || step.Wave < 0:
			return none, fmt.Errorf("release: there is no wave %d", step.Wave)
		case step.Wave <= int(r.Wave):
			return none, nil
		case !running:
			return none, refused("release %d is paused at wave %d", r.Snapshot, r.Wave)
		}
		return s.changed(n, now, func(r *recordv1.Release) {
			r.Wave, r.WaveAt = uint32(step.Wave), timestamppb.New(now)
			happened(r, now, "wave", step.Author, step.Reason)
		}), nil
	case Pause:
		if !running {
			return none, nil
		}
		return s.changed(n, now, func(r *recordv1.Release) {
			r.State, r.Reason = configv1.ReleaseState_RELEASE_STATE_PAUSED, short(step.Reason)
			happened(r, now, "paused", step.Author, step.Reason)
		}), nil
	case Resume:
		if running {
			return none, nil
		}
		return s.changed(n, now, func(r *recordv1.Release) {
			r.State, r.Reason = configv1.ReleaseState_RELEASE_STATE_RUNNING, ""
			happened(r, now, "resumed", step.Author, step.Reason)
		}), nil
	case Confirm:
		if r.ConfirmBy == nil {
			return none, nil
		}
		if r.Policy.GetAtOnce() {
			return s.promote(n, step, "confirmed", now)
		}
		return s.changed(n, now, func(r *recordv1.Release) {
			r.ConfirmBy = nil
			happened(r, now, "confirmed", step.Author, step.Reason)
		}), nil
	case Promote:
		switch {
		case r.ConfirmBy != nil:
			return none, refused("release %d waits to be confirmed", r.Snapshot)
		case r.Wave < Waves:
			return none, refused("release %d is at wave %d of %d", r.Snapshot, r.Wave, Waves)
		case !running:
			return none, refused("release %d is paused at wave %d", r.Snapshot, r.Wave)
		}
		return s.promote(n, step, "done", now)
	case Push:
		return s.promote(n, step, "pushed", now)
	case TakeBack, Abort, Eject:
		return s.back(n, step, now)
	}
	return none, fmt.Errorf("release: there is no action %d", step.Do)
}

func refused(format string, args ...any) error {
	return fault.Newf(fault.FailedPrecondition, fault.Release, format, args...).WithOutcome(fault.NotApplied)
}

// changed is the state in which one release stands otherwise and the trees are as they were.
func (s *State) changed(n int, now time.Time, change func(*recordv1.Release)) Transition {
	next := *s
	next.active = slices.Clone(s.active)
	next.active[n] = proto.CloneOf(s.active[n])
	change(next.active[n])
	bound(next.active)
	return Transition{State: &next}
}

// promote makes what a release holds stable and ends it.
func (s *State) promote(n int, step Step, what string, now time.Time) (Transition, error) {
	r := s.active[n]
	stable, err := s.move(s.stable, s.head.Version(), r.Snapshot, func(pt *part) *snapshot.Collection { return pt.after }, after)
	if err != nil {
		return Transition{}, err
	}
	if h := s.shared.holder(r.Snapshot); h != nil {
		for _, d := range h.pending {
			backend, ok := strings.CutPrefix(d.Name, snapshot.BackendPrefix)
			if ok && d.After.Hash.IsZero() && stable.Usage(backend).Namespaces > 0 {
				return Transition{}, refused("release %d deletes backend %q, which namespaces in other releases still use: end those first", r.Snapshot, backend)
			}
		}
	}
	done := proto.CloneOf(r)
	if what != "done" {
		done.Wave, done.WaveAt = Waves, timestamppb.New(now)
	}
	done.ConfirmBy = nil
	end(done, now, configv1.ReleaseState_RELEASE_STATE_DONE, what, step.Author, step.Reason)
	if step.Do == Push {
		done.Reason = short(strings.TrimSuffix("pushed to everybody: "+step.Reason, ": "))
	}
	return s.without(n, s.head, stable, nil, done, now)
}

// move returns a tree in which all that a release holds is as it is in another: the collection of each part, if nothing
// else is pending there, or else its objects.
func (s *State) move(t *snapshot.Tree, version, release uint64, to func(*part) *snapshot.Collection, as func(Pending) snapshot.Object) (*snapshot.Tree, error) {
	moved := func(pt *part, from *snapshot.Collection) (*snapshot.Collection, error) {
		h := pt.holder(release)
		switch {
		case h == nil:
			return nil, nil
		case len(pt.holders) == 1:
			return to(pt), nil
		}
		objects := make([]snapshot.Object, len(h.pending))
		for i, d := range h.pending {
			objects[i] = as(d)
		}
		return from.With(objects)
	}
	replaced := map[ident.Partition]*snapshot.Collection{}
	for p, pt := range s.parts {
		c, err := moved(pt, t.Collection(ident.Partition(p)))
		if err != nil {
			return nil, err
		}
		if c != nil {
			replaced[ident.Partition(p)] = c
		}
	}
	shared, err := moved(s.shared, t.Shared())
	if err != nil {
		return nil, err
	}
	return t.Replace(version, replaced, shared), nil
}

// without is the state in which a release has ended. The trees are such that it holds nothing.
func (s *State) without(n int, head, stable *snapshot.Tree, changes []*recordv1.Change, ended *recordv1.Release, now time.Time) (Transition, error) {
	active := slices.Delete(slices.Clone(s.active), n, n+1)
	claims := slices.Delete(slices.Clone(s.claims), n, n+1)
	state, more, err := s.follow(head, stable, active, claims, func(r *recordv1.Release) {
		end(r, now, configv1.ReleaseState_RELEASE_STATE_SUPERSEDED, "superseded", "",
			fmt.Sprintf("the last of it went back with release %d", ended.Snapshot))
	})
	return Transition{State: state, Changes: changes, Ended: append(more, ended)}, err
}

// back takes objects of a release back, all of them unless the step names some.
func (s *State) back(n int, step Step, now time.Time) (Transition, error) {
	r := s.active[n]
	version := s.head.Version() + 1
	var going []Pending
	if step.Do == Eject {
		for _, o := range step.Objects {
			if h, d, ok := s.pendingOf(o.Name); ok && h == r.Snapshot && !slices.ContainsFunc(going, func(g Pending) bool { return g.Name == d.Name }) {
				going = append(going, d)
			}
		}
		if len(going) == 0 {
			return Transition{State: s}, nil
		}
	} else {
		going = s.Pending(r.Snapshot)
	}
	going, head, stable, changes, err := s.takeBack(going, version, step, r)
	if err != nil {
		return Transition{}, err
	}
	next := proto.CloneOf(r)
	if step.Do != Abort && step.Author == "" {
		known := map[string]Ejected{}
		for _, o := range step.Objects {
			known[o.Name] = o
		}
		for _, d := range going[:min(len(going), max(0, maxTakenBack-len(next.TakenBack)))] {
			if of, _, _ := s.pendingOf(d.Name); of != r.Snapshot {
				continue
			}
			o := known[d.Name]
			next.TakenBack = append(next.TakenBack, &recordv1.TakenBack{Name: d.Name, Why: &configv1.TakenBack{
				Snapshot: r.Snapshot, BySnapshot: version, Reason: short(cmp.Or(o.Reason, step.Reason)),
				Rejection: o.Rejection, Proxy: o.Proxy, Build: o.Build, At: timestamppb.New(now),
			}})
		}
	}
	switch {
	case step.Do == Abort:
		end(next, now, configv1.ReleaseState_RELEASE_STATE_ABORTED, "aborted", step.Author, step.Reason)
		return s.without(n, head, stable, changes, next, now)
	case step.Do == TakeBack:
		end(next, now, configv1.ReleaseState_RELEASE_STATE_ROLLED_BACK, "taken back", step.Author, step.Reason)
		return s.without(n, head, stable, changes, next, now)
	}
	happened(next, now, "taken back", step.Author, step.Reason)
	active := slices.Clone(s.active)
	active[n] = next
	bound(active)
	state, ended, err := s.follow(head, stable, active, s.claims, func(gone *recordv1.Release) {
		if gone.Snapshot == r.Snapshot {
			end(gone, now, configv1.ReleaseState_RELEASE_STATE_ROLLED_BACK, "", step.Author, step.Reason)
			return
		}
		end(gone, now, configv1.ReleaseState_RELEASE_STATE_SUPERSEDED, "superseded", "",
			fmt.Sprintf("the last of it went back with release %d", r.Snapshot))
	})
	return Transition{State: state, Changes: changes, Ended: ended}, err
}

// takeBack returns the trees in which objects are as they were stable, with what they need, and what that changes. Of a
// rollback of everything that goes back wholly the history tells one change.
func (s *State) takeBack(going []Pending, version uint64, step Step, r *recordv1.Release) (went []Pending, head, stable *snapshot.Tree, changes []*recordv1.Change, err error) {
	own := len(going)
	if going, err = s.dependants(going, r.Snapshot); err != nil {
		return nil, nil, nil, nil, err
	}
	slices.SortFunc(going, func(a, b Pending) int { return strings.Compare(a.Name, b.Name) })
	if step.Do != Eject && len(going) == own {
		head, err = s.move(s.head, version, r.Snapshot, func(pt *part) *snapshot.Collection { return pt.before }, before)
	} else {
		objects := make([]snapshot.Object, len(going))
		for i, d := range going {
			objects[i] = before(d)
		}
		head, err = s.head.Put(version, objects)
	}
	if err != nil {
		return nil, nil, nil, nil, err
	}
	// What is made and goes, but something else is bound to, stays instead: every owner may have it.
	var steady []snapshot.Object
	going = slices.DeleteFunc(going, func(d Pending) bool {
		backend, ok := strings.CutPrefix(d.Name, snapshot.BackendPrefix)
		stays := ok && d.Before.Hash.IsZero() && head.Usage(backend).Namespaces > 0
		if stays {
			steady = append(steady, after(d))
		}
		return stays
	})
	stable = s.stable
	if len(steady) > 0 {
		if head, err = head.Put(version, steady); err != nil {
			return nil, nil, nil, nil, err
		}
		if stable, err = stable.Put(version, steady); err != nil {
			return nil, nil, nil, nil, err
		}
	}
	author := step.Author
	if author == "" {
		author = "prism"
	}
	back := func(name string, from, to ident.Hash) {
		changes = append(changes, &recordv1.Change{
			Kind: recordv1.ChangeKind_CHANGE_KIND_ROLLBACK, Name: name, Before: from.Bytes(), After: to.Bytes(),
			Author: author, Message: short(step.Reason), RequestId: step.RequestID, TraceParent: step.TraceParent, ToVersion: r.Snapshot - 1,
		})
	}
	if r.Whole && head.Root() == stable.Root() {
		back("", s.head.Root(), head.Root())
		return going, head, stable, changes, nil
	}
	for _, d := range going {
		back(d.Name, d.After.Hash, d.Before.Hash)
	}
	return going, head, stable, changes, nil
}

// dependants adds to what goes back what cannot stay without it, or it without them: the namespaces of the release that
// are bound to a backend that goes, and the backends that a namespace was bound to and that are deleted by now.
func (s *State) dependants(going []Pending, release uint64) ([]Pending, error) {
	names, made := map[string]bool{}, map[string]bool{}
	for _, d := range going {
		names[d.Name] = true
		if backend, ok := strings.CutPrefix(d.Name, snapshot.BackendPrefix); ok && d.Before.Hash.IsZero() {
			made[backend] = true
		}
	}
	if len(made) > 0 {
		for _, d := range s.Pending(release) {
			if names[d.Name] {
				continue
			}
			bound, err := after(d).Bound()
			if err != nil {
				return nil, err
			}
			if slices.ContainsFunc(bound, func(b string) bool { return made[b] }) {
				names[d.Name] = true
				going = append(going, d)
			}
		}
	}
	if s.shared == nil || !s.shared.keeps { // nothing is deleted that could be missed
		return going, nil
	}
	for _, d := range going[:len(going):len(going)] {
		bound, err := before(d).Bound()
		if err != nil {
			return nil, err
		}
		for _, b := range bound {
			_, gone, ok := s.pendingOf(snapshot.BackendPrefix + b)
			if ok && gone.After.Hash.IsZero() && !names[gone.Name] {
				names[gone.Name] = true
				going = append(going, gone)
			}
		}
	}
	return going, nil
}

// end marks a release as ended.
func end(r *recordv1.Release, now time.Time, state configv1.ReleaseState, what, author, reason string) {
	r.State, r.EndedAt, r.Reason = state, timestamppb.New(now), short(reason)
	if what != "" {
		happened(r, now, what, author, reason)
	}
}

// happened notes what happened to a release. The first event is kept, and the newest.
func happened(r *recordv1.Release, now time.Time, what, author, reason string) {
	r.Events = append(r.Events, &recordv1.ReleaseEvent{
		At: timestamppb.New(now), What: what, Wave: r.Wave, Author: author, Reason: short(reason),
	})
	if len(r.Events) > maxEvents {
		r.Events = slices.Delete(r.Events, 1, 2)
	}
}

// bound keeps the releases under way small enough to be stored together: of the largest, details go.
func bound(active []*recordv1.Release) {
	total := 0
	sizes := make([]int, len(active))
	for n, r := range active {
		sizes[n] = proto.Size(r)
		total += sizes[n]
	}
	for total > maxStored {
		n := slices.Index(sizes, slices.Max(sizes))
		r := proto.CloneOf(active[n])
		r.TakenBack = r.TakenBack[:len(r.TakenBack)/2]
		if half := len(r.Events) / 2; half > 1 {
			r.Events = slices.Delete(r.Events, 1, half)
		}
		size := proto.Size(r)
		if size == sizes[n] {
			return
		}
		active[n], total, sizes[n] = r, total-sizes[n]+size, size
	}
}

// short is a reason that is not longer than is kept.
func short(reason string) string {
	reason = strings.ToValidUTF8(reason, "?")
	if len(reason) <= maxReason {
		return reason
	}
	cut := maxReason
	for !utf8.RuneStart(reason[cut]) {
		cut--
	}
	return reason[:cut] + "…"
}
