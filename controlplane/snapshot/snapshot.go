// Package snapshot holds the whole configuration as one immutable Merkle tree: objects under manifests, manifests under
// groups, groups and the shared collection under one root.
//
// A change copies only what lies on its path, so a Tree is cheap to keep and two Trees share all they have in common.
// Trees may be used from any number of goroutines. Nothing that they return may be changed.
package snapshot

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/ident"
	"github.com/prism-gateway/prism/shared/manifest"
)

// What the names of objects begin with.
const (
	NamespacePrefix = "ns/"
	BackendPrefix   = "backend/"
	ProfilePrefix   = "profile/"
)

// groupCount is how many groups there are at most. The layout of what is stored depends on it.
const groupCount = 32

// Object is one object of the configuration: its name (ns/x, backend/x, profile/x), the SHA-256 of its bytes, and the
// bytes, a marshalled message of config/v1.
type Object struct {
	Name string
	Hash ident.Hash
	Data []byte
}

// ShortName is the name without what it begins with.
func (o Object) ShortName() string { return o.Name[strings.IndexByte(o.Name, '/')+1:] }

// Tree is one version of the whole configuration.
type Tree struct {
	version    uint64
	partitions uint32
	groups     []*group
	shared     *Collection
	usage      map[string]Usage // by backend; copied when it changes
	teams      *teams
	namespaces int
	root       ident.Hash
}

// group is an inner node: the collections of a run of partitions.
type group struct {
	collections []*Collection
	hash        ident.Hash // zero when all collections are empty
}

// New returns the tree of version 0, which is empty.
func New(partitions uint32) *Tree {
	size := groupSize(partitions)
	t := &Tree{partitions: partitions, shared: &Collection{manifest: manifest.Empty}}
	for first := 0; first < int(partitions); first += size {
		g := &group{collections: make([]*Collection, min(size, int(partitions)-first))}
		for i := range g.collections {
			g.collections[i] = t.shared
		}
		t.groups = append(t.groups, g)
	}
	t.root = t.hash()
	return t
}

func groupSize(partitions uint32) int { return int((partitions + groupCount - 1) / groupCount) }

// Version is the number of the snapshot, 0 when nothing was recorded yet.
func (t *Tree) Version() uint64 { return t.version }

// Root is the SHA-256 over everything. Two trees with one root are the same configuration.
func (t *Tree) Root() ident.Hash { return t.root }

// Partitions is how many partitions there are, fixed for the life of an installation.
func (t *Tree) Partitions() uint32 { return t.partitions }

// Len is the number of namespaces.
func (t *Tree) Len() int { return t.namespaces }

// Namespace returns a namespace's NamespaceConfig.
func (t *Tree) Namespace(name string) (Object, bool) { return t.Object(NamespacePrefix + name) }

// Backend returns a Backend.
func (t *Tree) Backend(name string) (Object, bool) { return t.shared.Object(BackendPrefix + name) }

// Profile returns a Profile.
func (t *Tree) Profile(name string) (Object, bool) { return t.shared.Object(ProfilePrefix + name) }

// Object returns an object by its whole name.
func (t *Tree) Object(name string) (Object, bool) { return t.holder(name).Object(name) }

// Backends returns all backends by name.
func (t *Tree) Backends() []Object { return t.shared.withPrefix(BackendPrefix) }

// Profiles returns all profiles by name.
func (t *Tree) Profiles() []Object { return t.shared.withPrefix(ProfilePrefix) }

// Shared returns the collection of backends and profiles.
func (t *Tree) Shared() *Collection { return t.shared }

// Collection returns a partition. It panics when there is no such partition, as an index out of range does.
func (t *Tree) Collection(p ident.Partition) *Collection {
	size := groupSize(t.partitions)
	return t.groups[int(p)/size].collections[int(p)%size]
}

// Usage returns what the namespaces hold on a backend.
func (t *Tree) Usage(backend string) Usage { return t.usage[backend] }

func (t *Tree) holder(name string) *Collection {
	if namespace, ok := strings.CutPrefix(name, NamespacePrefix); ok {
		return t.Collection(ident.PartitionOf(namespace, t.partitions))
	}
	return t.shared
}

// Replace returns the tree in which some partitions, and the shared collection unless it is nil, are others.
func (t *Tree) Replace(version uint64, partitions map[ident.Partition]*Collection, shared *Collection) *Tree {
	next := *t
	next.version = version
	if shared != nil {
		next.shared = shared
	}
	size := groupSize(t.partitions)
	touched := map[int]bool{}
	var moved deltas
	movedTeams := map[string]TeamUsage{}
	for p, c := range partitions {
		old := t.Collection(p)
		if old == c {
			continue
		}
		if len(touched) == 0 {
			next.groups = slices.Clone(t.groups)
		}
		n := int(p) / size
		if !touched[n] {
			touched[n] = true
			next.groups[n] = &group{collections: slices.Clone(t.groups[n].collections)}
		}
		next.groups[n].collections[int(p)%size] = c
		next.namespaces += c.manifest.Len() - old.manifest.Len()
		moved.move(old.usage, c.usage)
		moveTeams(movedTeams, old, c)
	}
	next.teams = t.teams.with(movedTeams)
	for n := range touched {
		g := next.groups[n]
		g.hash = hashOfGroup(g.encode())
	}
	if len(moved) > 0 {
		next.usage = maps.Clone(t.usage)
		if next.usage == nil {
			next.usage = map[string]Usage{}
		}
		moved.applyTo(next.usage)
	}
	next.root = next.hash()
	return &next
}

// Numbered returns the same configuration under another number.
func (t *Tree) Numbered(version uint64) *Tree {
	if t.version == version {
		return t
	}
	next := *t
	next.version = version
	return &next
}

// hash is SHA-256 over the number of partitions (32 bits, big-endian), the groups' hashes and the shared root.
func (t *Tree) hash() ident.Hash {
	h := sha256.New()
	var count [4]byte
	binary.BigEndian.PutUint32(count[:], t.partitions)
	h.Write(count[:])
	for _, g := range t.groups {
		h.Write(g.hash[:])
	}
	root := t.shared.Root()
	h.Write(root[:])
	return ident.Hash(h.Sum(nil))
}

// Record returns the tree's record. The caller adds the time and the id of the commit.
func (t *Tree) Record(parent uint64, changes []*recordv1.Change) *recordv1.Snapshot {
	rec := &recordv1.Snapshot{
		Version:    t.version,
		Root:       t.root.Bytes(),
		Shared:     t.shared.Root().Bytes(),
		Parent:     parent,
		Changes:    changes,
		Namespaces: uint64(t.namespaces),
	}
	for _, g := range t.groups {
		rec.Groups = append(rec.Groups, g.hash.Bytes())
	}
	return rec
}

// GroupHash returns the hash of a group by its number, zero when it is empty.
func (t *Tree) GroupHash(n int) ident.Hash { return t.groups[n].hash }

// Groups is the number of groups.
func (t *Tree) Groups() int { return len(t.groups) }

// GroupPartitions returns the first partition of a group, and how many it has.
func (t *Tree) GroupPartitions(n int) (first ident.Partition, count int) {
	return ident.Partition(n * groupSize(t.partitions)), len(t.groups[n].collections)
}

// encode returns the group's stored bytes, nil when it is empty.
func (g *group) encode() []byte {
	msg := &recordv1.Group{Manifests: make([][]byte, len(g.collections))}
	empty := true
	for i, c := range g.collections {
		msg.Manifests[i] = c.Root().Bytes()
		empty = empty && c.Root().IsZero()
	}
	if empty {
		return nil
	}
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(msg)
	if err != nil {
		panic(err) // bytes fields only: there is nothing that could not be marshalled
	}
	return data
}

func hashOfGroup(data []byte) ident.Hash {
	if len(data) == 0 {
		return ident.Hash{}
	}
	return ident.HashOf(data)
}

// DecodeGroup reads a group's stored bytes: the manifests' hashes of count partitions. No bytes are the empty group.
func DecodeGroup(data []byte, count int) ([]ident.Hash, error) {
	hashes := make([]ident.Hash, count)
	if len(data) == 0 {
		return hashes, nil
	}
	var msg recordv1.Group
	if err := proto.Unmarshal(data, &msg); err != nil {
		return nil, fmt.Errorf("snapshot: group: %w", err)
	}
	if len(msg.Manifests) != count {
		return nil, fmt.Errorf("snapshot: group of %d partitions, want %d", len(msg.Manifests), count)
	}
	for i, b := range msg.Manifests {
		h, err := ident.HashFrom(b)
		if err != nil {
			return nil, fmt.Errorf("snapshot: group: %w", err)
		}
		hashes[i] = h
	}
	return hashes, nil
}
