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
	// tokens are the writes that are remembered, by id and nonce.
	tokens map[token]remembered
	// logs are the changes of ids that somebody watches or watched a while ago.
	logs map[string]*log
}

// run is the items of one id in byte order of their keys. An item does not change once it is there: writes replace it.
type run struct {
	id    []byte
	items []*item
}

type item struct {
	driver.Item        // its slices belong to the store
	expire      int64  // milliseconds; 0: never
	large       *large // the value when it was written in parts; nil: it is in Item
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

// setLocked puts an item in its place, or removes what is there when it is nil, and tells the watchers.
func (i *Instance) setLocked(s *shard, id string, key []byte, it *item, now time.Time) {
	s.tellLocked(i, id, key, it, now)
	if it == nil {
		s.removeLocked(id, key)
		return
	}
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

// sweep removes expired items and tokens and says how many items there were.
func (s *shard) sweep(i *Instance, now time.Time) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for id := range s.ids {
		n += s.sweepLocked(i, id, now)
	}
	for t, of := range s.tokens {
		if !now.Before(of.until) {
			delete(s.tokens, t)
		}
	}
	for id, l := range s.logs {
		if len(l.watchers) == 0 && now.Sub(l.left) > keepLog {
			delete(s.logs, id)
		}
	}
	return n
}

// sweepLocked removes the expired items of one id.
func (s *shard) sweepLocked(i *Instance, id string, now time.Time) int {
	r := s.ids[id]
	if r == nil {
		return 0
	}
	before := len(r.items)
	r.items = slices.DeleteFunc(r.items, func(it *item) bool {
		if !driver.Expired(it.expire, now) {
			return false
		}
		s.logLocked(i, id, driver.Lapsed, it)
		return true
	})
	if len(r.items) == 0 {
		delete(s.ids, id)
	}
	return before - len(r.items)
}

// copyFor returns a copy that the caller owns.
func (it *item) copyFor(headOnly bool) *driver.Item {
	c := it.Item
	c.ID, c.Key = slices.Clone(it.ID), slices.Clone(it.Key)
	c.Version, c.Metadata = slices.Clone(it.Version), maps.Clone(it.Metadata)
	c.Value = nil
	switch {
	case it.large != nil: // Size is that of the item
	case headOnly:
		c.Size = uint64(len(it.Value))
	default:
		c.Value = append([]byte{}, it.Value...)
	}
	return &c
}
