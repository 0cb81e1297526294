package keyvalue_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/dataplane/driver/memory"
	"github.com/prism-gateway/prism/dataplane/pattern/keyvalue"
	"github.com/prism-gateway/prism/shared/fault"
)

// counted is a store that counts its reads and fails when it is told to.
type counted struct {
	driver.Instance
	driver.KeyValue
	driver.Scanner
	gets atomic.Int64
	down atomic.Bool

	mu    sync.Mutex // guards order, and orders writes
	order map[string]int
}

// written says as how many-th a version was written.
func (c *counted) written(version []byte) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.order[string(version)]
}

var errDown = fault.New(fault.Unavailable, fault.BackendDown, "down").WithOutcome(fault.NotApplied)

func newCounted(t *testing.T) *counted {
	i, err := memory.Driver().Open(driver.Config{Name: "m"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { i.Close() })
	return &counted{Instance: i, KeyValue: i.(driver.KeyValue), Scanner: i.(driver.Scanner), order: map[string]int{}}
}

// Get counts.
func (c *counted) Get(ctx context.Context, s driver.Space, n driver.Name, headOnly bool) (*driver.Item, error) {
	c.gets.Add(1)
	if c.down.Load() {
		return nil, errDown
	}
	return c.KeyValue.Get(ctx, s, n, headOnly)
}

// Write fails when it is told to.
func (c *counted) Write(ctx context.Context, s driver.Space, w driver.Write) (driver.Written, error) {
	if c.down.Load() {
		return driver.Written{}, errDown
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	done, err := c.KeyValue.Write(ctx, s, w)
	c.order[string(done.Version)] = len(c.order) + 1
	return done, err
}

// BatchWrite fails when it is told to.
func (c *counted) BatchWrite(ctx context.Context, s driver.Space, w []driver.Write) []driver.WriteResult {
	if !c.down.Load() {
		return c.KeyValue.BatchWrite(ctx, s, w)
	}
	out := make([]driver.WriteResult, len(w))
	for i := range out {
		out[i].Err = errDown
	}
	return out
}

// cached makes a proxy's store over storage and cache.
func cached(t *testing.T, storage, cache driver.Instance, of keyvalue.Consistency) *keyvalue.Store {
	s, err := keyvalue.New(keyvalue.Config{
		Namespace: "orders", Space: "orders.1", Instance: storage, Cache: cache, MaxStaleness: 5 * time.Second,
		Interfaces: []string{"keyvalue", "keyvalue.scan", "keyvalue.ttl", "keyvalue.version"}, Consistency: of, MaxValueBytes: 1 << 20,
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestCopiesAnswerReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage, copies := newCounted(t), newCounted(t)
		a, b := cached(t, storage, copies, keyvalue.Eventual), cached(t, storage, copies, keyvalue.Eventual)
		put := func(s *keyvalue.Store, value string) {
			t.Helper()
			w := keyvalue.Write{Name: name("k"), Value: []byte(value), ContentType: "text/plain", Metadata: map[string]string{"a": "b"}}
			if _, err := s.Write(t.Context(), w); err != nil {
				t.Fatal(err)
			}
		}
		// asks reads and demands a value and whether the storage was asked.
		asks := func(s *keyvalue.Store, r keyvalue.Read, want string, asked bool) {
			t.Helper()
			before := storage.gets.Load()
			it, err := s.Get(t.Context(), name("k"), r)
			if err != nil {
				t.Fatal(err)
			}
			got := "absent"
			if it != nil {
				got = string(it.Value)
			}
			if n := storage.gets.Load() - before; got != want || (n > 0) != asked {
				t.Errorf("got %s, the storage was asked %d times; want %s, asked: %v", got, n, want, asked)
			}
		}
		asks(a, keyvalue.Read{}, "absent", true)
		asks(b, keyvalue.Read{}, "absent", false)
		put(a, "one")
		asks(b, keyvalue.Read{}, "one", true)
		asks(a, keyvalue.Read{}, "one", false)
		if it, err := a.Get(t.Context(), name("k"), keyvalue.Read{}); err != nil || it.ContentType != "text/plain" || it.Metadata["a"] != "b" ||
			len(it.Version) == 0 || it.ModifiedAt.IsZero() {
			t.Errorf("a copy is %+v, %v", it, err)
		}
		if it, err := a.Get(t.Context(), name("k"), keyvalue.Read{HeadOnly: true}); err != nil || it.Value != nil || it.Size != 3 {
			t.Errorf("the head of a copy is %+v, %v", it, err)
		}
		put(b, "two")
		asks(a, keyvalue.Read{}, "two", true)
		asks(b, keyvalue.Read{Consistency: keyvalue.Eventual}, "two", false)

		// What is written behind the proxies' backs is seen when the copy is as old as it may be.
		if _, err := storage.Write(t.Context(), "orders.1", driver.Write{Name: name("k"), Value: []byte("three")}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(4900 * time.Millisecond)
		asks(a, keyvalue.Read{}, "two", false)
		time.Sleep(100 * time.Millisecond)
		asks(a, keyvalue.Read{}, "three", true)

		// A commit token is not answered by an older copy.
		token := a.CommitToken()
		asks(b, keyvalue.Read{AtLeast: token}, "three", true)
		time.Sleep(2 * time.Second)
		asks(b, keyvalue.Read{}, "three", false)
		put(a, "four")
		asks(b, keyvalue.Read{}, "four", true)
		asks(b, keyvalue.Read{AtLeast: token}, "four", false)
		if _, err := a.Get(t.Context(), name("k"), keyvalue.Read{AtLeast: []byte("no token")}); !fault.Is(err, fault.Field) {
			t.Errorf("an odd commit token: %v", err)
		}
	})
}

func TestCopiesOfItemsThatExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := cached(t, newCounted(t), newCounted(t), keyvalue.Eventual)
		w := keyvalue.Write{Name: name("k"), Value: []byte("v"), Expiry: keyvalue.Expiry{Kind: keyvalue.ExpiryAfter, TTL: time.Second}}
		if _, err := s.Write(t.Context(), w); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if it, err := s.Get(t.Context(), name("k"), keyvalue.Read{}); err != nil || it == nil || it.ExpireAt.IsZero() {
				t.Fatalf("got %+v, %v", it, err)
			}
		}
		time.Sleep(time.Second)
		if it, err := s.Get(t.Context(), name("k"), keyvalue.Read{}); err != nil || it != nil {
			t.Errorf("an expired copy is visible: %+v, %v", it, err)
		}
	})
}

func TestReadYourWritesAsksTheStorageWithoutAToken(t *testing.T) {
	storage := newCounted(t)
	s := cached(t, storage, newCounted(t), keyvalue.ReadYourWrites)
	for range 3 {
		if _, err := s.Get(t.Context(), name("k"), keyvalue.Read{}); err != nil {
			t.Fatal(err)
		}
	}
	if n := storage.gets.Load(); n != 3 {
		t.Errorf("the storage was asked %d times, want 3", n)
	}
}

// TestCacheThatIsAway fails no call, and its copies are not trusted after a write that could not end them.
func TestCacheThatIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage, copies := newCounted(t), newCounted(t)
		s := cached(t, storage, copies, keyvalue.Eventual)
		write := func(value string) {
			t.Helper()
			if _, err := s.Write(t.Context(), keyvalue.Write{Name: name("k"), Value: []byte(value)}); err != nil {
				t.Fatal(err)
			}
		}
		reads := func(want string) {
			t.Helper()
			if it, err := s.Get(t.Context(), name("k"), keyvalue.Read{}); err != nil || string(it.Value) != want {
				t.Fatalf("got %+v, %v, want %s", it, err, want)
			}
		}
		write("one")
		reads("one")
		copies.down.Store(true)
		reads("one")
		write("two")
		reads("two")
		copies.down.Store(false) // with the copy of one in it
		reads("two")
		time.Sleep(6 * time.Second)
		reads("two")
		before := storage.gets.Load()
		reads("two")
		if storage.gets.Load() != before {
			t.Error("the cache is not used again")
		}
	})
}

// TestNoStaleReadAfterOwnWrite writes and reads through two proxies that share storage and cache, beside readers that
// fill the cache all the time: a write that returned is seen by every read that begins after it.
func TestNoStaleReadAfterOwnWrite(t *testing.T) {
	storage, copies := newCounted(t), newCounted(t)
	proxies := []*keyvalue.Store{cached(t, storage, copies, keyvalue.Eventual), cached(t, storage, copies, keyvalue.Eventual)}
	ctx, stop := context.WithCancel(t.Context())
	var readers, writers sync.WaitGroup
	const keys, writes = 4, 300
	for n := range 4 {
		readers.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				if _, err := proxies[n%2].Get(ctx, name(fmt.Sprint(i%keys)), keyvalue.Read{}); err != nil && !errors.Is(err, context.Canceled) && fault.From(err).Code != fault.Cancelled {
					t.Error(err)
					return
				}
			}
		})
	}
	for key := range keys {
		for writer := range 2 { // two of each key, through different proxies
			writers.Go(func() {
				for n := range writes {
					done, err := proxies[writer].Write(ctx, keyvalue.Write{Name: name(fmt.Sprint(key)), Value: strconv.AppendInt(nil, int64(n), 10)})
					if err != nil {
						t.Error(err)
						return
					}
					for _, p := range proxies {
						it, err := p.Get(ctx, name(fmt.Sprint(key)), keyvalue.Read{})
						if err != nil || it == nil {
							t.Errorf("got %v, %v", it, err)
							return
						}
						if mine, got := storage.written(done.Version), storage.written(it.Version); got < mine {
							t.Errorf("key %d: the write was number %d, and a read after it got number %d", key, mine, got)
							return
						}
					}
				}
			})
		}
	}
	writers.Wait()
	stop()
	readers.Wait()
}
