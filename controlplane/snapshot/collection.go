package snapshot

import (
	"fmt"
	"iter"
	"slices"
	"sort"
	"strings"

	"github.com/prism-gateway/prism/shared/ident"
	"github.com/prism-gateway/prism/shared/manifest"
)

// Collection is a partition, or the shared objects: a manifest with the bytes that it names.
type Collection struct {
	manifest *manifest.Manifest
	data     [][]byte // parallel to the manifest's entries
	usage    []backendUsage
}

// Manifest returns the manifest.
func (c *Collection) Manifest() *manifest.Manifest { return c.manifest }

// Root is the manifest's root, zero when the collection is empty.
func (c *Collection) Root() ident.Hash { return c.manifest.Root() }

// Len is the number of objects.
func (c *Collection) Len() int { return len(c.data) }

// At returns the object at a place in the manifest.
func (c *Collection) At(i int) Object {
	e := c.manifest.Entries()[i]
	return Object{Name: e.Name, Hash: e.Hash, Data: c.data[i]}
}

// Object returns an object by its whole name.
func (c *Collection) Object(name string) (Object, bool) {
	if i := c.search(name); i < c.Len() && c.manifest.Entries()[i].Name == name {
		return c.At(i), true
	}
	return Object{}, false
}

// search returns the place of the first name that is not below name.
func (c *Collection) search(name string) int {
	entries := c.manifest.Entries()
	return sort.Search(len(entries), func(i int) bool { return entries[i].Name >= name })
}

func (c *Collection) withPrefix(prefix string) []Object {
	var out []Object
	for i := c.search(prefix); i < c.Len() && strings.HasPrefix(c.manifest.Entries()[i].Name, prefix); i++ {
		out = append(out, c.At(i))
	}
	return out
}

// Backends goes through the short names of the backends that the collection's namespaces are bound to, in order.
func (c *Collection) Backends() iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, u := range c.usage {
			if !yield(u.backend) {
				return
			}
		}
	}
}

// Next returns the collection of a manifest. Objects that c has already are shared; the others are asked for, and one
// whose bytes do not have the hash that the manifest names is an error.
func (c *Collection) Next(m *manifest.Manifest, object func(manifest.Entry) ([]byte, error)) (*Collection, error) {
	return c.next(m, func(e manifest.Entry) ([]byte, error) {
		data, err := object(e)
		if err != nil {
			return nil, err
		}
		if ident.HashOf(data) != e.Hash {
			return nil, fmt.Errorf("snapshot: the bytes of %s do not have the hash %s", e.Name, e.Hash)
		}
		return data, nil
	})
}

func (c *Collection) next(m *manifest.Manifest, object func(manifest.Entry) ([]byte, error)) (*Collection, error) {
	if m.Root() == c.Root() {
		return c, nil
	}
	was, is := c.manifest.Entries(), m.Entries()
	next := &Collection{manifest: m, data: make([][]byte, len(is))}
	var moved deltas
	gone := func(i int) error { return moved.namespace(was[i].Name, c.data[i], -1) }
	j := 0
	for i, e := range is {
		for ; j < len(was) && was[j].Name < e.Name; j++ {
			if err := gone(j); err != nil {
				return nil, err
			}
		}
		if j < len(was) && was[j].Name == e.Name {
			if was[j].Hash == e.Hash {
				next.data[i] = c.data[j]
				j++
				continue
			}
			if err := gone(j); err != nil {
				return nil, err
			}
			j++
		}
		data, err := object(e)
		if err != nil {
			return nil, err
		}
		if err := moved.namespace(e.Name, data, +1); err != nil {
			return nil, err
		}
		next.data[i] = data
	}
	for ; j < len(was); j++ {
		if err := gone(j); err != nil {
			return nil, err
		}
	}
	next.usage = moved.applyToList(c.usage)
	return next, nil
}

// With returns the collection in which some objects, each named once, are others; one without a hash is gone. It is c
// itself when that changes nothing.
func (c *Collection) With(changes []Object) (*Collection, error) {
	if len(changes) == 0 {
		return c, nil
	}
	changes = slices.Clone(changes)
	slices.SortFunc(changes, func(a, b Object) int { return strings.Compare(a.Name, b.Name) })
	was := c.manifest.Entries()
	entries := make([]manifest.Entry, 0, len(was)+len(changes))
	fresh := make(map[string][]byte, len(changes))
	j := 0
	for _, o := range changes {
		for ; j < len(was) && was[j].Name < o.Name; j++ {
			entries = append(entries, was[j])
		}
		if j < len(was) && was[j].Name == o.Name {
			j++
		}
		if !o.Hash.IsZero() {
			entries = append(entries, manifest.Entry{Name: o.Name, Hash: o.Hash})
			fresh[o.Name] = o.Data
		}
	}
	entries = append(entries, was[j:]...)
	m := manifest.Empty
	if len(entries) > 0 {
		var err error
		if m, err = manifest.New(entries); err != nil {
			return nil, err
		}
	}
	return c.next(m, func(e manifest.Entry) ([]byte, error) { return fresh[e.Name], nil })
}
