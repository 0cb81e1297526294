package conformance

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/prism-gateway/prism/dataplane/driver"
)

func scanCases() []Case {
	scans := in("keyvalue.scan",
		Case{ID: "KS-01", Name: "prefix_as_range", Run: func(t *testing.T, e *Env) {
			for _, key := range []string{"user", "user-", "user-1", "user-2", "user.", "users", "usep"} {
				e.must(put("a", key, key))
			}
			e.must(put("b", "user-3", "other id"))
			e.scans(driver.Range{Start: []byte("user-"), End: []byte("user.")}, "user- user-1 user-2")
		}},
		Case{ID: "KS-02", Name: "patterns_are_literal", Run: func(t *testing.T, e *Env) {
			for _, key := range []string{"a%b", "a_b", "a*b", "a?b", "a[b]", `a\b`, "axb", "ab"} {
				e.must(put("a", key, "v"))
			}
			for _, p := range []string{"a%", "a_", "a*", "a?", "a[", `a\`} {
				e.scans(driver.Range{Start: []byte(p), End: []byte(p[:1] + string(p[1]+1))}, func() string {
					return map[string]string{"a%": "a%b", "a_": "a_b", "a*": "a*b", "a?": "a?b", "a[": "a[b]", `a\`: `a\b`}[p]
				}())
			}
		}},
		Case{ID: "KS-03", Name: "pages_continue_after_the_last_key", Run: func(t *testing.T, e *Env) {
			var want []string
			for n := range 25 {
				key := fmt.Sprintf("%02d", n)
				want = append(want, key)
				e.must(put("a", key, "v"))
			}
			for _, limit := range []int{1, 5, 24, 25, 26} {
				e.scans(driver.Range{Limit: limit}, strings.Join(want, " "))
			}
			items, more, err := e.scanner().Scan(t.Context(), e.Space, driver.Range{ID: []byte("a"), Limit: 25, MaxBytes: 1 << 20})
			if err != nil || more || len(items) != 25 {
				t.Errorf("a full page with nothing after it: %d items, more %v, %v", len(items), more, err)
			}
		}},
		Case{ID: "KS-04", Name: "1025_keys_in_one_page", Run: func(t *testing.T, e *Env) {
			var writes []driver.Write
			for n := range 1025 {
				writes = append(writes, put("a", fmt.Sprintf("%04d", n), "v"))
			}
			e.batch(writes...)
			items, more, err := e.scanner().Scan(t.Context(), e.Space, driver.Range{ID: []byte("a"), Limit: 2000, MaxBytes: 1 << 20})
			if err != nil || more || len(items) != 1025 {
				t.Errorf("%d items, more %v, %v", len(items), more, err)
			}
		}},
		Case{ID: "KS-05", Name: "escaping", Run: func(t *testing.T, e *Env) {
			keys := []string{"", "\x00", "\x00\x00", "\x00\xff", "\x01", "||", "a||b", "key:1", "key/1", "{", "}", "[", "(", "-", "+", "\xff", "\xff\x00", "\xff\xff", "é"}
			for _, key := range keys {
				e.must(put("a", key, "v"))
			}
			slices.Sort(keys)
			e.scans(driver.Range{Limit: 3}, strings.Join(keys, " "))
		}},
		Case{ID: "KS-06", Name: "deleted_during_paging", Run: func(t *testing.T, e *Env) {
			for n := range 10 {
				e.must(put("a", fmt.Sprint(n), "v"))
			}
			r := driver.Range{ID: []byte("a"), Limit: 3, MaxBytes: 1 << 20}
			items, more, err := e.scanner().Scan(t.Context(), e.Space, r)
			if err != nil || !more || keysOf(items) != "0 1 2" {
				t.Fatalf("got %s, more %v, %v", keysOf(items), more, err)
			}
			for _, key := range []string{"2", "3", "5"} { // the key that the next page starts after, too
				e.must(remove("a", key))
			}
			r.Start = []byte("2\x00")
			items, more, err = e.scanner().Scan(t.Context(), e.Space, r)
			if err != nil || !more || keysOf(items) != "4 6 7" {
				t.Errorf("got %s, more %v, %v", keysOf(items), more, err)
			}
		}},
		Case{ID: "KS-07", Name: "items_are_whole", Run: func(t *testing.T, e *Env) {
			w := e.untilIfAble(put("a", "k", "v"), e.Clock.Now().Add(1<<40))
			w.ContentType, w.Metadata = "text/plain", map[string]string{"m": "1"}
			done := e.must(w)
			items, _, err := e.scanner().Scan(t.Context(), e.Space, driver.Range{ID: []byte("a"), Limit: 10, MaxBytes: 1 << 20})
			if err != nil || len(items) != 1 {
				t.Fatalf("got %+v, %v", items, err)
			}
			it := items[0]
			e.expires(it.ExpireAt, w.ExpireAt)
			if string(it.ID) != "a" || string(it.Key) != "k" || string(it.Value) != "v" || string(it.Version) != string(done.Version) ||
				it.ContentType != "text/plain" || it.Metadata["m"] != "1" || it.ModifiedAt.IsZero() {
				t.Errorf("got %+v", it)
			}
		}},
		Case{ID: "KS-14", Name: "order_is_byte_order", Run: func(t *testing.T, e *Env) {
			keys := []string{"", "\x00", "\x01", " ", "1", "10", "2", "A", "B", "a", "a\x00", "aa", "b", "\x7f", "\x80", "\xc3\xa9", "\xff"}
			for _, n := range []int{5, 1, 9, 16, 3, 0, 14, 12, 7, 2, 10, 4, 6, 8, 11, 13, 15} {
				e.must(put("a", keys[n], "v"))
			}
			slices.Sort(keys)
			e.scans(driver.Range{Limit: 100}, strings.Join(keys, " "))
		}},
		Case{ID: "KS-15", Name: "reverse", Run: func(t *testing.T, e *Env) {
			for _, key := range strings.Fields("a b c d e") {
				e.must(put("a", key, "v"))
			}
			e.scans(driver.Range{Reverse: true, Limit: 10}, "e d c b a")
			e.scans(driver.Range{Reverse: true, Limit: 2}, "e d c b a")
			e.scans(driver.Range{Reverse: true, Limit: 2, Start: []byte("b"), End: []byte("d")}, "c b")
		}},
		Case{ID: "KS-16", Name: "start_inclusive_end_exclusive", Run: func(t *testing.T, e *Env) {
			for _, key := range []string{"", "a", "b", "b\x00", "c"} {
				e.must(put("a", key, "v"))
			}
			for _, c := range []struct {
				start, end string
				want       string
			}{{"a", "c", "a b b\x00"}, {"b", "b\x00", "b"}, {"b\x00", "c", "b\x00"}, {"b", "b", "none"}, {"c", "a", "none"}, {"", "a", ""}, {"bb", "z", "c"}} {
				for _, reverse := range []bool{false, true} {
					items, more, err := e.scanner().Scan(t.Context(), e.Space,
						driver.Range{ID: []byte("a"), Start: []byte(c.start), End: []byte(c.end), Limit: 10, MaxBytes: 1 << 20, Reverse: reverse})
					if reverse {
						slices.Reverse(items)
					}
					got := keysOf(items)
					if len(items) == 0 {
						got = "none"
					}
					if err != nil || more || got != c.want {
						t.Errorf("from %q to %q: %q, more %v, %v; want %q", c.start, c.end, got, more, err, c.want)
					}
				}
			}
			items, _, err := e.scanner().Scan(t.Context(), e.Space, driver.Range{ID: []byte("a"), End: []byte{}, Limit: 10, MaxBytes: 1 << 20})
			if err != nil || len(items) != 0 {
				t.Errorf("to the empty key, exclusive: %q, %v", keysOf(items), err)
			}
		}},
		Case{ID: "KS-17", Name: "keys_only", Run: func(t *testing.T, e *Env) {
			done := e.must(put("a", "k", strings.Repeat("v", 5000)))
			items, _, err := e.scanner().Scan(t.Context(), e.Space, driver.Range{ID: []byte("a"), KeysOnly: true, Limit: 10, MaxBytes: 1 << 20})
			if err != nil || len(items) != 1 || len(items[0].Value) != 0 || string(items[0].Version) != string(done.Version) {
				t.Errorf("got %+v, %v", items, err)
			}
		}},
		Case{ID: "KS-18", Name: "stable_keys_exactly_once_under_writes", Run: stableKeys},
		Case{ID: "KS-19", Name: "max_bytes", Run: func(t *testing.T, e *Env) {
			for n := range 10 {
				e.must(put("a", fmt.Sprint(n), strings.Repeat("v", 1000)))
			}
			r := driver.Range{ID: []byte("a"), Limit: 100, MaxBytes: 2500}
			items, more, err := e.scanner().Scan(t.Context(), e.Space, r)
			if err != nil || !more || len(items) != 3 {
				t.Errorf("%d items, more %v, %v; want 3 items", len(items), more, err)
			}
			r.KeysOnly = true
			if items, more, err = e.scanner().Scan(t.Context(), e.Space, r); err != nil || more || len(items) != 10 {
				t.Errorf("%d keys, more %v, %v; want 10", len(items), more, err)
			}
		}},
		Case{ID: "KS-20", Name: "one_item_larger_than_page_still_returned", Run: func(t *testing.T, e *Env) {
			e.must(put("a", "1", strings.Repeat("v", 100_000)))
			e.must(put("a", "2", "v"))
			items, more, err := e.scanner().Scan(t.Context(), e.Space, driver.Range{ID: []byte("a"), Limit: 10, MaxBytes: 10})
			if err != nil || !more || keysOf(items) != "1" {
				t.Errorf("got %s, more %v, %v", keysOf(items), more, err)
			}
		}},
	)
	lists := in("keyvalue.list",
		Case{ID: "KS-08", Name: "list_ids_at_least_once_own_space_only", Run: func(t *testing.T, e *Env) {
			want := map[string]bool{}
			var writes []driver.Write
			for n := range 300 {
				id := fmt.Sprintf("id-%d", n)
				want[id] = true
				writes = append(writes, put(id, "1", "v"), put(id, "2", "v"))
			}
			e.batch(writes...)
			if _, err := e.Write(t.Context(), NewSpace(), put("other", "", "v")); err != nil {
				t.Fatal(err)
			}
			for _, limit := range []int{1, 7, 1000} {
				got := listAll(t, e.inst.(driver.Lister), e.Space, limit)
				if len(got) != len(want) {
					t.Errorf("limit %d: %d ids, want %d", limit, len(got), len(want))
				}
				for id := range want {
					if !got[id] {
						t.Fatalf("limit %d: %q is not listed", limit, id)
					}
				}
			}
		}},
		Case{ID: "KS-08", Name: "an_id_without_items_is_not_listed", Run: func(t *testing.T, e *Env) {
			e.must(put("stays", "", "v"))
			e.must(put("goes", "", "v"))
			e.must(remove("goes", ""))
			if got := listAll(t, e.inst.(driver.Lister), e.Space, 10); len(got) != 1 || !got["stays"] {
				t.Errorf("got %v", got)
			}
			if got := listAll(t, e.inst.(driver.Lister), NewSpace(), 10); len(got) != 0 {
				t.Errorf("an empty space lists %v", got)
			}
		}},
	)
	return append(scans, lists...)
}

func (e *Env) scanner() driver.Scanner { return e.inst.(driver.Scanner) }

// scans demands the keys of a range of id a, read page by page.
func (e *Env) scans(r driver.Range, want string) {
	e.t.Helper()
	r.ID, r.MaxBytes = []byte("a"), 1<<20
	r.Limit = max(r.Limit, 1)
	if got := keysOf(scanAll(e.t, e.scanner(), e.Space, r)); got != want {
		e.t.Errorf("limit %d, from %q to %q: got %q, want %q", r.Limit, r.Start, r.End, got, want)
	}
}

func keysOf(items []driver.Item) string {
	keys := make([]string, len(items))
	for n, it := range items {
		keys[n] = string(it.Key)
	}
	return strings.Join(keys, " ")
}

// scanAll reads a range page by page.
func scanAll(t testing.TB, sc driver.Scanner, space driver.Space, r driver.Range) []driver.Item {
	t.Helper()
	var all []driver.Item
	for {
		items, more, err := sc.Scan(t.Context(), space, r)
		if err != nil {
			t.Fatal(show(err))
		}
		all = append(all, items...)
		if !more {
			return all
		}
		if len(items) == 0 || len(items) > r.Limit {
			t.Fatalf("a page of %d items of at most %d, and more", len(items), r.Limit)
		}
		if last := items[len(items)-1].Key; r.Reverse {
			r.End = last
		} else {
			r.Start = append(slices.Clone(last), 0)
		}
	}
}

// listAll reads all ids of a space.
func listAll(t testing.TB, ls driver.Lister, space driver.Space, limit int) map[string]bool {
	t.Helper()
	all := map[string]bool{}
	for cursor := []byte(nil); ; {
		ids, next, err := ls.ListIDs(t.Context(), space, cursor, limit)
		if err != nil {
			t.Fatal(show(err))
		}
		if len(ids) > limit {
			t.Fatalf("%d ids, the limit was %d", len(ids), limit)
		}
		for _, id := range ids {
			all[string(id)] = true
		}
		if next == nil {
			return all
		}
		cursor = next
	}
}

// stableKeys pages through an id while others write and delete between the keys that stay.
func stableKeys(t *testing.T, e *Env) {
	var want []string
	for n := range 100 {
		key := fmt.Sprintf("%03d", n)
		want = append(want, key)
		e.must(put("a", key, "v"))
	}
	stop := make(chan struct{})
	var wait sync.WaitGroup
	for writer := range 2 {
		wait.Go(func() {
			for n := 0; ; n = (n + 1) % 100 {
				select {
				case <-stop:
					return
				default:
				}
				w := put("a", fmt.Sprintf("%03d+%d", n, writer), "x")
				if n%2 == 1 {
					w = remove("a", fmt.Sprintf("%03d+%d", n-1, writer))
				}
				if _, err := e.Write(t.Context(), e.Space, w); err != nil {
					t.Errorf("write: %s", show(err))
					return
				}
			}
		})
	}
	for round := range 5 {
		var got []string
		for _, it := range scanAll(t, e.scanner(), e.Space, driver.Range{ID: []byte("a"), Limit: 7, MaxBytes: 1 << 20, Reverse: round%2 == 1}) {
			if len(it.Key) == 3 {
				got = append(got, string(it.Key))
			}
		}
		if round%2 == 1 {
			slices.Reverse(got)
		}
		if !slices.Equal(got, want) {
			t.Errorf("round %d: got %d stable keys, want each of %d once", round, len(got), len(want))
		}
	}
	close(stop)
	wait.Wait()
}
