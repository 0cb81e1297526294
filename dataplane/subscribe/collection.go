package subscribe

import (
	"errors"
	"fmt"
	"maps"
	"time"

	"google.golang.org/protobuf/proto"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/ident"
	"github.com/prism-gateway/prism/shared/manifest"
)

// version is a state of a collection that was verified against its root. It does not change.
type version struct {
	manifest  *manifest.Manifest
	members   map[string]Object
	sentinel  *configv1.Sentinel
	encoded   []byte     // the sentinel as it came
	shared    ident.Hash // the sentinel's shared root
	committed time.Time
}

var nothing = &version{manifest: manifest.Empty, members: map[string]Object{}, sentinel: &configv1.Sentinel{}}

func (v *version) root() ident.Hash { return v.manifest.Root() }

// newVersion verifies that the members have the root and the number that the sentinel says.
func newVersion(m *manifest.Manifest, members map[string]Object, encoded []byte) (*version, error) {
	sentinel := &configv1.Sentinel{}
	if err := proto.Unmarshal(encoded, sentinel); err != nil {
		return nil, fmt.Errorf("sentinel: %w", err)
	}
	root, err := ident.HashFrom(sentinel.GetRoot())
	if err != nil {
		return nil, fmt.Errorf("root: %w", err)
	}
	shared, err := ident.HashFrom(sentinel.GetSharedRoot())
	if err != nil {
		return nil, fmt.Errorf("shared root: %w", err)
	}
	if m.Root() != root {
		return nil, fmt.Errorf("the %d members have root %q, not %q", m.Len(), m.Root(), root)
	}
	if uint32(m.Len()) != sentinel.GetCount() {
		return nil, fmt.Errorf("%d members, not %d", m.Len(), sentinel.GetCount())
	}
	v := &version{manifest: m, members: members, sentinel: sentinel, encoded: encoded, shared: shared}
	if sentinel.GetCommittedAt() != nil {
		v.committed = sentinel.GetCommittedAt().AsTime()
	}
	return v, nil
}

// collection is a set of resources that goes from root to root: what is here of it, and what is on its way.
type collection struct {
	name    string
	typeURL string
	have    *version // nil until it has been received once

	// The change under way, page by page, until its sentinel.
	set     map[string]Object
	removed map[string]struct{}
	staged  int  // bytes of names and objects that came with it
	damaged bool // a resource of it was refused, so that the sentinel cannot hold

	wantFull bool      // asked for everything: changes sent before that was heard are of no use
	resyncAt time.Time // when to ask for everything; zero when there is no need
	attempts int       // resyncs since the last verified state
	spoilt   bool      // the bytes of have are no longer what its root stands for
}

// maxStaged bounds a change, in bytes: one that does not end must not fill the memory.
const maxStaged = 256 << 20

func (c *collection) reset() { c.set, c.removed, c.staged, c.damaged = nil, nil, 0, false }

// damage has the sentinel of the change under way refused; what is left of the change is not kept.
func (c *collection) damage() {
	c.reset()
	c.damaged = true
}

// stage keeps a member until the sentinel; that of a damaged change is dropped. It is false for the member that makes the
// change too large.
func (c *collection) stage(name string, o Object) bool {
	if c.damaged {
		return true
	}
	if !c.grow(len(name) + len(o.Data)) {
		return false
	}
	if c.set == nil {
		c.set = map[string]Object{}
	}
	c.set[name] = o
	delete(c.removed, name)
	return true
}

// remove notes that a member is gone.
func (c *collection) remove(name string) {
	if c.damaged || !c.grow(len(name)) {
		return
	}
	if c.removed == nil {
		c.removed = map[string]struct{}{}
	}
	c.removed[name] = struct{}{}
	delete(c.set, name)
}

// grow counts a part of the change, which is damaged when it becomes too large.
func (c *collection) grow(bytes int) bool {
	if c.staged += bytes + 64; c.staged > maxStaged {
		c.damage()
		return false
	}
	return true
}

// complete verifies what was staged against the sentinel that ends it, which begins anew or from what is here. The
// staged pages are used up.
func (c *collection) complete(encoded []byte, full bool) (*version, error) {
	defer c.reset()
	if c.damaged {
		return nil, errors.New("a resource of the change was refused")
	}
	base := nothing
	if c.have != nil && !full {
		base = c.have
	}
	if len(c.set) == 0 && len(c.removed) == 0 {
		return newVersion(base.manifest, base.members, encoded)
	}
	changes := make(map[string]ident.Hash, len(c.set)+len(c.removed))
	members := maps.Clone(base.members)
	for name := range c.removed {
		changes[name] = ident.Hash{}
		delete(members, name)
	}
	for name, o := range c.set {
		changes[name] = o.Hash
		members[name] = o
	}
	m, err := base.manifest.With(changes)
	if err != nil {
		return nil, err
	}
	return newVersion(m, members, encoded)
}

// refusal is a member that Apply refused, so that it is not asked again about the same bytes in the same shared set.
type refusal struct {
	hash      ident.Hash // what was refused
	shared    ident.Hash // in which shared set
	rejection *configv1.Rejection
	good      *Object // the last that was taken; nil when there is none
}

// effective returns what Apply is to run of v: the last good bytes in place of refused ones. It forgets the refusals
// that v overtakes, and returns those that stand.
func effective(v *version, refused map[string]refusal) (*Partition, map[string]refusal) {
	p := &Partition{
		Root: v.root(), SharedRoot: v.shared, Snapshot: v.sentinel.GetSnapshotVersion(), CommittedAt: v.committed,
		Members: v.members,
	}
	standing := map[string]refusal{}
	for name, r := range refused {
		if o, ok := v.members[name]; ok && o.Hash == r.hash && v.shared == r.shared {
			standing[name] = r
		}
	}
	p.Members = substitute(v.members, standing)
	return p, standing
}

// substitute returns members with the last good object, or none, for each of the refused names.
func substitute(members map[string]Object, refused map[string]refusal) map[string]Object {
	if len(refused) == 0 {
		return members
	}
	out := maps.Clone(members)
	for name, r := range refused {
		if r.good != nil {
			out[name] = *r.good
		} else {
			delete(out, name)
		}
	}
	return out
}
