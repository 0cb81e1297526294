package push

import (
	"fmt"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"

	"github.com/prism-gateway/prism/controlplane/snapshot"
	"github.com/prism-gateway/prism/shared/ident"
)

// ending is the end of a change of a collection: the state that it is then in, and the sentinel that says so. All streams
// share it.
type ending struct {
	*mark
	sentinel *discoveryv3.Resource
	size     int // of the sentinel, in bytes on the wire
}

type endKey struct {
	cell         cell
	full         bool
	snapshot     uint64
	root, shared ident.Hash
}

// ending returns the one that brings a cell to its target.
func (s *state) ending(c cell, t target, full bool) (ending, error) {
	key := endKey{cell: c, full: full, snapshot: t.snapshot, root: t.collection.Root(), shared: t.sharedRoot()}
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, ok := s.ends[key]; ok {
		return e, nil
	}
	sentinel, err := s.sentinel(key, t.collection.Len())
	if err != nil {
		return ending{}, err
	}
	e := ending{
		mark:     &mark{cell: c, mixed: s.mixed(c, t.collection), manifest: t.collection.Manifest(), shared: key.shared},
		sentinel: sentinel, size: sizeOf(sentinel),
	}
	if s.ends == nil {
		s.ends = map[endKey]ending{}
	}
	s.ends[key] = e
	return e, nil
}

// mixed reports whether a collection is neither head's nor stable's.
func (s *state) mixed(c cell, collection *snapshot.Collection) bool {
	head, stable := s.released.Head(), s.released.Stable()
	if c == sharedCell {
		return moved(collection, head.Shared()) && moved(collection, stable.Shared())
	}
	p := ident.Partition(c)
	return moved(collection, head.Collection(p)) && moved(collection, stable.Collection(p))
}

// sentinel says what the collection is after the change.
func (s *state) sentinel(k endKey, members int) (*discoveryv3.Resource, error) {
	name := k.cell.String()
	m := &configv1.Sentinel{
		Root:            k.root.Bytes(),
		SharedRoot:      k.shared.Bytes(),
		SnapshotVersion: k.snapshot,
		StoreRevision:   s.revision,
		Count:           uint32(members),
		Full:            k.full,
	}
	s.announce(m, k.cell)
	body, err := proto.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("sentinel of %s: %w", name, err)
	}
	return &discoveryv3.Resource{
		Name:     name,
		Version:  k.root.String(),
		Aliases:  []string{name},
		Resource: &anypb.Any{TypeUrl: SentinelType, Value: body},
	}, nil
}

// sizeOf is what a resource takes in a response, in bytes.
func sizeOf(r *discoveryv3.Resource) int { return proto.Size(r) + 8 } // with the field's tag and length
