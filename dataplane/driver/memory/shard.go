package memory

import (
	"bytes"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prism-gateway/prism/dataplane/driver"
)

type shard struct {
	mu  sync.RWMutex // guards what follows, and the items in it
	ids map[string]*run
}

// run is the items of one id in byte order of their keys. An item does not change once it is there: writes replace it.
type run struct {
	id    []byte
	items []*item
}

type item struct {
	driver.Item       // its slices belong to the store
	expire      int64 // milliseconds; 0: never
}

// find returns the position of key, and whether there is an item, be it expired.
func (r *run) find(key []byte) (int, bool) {
	return slices.BinarySearchFunc(r.items, key, func(it *item, key []byte) int { return bytes.Compare(it.Key, key) })
}

// visibleLocked returns the item of a key, nil when it is absent or expired.
func (s *shard) visibleLocked(id string, key []byte, now time.Time) *item {
	r := s.ids[id]
	if r == nil {
		return nil
	}
	at, ok := r.find(key)
	if !ok || driver.Expired(r.items[at].expire, now) {
		return nil
	}
	return r.items[at]
}

// setLocked puts an item in its place; the run is made when there is none.
func (s *shard) setLocked(id string, it *item) {
	r := s.ids[id]
	if r == nil {
		r = &run{id: it.ID}
		s.ids[id] = r
	}
	at, ok := r.find(it.Key)
	if ok {
		r.items[at] = it
		return
	}
	r.items = slices.Insert(r.items, at, it)
}

// removeLocked removes an item, and its run when it was the last.
func (s *shard) removeLocked(id string, key []byte) {
	r := s.ids[id]
	if r == nil {
		return
	}
	if at, ok := r.find(key); ok {
		r.items = slices.Delete(r.items, at, at+1)
	}
	if len(r.items) == 0 {
		delete(s.ids, id)
	}
}

// sweep removes expired items and says how many there were.
func (s *shard) sweep(now time.Time) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for id, r := range s.ids {
		before := len(r.items)
		r.items = slices.DeleteFunc(r.items, func(it *item) bool { return driver.Expired(it.expire, now) })
		n += before - len(r.items)
		if len(r.items) == 0 {
			delete(s.ids, id)
		}
	}
	return n
}

// copyFor returns a copy that the caller owns.
func (it *item) copyFor(headOnly bool) *driver.Item {
	c := it.Item
	c.ID, c.Key = slices.Clone(it.ID), slices.Clone(it.Key)
	c.Version, c.Metadata = slices.Clone(it.Version), maps.Clone(it.Metadata)
	c.Value = nil
	if !headOnly {
		c.Value = append([]byte{}, it.Value...)
	}
	return &c
}
