package keyvalue_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/dataplane/driver/memory"
	"github.com/prism-gateway/prism/dataplane/pattern/keyvalue"
	"github.com/prism-gateway/prism/shared/fault"
)

var everything = []string{"keyvalue", "keyvalue.list", "keyvalue.scan", "keyvalue.ttl", "keyvalue.version"}

func open(t testing.TB) driver.Instance {
	t.Helper()
	i, err := memory.Driver().Open(driver.Config{Name: "memory"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = i.Close() })
	return i
}

func store(t testing.TB, change func(*keyvalue.Config)) *keyvalue.Store {
	t.Helper()
	cfg := keyvalue.Config{Namespace: "orders", Space: "orders.1", Interfaces: everything, MaxValueBytes: 1 << 20}
	if change != nil {
		change(&cfg)
	}
	if cfg.Instance == nil {
		cfg.Instance = open(t)
	}
	s, err := keyvalue.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func name(key string) driver.Name { return driver.Name{ID: []byte("id"), Key: []byte(key)} }

func fill(t testing.TB, s *keyvalue.Store, n int) {
	t.Helper()
	for i := range n {
		if _, err := s.Write(t.Context(), keyvalue.Write{Name: name(fmt.Sprintf("%05d", i)), Value: []byte("v")}); err != nil {
			t.Fatal(err)
		}
	}
}

func check(t testing.TB, err error, code fault.Code, reason fault.Reason, outcome fault.Outcome) {
	t.Helper()
	f := fault.From(err)
	if f == nil || f.Code != code || f.Reason != reason || f.Outcome != outcome {
		t.Errorf("got %+v, want code %d, %s, %s", f, code, reason, outcome)
	}
}

// slow is a store that takes its time for each item, as one far away does.
type slow struct {
	driver.Instance
	driver.KeyValue
	scanner driver.Scanner
	perItem time.Duration
}

func slowly(i driver.Instance, perItem time.Duration) slow {
	return slow{Instance: i, KeyValue: i.(driver.KeyValue), scanner: i.(driver.Scanner), perItem: perItem}
}

// Scan waits for each item, and gives up with its caller.
func (s slow) Scan(ctx context.Context, space driver.Space, r driver.Range) ([]driver.Item, bool, error) {
	items, more, err := s.scanner.Scan(ctx, space, r)
	timer := time.NewTimer(time.Duration(len(items)) * s.perItem)
	defer timer.Stop()
	select {
	case <-timer.C:
		return items, more, err
	case <-ctx.Done():
		return nil, false, fault.Wrap(ctx.Err(), fault.DeadlineExceeded, fault.Backend, "the time ran out")
	}
}

// ListIDs is that of the store.
func (s slow) ListIDs(ctx context.Context, space driver.Space, cursor []byte, limit int) ([][]byte, []byte, error) {
	return s.Instance.(driver.Lister).ListIDs(ctx, space, cursor, limit)
}

func TestScanIsCutByDeadline(t *testing.T) { // KS-21
	for _, c := range []struct {
		name    string
		perItem time.Duration
		limit   int
		least   int
	}{
		{"between two questions", 100 * time.Microsecond, 10000, 1000},
		{"before the first is answered, by one item", 10 * time.Millisecond, 0, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				i := open(t)
				s := store(t, func(cfg *keyvalue.Config) { cfg.Instance = slowly(i, c.perItem) })
				fill(t, s, 3000)
				ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
				defer cancel()
				page, err := s.Scan(ctx, keyvalue.Scan{ID: []byte("id"), Limit: c.limit})
				if err != nil || !page.Cut || len(page.Items) < c.least || page.Next == nil {
					t.Fatalf("%d items, cut %v, next %x, %v; want at least %d, cut, and a token", len(page.Items), page.Cut, page.Next, err, c.least)
				}
				rest, err := s.Scan(t.Context(), keyvalue.Scan{ID: []byte("id"), Limit: c.limit, Token: page.Next})
				if want := fmt.Sprintf("%05d", len(page.Items)); err != nil || string(rest.Items[0].Key) != want {
					t.Errorf("the next page begins with %q, %v; want %q", rest.Items[0].Key, err, want)
				}
				i.Close()
			})
		})
	}
}

func TestACallThatEndedBeforeItBeganWasNotApplied(t *testing.T) {
	s := store(t, nil)
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	late, stop := context.WithDeadline(t.Context(), time.Unix(0, 0))
	defer stop()
	for _, c := range []struct {
		name   string
		ctx    context.Context
		code   fault.Code
		reason fault.Reason
	}{
		{"KV-28 cancel_before_send_not_applied", cancelled, fault.Cancelled, fault.Client},
		{"KV-29 deadline_in_queue_not_applied", late, fault.DeadlineExceeded, fault.Queue},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := s.Write(c.ctx, keyvalue.Write{Name: name("k")})
			check(t, err, c.code, c.reason, fault.NotApplied)
			_, err = s.BatchWrite(c.ctx, []keyvalue.Write{{Name: name("k")}}, nil)
			check(t, err, c.code, c.reason, fault.NotApplied)
			_, err = s.Get(c.ctx, name("k"), keyvalue.Read{})
			check(t, err, c.code, c.reason, fault.NotApplied)
			_, _, err = s.BatchGet(c.ctx, []driver.Name{name("k")}, keyvalue.Read{})
			check(t, err, c.code, c.reason, fault.NotApplied)
			_, err = s.Scan(c.ctx, keyvalue.Scan{ID: []byte("id")})
			check(t, err, c.code, c.reason, fault.NotApplied)
		})
	}
	if item, err := s.Get(t.Context(), name("k"), keyvalue.Read{}); err != nil || item != nil {
		t.Errorf("the write was done: %v, %v", item, err)
	}
}

// failing is a store whose writes end in an error that says nothing of the outcome, after so many.
type failing struct {
	driver.Instance
	driver.KeyValue
	driver.Scanner
	after *int
}

// BatchWrite does the first writes.
func (f failing) BatchWrite(ctx context.Context, space driver.Space, writes []driver.Write) []driver.WriteResult {
	out := make([]driver.WriteResult, len(writes))
	for i, w := range writes {
		if *f.after == 0 {
			out[i].Err = errors.New("reset by peer")
			continue
		}
		*f.after--
		out[i].Written, out[i].Err = f.Write(ctx, space, w)
	}
	return out
}

func TestAnOutcomeThatADriverDoesNotTellIsUnknown(t *testing.T) {
	i, after := open(t), 1
	s := store(t, func(cfg *keyvalue.Config) {
		cfg.Instance, cfg.Interfaces = failing{i, i.(driver.KeyValue), i.(driver.Scanner), &after}, []string{"keyvalue"}
	})
	out, err := s.BatchWrite(t.Context(), []keyvalue.Write{{Name: name("a")}, {Name: name("b")}}, nil)
	if err != nil || out[0].Err != nil {
		t.Fatal(err, out[0].Err)
	}
	check(t, out[1].Err, fault.Internal, fault.Bug, fault.OutcomeUnknown)
}

func TestDeleteRangeResumesAfterAFailure(t *testing.T) { // KS-13
	i, after := open(t), 1<<30
	s := store(t, func(cfg *keyvalue.Config) {
		cfg.Instance, cfg.Interfaces = failing{i, i.(driver.KeyValue), i.(driver.Scanner), &after}, []string{"keyvalue", "keyvalue.scan"}
	})
	fill(t, s, 100)
	if _, err := s.Write(t.Context(), keyvalue.Write{Name: name(""), Value: []byte("v")}); err != nil {
		t.Fatal(err)
	}
	after = 30
	all := keyvalue.DeleteRange{ID: []byte("id"), All: true}
	deleted, next, err := s.DeleteRange(t.Context(), all)
	if err != nil || deleted != 30 || next == nil {
		t.Fatalf("deleted %d, next %x, %v; want 30 and a token", deleted, next, err)
	}
	after, all.Token = 1<<30, next
	rest, next, err := s.DeleteRange(t.Context(), all)
	if err != nil || deleted+rest != 101 || next != nil {
		t.Errorf("then %d, next %x, %v; want 101 in all", rest, next, err)
	}
	after = 0
	fill(t, s, 1)
	_, _, err = s.DeleteRange(t.Context(), keyvalue.DeleteRange{ID: []byte("id"), All: true})
	check(t, err, fault.Internal, fault.Bug, fault.OutcomeUnknown)
}

// oneFails is a store whose batches fail for the write of one key.
type oneFails struct {
	driver.Instance
	driver.KeyValue
	driver.Scanner
	key string
}

// BatchWrite does the other writes.
func (f oneFails) BatchWrite(ctx context.Context, space driver.Space, writes []driver.Write) []driver.WriteResult {
	out := make([]driver.WriteResult, len(writes))
	for i, w := range writes {
		if string(w.Key) == f.key {
			out[i].Err = errors.New("reset by peer")
			continue
		}
		out[i].Written, out[i].Err = f.Write(ctx, space, w)
	}
	return out
}

func TestDeleteRangeCountsAllThatIsGone(t *testing.T) {
	i := open(t)
	s := store(t, func(cfg *keyvalue.Config) {
		cfg.Instance, cfg.Interfaces = oneFails{i, i.(driver.KeyValue), i.(driver.Scanner), "00003"}, []string{"keyvalue", "keyvalue.scan"}
	})
	fill(t, s, 10)
	deleted, next, err := s.DeleteRange(t.Context(), keyvalue.DeleteRange{ID: []byte("id"), All: true})
	if err != nil || deleted != 9 || next == nil {
		t.Errorf("deleted %d, next %x, %v; want 9 and a token", deleted, next, err)
	}
}

func TestExpiry(t *testing.T) {
	at := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	now := func() time.Time { return at }
	for _, c := range []struct {
		name       string
		defaultTTL time.Duration
		first      keyvalue.Expiry
		second     keyvalue.Expiry
		want       time.Time
	}{
		{"nothing said, no default: never", 0, keyvalue.Expiry{}, keyvalue.Expiry{}, time.Time{}},
		{"nothing said: the default", time.Hour, keyvalue.Expiry{}, keyvalue.Expiry{}, at.Add(time.Hour)},
		{"never undoes", time.Hour, keyvalue.Expiry{}, keyvalue.Expiry{Kind: keyvalue.ExpiryNever}, time.Time{}},
		{"a new life replaces", 0, keyvalue.Expiry{Kind: keyvalue.ExpiryAfter, TTL: time.Hour}, keyvalue.Expiry{Kind: keyvalue.ExpiryAfter, TTL: time.Minute}, at.Add(time.Minute)},
		{"keep keeps", time.Hour, keyvalue.Expiry{Kind: keyvalue.ExpiryAfter, TTL: time.Minute}, keyvalue.Expiry{Kind: keyvalue.ExpiryKeep}, at.Add(time.Minute)},
		{"keep keeps never", time.Hour, keyvalue.Expiry{Kind: keyvalue.ExpiryNever}, keyvalue.Expiry{Kind: keyvalue.ExpiryKeep}, time.Time{}},
		{"keep of a new item: the default", time.Hour, keyvalue.Expiry{Kind: keyvalue.ExpiryKeep}, keyvalue.Expiry{Kind: keyvalue.ExpiryKeep}, at.Add(time.Hour)},
		{"an absolute time", 0, keyvalue.Expiry{}, keyvalue.Expiry{Kind: keyvalue.ExpiryAt, At: at.Add(time.Second)}, at.Add(time.Second)},
	} {
		t.Run(c.name, func(t *testing.T) {
			i, err := memory.Driver().Open(driver.Config{Name: "memory", Now: now})
			if err != nil {
				t.Fatal(err)
			}
			defer i.Close()
			s := store(t, func(cfg *keyvalue.Config) { cfg.Instance, cfg.Now, cfg.DefaultTTL = i, now, c.defaultTTL })
			for _, e := range []keyvalue.Expiry{c.first, c.second} {
				if _, err := s.Write(t.Context(), keyvalue.Write{Name: name("k"), Expiry: e}); err != nil {
					t.Fatal(err)
				}
			}
			if item, err := s.Get(t.Context(), name("k"), keyvalue.Read{}); err != nil || !item.ExpireAt.Equal(c.want) {
				t.Errorf("expires at %v, %v; want %v", item.ExpireAt, err, c.want)
			}
		})
	}
}

func TestNewRefusesWhatCannotBeServed(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*keyvalue.Config)
	}{
		{"no basic interface", func(c *keyvalue.Config) { c.Interfaces = []string{"keyvalue.ttl"} }},
		{"an interface that no build has", func(c *keyvalue.Config) { c.Interfaces = []string{"keyvalue", "keyvalue.outbox"} }},
		{"a scan that the driver cannot do", func(c *keyvalue.Config) { c.Instance = noScan{c.Instance, c.Instance.(driver.KeyValue)} }},
		{"a default life without keyvalue.ttl", func(c *keyvalue.Config) { c.DefaultTTL, c.Interfaces = 1, []string{"keyvalue"} }},
		{"no bound for values", func(c *keyvalue.Config) { c.MaxValueBytes = 0 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := keyvalue.Config{Instance: open(t), Space: "orders.1", Interfaces: everything, MaxValueBytes: 1}
			c.change(&cfg)
			if _, err := keyvalue.New(cfg); err == nil {
				t.Error("no error")
			}
		})
	}
}

// noScan hides what a driver can do beyond the basics.
type noScan struct {
	driver.Instance
	driver.KeyValue
}

// FuzzPageToken holds that no bytes but a token of the query are taken, and none crash.
func FuzzPageToken(f *testing.F) {
	s := store(f, nil)
	fill(f, s, 3)
	page, err := s.Scan(f.Context(), keyvalue.Scan{ID: []byte("id"), Limit: 1})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(page.Next)
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, token []byte) {
		got, err := s.Scan(t.Context(), keyvalue.Scan{ID: []byte("id"), Limit: 1, Token: token})
		if len(token) == 0 || string(token) == string(page.Next) {
			if err != nil || len(got.Items) != 1 {
				t.Errorf("%v, %v", got, err)
			}
			return
		}
		check(t, err, fault.Invalid, fault.PageToken, fault.NotApplied)
	})
}
