// Package manifest computes what both planes must agree on about a collection: its members' order, its root, and the
// difference between two states of it.
//
// A Manifest does not change once made and may be shared.
package manifest

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/prism-gateway/prism/shared/ident"
)

// Entry is one member of a collection: its name and the hash of its object.
type Entry struct {
	Name string
	Hash ident.Hash
}

// Manifest is the sorted list of a collection's members.
type Manifest struct {
	entries []Entry
	root    ident.Hash
}

// Empty is the manifest without members. Its root is the zero hash.
var Empty = &Manifest{}

// New sorts entries, which it then owns, and computes the root. Two entries of one name, an empty name and a zero hash
// are errors.
func New(entries []Entry) (*Manifest, error) {
	slices.SortFunc(entries, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	for i, e := range entries {
		switch {
		case e.Name == "":
			return nil, fmt.Errorf("manifest: entry %d has no name", i)
		case e.Hash.IsZero():
			return nil, fmt.Errorf("manifest: %s has no hash", e.Name)
		case i > 0 && entries[i-1].Name == e.Name:
			return nil, fmt.Errorf("manifest: %s stands twice", e.Name)
		}
	}
	return &Manifest{entries: entries, root: ident.HashOf(encode(entries))}, nil
}

// Decode reads what Encode wrote. Anything that Encode would not have written is an error.
func Decode(data []byte) (*Manifest, error) {
	var entries []Entry
	for rest := data; len(rest) > 0; {
		n, used := binary.Uvarint(rest)
		if used <= 0 || n == 0 || n > 1<<16 || uint64(len(rest)-used) < n+uint64(len(ident.Hash{})) {
			return nil, fmt.Errorf("manifest: cut or damaged after %d of %d bytes", len(data)-len(rest), len(data))
		}
		rest = rest[used:]
		e := Entry{Name: string(rest[:n])}
		copy(e.Hash[:], rest[n:])
		entries = append(entries, e)
		rest = rest[n+uint64(len(e.Hash)):]
	}
	m, err := New(entries)
	if err != nil {
		return nil, err
	}
	if len(data) > 0 && m.root != ident.HashOf(data) {
		return nil, fmt.Errorf("manifest: not in canonical form")
	}
	return m, nil
}

// Encode returns the canonical bytes, whose SHA-256 is the root: for each member in order the length of its name as
// a uvarint, the name, the hash.
func (m *Manifest) Encode() []byte { return encode(m.entries) }

func encode(entries []Entry) []byte {
	size := 0
	for _, e := range entries {
		size += binary.MaxVarintLen32 + len(e.Name) + len(e.Hash)
	}
	out := make([]byte, 0, size)
	for _, e := range entries {
		out = binary.AppendUvarint(out, uint64(len(e.Name)))
		out = append(out, e.Name...)
		out = append(out, e.Hash[:]...)
	}
	return out
}

// Root is the SHA-256 of the canonical bytes, or the zero hash when there are no members.
func (m *Manifest) Root() ident.Hash {
	if len(m.entries) == 0 {
		return ident.Hash{}
	}
	return m.root
}

// Len is the number of members.
func (m *Manifest) Len() int { return len(m.entries) }

// Entries returns the members in order. The caller must not change them.
func (m *Manifest) Entries() []Entry { return m.entries }

// Get returns the hash of a member.
func (m *Manifest) Get(name string) (ident.Hash, bool) {
	i, ok := m.find(name)
	if !ok {
		return ident.Hash{}, false
	}
	return m.entries[i].Hash, true
}

func (m *Manifest) find(name string) (int, bool) {
	return slices.BinarySearchFunc(m.entries, name, func(e Entry, n string) int { return cmp.Compare(e.Name, n) })
}

// With returns a manifest in which the members named by changes have the new hash, or are gone where it is zero.
func (m *Manifest) With(changes map[string]ident.Hash) (*Manifest, error) {
	next := make([]Entry, 0, len(m.entries)+len(changes))
	for _, e := range m.entries {
		if _, changed := changes[e.Name]; !changed {
			next = append(next, e)
		}
	}
	for name, hash := range changes {
		if !hash.IsZero() {
			next = append(next, Entry{Name: name, Hash: hash})
		}
	}
	if len(next) == 0 {
		return Empty, nil
	}
	return New(next)
}

// Diff returns what to set and what to remove to come from one manifest to another, each sorted by name.
func Diff(from, to *Manifest) (set []Entry, removed []string) {
	i, j := 0, 0
	for i < len(from.entries) || j < len(to.entries) {
		switch {
		case j == len(to.entries) || i < len(from.entries) && from.entries[i].Name < to.entries[j].Name:
			removed = append(removed, from.entries[i].Name)
			i++
		case i == len(from.entries) || to.entries[j].Name < from.entries[i].Name:
			set = append(set, to.entries[j])
			j++
		default:
			if from.entries[i].Hash != to.entries[j].Hash {
				set = append(set, to.entries[j])
			}
			i, j = i+1, j+1
		}
	}
	return set, removed
}
