package snapshot

import (
	"slices"
	"strings"

	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/ident"
	"github.com/prism-gateway/prism/shared/manifest"
)

// Difference is one object that two trees do not have alike. Before or After is zero when a tree does not have it.
type Difference struct {
	Name          string
	Before, After Object
}

// Kind says what leads from Before to After: create, update or delete.
func (d Difference) Kind() recordv1.ChangeKind {
	switch {
	case d.Before.Hash.IsZero():
		return recordv1.ChangeKind_CHANGE_KIND_CREATE
	case d.After.Hash.IsZero():
		return recordv1.ChangeKind_CHANGE_KIND_DELETE
	}
	return recordv1.ChangeKind_CHANGE_KIND_UPDATE
}

// Diff returns what differs between two trees of one installation, by name. It looks only at the partitions that
// differ.
func Diff(a, b *Tree) []Difference {
	var out []Difference
	for n, g := range a.groups {
		if g == b.groups[n] || g.hash == b.groups[n].hash {
			continue
		}
		for i, c := range g.collections {
			out = append(out, DiffCollections(c, b.groups[n].collections[i])...)
		}
	}
	out = append(out, DiffCollections(a.shared, b.shared)...)
	slices.SortFunc(out, func(x, y Difference) int { return strings.Compare(x.Name, y.Name) })
	return out
}

// DiffCollections returns what differs between two states of one collection.
func DiffCollections(a, b *Collection) []Difference {
	if a.Root() == b.Root() {
		return nil
	}
	set, removed := manifest.Diff(a.manifest, b.manifest)
	out := make([]Difference, 0, len(set)+len(removed))
	for _, e := range set {
		before, _ := a.Object(e.Name)
		after, _ := b.Object(e.Name)
		out = append(out, Difference{Name: e.Name, Before: before, After: after})
	}
	for _, name := range removed {
		before, _ := a.Object(name)
		out = append(out, Difference{Name: name, Before: before})
	}
	return out
}

// NodeKind is the kind of a stored node, and the letter under which it is stored.
type NodeKind byte

// The kinds.
const (
	ObjectNode   NodeKind = 'o'
	ManifestNode NodeKind = 'm'
	GroupNode    NodeKind = 'g'
)

// Node is something stored under the hash of its bytes.
type Node struct {
	Kind NodeKind
	Hash ident.Hash
	Data []byte
	// Namespace says of an object that it is a NamespaceConfig.
	Namespace bool
}

// Missing returns the nodes of t that are in none of the trees that are stored already. Records of namespaces are not
// nodes of the tree and are not among them.
func (t *Tree) Missing(stored ...*Tree) []Node {
	var nodes []Node
	collection := func(c *Collection, has []*Collection) {
		if c.Len() == 0 || slices.ContainsFunc(has, func(h *Collection) bool { return h.Root() == c.Root() }) {
			return
		}
		for i, e := range c.manifest.Entries() {
			if !slices.ContainsFunc(has, func(h *Collection) bool { got, _ := h.manifest.Get(e.Name); return got == e.Hash }) {
				nodes = append(nodes, Node{ObjectNode, e.Hash, c.data[i], strings.HasPrefix(e.Name, NamespacePrefix)})
			}
		}
		nodes = append(nodes, Node{Kind: ManifestNode, Hash: c.Root(), Data: c.manifest.Encode()})
	}
	has := make([]*Collection, len(stored))
	for n, g := range t.groups {
		if g.hash.IsZero() || slices.ContainsFunc(stored, func(s *Tree) bool { return s.groups[n].hash == g.hash }) {
			continue
		}
		for i, c := range g.collections {
			for k, s := range stored {
				has[k] = s.groups[n].collections[i]
			}
			collection(c, has)
		}
		nodes = append(nodes, Node{Kind: GroupNode, Hash: g.hash, Data: g.encode()})
	}
	for k, s := range stored {
		has[k] = s.shared
	}
	collection(t.shared, has)
	return nodes
}
