package conformance

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/shared/fault"
)

func versionCases() []Case {
	return in("keyvalue.version",
		Case{ID: "KE-01", Name: "version_returned_by_put_get_batch", Run: func(t *testing.T, e *Env) {
			done := e.must(put("a", "k", "v"))
			batch := e.BatchGet(t.Context(), e.Space, []driver.Name{name("a", "k")}, false)
			if len(done.Version) == 0 || len(done.Version) > 64 || !bytes.Equal(done.Version, e.get("a", "k").Version) ||
				!bytes.Equal(done.Version, batch[0].Item.Version) {
				t.Errorf("put %x, get %x, batch %x", done.Version, e.get("a", "k").Version, batch[0].Item.Version)
			}
		}},
		Case{ID: "KE-02", Name: "wrong_version_aborted_with_current", Run: func(t *testing.T, e *Env) {
			old := e.must(put("a", "k", "one"))
			now := e.must(put("a", "k", "two"))
			f := e.refused(onlyIf(put("a", "k", "three"), driver.IfVersion, old.Version), fault.Conflict, fault.VersionMismatch)
			if f.Metadata["version"] != base64.StdEncoding.EncodeToString(now.Version) {
				t.Errorf("the fault tells %q, the item has %x", f.Metadata, now.Version)
			}
			e.holds("a", "k", "two")
		}},
		Case{ID: "KE-03", Name: "right_version_writes_and_changes", Run: func(t *testing.T, e *Env) {
			first := e.must(put("a", "k", "one"))
			second := e.must(onlyIf(put("a", "k", "two"), driver.IfVersion, first.Version))
			if bytes.Equal(first.Version, second.Version) || !second.Existed {
				t.Errorf("got %+v after %+v", second, first)
			}
			e.holds("a", "k", "two")
		}},
		Case{ID: "KE-04", Name: "delete_wrong_version", Run: func(t *testing.T, e *Env) {
			old := e.must(put("a", "k", "one"))
			e.must(put("a", "k", "two"))
			e.refused(onlyIf(remove("a", "k"), driver.IfVersion, old.Version), fault.Conflict, fault.VersionMismatch)
			e.holds("a", "k", "two")
		}},
		Case{ID: "KE-05", Name: "delete_right_version", Run: func(t *testing.T, e *Env) {
			done := e.must(put("a", "k", "one"))
			e.must(onlyIf(remove("a", "k"), driver.IfVersion, done.Version))
			e.holds("a", "k", nil)
		}},
		Case{ID: "KE-06", Name: "batch_one_wrong_others_applied", Run: func(t *testing.T, e *Env) {
			done := e.batch(put("a", "1", "x"), put("a", "2", "x"), put("a", "3", "x"))
			got := e.BatchWrite(t.Context(), e.Space, []driver.Write{
				onlyIf(put("a", "1", "y"), driver.IfVersion, done[0].Version),
				onlyIf(put("a", "2", "y"), driver.IfVersion, done[0].Version),
				onlyIf(put("a", "3", "y"), driver.IfVersion, done[2].Version),
			})
			if got[0].Err != nil || got[2].Err != nil {
				t.Errorf("the good entries: %v, %v", got[0].Err, got[2].Err)
			}
			e.isFault(got[1].Written, got[1].Err, fault.Conflict, fault.VersionMismatch, fault.NotApplied)
			e.holds("a", "1", "y")
			e.holds("a", "2", "x")
			e.holds("a", "3", "y")
		}},
		Case{ID: "KE-07", Name: "batch_delete_one_wrong", Run: func(t *testing.T, e *Env) {
			done := e.batch(put("a", "1", "x"), put("a", "2", "x"))
			got := e.BatchWrite(t.Context(), e.Space, []driver.Write{
				onlyIf(remove("a", "1"), driver.IfVersion, done[1].Version), onlyIf(remove("a", "2"), driver.IfVersion, done[1].Version),
			})
			e.isFault(got[0].Written, got[0].Err, fault.Conflict, fault.VersionMismatch, fault.NotApplied)
			if got[1].Err != nil {
				t.Error(show(got[1].Err))
			}
			e.holds("a", "1", "x")
			e.holds("a", "2", nil)
		}},
		Case{ID: "KE-08", Name: "version_condition_on_missing_refused", Run: func(t *testing.T, e *Env) {
			done := e.must(put("a", "other", "x"))
			writes := []driver.Write{put("a", "k", "v"), remove("a", "k")}
			if expires(e.backend) {
				writes = append(writes, driver.Write{Op: driver.Touch, Name: name("a", "k")})
			}
			for _, w := range writes {
				f := e.refused(onlyIf(w, driver.IfVersion, done.Version), fault.Conflict, fault.VersionMismatch)
				if v, ok := f.Metadata["version"]; ok {
					t.Errorf("an absent item has version %q", v)
				}
			}
			e.holds("a", "k", nil)
		}},
		Case{ID: "KE-09", Name: "create_if_absent", Run: func(t *testing.T, e *Env) {
			e.must(onlyIf(put("a", "k", "one"), driver.IfAbsent, nil))
			e.refused(onlyIf(put("a", "k", "two"), driver.IfAbsent, nil), fault.Exists, fault.Key)
			e.holds("a", "k", "one")
			e.must(remove("a", "k"))
			e.must(onlyIf(put("a", "k", "three"), driver.IfAbsent, nil))
			e.holds("a", "k", "three")
		}},
		Case{ID: "KE-10", Name: "empty_version_matches_nothing", Run: func(t *testing.T, e *Env) {
			e.refused(onlyIf(put("a", "k", "one"), driver.IfVersion, nil), fault.Conflict, fault.VersionMismatch)
			e.must(put("a", "k", "one"))
			e.refused(onlyIf(put("a", "k", "two"), driver.IfVersion, []byte{}), fault.Conflict, fault.VersionMismatch)
			e.holds("a", "k", "one")
		}},
		Case{ID: "KE-11", Name: "stale_second_write_refused", Run: func(t *testing.T, e *Env) {
			read := e.must(put("a", "k", "zero")).Version
			e.must(onlyIf(put("a", "k", "first"), driver.IfVersion, read))
			e.refused(onlyIf(put("a", "k", "second"), driver.IfVersion, read), fault.Conflict, fault.VersionMismatch)
			e.holds("a", "k", "first")
		}},
		Case{ID: "KE-12", Name: "replace_if_present", Run: func(t *testing.T, e *Env) {
			e.refused(onlyIf(put("a", "k", "one"), driver.IfPresent, nil), fault.NotFound, fault.KeyRequired)
			e.refused(onlyIf(remove("a", "k"), driver.IfPresent, nil), fault.NotFound, fault.KeyRequired)
			e.holds("a", "k", nil)
			e.must(put("a", "k", "one"))
			e.must(onlyIf(put("a", "k", "two"), driver.IfPresent, nil))
			e.holds("a", "k", "two")
			e.must(onlyIf(remove("a", "k"), driver.IfPresent, nil))
			e.holds("a", "k", nil)
		}},
		Case{ID: "KE-13", Name: "version_condition_on_deleted_key_refused", Run: func(t *testing.T, e *Env) {
			done := e.must(put("a", "k", "v"))
			e.must(remove("a", "k"))
			e.refused(onlyIf(put("a", "k", "w"), driver.IfVersion, done.Version), fault.Conflict, fault.VersionMismatch)
			e.holds("a", "k", nil)
		}},
		Case{ID: "KE-14", Name: "version_never_repeats_after_delete_recreate", Run: func(t *testing.T, e *Env) {
			seen := map[string]bool{}
			for n := range 1000 {
				if n == 500 && e.backend.Shared { // nor for another proxy
					e.KeyValue = e.open().(driver.KeyValue)
				}
				v := string(e.must(put("a", "k", "same")).Version)
				if seen[v] {
					t.Fatalf("cycle %d: version %x again", n, v)
				}
				seen[v] = true
				e.must(remove("a", "k"))
			}
		}},
		Case{ID: "KE-15", Name: "version_never_repeats_after_expiry", Needs: expires, Run: func(t *testing.T, e *Env) {
			seen := map[string]bool{}
			for n := range 100 {
				v := string(e.must(until(put("a", "k", "same"), e.Clock.Now().Add(time.Second))).Version)
				if seen[v] {
					t.Fatalf("cycle %d: version %x again", n, v)
				}
				seen[v] = true
				e.Clock.Move(2 * time.Second)
				e.refused(onlyIf(put("a", "k", "w"), driver.IfVersion, []byte(v)), fault.Conflict, fault.VersionMismatch)
			}
		}},
		Case{ID: "KE-16", Name: "create_race_100_writers_one_winner", Run: createRace},
		Case{ID: "KE-17", Name: "cas_counter_loses_nothing", Run: casCounter},
		Case{ID: "KE-18", Name: "version_opaque_any_bytes_refused_cleanly", Run: func(t *testing.T, e *Env) {
			done := e.must(put("a", "k", "v"))
			longer := append(bytes.Clone(done.Version), 0)
			for _, v := range [][]byte{{0}, []byte("*"), []byte("nil"), []byte("1"), []byte("' OR 1=1 --"), bytes.Repeat([]byte{0xff}, 64),
				done.Version[:len(done.Version)-1], longer, make([]byte, len(done.Version))} {
				e.refused(onlyIf(put("a", "k", "w"), driver.IfVersion, v), fault.Conflict, fault.VersionMismatch)
			}
			e.holds("a", "k", "v")
		}},
		Case{ID: "KE-19", Name: "version_changes_on_touch_and_same_value", Run: func(t *testing.T, e *Env) {
			first := e.must(put("a", "k", "v"))
			second := e.must(put("a", "k", "v"))
			touch := driver.Write{Op: driver.Touch, Name: name("a", "k"), ExpireAt: e.Clock.Now().Add(time.Hour)}
			if !expires(e.backend) {
				touch = put("a", "k", "v")
			}
			third := e.must(touch)
			if bytes.Equal(first.Version, second.Version) || bytes.Equal(second.Version, third.Version) {
				t.Errorf("versions %x, %x, %x", first.Version, second.Version, third.Version)
			}
			e.refused(onlyIf(put("a", "k", "w"), driver.IfVersion, second.Version), fault.Conflict, fault.VersionMismatch)
			e.must(onlyIf(put("a", "k", "w"), driver.IfVersion, third.Version))
			e.refused(onlyIf(touch, driver.IfVersion, third.Version), fault.Conflict, fault.VersionMismatch)
		}},
	)
}

func createRace(t *testing.T, e *Env) {
	stores := []driver.KeyValue{e.KeyValue}
	if e.backend.Shared {
		stores = append(stores, e.open().(driver.KeyValue))
	}
	for round := range 5 {
		key := fmt.Sprint(round)
		var won atomic.Int32
		var winner atomic.Value
		var wait sync.WaitGroup
		start := make(chan struct{})
		for writer := range 100 {
			wait.Go(func() {
				<-start
				value := fmt.Sprint(writer)
				_, err := stores[writer%len(stores)].Write(t.Context(), e.Space, onlyIf(put("a", key, value), driver.IfAbsent, nil))
				switch {
				case err == nil:
					won.Add(1)
					winner.Store(value)
				case !fault.Is(err, fault.Key):
					t.Errorf("writer %d: %s", writer, show(err))
				}
			})
		}
		close(start)
		wait.Wait()
		if won.Load() != 1 {
			t.Fatalf("round %d: %d writers created the key", round, won.Load())
		}
		e.holds("a", key, winner.Load())
	}
}

// casCounter counts to 1,000 with 20 writers that each read, add one and write at the version they read.
func casCounter(t *testing.T, e *Env) {
	const writers, each = 20, 50
	stores := []driver.KeyValue{e.KeyValue}
	if e.backend.Shared {
		stores = append(stores, e.open().(driver.KeyValue))
	}
	e.must(put("a", "n", "0"))
	var wait sync.WaitGroup
	for writer := range writers {
		wait.Go(func() {
			kv := stores[writer%len(stores)]
			for done := 0; done < each; {
				it, err := kv.Get(t.Context(), e.Space, name("a", "n"), false)
				if err != nil || it == nil {
					t.Errorf("get: %v, %s", it, show(err))
					return
				}
				n, _ := strconv.Atoi(string(it.Value))
				_, err = kv.Write(t.Context(), e.Space, onlyIf(put("a", "n", strconv.Itoa(n+1)), driver.IfVersion, it.Version))
				switch {
				case err == nil:
					done++
				case !fault.Is(err, fault.VersionMismatch):
					t.Errorf("write: %s", show(err))
					return
				}
			}
		})
	}
	wait.Wait()
	e.holds("a", "n", strconv.Itoa(writers*each))
}
