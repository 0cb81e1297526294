package keyvalue

import (
	"context"
	"encoding/binary"
	"maps"
	"sync/atomic"
	"time"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/shared/fault"
)

// cache is a look-aside cache: copies of items in a faster store, for reads that may be a little old.
//
// What a reader finds missing it fetches from the storage and puts into the cache, but only if nothing was written
// meanwhile: it first leaves a claim, and its copy replaces that claim or nothing. A writer puts a claim of its own
// before it writes, which ends the readers' claims and copies, and removes afterwards whatever is there then (leases, as in
// "Scaling Memcache at Facebook", NSDI 2013). So a write through any proxy that reaches the cache ends the copies that it
// makes old.
// Whatever happens to the cache, a copy is never older than maxStaleness, by the proxies' clocks.
type cache struct {
	store        driver.KeyValue
	maxStaleness time.Duration
	now          func() time.Time
	// bypass is until when this proxy does not trust the cache, in milliseconds since 1970: a write of its own could not
	// end the copies.
	bypass atomic.Int64
}

const (
	// writeClaim is how long a writer's claim may stand: longer than a call may take, so that it outlives the write.
	writeClaim = 70 * time.Second
	// readClaim is how long a reader's may: a reader that takes longer puts nothing into the cache.
	readClaim = 10 * time.Second
	// cacheWait bounds what a call waits for the cache: it is there to be fast.
	cacheWait = 250 * time.Millisecond
	// clockSlack is by how much the clocks of proxies may differ.
	clockSlack = time.Second
	// maxCached is the largest value that is copied.
	maxCached = 256 << 10
)

// A record in the cache is: what it is (1 byte); for an item and for an absent one, when the storage was asked (8, in
// milliseconds); for an item, its expiry and its last write (8 each, milliseconds and microseconds), the length of its
// version (1), the version, the value. Content type and metadata are the item's own.
const (
	cacheClaim  = 'c'
	cacheAbsent = 'a'
	cacheItem   = 'i'

	askedAt    = 1
	cachedHead = 1 + 8 + 8 + 8 + 1
)

// copyOf is the record of an item, or of there being none.
func copyOf(item *driver.Item, asked time.Time) (value []byte, contentType string, metadata map[string]string) {
	if item == nil {
		return binary.BigEndian.AppendUint64([]byte{cacheAbsent}, uint64(asked.UnixMilli())), "", nil
	}
	b := make([]byte, 0, cachedHead+len(item.Version)+len(item.Value))
	b = binary.BigEndian.AppendUint64(append(b, cacheItem), uint64(asked.UnixMilli()))
	b = binary.BigEndian.AppendUint64(b, uint64(driver.ExpireMillis(item.ExpireAt)))
	b = binary.BigEndian.AppendUint64(b, uint64(item.ModifiedAt.UnixMicro()))
	b = append(append(b, byte(len(item.Version))), item.Version...)
	return append(b, item.Value...), item.ContentType, item.Metadata
}

// readCopy is the item of a record, nil for an absent one, and when the storage was asked; ok is false for a claim and
// for what is no record.
func readCopy(c *driver.Item, name driver.Name, now time.Time) (item *driver.Item, asked time.Time, ok bool) {
	b := c.Value
	if len(b) < askedAt+8 || (b[0] != cacheAbsent && b[0] != cacheItem) {
		return nil, time.Time{}, false
	}
	asked = time.UnixMilli(int64(binary.BigEndian.Uint64(b[askedAt:])))
	if b[0] == cacheAbsent {
		return nil, asked, true
	}
	if len(b) < cachedHead || len(b) < cachedHead+int(b[cachedHead-1]) {
		return nil, time.Time{}, false
	}
	expire := int64(binary.BigEndian.Uint64(b[9:]))
	if driver.Expired(expire, now) {
		return nil, asked, true
	}
	version := cachedHead + int(b[cachedHead-1])
	return &driver.Item{
		Name: name, Version: b[cachedHead:version:version], Value: b[version:], ExpireAt: driver.ExpireTime(expire),
		ModifiedAt: time.UnixMicro(int64(binary.BigEndian.Uint64(b[17:]))).UTC(), ContentType: c.ContentType, Metadata: maps.Clone(c.Metadata),
	}, asked, true
}

// fresh reports whether a copy may answer a read that must see all writes up to a time.
func (c *cache) fresh(asked time.Time, seen time.Time, now time.Time) bool {
	return now.Before(asked.Add(c.maxStaleness)) && (seen.IsZero() || asked.After(seen.Add(clockSlack)))
}

// trusted reports whether the cache may answer at all.
func (c *cache) trusted(now time.Time) bool { return c != nil && now.UnixMilli() >= c.bypass.Load() }

// get answers from the cache, or else by fetch, whose result it keeps. seen is what the read must see, zero for nothing.
func (c *cache) get(ctx context.Context, space driver.Space, name driver.Name, headOnly bool, seen time.Time, fetch func(headOnly bool) (*driver.Item, error)) (*driver.Item, error) {
	now := c.now()
	if !c.trusted(now) {
		return fetch(headOnly)
	}
	short, cancel := context.WithTimeout(ctx, cacheWait)
	defer cancel()
	found, err := c.store.Get(short, space, name, false)
	if err != nil {
		return fetch(headOnly) // a cache that is away slows, and does not fail
	}
	if found != nil {
		item, asked, ok := readCopy(found, name, now)
		if ok && c.fresh(asked, seen, now) {
			return headOf(item, headOnly), nil
		}
		if !ok || now.Before(asked.Add(c.maxStaleness)) {
			return fetch(headOnly) // a claim, or a copy that others may still read
		}
	}
	w := driver.Write{Op: driver.Put, Name: name, Value: []byte{cacheClaim}, ExpireAt: now.Add(readClaim), Condition: driver.IfAbsent}
	if found != nil {
		w.Condition, w.Version = driver.IfVersion, found.Version
	}
	claim, err := c.store.Write(short, space, w)
	if err != nil {
		return fetch(headOnly)
	}
	asked := c.now()
	item, err := fetch(false)
	w.Condition, w.Version = driver.IfVersion, claim.Version
	if err != nil || (item != nil && (len(item.Value) > maxCached || item.Size > 0)) {
		w.Op = driver.Delete
	} else {
		w.Value, w.ContentType, w.Metadata = copyOf(item, asked)
		w.ExpireAt = asked.Add(c.maxStaleness)
	}
	again, cancelAgain := context.WithTimeout(ctx, cacheWait)
	defer cancelAgain()
	_, _ = c.store.Write(again, space, w) // without it the claim stands until its time is over
	if err != nil {
		return nil, err
	}
	return headOf(item, headOnly), nil
}

func headOf(item *driver.Item, headOnly bool) *driver.Item {
	if item != nil && headOnly {
		item.Size, item.Value = uint64(len(item.Value)), nil
	}
	return item
}

// released is the release of who holds nothing.
func released(error) {}

// hold is for one item that is about to be written: see cache.hold.
func (s *Store) hold(ctx context.Context, name driver.Name) (release func(err error)) {
	if s.cache == nil {
		return released
	}
	return s.cache.hold(ctx, s.cfg.Space, []driver.Name{name})
}

// holdAll is for several: see cache.hold.
func (s *Store) holdAll(ctx context.Context, writes []driver.Write) (release func(err error)) {
	if s.cache == nil {
		return released
	}
	names := make([]driver.Name, len(writes))
	for i := range writes {
		names[i] = writes[i].Name
	}
	return s.cache.hold(ctx, s.cfg.Space, names)
}

// hold ends the copies of items that are about to be written and keeps readers from making new ones. The caller says
// how the write ended by release.
func (c *cache) hold(ctx context.Context, space driver.Space, names []driver.Name) (release func(err error)) {
	now := c.now()
	claims := make([]driver.Write, len(names))
	for i, name := range names {
		claims[i] = driver.Write{Op: driver.Put, Name: name, Value: []byte{cacheClaim}, ExpireAt: now.Add(writeClaim)}
	}
	short, cancel := context.WithTimeout(ctx, cacheWait)
	defer cancel()
	c.write(short, space, claims)
	return func(err error) {
		if f := fault.From(err); f != nil && f.Outcome != fault.NotApplied {
			return // the write may still come: the claims stand until it cannot
		}
		done := make([]driver.Write, len(names))
		for i, name := range names {
			// Without a condition: a copy that was made beside another writer may be older than this write.
			done[i] = driver.Write{Op: driver.Delete, Name: name}
		}
		short, cancel := context.WithTimeout(context.WithoutCancel(ctx), cacheWait)
		defer cancel()
		c.write(short, space, done)
	}
}

// write does what ends copies. Where it cannot, this proxy does not ask the cache for as long as such copies may live.
func (c *cache) write(ctx context.Context, space driver.Space, writes []driver.Write) {
	for _, r := range c.store.BatchWrite(ctx, space, writes) {
		if r.Err != nil {
			c.bypass.Store(c.now().Add(c.maxStaleness + cacheWait).UnixMilli())
			return
		}
	}
}

// seenForm begins a commit token, which is the time until which a read must see writes.
const seenForm = 1

// commitToken is a token for reads that must see what was written until now.
func commitToken(now time.Time) []byte {
	return binary.BigEndian.AppendUint64([]byte{seenForm}, uint64(now.UnixMilli()))
}

// parseCommitToken is the time of a commit token; zero for none.
func parseCommitToken(token []byte) (time.Time, error) {
	if len(token) == 0 {
		return time.Time{}, nil
	}
	if len(token) != 9 || token[0] != seenForm {
		return time.Time{}, invalid([]fault.Violation{violation("at_least", "commit_token", "is no commit token of this namespace")})
	}
	return time.UnixMilli(int64(binary.BigEndian.Uint64(token[1:]))), nil
}
