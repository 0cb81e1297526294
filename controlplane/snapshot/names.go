package snapshot

import (
	"container/heap"
	"iter"
	"strings"
)

// Namespaces goes through the namespaces in the order of their names: those that begin with prefix and come after
// `after`. It starts with a look into every partition and then costs the logarithm of their number for each
// namespace, so a page of a long list is cheap.
func (t *Tree) Namespaces(prefix, after string) iter.Seq[Object] {
	return func(yield func(Object) bool) {
		from := NamespacePrefix + prefix
		if after >= prefix {
			from = NamespacePrefix + after + "\x00" // the least name above after
		}
		var cursors cursors
		for _, g := range t.groups {
			for _, c := range g.collections {
				if i := c.search(from); i < c.Len() {
					cursors = append(cursors, cursor{c, i})
				}
			}
		}
		heap.Init(&cursors)
		for len(cursors) > 0 {
			at := &cursors[0]
			o := at.collection.At(at.index)
			if !strings.HasPrefix(o.Name, NamespacePrefix+prefix) || !yield(o) {
				return
			}
			if at.index++; at.index == at.collection.Len() {
				heap.Pop(&cursors)
			} else {
				heap.Fix(&cursors, 0)
			}
		}
	}
}

// Names returns at most limit names of namespaces in order: those that begin with prefix and come after `after`.
func (t *Tree) Names(prefix, after string, limit int) []string {
	var names []string
	if limit <= 0 {
		return nil
	}
	for o := range t.Namespaces(prefix, after) {
		names = append(names, o.ShortName())
		if len(names) == limit {
			break
		}
	}
	return names
}

// cursor is a place in a collection; cursors are a heap by name.
type cursor struct {
	collection *Collection
	index      int
}

func (c cursor) name() string { return c.collection.manifest.Entries()[c.index].Name }

type cursors []cursor

func (c cursors) Len() int           { return len(c) }
func (c cursors) Less(i, j int) bool { return c[i].name() < c[j].name() }
func (c cursors) Swap(i, j int)      { c[i], c[j] = c[j], c[i] }
func (c *cursors) Push(x any)        { *c = append(*c, x.(cursor)) }
func (c *cursors) Pop() any {
	old := *c
	last := old[len(old)-1]
	*c = old[:len(old)-1]
	return last
}
