package redis_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/dataplane/driver/conformance"
	"github.com/prism-gateway/prism/dataplane/driver/redis"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/testserver/redisserver"
)

func client(t *testing.T, s *redisserver.Server) *goredis.Client {
	c := goredis.NewClient(&goredis.Options{Addr: s.Addr(), Protocol: 2})
	t.Cleanup(func() { c.Close() })
	return c
}

// TestConformanceInAClusterNode runs the suite in cluster mode, where a script that touches two slots is refused.
func TestConformanceInAClusterNode(t *testing.T) {
	server := redisserver.Start(t, redisserver.Options{Args: []string{"--cluster-enabled", "yes"}})
	raw := client(t, server)
	slots := []any{"cluster", "addslots"}
	for slot := range 16384 {
		slots = append(slots, slot)
	}
	if err := raw.Do(t.Context(), slots...).Err(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for !strings.Contains(raw.ClusterInfo(ctx).Val(), "cluster_state:ok") {
		if ctx.Err() != nil {
			t.Fatal("the cluster does not come up")
		}
	}
	b := backend(server)
	b.Stop, b.Start = nil, nil
	conformance.Run(t, b)
}

// keys returns the keys of indexes, and the items' keys.
func keys(t *testing.T, raw *goredis.Client) (indexes, items []string) {
	t.Helper()
	all, err := raw.Keys(t.Context(), "*").Result()
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range all {
		if k[10] == 'x' {
			indexes = append(indexes, k)
		} else {
			items = append(items, k)
		}
	}
	return indexes, items
}

// TestRedisRemovesWhatExpired looks at the expiries that Redis was told (KT-18): each item's a grace after its own, the
// index's with the last of its items, none when one stays for ever.
func TestRedisRemovesWhatExpired(t *testing.T) {
	server := redisserver.Start(t, redisserver.Options{})
	raw := client(t, server)
	begin := time.Now()
	s := open(t, driver.Config{Endpoints: []string{server.Addr()}, Now: func() time.Time { return begin }})
	const space, grace = "s.1", 10 * time.Second
	index := func() time.Duration {
		t.Helper()
		x, _ := keys(t, raw)
		if len(x) != 1 {
			t.Fatalf("indexes %q, want one", x)
		}
		return raw.PTTL(t.Context(), x[0]).Val()
	}
	within := func(got, want time.Duration) {
		t.Helper()
		if got > want || got < want-time.Minute {
			t.Errorf("lives %v more, want %v less what the test took", got, want)
		}
	}
	expiring := func(key string, in time.Duration) driver.Write {
		w := put("a", key, "v")
		w.ExpireAt = begin.Add(in)
		return w
	}
	mustWrite(t, s, space, expiring("1", time.Hour))
	_, items := keys(t, raw)
	within(raw.PTTL(t.Context(), items[0]).Val(), time.Hour+grace)
	within(index(), time.Hour+grace)
	mustWrite(t, s, space, expiring("2", 3*time.Hour), expiring("3", 2*time.Hour))
	within(index(), 3*time.Hour+grace)
	mustWrite(t, s, space, put("a", "4", "v"))
	if got := index(); got >= 0 {
		t.Errorf("the index of an item that stays for ever lives %v more", got)
	}
	mustWrite(t, s, space, expiring("4", time.Hour), driver.Write{Op: driver.Touch, Name: put("a", "1", "").Name})
	for _, key := range []string{"1", "2", "3", "4"} {
		w := put("a", key, "")
		w.Op = driver.Delete
		mustWrite(t, s, space, w)
	}
	if x, items := keys(t, raw); len(x)+len(items) != 0 {
		t.Errorf("left over: %q %q", x, items)
	}
}

// TestIndexForgetsWhatRedisRemoved takes items away behind the driver's back, as Redis does when they expire.
func TestIndexForgetsWhatRedisRemoved(t *testing.T) {
	server := redisserver.Start(t, redisserver.Options{})
	raw := client(t, server)
	s := open(t, driver.Config{Endpoints: []string{server.Addr()}})
	const space = "s.1"
	fill := func() {
		for n := range 50 {
			mustWrite(t, s, space, put("a", fmt.Sprint(n), "v"))
		}
		_, items := keys(t, raw)
		raw.Del(t.Context(), items...)
	}
	size := func() int64 {
		x, _ := keys(t, raw)
		if len(x) == 0 {
			return 0
		}
		return raw.ZCard(t.Context(), x[0]).Val()
	}
	fill()
	if ids, next, err := s.ListIDs(t.Context(), space, nil, 10); len(ids) != 0 || next != nil || err != nil {
		t.Errorf("an id without items is listed: %q, %q, %v", ids, next, err)
	}
	items, more, err := s.Scan(t.Context(), space, driver.Range{ID: []byte("a"), Limit: 5, MaxBytes: 1 << 20})
	if len(items) != 0 || more || err != nil {
		t.Errorf("scan: %v, %v, %v", items, more, err)
	}
	if n := size(); n != 0 {
		t.Errorf("the index has %d keys after a scan, want none", n)
	}
	fill()
	for n := range 60 {
		w := put("a", fmt.Sprint("new ", n), "v")
		w.ExpireAt = time.Now().Add(time.Hour)
		mustWrite(t, s, space, w)
	}
	if n := size(); n < 60 || n > 80 {
		t.Errorf("the index has %d keys after 60 writes, want 60 and few of the 50 that are gone", n)
	}
}

// TestIndexEndsAfterTheLastLastingItem leaves only items that expire: their index must not stay when they have gone.
func TestIndexEndsAfterTheLastLastingItem(t *testing.T) {
	server := redisserver.Start(t, redisserver.Options{})
	raw := client(t, server)
	begin := time.Now()
	s := open(t, driver.Config{Endpoints: []string{server.Addr()}, Now: func() time.Time { return begin }})
	for name, last := range map[string]driver.Write{
		"removed":         {Op: driver.Delete, Name: put("a", "lasting", "").Name},
		"made to expire":  {Op: driver.Put, Name: put("a", "lasting", "").Name, ExpireAt: begin.Add(time.Hour)},
		"touched, so too": {Op: driver.Touch, Name: put("a", "lasting", "").Name, ExpireAt: begin.Add(time.Hour)},
	} {
		t.Run(name, func(t *testing.T) {
			raw.FlushAll(t.Context())
			long := put("a", "long", "v")
			long.ExpireAt = begin.Add(3 * time.Hour)
			mustWrite(t, s, "s.1", long, put("a", "lasting", "v"), put("a", "other", "v"))
			x, _ := keys(t, raw)
			mustWrite(t, s, "s.1", driver.Write{Op: driver.Delete, Name: put("a", "other", "").Name})
			if left := raw.PTTL(t.Context(), x[0]).Val(); left >= 0 {
				t.Errorf("the index of an item that stays for ever lives %v more", left)
			}
			mustWrite(t, s, "s.1", last)
			if left := raw.PTTL(t.Context(), x[0]).Val(); left < 2*time.Hour || left > 4*time.Hour {
				t.Errorf("the index lives %v more, want as long as the item that has three hours", left)
			}
		})
	}
}

// TestAScriptLooksAtFewDeadKeys has an index of thousands whose items Redis removed.
func TestAScriptLooksAtFewDeadKeys(t *testing.T) {
	server := redisserver.Start(t, redisserver.Options{})
	raw := client(t, server)
	s := open(t, driver.Config{Endpoints: []string{server.Addr()}})
	const dead = 5000
	fill := func() (index string) {
		raw.FlushAll(t.Context())
		mustWrite(t, s, "s.1", put("a", "000", "v"), put("a", "zzz", "v"))
		x, _ := keys(t, raw)
		members := make([]goredis.Z, dead)
		for n := range members {
			members[n].Member = fmt.Sprintf("k%05d", n)
		}
		raw.ZAdd(t.Context(), x[0], members...)
		return x[0]
	}
	for name, tc := range map[string]struct {
		reverse bool
		first   string
		from    []byte
		until   []byte
		second  string
	}{
		"forward": {first: "000", from: []byte("001"), second: "zzz"},
		"reverse": {reverse: true, first: "zzz", until: []byte("zzz"), second: "000"},
	} {
		t.Run(name, func(t *testing.T) {
			index := fill()
			r := driver.Range{ID: []byte("a"), Limit: 5, MaxBytes: 1 << 20, Reverse: tc.reverse}
			items, more, err := s.Scan(t.Context(), "s.1", r)
			if err != nil || !more || len(items) != 1 || string(items[0].Key) != tc.first {
				t.Fatalf("got %v, more %v, %v, want the first item and that there may be more", items, more, err)
			}
			if left := raw.ZCard(t.Context(), index).Val(); left < dead/2 {
				t.Errorf("one call looked at %d keys", dead+2-left)
			}
			r.Start, r.End = tc.from, tc.until
			items, more, err = s.Scan(t.Context(), "s.1", r)
			if err != nil || more || len(items) != 1 || string(items[0].Key) != tc.second {
				t.Errorf("got %v, more %v, %v, want the item behind the dead keys", items, more, err)
			}
			if left := raw.ZCard(t.Context(), index).Val(); left != 2 {
				t.Errorf("the index has %d keys, want those of the two items", left)
			}
		})
	}
	list := func() (ids [][]byte) {
		t.Helper()
		var cursor []byte
		for {
			page, next, err := s.ListIDs(t.Context(), "s.1", cursor, 10)
			if err != nil {
				t.Fatal(err)
			}
			if ids, cursor = append(ids, page...), next; next == nil {
				return ids
			}
		}
	}
	fill()
	mustWrite(t, s, "s.1", driver.Write{Op: driver.Delete, Name: put("a", "000", "").Name})
	if ids := list(); len(ids) != 1 {
		t.Errorf("listed %q, want the id whose item is behind the dead keys", ids)
	}
	fill()
	for _, key := range []string{"000", "zzz"} {
		mustWrite(t, s, "s.1", driver.Write{Op: driver.Delete, Name: put("a", key, "").Name})
	}
	if ids := list(); len(ids) != 0 {
		t.Errorf("an id without items is listed: %q", ids)
	}
	if x, _ := keys(t, raw); len(x) != 0 {
		t.Errorf("the index of an id without items stays: %q", x)
	}
}

// TestWhatIsNoItem puts something else in an item's place.
func TestWhatIsNoItem(t *testing.T) {
	server := redisserver.Start(t, redisserver.Options{})
	raw := client(t, server)
	s := open(t, driver.Config{Endpoints: []string{server.Addr()}})
	mustWrite(t, s, "s.1", put("a", "k", "v"))
	_, items := keys(t, raw)
	for _, text := range []string{"x", strings.Repeat("x", 100), "\x01" + strings.Repeat("\x00", 32) + strings.Repeat("\xff", 100)} {
		raw.Set(t.Context(), items[0], text, 0)
		if it, err := s.Get(t.Context(), "s.1", put("a", "k", "").Name, false); !fault.Is(err, fault.Checksum) {
			t.Errorf("%.10q: got %v, %v", text, it, err)
		}
	}
	raw.Set(t.Context(), items[0], "x", 0)
	if _, err := s.Write(t.Context(), "s.1", put("a", "k", "w")); is(err, fault.DataLoss, fault.Checksum, fault.NotApplied) != nil {
		t.Errorf("write: %v", err)
	}

	// A value of another type under the item's key, then under the index's.
	raw.Del(t.Context(), items[0])
	raw.LPush(t.Context(), items[0], "x")
	foreign := func(what string, err error, outcome fault.Outcome) {
		t.Helper()
		if err := is(err, fault.DataLoss, fault.Checksum, outcome); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	get := func(key string, headOnly bool) error {
		_, err := s.Get(t.Context(), "s.1", put("a", key, "").Name, headOnly)
		return err
	}
	scan := func() error {
		_, _, err := s.Scan(t.Context(), "s.1", driver.Range{ID: []byte("a"), Limit: 5, MaxBytes: 1 << 20})
		return err
	}
	write := func(key string) error {
		_, err := s.Write(t.Context(), "s.1", put("a", key, "w"))
		return err
	}
	foreign("get of a list", get("k", false), "")
	foreign("head of a list", get("k", true), "")
	foreign("put over a list", write("k"), fault.OutcomeUnknown)
	foreign("scan over a list", scan(), "")
	indexes, _ := keys(t, raw)
	raw.Del(t.Context(), items[0], indexes[0])
	raw.Set(t.Context(), indexes[0], "x", 0)
	foreign("put beside a foreign index", write("other"), fault.OutcomeUnknown)
	foreign("scan of a foreign index", scan(), "")
	_, _, err := s.ListIDs(t.Context(), "s.1", nil, 10)
	foreign("list of a foreign index", err, "")
	if err := get("other", false); err != nil {
		t.Errorf("get beside a foreign index: %v", err)
	}
}

// TestPagesOfOneLongID lists ids one by one although the server gives them in larger parts.
func TestPagesOfOneLongID(t *testing.T) {
	server := redisserver.Start(t, redisserver.Options{})
	s := open(t, driver.Config{Endpoints: []string{server.Addr()}})
	want := map[string]bool{}
	for n := range 40 {
		id := fmt.Sprintf("%04d", n) + strings.Repeat("x", 1020)
		want[id] = true
		mustWrite(t, s, "s.1", put(id, "k", "v"))
	}
	var cursor []byte
	for range 200 {
		ids, next, err := s.ListIDs(t.Context(), "s.1", cursor, 1)
		if err != nil || len(ids) > 1 || len(next) > driver.MaxCursor {
			t.Fatalf("%d ids, a cursor of %d bytes, %v", len(ids), len(next), err)
		}
		for _, id := range ids {
			delete(want, string(id))
		}
		if cursor = next; next == nil {
			break
		}
	}
	if len(want) > 0 || cursor != nil {
		t.Errorf("%d ids were not listed", len(want))
	}
}

func TestDatabasesAreApart(t *testing.T) {
	server := redisserver.Start(t, redisserver.Options{})
	one := open(t, driver.Config{Endpoints: []string{server.Addr()}, Settings: map[string]string{"database": "1"}})
	zero := open(t, driver.Config{Endpoints: []string{server.Addr()}})
	mustWrite(t, one, "s.1", put("a", "k", "v"))
	if it, err := zero.Get(t.Context(), "s.1", put("a", "k", "").Name, false); it != nil || err != nil {
		t.Errorf("database 0 has %v, %v", it, err)
	}
	if it, err := one.Get(t.Context(), "s.1", put("a", "k", "").Name, false); it == nil || err != nil {
		t.Errorf("database 1 has %v, %v", it, err)
	}
}

func TestOpenRefuses(t *testing.T) {
	for name, cfg := range map[string]driver.Config{
		"no endpoint":       {},
		"two endpoints":     {Endpoints: []string{"a:1", "b:1"}},
		"no port":           {Endpoints: []string{"localhost"}},
		"unknown setting":   {Endpoints: []string{"a:1"}, Settings: map[string]string{"tls": "true"}},
		"odd database":      {Endpoints: []string{"a:1"}, Settings: map[string]string{"database": "one"}},
		"negative database": {Endpoints: []string{"a:1"}, Settings: map[string]string{"database": "-1"}},
	} {
		t.Run(name, func(t *testing.T) {
			if s, err := redis.Driver().Open(cfg); err == nil {
				s.Close()
				t.Error("opened")
			}
		})
	}
}
