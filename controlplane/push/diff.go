package push

import (
	"fmt"
	"strings"
	"sync"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"

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

func (d *difference) empty() bool { return len(d.set) == 0 && len(d.removed) == 0 }

// differ computes a difference. The collection is named so that clients can tell the resources of one from another's.
func differ(from *manifest.Manifest, to *snapshot.Collection, name, typeURL string) (*difference, error) {
	entries, removed := manifest.Diff(from, to.Manifest())
	d := &difference{
		removed: removed,
		set:     make([]*discoveryv3.Resource, 0, len(entries)),
		sizes:   make([]int, 0, len(entries)),
		hashes:  make([]ident.Hash, 0, len(entries)),
	}
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
			Resource: &anypb.Any{TypeUrl: memberType(e.Name, typeURL), Value: object.Data},
		}
		d.set = append(d.set, r)
		d.sizes = append(d.sizes, proto.Size(r)+8) // and the field's tag and length
		d.hashes = append(d.hashes, e.Hash)
	}
	return d, nil
}

// memberType is the type of a member's bytes. The shared collection holds messages of several types.
func memberType(name, typeURL string) string {
	if typeURL != SharedType {
		return typeURL
	}
	if strings.HasPrefix(name, snapshot.ProfilePrefix) {
		return "type.googleapis.com/prism.config.v1.Profile"
	}
	return "type.googleapis.com/prism.config.v1.Backend"
}

// sentinelResource says what the collection now is.
func sentinelResource(name string, s *configv1.Sentinel, root ident.Hash) (*discoveryv3.Resource, error) {
	body, err := proto.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("sentinel of %s: %w", name, err)
	}
	return &discoveryv3.Resource{
		Name:     name,
		Version:  root.String(),
		Aliases:  []string{name},
		Resource: &anypb.Any{TypeUrl: SentinelType, Value: body},
	}, nil
}

func assignmentResource(a *configv1.Assignment) (*discoveryv3.Resource, error) {
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(a)
	if err != nil {
		return nil, err
	}
	return &discoveryv3.Resource{
		Name:     fleetName,
		Version:  ident.HashOf(body).String(),
		Resource: &anypb.Any{TypeUrl: AssignmentType, Value: body},
	}, nil
}

// memo computes each difference once for all streams that need it at about the same time.
type memo struct {
	mu        sync.Mutex // guards the rest
	known     map[step]*computing
	order     []step // the oldest first
	resources int    // held by all in known
}

// step is the way from one state of a collection to another. Empty collections have one root, so the name is part of it.
type step struct {
	name     string
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

func (m *memo) get(from *manifest.Manifest, to *snapshot.Collection, name, typeURL string) (*difference, error) {
	key := step{name: name, from: from.Root(), to: to.Root()}
	m.mu.Lock()
	c, ok := m.known[key]
	if !ok {
		c = &computing{}
		m.known[key] = c
		m.order = append(m.order, key)
	}
	m.mu.Unlock()
	c.once.Do(func() {
		c.diff, c.err = differ(from, to, name, typeURL)
		m.computed(key, c)
	})
	return c.diff, c.err
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
