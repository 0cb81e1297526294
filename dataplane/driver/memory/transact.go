package memory

import (
	"context"
	"slices"
	"time"

	"github.com/prism-gateway/prism/dataplane/driver"
)

// Increment adds to a counter.
func (i *Instance) Increment(ctx context.Context, space driver.Space, inc driver.Increment) (driver.Incremented, error) {
	if err := i.usable(ctx); err != nil {
		return driver.Incremented{}, err
	}
	s, id := i.place(space, inc.ID)
	now := i.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	var before driver.Incremented
	if known, err := s.repeatedLocked(id, inc.Token, now, &before); known || err != nil {
		before.Duplicate = known
		return before, err
	}
	old := s.visibleLocked(id, inc.Key, now)
	w := driver.Write{Op: driver.Put, Name: inc.Name, ExpireAt: inc.ExpireAt, KeepExpiry: inc.KeepExpiry}
	var value []byte
	if old != nil {
		value, w.ContentType, w.Metadata = old.Value, old.ContentType, old.Metadata
	}
	sum, err := inc.Sum(value, old != nil)
	if err != nil {
		return driver.Incremented{}, err
	}
	w.Value = driver.FormatNumber(sum)
	next, done, err := i.do(w, old, now)
	if err != nil {
		return driver.Incremented{}, err
	}
	i.setLocked(s, id, inc.Key, next, now)
	result := driver.Incremented{Value: sum, Written: done}
	s.rememberLocked(id, inc.Token, result)
	return result, nil
}

// Transact does all writes or none.
func (i *Instance) Transact(ctx context.Context, space driver.Space, t driver.Transaction) (driver.Transacted, error) {
	if err := i.usable(ctx); err != nil {
		return driver.Transacted{}, err
	}
	s, id := i.place(space, t.ID)
	now := i.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	var before driver.Transacted
	if known, err := s.repeatedLocked(id, t.Token, now, &before); known || err != nil {
		before.Duplicate = known
		return before, err
	}
	for n, c := range t.Checks {
		if err := c.Failed(versionOf(s.visibleLocked(id, c.Key, now)), n); err != nil {
			return driver.Transacted{}, err
		}
	}
	left := map[string]*item{} // by key: what the transaction leaves, nil for nothing
	done := driver.Transacted{Results: make([]driver.Written, len(t.Writes))}
	for n, w := range t.Writes {
		old, written := left[string(w.Key)]
		if !written {
			old = s.visibleLocked(id, w.Key, now)
		}
		next, result, err := i.do(w, old, now)
		if err != nil {
			return driver.Transacted{}, driver.CheckFailed(versionOf(old), len(t.Checks)+n)
		}
		left[string(w.Key)], done.Results[n] = next, result
	}
	for key, it := range left {
		i.setLocked(s, id, []byte(key), it, now)
	}
	s.rememberLocked(id, t.Token, done)
	return done, nil
}

func versionOf(it *item) []byte {
	if it == nil {
		return nil
	}
	return it.Version
}

// token is where a remembered write is found.
type token struct {
	id    string
	nonce [16]byte
}

// remembered is what a write with a token did. Its result is not changed any more.
type remembered struct {
	request [16]byte
	until   time.Time
	result  any // driver.Written, Incremented or Transacted
}

// repeatedLocked finds the result of an earlier write with the token and puts it into result.
func (s *shard) repeatedLocked(id string, t *driver.Token, now time.Time, result any) (bool, error) {
	if t == nil {
		return false, nil
	}
	before, ok := s.tokens[token{id, t.Nonce}]
	if !ok || !now.Before(before.until) {
		return false, nil
	}
	if before.request != t.Request {
		return false, driver.Reused()
	}
	switch into := result.(type) {
	case *driver.Written:
		*into = owned(before.result.(driver.Written))
	case *driver.Incremented:
		*into = before.result.(driver.Incremented)
		into.Written = owned(into.Written)
	case *driver.Transacted:
		*into = driver.Transacted{Results: slices.Clone(before.result.(driver.Transacted).Results)}
		for n := range into.Results {
			into.Results[n] = owned(into.Results[n])
		}
	}
	return true, nil
}

// rememberLocked keeps what a write did, if it has a token.
func (s *shard) rememberLocked(id string, t *driver.Token, result any) {
	if t == nil {
		return
	}
	switch of := result.(type) {
	case driver.Written:
		result = owned(of)
	case driver.Incremented:
		of.Written = owned(of.Written)
		result = of
	case driver.Transacted:
		of.Results = slices.Clone(of.Results)
		for n := range of.Results {
			of.Results[n] = owned(of.Results[n])
		}
		result = of
	}
	s.tokens[token{id, t.Nonce}] = remembered{request: t.Request, until: t.Until, result: result}
}

// owned is a result whose slices are its own.
func owned(w driver.Written) driver.Written {
	w.Version = slices.Clone(w.Version)
	if w.Previous != nil {
		w.Previous = (&item{Item: *w.Previous}).copyFor(false)
	}
	return w
}
