package memory

import (
	"bytes"
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/prism-gateway/prism/dataplane/driver"
)

// Get reads one item.
func (i *Instance) Get(ctx context.Context, space driver.Space, name driver.Name, headOnly bool) (*driver.Item, error) {
	if err := i.usable(ctx); err != nil {
		return nil, err
	}
	s, id := i.place(space, name.ID)
	now := i.now()
	s.mu.RLock()
	it := s.visibleLocked(id, name.Key, now)
	s.mu.RUnlock()
	if it == nil {
		return nil, nil
	}
	if it.large != nil && !headOnly {
		return nil, driver.TooLarge(it.Size)
	}
	return it.copyFor(headOnly), nil
}

// Write does one write.
func (i *Instance) Write(ctx context.Context, space driver.Space, w driver.Write) (driver.Written, error) {
	return i.write(ctx, space, w, nil)
}

// write does one write, whose value is large if that is not nil.
func (i *Instance) write(ctx context.Context, space driver.Space, w driver.Write, large *large) (driver.Written, error) {
	if err := i.usable(ctx); err != nil {
		return driver.Written{}, err
	}
	s, id := i.place(space, w.ID)
	now := i.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	var before driver.Written
	if known, err := s.repeatedLocked(id, w.Token, now, &before); known || err != nil {
		before.Duplicate = known
		return before, err
	}
	next, done, err := i.do(w, s.visibleLocked(id, w.Key, now), now)
	if err != nil {
		return driver.Written{}, err
	}
	if next != nil && large != nil {
		next.large, next.Size = large, large.size
	}
	i.setLocked(s, id, w.Key, next, now)
	s.rememberLocked(id, w.Token, done)
	return done, nil
}

// do works out what a write leaves where old was visible, or nil: the next item, nil for none, and the result.
func (i *Instance) do(w driver.Write, old *item, now time.Time) (*item, driver.Written, error) {
	var current []byte
	if old != nil {
		current = old.Version
	}
	if err := w.Refusal(current); err != nil {
		return nil, driver.Written{}, err
	}
	done := driver.Written{Existed: old != nil}
	if w.Previous && old != nil {
		done.Previous = old.copyFor(false)
	}
	if w.Op == driver.Delete {
		return nil, done, nil
	}
	next := i.next(w, old, now)
	done.Version, done.ExpireAt = slices.Clone(next.Version), next.ExpireAt
	return next, done, nil
}

// next is the item that a write leaves; old is what was visible, or nil.
func (i *Instance) next(w driver.Write, old *item, now time.Time) *item {
	expire := driver.ExpireMillis(w.ExpireAt)
	if w.KeepExpiry && old != nil {
		expire = old.expire
	}
	next := &item{expire: expire}
	if w.Op == driver.Touch {
		next.Item, next.large = old.Item, old.large
	} else {
		next.Name = driver.Name{ID: slices.Clone(w.ID), Key: slices.Clone(w.Key)}
		next.Value = slices.Clone(w.Value)
		next.ContentType, next.Metadata = w.ContentType, maps.Clone(w.Metadata)
		next.ModifiedAt = now.UTC().Truncate(time.Microsecond)
		if old != nil && old.ModifiedAt.After(next.ModifiedAt) {
			next.ModifiedAt = old.ModifiedAt
		}
	}
	next.ExpireAt = driver.ExpireTime(expire)
	next.Version = i.versions.Next()
	return next
}

// BatchGet reads each item by itself.
func (i *Instance) BatchGet(ctx context.Context, space driver.Space, names []driver.Name, headOnly bool) []driver.GetResult {
	results := make([]driver.GetResult, len(names))
	for n, name := range names {
		results[n].Item, results[n].Err = i.Get(ctx, space, name, headOnly)
	}
	return results
}

// BatchWrite does each write by itself.
func (i *Instance) BatchWrite(ctx context.Context, space driver.Space, writes []driver.Write) []driver.WriteResult {
	results := make([]driver.WriteResult, len(writes))
	for n, w := range writes {
		results[n].Written, results[n].Err = i.Write(ctx, space, w)
	}
	return results
}

// Scan reads a run of keys at one moment.
func (i *Instance) Scan(ctx context.Context, space driver.Space, r driver.Range) ([]driver.Item, bool, error) {
	if err := i.usable(ctx); err != nil {
		return nil, false, err
	}
	s, id := i.place(space, r.ID)
	now := i.now()
	s.mu.RLock()
	defer s.mu.RUnlock()
	run := s.ids[id]
	if run == nil {
		return nil, false, nil
	}
	first, _ := run.find(r.Start)
	end := len(run.items)
	if r.End != nil {
		end, _ = run.find(r.End)
	}
	within := run.items[first:max(first, end)]
	var items []driver.Item
	size := 0
	for n := range within {
		it := within[n]
		if r.Reverse {
			it = within[len(within)-1-n]
		}
		if driver.Expired(it.expire, now) {
			continue
		}
		if len(items) == r.Limit || (len(items) > 0 && size >= r.MaxBytes) {
			return items, true, nil
		}
		items = append(items, *it.copyFor(r.KeysOnly))
		size += len(it.ID) + len(it.Key)
		if !r.KeysOnly {
			size += len(it.Value)
		}
	}
	return items, false, nil
}

// ListIDs goes through the shards; the cursor is the shard and the last id that was given of it.
func (i *Instance) ListIDs(ctx context.Context, space driver.Space, cursor []byte, limit int) ([][]byte, []byte, error) {
	if err := i.usable(ctx); err != nil {
		return nil, nil, err
	}
	at, after := 0, []byte(nil)
	if len(cursor) > 0 {
		at, after = int(cursor[0]), cursor[1:]
	}
	var ids [][]byte
	for ; at < shards; at, after = at+1, nil {
		for _, id := range i.shards[at].list(i, space, after) {
			if len(ids) == limit {
				return ids, append([]byte{byte(at)}, after...), nil
			}
			ids, after = append(ids, id), id
		}
	}
	return ids, nil, nil
}

// list returns the ids of a space after one, in byte order, that have a visible item.
func (s *shard) list(i *Instance, space driver.Space, after []byte) [][]byte {
	_, prefix := i.place(space, nil)
	now := i.now()
	s.mu.RLock()
	defer s.mu.RUnlock()
	var ids [][]byte
	for name, r := range s.ids {
		if !strings.HasPrefix(name, prefix) || (len(after) > 0 && bytes.Compare(r.id, after) <= 0) {
			continue
		}
		if slices.ContainsFunc(r.items, func(it *item) bool { return !driver.Expired(it.expire, now) }) {
			ids = append(ids, slices.Clone(r.id))
		}
	}
	slices.SortFunc(ids, bytes.Compare)
	return ids
}
