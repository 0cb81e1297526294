package push

import (
	"fmt"
	"strings"
	"sync"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/prism-gateway/prism/controlplane/snapshot"
	"github.com/prism-gateway/prism/shared/ident"
	"github.com/prism-gateway/prism/shared/manifest"
)

// difference is what a stream must be sent to come from one state of a collection to another. It does not change and is
// shared by streams; the resources' bytes are the store's.
type difference struct {
	set     []*discoveryv3.Resource // sorted by name
	sizes   []int                   // of set, in bytes on the wire
	hashes  []ident.Hash            // of set
	removed []string                // sorted
}

// unchanged is the difference between two states that are the same.
var unchanged = &difference{}

// differ computes a difference. The cell is said so that clients can tell the resources of one collection from another's.
func differ(from *manifest.Manifest, to *snapshot.Collection, c cell) (*difference, error) {
	entries, removed := manifest.Diff(from, to.Manifest())
	d := &difference{
		removed: removed,
		set:     make([]*discoveryv3.Resource, 0, len(entries)),
		sizes:   make([]int, 0, len(entries)),
		hashes:  make([]ident.Hash, 0, len(entries)),
	}
	name := c.String()
	aliases := []string{name}
	for _, e := range entries {
		object, ok := to.Object(e.Name)
		if !ok {
			return nil, fmt.Errorf("%s: the manifest lists %s, and there is no such object", name, e.Name)
		}
		r := &discoveryv3.Resource{
			Name:     e.Name,
			Version:  e.Hash.String(),
			Aliases:  aliases,
			Resource: &anypb.Any{TypeUrl: memberType(e.Name, c), Value: object.Data},
		}
		d.set = append(d.set, r)
		d.sizes = append(d.sizes, sizeOf(r))
		d.hashes = append(d.hashes, e.Hash)
	}
	return d, nil
}

// memberType is the type of a member's bytes. The shared collection holds messages of several types.
func memberType(name string, c cell) string {
	if c != sharedCell {
		return NamespaceType
	}
	if strings.HasPrefix(name, snapshot.ProfilePrefix) {
		return "type.googleapis.com/prism.config.v1.Profile"
	}
	return "type.googleapis.com/prism.config.v1.Backend"
}

// memo computes each difference once for all streams that need it at about the same time.
type memo struct {
	mu        sync.Mutex // guards the rest; held for a look into a map
	known     map[step]*computing
	order     []step // the oldest first
	resources int    // held by all in known
}

// step is the way from one state of a collection to another. Empty collections have one root, so the cell is part of it.
type step struct {
	cell     cell
	from, to ident.Hash
}

type computing struct {
	once sync.Once
	diff *difference
	err  error
	size int // what it counts for; guarded by memo.mu
}

// What memo holds at most: it is for streams that come together, not a second copy of everything.
const (
	memoSteps     = 1024
	memoResources = 8192
)

func newMemo() *memo { return &memo{known: map[step]*computing{}} }

func (m *memo) get(from *manifest.Manifest, to *snapshot.Collection, c cell) (*difference, error) {
	key := step{cell: c, from: from.Root(), to: to.Root()}
	m.mu.Lock()
	one, ok := m.known[key]
	if !ok {
		one = &computing{}
		m.known[key] = one
		m.order = append(m.order, key)
	}
	m.mu.Unlock()
	one.once.Do(func() {
		one.diff, one.err = differ(from, to, c)
		m.computed(key, one)
	})
	return one.diff, one.err
}

// computed makes room for what has just been computed.
func (m *memo) computed(key step, c *computing) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c.diff != nil && m.known[key] == c {
		c.size = len(c.diff.set)
		m.resources += c.size
	}
	for len(m.order) > 1 && (len(m.order) > memoSteps || m.resources > memoResources) {
		m.resources -= m.known[m.order[0]].size
		delete(m.known, m.order[0])
		m.order = m.order[1:]
	}
}
