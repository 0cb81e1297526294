package fleet

import (
	"slices"
	"sync"

	"github.com/prism-gateway/prism/shared/ident"
)

// changes tells those who follow partitions which of them have changed.
type changes struct {
	mu        sync.Mutex // guards all, also of followers; nothing else is locked while it is held
	followers map[ident.Partition]map[*follower]struct{}
	all       map[*follower]struct{}
}

// follower is one that follows partitions.
type follower struct {
	changed    chan struct{} // is sent to after dirty has grown
	dirty      map[ident.Partition]struct{}
	partitions map[ident.Partition]struct{}
}

func newChanges() changes {
	return changes{followers: map[ident.Partition]map[*follower]struct{}{}, all: map[*follower]struct{}{}}
}

// follow begins to follow partitions. The caller ends it.
func (c *changes) follow(partitions ...ident.Partition) *follower {
	f := &follower{
		changed: make(chan struct{}, 1), dirty: map[ident.Partition]struct{}{}, partitions: map[ident.Partition]struct{}{},
	}
	c.add(f, partitions...)
	return f
}

// followAll begins to follow every partition.
func (c *changes) followAll() *follower {
	f := c.follow()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all[f] = struct{}{}
	return f
}

func (c *changes) add(f *follower, partitions ...ident.Partition) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range partitions {
		if c.followers[p] == nil {
			c.followers[p] = map[*follower]struct{}{}
		}
		c.followers[p][f] = struct{}{}
		f.partitions[p] = struct{}{}
	}
}

func (c *changes) drop(f *follower, partitions ...ident.Partition) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range partitions {
		c.dropLocked(f, p)
	}
}

func (c *changes) dropLocked(f *follower, p ident.Partition) {
	delete(f.partitions, p)
	delete(f.dirty, p)
	delete(c.followers[p], f)
	if len(c.followers[p]) == 0 {
		delete(c.followers, p)
	}
}

func (c *changes) end(f *follower) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.all, f)
	for p := range f.partitions {
		c.dropLocked(f, p)
	}
}

// mark says that something about a partition has changed.
func (c *changes) mark(p ident.Partition) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for f := range c.followers[p] {
		f.dirty[p] = struct{}{}
		signal(f.changed)
	}
	for f := range c.all {
		f.dirty[p] = struct{}{}
		signal(f.changed)
	}
}

// take returns the partitions that have changed since it was called last, in order.
func (c *changes) take(f *follower) []ident.Partition {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(f.dirty) == 0 {
		return nil
	}
	dirty := make([]ident.Partition, 0, len(f.dirty))
	for p := range f.dirty {
		dirty = append(dirty, p)
	}
	clear(f.dirty)
	slices.Sort(dirty)
	return dirty
}
