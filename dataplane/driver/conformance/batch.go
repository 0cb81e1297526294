package conformance

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/shared/fault"
)

func batchCases() []Case {
	return in("keyvalue",
		Case{ID: "KB-01", Name: "batch_put", Run: func(t *testing.T, e *Env) {
			e.batch(put("a", "1", "one"), put("a", "2", "two"), put("b", "1", "three"))
			e.holds("a", "1", "one")
			e.holds("a", "2", "two")
			e.holds("b", "1", "three")
		}},
		Case{ID: "KB-02", Name: "batch_get_with_absent", Run: func(t *testing.T, e *Env) {
			e.must(put("a", "1", "one"))
			e.must(put("b", "", "two"))
			got := e.BatchGet(t.Context(), e.Space, []driver.Name{name("a", "1"), name("a", "2"), name("b", ""), name("a", "")}, false)
			want := []string{"one", "absent", "two", "absent"}
			for n, r := range got {
				has := "absent"
				if r.Item != nil {
					has = string(r.Item.Value)
				}
				if r.Err != nil || has != want[n] {
					t.Errorf("entry %d: %s, %v; want %s", n, has, r.Err, want[n])
				}
			}
		}},
		Case{ID: "KB-02", Name: "batch_get_head_only", Run: func(t *testing.T, e *Env) {
			e.must(put("a", "1", "one"))
			got := e.BatchGet(t.Context(), e.Space, []driver.Name{name("a", "1"), name("a", "2")}, true)
			if got[0].Item == nil || len(got[0].Item.Value) != 0 || len(got[0].Item.Version) == 0 || got[1].Item != nil {
				t.Errorf("got %+v", got)
			}
		}},
		Case{ID: "KB-03", Name: "batch_delete", Run: func(t *testing.T, e *Env) {
			e.batch(put("a", "1", "one"), put("a", "2", "two"), put("a", "3", "three"))
			got := e.batch(remove("a", "1"), remove("a", "absent"), remove("a", "3"))
			if !got[0].Existed || got[1].Existed || !got[2].Existed {
				t.Errorf("got %+v", got)
			}
			e.holds("a", "1", nil)
			e.holds("a", "2", "two")
			e.holds("a", "3", nil)
		}},
		Case{ID: "KB-04", Name: "batch_partial_failure_per_entry", Run: func(t *testing.T, e *Env) {
			e.must(put("a", "2", "there"))
			got := e.BatchWrite(t.Context(), e.Space, []driver.Write{
				put("a", "1", "one"), onlyIf(put("a", "2", "two"), driver.IfAbsent, nil), put("a", "3", "three"),
				onlyIf(remove("a", "4"), driver.IfPresent, nil),
			})
			if got[0].Err != nil || got[2].Err != nil {
				t.Errorf("the good entries: %v, %v", got[0].Err, got[2].Err)
			}
			e.isFault(got[1].Written, got[1].Err, fault.Exists, fault.Key, fault.NotApplied)
			e.isFault(got[3].Written, got[3].Err, fault.NotFound, fault.KeyRequired, fault.NotApplied)
			e.holds("a", "1", "one")
			e.holds("a", "2", "there")
			e.holds("a", "3", "three")
		}},
		Case{ID: "KB-05", Name: "batch_versions_returned", Run: func(t *testing.T, e *Env) {
			done := e.batch(put("a", "1", "one"), put("a", "2", "two"))
			got := e.BatchGet(t.Context(), e.Space, []driver.Name{name("a", "1"), name("a", "2")}, false)
			for n := range done {
				if len(done[n].Version) == 0 || !bytes.Equal(done[n].Version, got[n].Item.Version) {
					t.Errorf("entry %d: wrote %x, read %x", n, done[n].Version, got[n].Item.Version)
				}
			}
			if bytes.Equal(done[0].Version, done[1].Version) {
				t.Error("two writes have one version")
			}
		}},
		Case{ID: "KB-06", Name: "batch_expiries_returned", Needs: expires, Run: func(t *testing.T, e *Env) {
			at := e.Clock.Now().Add(time.Hour)
			done := e.batch(until(put("a", "1", "one"), at), put("a", "2", "two"))
			e.expires(done[0].ExpireAt, at)
			e.expires(done[1].ExpireAt, time.Time{})
			got := e.BatchGet(t.Context(), e.Space, []driver.Name{name("a", "1"), name("a", "2")}, false)
			e.expires(got[0].Item.ExpireAt, at)
			e.expires(got[1].Item.ExpireAt, time.Time{})
		}},
		Case{ID: "KB-08", Name: "batch_of_1000", Run: func(t *testing.T, e *Env) {
			var writes []driver.Write
			var names []driver.Name
			for n := range 1000 {
				w := put(fmt.Sprint(n%7), fmt.Sprint(n), fmt.Sprint("value ", n))
				writes, names = append(writes, w), append(names, w.Name)
			}
			e.batch(writes...)
			for n, r := range e.BatchGet(t.Context(), e.Space, names, false) {
				if r.Item == nil || string(r.Item.Value) != fmt.Sprint("value ", n) {
					t.Fatalf("entry %d: %+v, %v", n, r.Item, r.Err)
				}
			}
		}},
		Case{ID: "KB-10", Name: "batch_order_kept", Run: func(t *testing.T, e *Env) {
			e.must(put("a", "y", "there"))
			got := e.BatchWrite(t.Context(), e.Space, []driver.Write{
				remove("a", "y"), put("z", "1", "1"), onlyIf(put("a", "x", "0"), driver.IfPresent, nil), put("a", "z", "2"),
			})
			if got[0].Err != nil || !got[0].Existed || got[1].Err != nil || got[2].Err == nil || got[3].Err != nil || got[3].Version == nil {
				t.Errorf("got %+v", got)
			}
			if none := e.BatchGet(t.Context(), e.Space, nil, false); len(none) != 0 {
				t.Errorf("empty batch: %+v", none)
			}
			if none := e.BatchWrite(t.Context(), e.Space, nil); len(none) != 0 {
				t.Errorf("empty batch: %+v", none)
			}
		}},
		Case{ID: "KB-11", Name: "batch_cancelled_says_so_per_entry", Run: func(t *testing.T, e *Env) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			for n, r := range e.BatchWrite(ctx, e.Space, []driver.Write{put("a", "1", "1"), put("a", "2", "2")}) {
				if f := fault.From(r.Err); f == nil || f.Code != fault.Cancelled || f.Outcome == "" {
					t.Errorf("entry %d: %s", n, show(r.Err))
				}
			}
			for n, r := range e.BatchGet(ctx, e.Space, []driver.Name{name("a", "1"), name("a", "2")}, false) {
				if f := fault.From(r.Err); f == nil || f.Code != fault.Cancelled {
					t.Errorf("entry %d: %s", n, show(r.Err))
				}
			}
		}},
	)
}

// batch writes and demands that each entry is done.
func (e *Env) batch(writes ...driver.Write) []driver.WriteResult {
	e.t.Helper()
	got := e.BatchWrite(context.Background(), e.Space, writes)
	if len(got) != len(writes) {
		e.t.Fatalf("%d results for %d writes", len(got), len(writes))
	}
	for n, r := range got {
		if r.Err != nil {
			e.t.Fatalf("entry %d: %s", n, show(r.Err))
		}
	}
	return got
}

// expires demands an expiry that is want, rounded up to a millisecond.
func (e *Env) expires(got, want time.Time) {
	e.t.Helper()
	if !got.Equal(driver.ExpireTime(driver.ExpireMillis(want))) {
		e.t.Fatalf("expires at %v, want %v", got, want)
	}
}
