package release

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/prism-gateway/prism/controlplane/snapshot"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/ident"
)

// MaxActive is how many releases may be under way at once.
const MaxActive = 256

// claim is what a release holds, as far as no newer one claims it: the names that its snapshot changed in waves, or
// everything. It does not change.
type claim struct {
	release uint64
	whole   bool
	names   map[string]struct{}
}

func (c *claim) on(name string) bool {
	if c.whole {
		return true
	}
	_, ok := c.names[name]
	return ok
}

// holders is a set of a part's holders.
type holders [MaxActive / 64]uint64

// part is a collection in which something is pending. But for what it remembers it does not change.
type part struct {
	before, after *snapshot.Collection // stable, newest
	holders       []holder             // by release
	whole         holders              // all of them
	keeps         bool                 // something that stays

	mu    sync.Mutex // guards all below
	mixed map[holders]*snapshot.Collection
}

// holder is what is pending in a part in one release, by name.
type holder struct {
	release uint64
	pending []Pending
}

func (h *holder) find(name string) (int, bool) {
	return slices.BinarySearchFunc(h.pending, name, func(d Pending, n string) int { return strings.Compare(d.Name, n) })
}

func (pt *part) holder(release uint64) *holder {
	if pt == nil {
		return nil
	}
	i, ok := slices.BinarySearchFunc(pt.holders, release, func(h holder, v uint64) int { return cmp.Compare(h.release, v) })
	if !ok {
		return nil
	}
	return &pt.holders[i]
}

// see returns the collection as a cell sees it that some of the holders have reached.
func (pt *part) see(reached holders) *snapshot.Collection {
	switch {
	case reached == (holders{}):
		return pt.before
	case reached == pt.whole && !pt.keeps:
		return pt.after
	}
	pt.mu.Lock()
	defer pt.mu.Unlock()
	c, ok := pt.mixed[reached]
	if !ok {
		c = pt.mix(reached)
		if pt.mixed == nil {
			pt.mixed = map[holders]*snapshot.Collection{}
		}
		pt.mixed[reached] = c
	}
	return c
}

// stays reports whether every cell keeps an object until its release is done: what is shared and deleted may still be
// needed where another release has not been.
func stays(d Pending) bool {
	return d.After.Hash.IsZero() && !strings.HasPrefix(d.Name, snapshot.NamespacePrefix)
}

func (pt *part) mix(reached holders) *snapshot.Collection {
	var changes []snapshot.Object
	for n, h := range pt.holders {
		if reached[n/64]&(1<<(n%64)) == 0 {
			continue
		}
		for _, d := range h.pending {
			if !stays(d) {
				changes = append(changes, after(d))
			}
		}
	}
	c, err := pt.before.With(changes)
	if err != nil {
		panic(fmt.Sprintf("release: two good collections do not mix: %v", err)) // both were read and verified, and so were their parts
	}
	return c
}

// after is an object as it is newest; without a hash when it is gone.
func after(d Pending) snapshot.Object {
	return snapshot.Object{Name: d.Name, Hash: d.After.Hash, Data: d.After.Data}
}

// before is an object as it is stable; without a hash when it is not there.
func before(d Pending) snapshot.Object {
	return snapshot.Object{Name: d.Name, Hash: d.Before.Hash, Data: d.Before.Data}
}

// derive makes the state of two trees and the releases that are under way between them. What is as it was in a state
// before is taken from there, so that its cost is that of what changed.
func derive(prev *State, head, stable *snapshot.Tree, active []*recordv1.Release, claims []*claim) (*State, error) {
	if head.Root() == stable.Root() {
		return Settled(head), nil
	}
	s := &State{head: head, stable: stable.Numbered(head.Version()), active: active, claims: claims, parts: make([]*part, head.Partitions())}
	claimed, shared, all := s.claimed(prev)
	known := func(pt *part, claimed bool) *part {
		if claimed || all {
			return nil
		}
		return pt
	}
	var err error
	for p := range ident.Partition(head.Partitions()) {
		if s.parts[p], err = s.partOf(known(prev.part(p), claimed[p]), stable.Collection(p), head.Collection(p)); err != nil {
			return nil, err
		}
	}
	if s.shared, err = s.partOf(known(prev.shared, shared), stable.Shared(), head.Shared()); err != nil {
		return nil, err
	}
	s.watchConcerned()
	return s, nil
}

// partOf makes a part, or takes the one before when that is the same.
func (s *State) partOf(prev *part, before, after *snapshot.Collection) (*part, error) {
	if before == after || before.Root() == after.Root() {
		return nil, nil
	}
	if prev != nil && prev.before.Root() == before.Root() && prev.after.Root() == after.Root() && s.under(prev) {
		return prev, nil
	}
	pt := &part{before: before, after: after}
	for _, d := range snapshot.DiffCollections(before, after) {
		n, ok := s.claimOn(d.Name)
		if !ok {
			return nil, fmt.Errorf("release: %s is pending in no release", d.Name)
		}
		release := s.claims[n].release
		i, ok := slices.BinarySearchFunc(pt.holders, release, func(h holder, v uint64) int { return cmp.Compare(h.release, v) })
		if !ok {
			pt.holders = slices.Insert(pt.holders, i, holder{release: release})
		}
		pt.holders[i].pending = append(pt.holders[i].pending, d)
	}
	for n, h := range pt.holders {
		slices.SortFunc(h.pending, func(a, b Pending) int { return strings.Compare(a.Name, b.Name) })
		pt.whole[n/64] |= 1 << (n % 64)
		pt.keeps = pt.keeps || slices.ContainsFunc(h.pending, stays)
	}
	return pt, nil
}

// under reports whether all that hold something of a part are under way.
func (s *State) under(pt *part) bool {
	return !slices.ContainsFunc(pt.holders, func(h holder) bool { _, ok := s.index(h.release); return !ok })
}

// claimed returns the partitions in which a release claims something that was not under way in a state before, and
// whether one claims something shared, or everything.
func (s *State) claimed(prev *State) (partitions map[ident.Partition]bool, shared, all bool) {
	partitions = map[ident.Partition]bool{}
	for _, c := range slices.Backward(s.claims) { // new ones come last
		if _, known := prev.index(c.release); known {
			break
		}
		all = all || c.whole
		for name := range c.names {
			if namespace, ok := strings.CutPrefix(name, snapshot.NamespacePrefix); ok {
				partitions[ident.PartitionOf(namespace, s.head.Partitions())] = true
			} else {
				shared = true
			}
		}
	}
	return partitions, shared, all
}

// claimOn returns the newest claim on a name.
func (s *State) claimOn(name string) (int, bool) {
	for n, c := range slices.Backward(s.claims) {
		if c.on(name) {
			return n, true
		}
	}
	return 0, false
}

// Load makes the state of two trees and the stored releases between them. changes returns what the snapshot of a
// release changed; it is asked only of releases that prev, the state known before, does not have. The releases are the
// state's from now on.
func Load(prev *State, head, stable *snapshot.Tree, releases []*recordv1.Release, changes func(snapshot uint64) ([]*recordv1.Change, error)) (*State, error) {
	if len(releases) > MaxActive {
		return nil, fmt.Errorf("release: %d are under way, and at most %d can be", len(releases), MaxActive)
	}
	if pending := head.Root() != stable.Root(); pending != (len(releases) > 0) {
		return nil, fmt.Errorf("release: %d are under way, and stable is %s of %s", len(releases), stable.Root(), head.Root())
	}
	claims := make([]*claim, len(releases))
	for n, r := range releases {
		if n > 0 && releases[n-1].Snapshot >= r.Snapshot || r.Snapshot > head.Version() {
			return nil, fmt.Errorf("release: %d is out of order", r.Snapshot)
		}
		if i, ok := prev.index(r.Snapshot); ok {
			claims[n] = prev.claims[i]
			continue
		}
		claims[n] = &claim{release: r.Snapshot, whole: r.Whole}
		if r.Whole {
			continue
		}
		found, err := changes(r.Snapshot)
		if err != nil {
			return nil, err
		}
		claims[n].names = map[string]struct{}{}
		for _, c := range found {
			if c.InRelease {
				claims[n].names[c.Name] = struct{}{}
			}
		}
	}
	return derive(prev, head, stable, releases, claims)
}

// follow makes the state that follows another. Of the releases under way those that hold nothing any more are ended by
// end, which may change what it is given and returns it; the others let go what they held and do not hold now.
func (s *State) follow(head, stable *snapshot.Tree, active []*recordv1.Release, claims []*claim, end func(*recordv1.Release)) (*State, []*recordv1.Release, error) {
	next, err := derive(s, head, stable, active, claims)
	if err != nil {
		return nil, nil, err
	}
	had, has := s.held(), next.held()
	var ended []*recordv1.Release
	next.active, next.claims = nil, nil
	for n, r := range active {
		if lost := had[r.Snapshot] - has[r.Snapshot]; lost > 0 {
			r = proto.CloneOf(r)
			r.LetGo += uint32(lost)
		}
		if has[r.Snapshot] == 0 {
			r = proto.CloneOf(r)
			end(r)
			ended = append(ended, r)
			continue
		}
		next.active, next.claims = append(next.active, r), append(next.claims, claims[n])
	}
	next.watchConcerned()
	return next, ended, nil
}
