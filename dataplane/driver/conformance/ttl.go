package conformance

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/shared/fault"
)

// sweeper is what an instance has that removes expired items itself.
type sweeper interface {
	// Sweep removes all expired items now and says how many there were.
	Sweep(ctx context.Context) (int, error)
}

func ttlCases() []Case {
	return in("keyvalue.ttl",
		Case{ID: "KT-01", Name: "set_and_expire", Run: func(t *testing.T, e *Env) {
			e.must(until(put("a", "k", "v"), e.Clock.Now().Add(time.Minute)))
			e.holds("a", "k", "v")
			e.Clock.Move(time.Minute + time.Millisecond)
			e.holds("a", "k", nil)
			got := e.BatchGet(t.Context(), e.Space, []driver.Name{name("a", "k")}, false)
			if got[0].Item != nil || got[0].Err != nil {
				t.Errorf("batch: %+v", got[0])
			}
			if it, err := e.Get(t.Context(), e.Space, name("a", "k"), true); it != nil || err != nil {
				t.Errorf("head: %+v, %v", it, err)
			}
		}},
		Case{ID: "KT-03", Name: "no_ttl_no_expire_at", Run: func(t *testing.T, e *Env) {
			if done := e.must(put("a", "k", "v")); !done.ExpireAt.IsZero() || !e.get("a", "k").ExpireAt.IsZero() {
				t.Errorf("expires at %v", done.ExpireAt)
			}
			e.Clock.Move(100 * 365 * 24 * time.Hour)
			e.holds("a", "k", "v")
		}},
		Case{ID: "KT-04", Name: "expire_at_returned_by_get", Run: func(t *testing.T, e *Env) {
			at := e.Clock.Now().Add(time.Hour)
			e.expires(e.must(until(put("a", "k", "v"), at)).ExpireAt, at)
			e.expires(e.get("a", "k").ExpireAt, at)
		}},
		Case{ID: "KT-05", Name: "never_removes", Run: func(t *testing.T, e *Env) {
			e.must(until(put("a", "k", "v"), e.Clock.Now().Add(time.Minute)))
			e.expires(e.must(put("a", "k", "w")).ExpireAt, time.Time{})
			e.Clock.Move(time.Hour)
			e.holds("a", "k", "w")
		}},
		Case{ID: "KT-07", Name: "new_ttl_replaces", Run: func(t *testing.T, e *Env) {
			e.must(until(put("a", "k", "v"), e.Clock.Now().Add(time.Minute)))
			e.must(until(put("a", "k", "w"), e.Clock.Now().Add(time.Hour)))
			e.Clock.Move(2 * time.Minute)
			e.holds("a", "k", "w")
			e.must(until(put("a", "k", "x"), e.Clock.Now().Add(time.Second)))
			e.Clock.Move(2 * time.Second)
			e.holds("a", "k", nil)
		}},
		Case{ID: "KT-08", Name: "expire_at_in_batch_get", Run: func(t *testing.T, e *Env) {
			at := e.Clock.Now().Add(time.Hour)
			e.batch(until(put("a", "1", "v"), at), put("a", "2", "v"))
			for _, headOnly := range []bool{false, true} {
				got := e.BatchGet(t.Context(), e.Space, []driver.Name{name("a", "1"), name("a", "2")}, headOnly)
				e.expires(got[0].Item.ExpireAt, at)
				e.expires(got[1].Item.ExpireAt, time.Time{})
			}
		}},
		Case{ID: "KT-10", Name: "keep_keeps", Run: func(t *testing.T, e *Env) {
			at, later := e.Clock.Now().Add(time.Minute), e.Clock.Now().Add(time.Hour)
			keep := func(w driver.Write) driver.Write { w.KeepExpiry = true; return w }
			e.must(until(put("a", "k", "v"), at))
			e.expires(e.must(keep(until(put("a", "k", "w"), later))).ExpireAt, at)
			e.expires(e.holds("a", "k", "w").ExpireAt, at)
			e.must(put("a", "forever", "v"))
			e.expires(e.must(keep(until(put("a", "forever", "w"), later))).ExpireAt, time.Time{})
			e.expires(e.get("a", "forever").ExpireAt, time.Time{})
			e.expires(e.must(keep(until(put("a", "new", "v"), later))).ExpireAt, later)
			e.expires(e.get("a", "new").ExpireAt, later)
			e.Clock.Move(2 * time.Minute)
			e.holds("a", "k", nil)
			e.expires(e.must(keep(until(put("a", "k", "x"), later))).ExpireAt, later)
		}},
		Case{ID: "KT-11", Name: "touch", Run: func(t *testing.T, e *Env) {
			w := until(put("a", "k", "v"), e.Clock.Now().Add(time.Minute))
			w.ContentType, w.Metadata = "text/plain", map[string]string{"m": "1"}
			e.must(w)
			modified := e.get("a", "k").ModifiedAt
			e.Clock.Move(time.Second)
			at := e.Clock.Now().Add(time.Hour)
			touch := driver.Write{Op: driver.Touch, Name: name("a", "k"), ExpireAt: at, Previous: true}
			done := e.must(touch)
			e.expires(done.ExpireAt, at)
			if done.Previous == nil || string(done.Previous.Value) != "v" || !done.Existed {
				t.Errorf("got %+v", done)
			}
			it := e.holds("a", "k", "v")
			if it.ContentType != "text/plain" || it.Metadata["m"] != "1" || !it.ModifiedAt.Equal(modified) || string(it.Version) != string(done.Version) {
				t.Errorf("touch left %+v", it)
			}
			e.Clock.Move(2 * time.Minute)
			e.holds("a", "k", "v")
			e.expires(e.must(driver.Write{Op: driver.Touch, Name: name("a", "k")}).ExpireAt, time.Time{})
			e.Clock.Move(24 * time.Hour)
			e.holds("a", "k", "v")
			e.refused(driver.Write{Op: driver.Touch, Name: name("a", "absent"), ExpireAt: at}, fault.NotFound, fault.KeyRequired)
			e.holds("a", "absent", nil)
		}},
		Case{ID: "KT-12", Name: "never_visible_after_expiry_in_get_list_scan", Run: func(t *testing.T, e *Env) {
			at := e.Clock.Now().Add(time.Minute)
			e.batch(until(put("a", "1", "v"), at), put("a", "2", "v"), until(put("a", "3", "v"), at), until(put("gone", "", "v"), at))
			e.Clock.Move(2 * time.Minute)
			e.holds("a", "1", nil)
			if sc, ok := e.inst.(driver.Scanner); ok {
				if got := keysOf(scanAll(t, sc, e.Space, driver.Range{ID: []byte("a"), Limit: 1, MaxBytes: 1 << 20})); got != "2" {
					t.Errorf("scan gives %q", got)
				}
			}
			if ls, ok := e.inst.(driver.Lister); ok {
				if got := listAll(t, ls, e.Space, 10); len(got) != 1 || !got["a"] {
					t.Errorf("list gives %v", got)
				}
			}
		}},
		Case{ID: "KT-13", Name: "not_gone_before_expiry", Run: func(t *testing.T, e *Env) {
			at := e.Clock.Now().Add(time.Hour).Truncate(time.Millisecond)
			e.must(until(put("a", "k", "v"), at))
			e.Clock.Move(at.Add(-time.Millisecond).Sub(e.Clock.Now()))
			e.holds("a", "k", "v")
			e.Clock.Move(time.Millisecond)
			e.holds("a", "k", nil)
		}},
		Case{ID: "KT-14", Name: "expired_counts_as_absent_for_conditions", Run: func(t *testing.T, e *Env) {
			expired := func() []byte {
				done := e.must(until(put("a", "k", "v"), e.Clock.Now().Add(time.Second)))
				e.Clock.Move(2 * time.Second)
				return done.Version
			}
			version := expired()
			e.refused(onlyIf(put("a", "k", "w"), driver.IfPresent, nil), fault.NotFound, fault.KeyRequired)
			e.refused(onlyIf(put("a", "k", "w"), driver.IfVersion, version), fault.Conflict, fault.VersionMismatch)
			e.refused(onlyIf(remove("a", "k"), driver.IfVersion, version), fault.Conflict, fault.VersionMismatch)
			e.refused(driver.Write{Op: driver.Touch, Name: name("a", "k")}, fault.NotFound, fault.KeyRequired)
			w := put("a", "k", "new")
			w.Previous = true
			if done := e.must(onlyIf(w, driver.IfAbsent, nil)); done.Existed || done.Previous != nil {
				t.Errorf("an expired item existed: %+v", done)
			}
			expired()
			del := remove("a", "k")
			del.Previous = true
			if done := e.must(del); done.Existed || done.Previous != nil {
				t.Errorf("an expired item existed: %+v", done)
			}
			e.holds("a", "k", nil)
		}},
		Case{ID: "KT-17", Name: "1_ms_and_10_years", Run: func(t *testing.T, e *Env) {
			e.must(until(put("a", "short", "v"), e.Clock.Now().Add(time.Millisecond)))
			e.must(until(put("a", "long", "v"), e.Clock.Now().AddDate(10, 0, 0)))
			far := time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
			e.must(until(put("a", "far", "v"), far))
			e.holds("a", "short", "v")
			e.Clock.Move(2 * time.Millisecond)
			e.holds("a", "short", nil)
			e.Clock.Move(9 * 365 * 24 * time.Hour)
			e.holds("a", "long", "v")
			e.Clock.Move(2 * 366 * 24 * time.Hour)
			e.holds("a", "long", nil)
			e.expires(e.holds("a", "far", "v").ExpireAt, far)
		}},
		Case{ID: "KT-18", Name: "sweep_removes_storage", Needs: sweeps, Run: func(t *testing.T, e *Env) {
			sw := e.inst.(sweeper)
			at := e.Clock.Now().Add(time.Minute)
			for n := range 300 {
				w := put(fmt.Sprint(n%10), fmt.Sprint(n), "v")
				if n%3 != 0 {
					w.ExpireAt = at
				}
				e.must(w)
			}
			e.Clock.Move(2 * time.Minute)
			if n, err := sw.Sweep(t.Context()); err != nil || n < 200 {
				t.Errorf("swept %d items, %v; want 200", n, err)
			}
			if n, err := sw.Sweep(t.Context()); err != nil || n != 0 {
				t.Errorf("swept %d items again, %v", n, err)
			}
			e.holds("0", "0", "v")
			e.holds("1", "1", nil)
			e.holds("3", "3", "v")
		}},
		Case{ID: "KT-19", Name: "sweep_concurrent_proxies", Run: sweepConcurrently},
		Case{ID: "KT-20", Name: "clock_step_back_and_forward", Run: func(t *testing.T, e *Env) {
			e.must(until(put("a", "k", "v"), e.Clock.Now().Add(2*time.Hour)))
			e.Clock.Move(-time.Hour)
			e.holds("a", "k", "v")
			e.must(until(put("a", "back", "v"), e.Clock.Now().Add(2*time.Hour)))
			e.Clock.Move(time.Hour + 90*time.Minute)
			e.holds("a", "k", "v")
			e.holds("a", "back", nil)
			e.Clock.Move(time.Hour)
			e.holds("a", "k", nil)
		}},
	)
}

// sweepConcurrently sweeps from all sides while items are written, and demands that only expired ones go.
func sweepConcurrently(t *testing.T, e *Env) {
	instances := []driver.Instance{e.inst}
	if e.backend.Shared {
		instances = append(instances, e.open(), e.open())
	}
	done := make(chan error)
	for n, inst := range instances {
		go func() {
			kv := inst.(driver.KeyValue)
			for i := range 60 {
				w := put(fmt.Sprint(n), fmt.Sprint(i), "v")
				if i%2 == 0 {
					w.ExpireAt = e.Clock.Now().Add(time.Duration(rand.IntN(3)) * time.Millisecond)
				} else {
					w.ExpireAt = e.Clock.Now().Add(time.Hour)
				}
				if _, err := kv.Write(t.Context(), e.Space, w); err != nil {
					done <- err
					return
				}
				e.Clock.Move(time.Millisecond)
				if sw, ok := inst.(sweeper); ok && i%10 == 0 {
					if _, err := sw.Sweep(t.Context()); err != nil {
						done <- err
						return
					}
				}
			}
			done <- nil
		}()
	}
	for range instances {
		if err := <-done; err != nil {
			t.Fatal(show(err))
		}
	}
	e.Clock.Move(time.Second)
	for n := range instances {
		for i := range 60 {
			if i%2 == 0 {
				e.holds(fmt.Sprint(n), fmt.Sprint(i), nil)
			} else {
				e.holds(fmt.Sprint(n), fmt.Sprint(i), "v")
			}
		}
	}
}
