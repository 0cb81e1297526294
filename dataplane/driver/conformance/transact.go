package conformance

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/shared/fault"
)

func (e *Env) transactor() driver.Transactor { return e.inst.(driver.Transactor) }

// transacted does a transaction of the id a and fails the case when that fails.
func (e *Env) transacted(t driver.Transaction) driver.Transacted {
	e.t.Helper()
	t.ID = []byte("a")
	done, err := e.transactor().Transact(context.Background(), e.Space, t)
	if err != nil {
		e.t.Fatal(show(err))
	}
	if len(done.Results) != len(t.Writes) {
		e.t.Fatalf("%d results of %d writes", len(done.Results), len(t.Writes))
	}
	return done
}

// fails does a transaction of the id a and demands that the operation at a place does not hold.
func (e *Env) fails(t driver.Transaction, place int, current []byte) {
	e.t.Helper()
	t.ID = []byte("a")
	_, err := e.transactor().Transact(context.Background(), e.Space, t)
	f := fault.From(err)
	if f == nil || f.Code != fault.Conflict || f.Reason != fault.CheckFailed || f.Outcome != fault.NotApplied {
		e.t.Fatalf("got %s, want CHECK_FAILED", show(err))
	}
	want := fault.From(driver.CheckFailed(current, place))
	if f.Metadata["index"] != want.Metadata["index"] || f.Metadata["version"] != want.Metadata["version"] {
		e.t.Errorf("the fault tells %v, want %v", f.Metadata, want.Metadata)
	}
}

func transactCases() []Case {
	return in("keyvalue.transact",
		Case{ID: "KX-01", Name: "apply_groups", Run: func(t *testing.T, e *Env) {
			done := e.transacted(driver.Transaction{Writes: []driver.Write{put("a", "1", "x"), put("a", "2", "y"), put("a", "", "z")}})
			for n, key := range []string{"1", "2", ""} {
				if it := e.get("a", key); it == nil || !bytes.Equal(it.Version, done.Results[n].Version) || done.Results[n].Existed {
					t.Errorf("%q: %+v, result %+v", key, it, done.Results[n])
				}
			}
		}},
		Case{ID: "KX-02", Name: "delete_in_following_transaction", Run: func(t *testing.T, e *Env) {
			e.transacted(driver.Transaction{Writes: []driver.Write{put("a", "1", "x"), put("a", "2", "y")}})
			done := e.transacted(driver.Transaction{Writes: []driver.Write{remove("a", "1"), put("a", "2", "z")}})
			if !done.Results[0].Existed || !done.Results[1].Existed {
				t.Errorf("got %+v", done)
			}
			e.holds("a", "1", nil)
			e.holds("a", "2", "z")
		}},
		Case{ID: "KX-03", Name: "delete_absent_in_transaction", Run: func(t *testing.T, e *Env) {
			if done := e.transacted(driver.Transaction{Writes: []driver.Write{remove("a", "1"), put("a", "2", "z")}}); done.Results[0].Existed {
				t.Errorf("got %+v", done)
			}
			e.holds("a", "2", "z")
		}},
		Case{ID: "KX-04", Name: "order_within_transaction_last_wins", Run: func(t *testing.T, e *Env) {
			done := e.transacted(driver.Transaction{Writes: []driver.Write{
				put("a", "1", "x"), onlyIf(put("a", "1", "y"), driver.IfPresent, nil), put("a", "2", "x"), remove("a", "2"),
				onlyIf(put("a", "3", "x"), driver.IfAbsent, nil), remove("a", "3"), onlyIf(put("a", "3", "y"), driver.IfAbsent, nil),
			}})
			if it := e.holds("a", "1", "y"); !bytes.Equal(it.Version, done.Results[1].Version) {
				t.Errorf("version %x, result %x", it.Version, done.Results[1].Version)
			}
			e.holds("a", "2", nil)
			e.holds("a", "3", "y")
			if sc, ok := e.inst.(driver.Scanner); ok {
				items, more, err := sc.Scan(t.Context(), e.Space, driver.Range{ID: []byte("a"), Limit: 10, MaxBytes: 1 << 20})
				if err != nil || more || len(items) != 2 {
					t.Errorf("scan: %q, %v, %v", keysOf(items), more, err)
				}
			}
		}},
		Case{ID: "KX-07", Name: "check_fails_nothing_applied", Run: func(t *testing.T, e *Env) {
			old := e.must(put("a", "1", "x"))
			now := e.must(put("a", "1", "y"))
			e.fails(driver.Transaction{
				Checks: []driver.Check{{Key: []byte("1"), Condition: driver.IfVersion, Version: old.Version}},
				Writes: []driver.Write{put("a", "2", "z"), remove("a", "1")},
			}, 0, now.Version)
			e.holds("a", "1", "y")
			e.holds("a", "2", nil)
			e.transacted(driver.Transaction{
				Checks: []driver.Check{{Key: []byte("1"), Condition: driver.IfVersion, Version: now.Version}, {Key: []byte("2"), Condition: driver.IfAbsent}},
				Writes: []driver.Write{put("a", "2", "z"), remove("a", "1")},
			})
			e.holds("a", "1", nil)
			e.holds("a", "2", "z")
		}},
		Case{ID: "KX-08", Name: "index_of_failing_check", Run: func(t *testing.T, e *Env) {
			one := e.must(put("a", "1", "x"))
			present := driver.Check{Key: []byte("1"), Condition: driver.IfPresent}
			e.fails(driver.Transaction{Checks: []driver.Check{present, {Key: []byte("2"), Condition: driver.IfPresent}}}, 1, nil)
			e.fails(driver.Transaction{Checks: []driver.Check{present, present, {Key: []byte("1"), Condition: driver.IfAbsent}}}, 2, one.Version)
			e.fails(driver.Transaction{
				Checks: []driver.Check{present},
				Writes: []driver.Write{put("a", "2", "z"), onlyIf(put("a", "1", "z"), driver.IfAbsent, nil)},
			}, 2, one.Version)
			e.holds("a", "2", nil)
			e.holds("a", "1", "x")
		}},
		Case{ID: "KX-09", Name: "bank_transfer_invariant_50_clients", Run: bankTransfers},
		Case{ID: "KX-11", Name: "100_operations", Run: func(t *testing.T, e *Env) {
			var tx driver.Transaction
			for n := range driver.MaxOperations {
				if key := fmt.Sprint(n); n%4 == 0 {
					tx.Checks = append(tx.Checks, driver.Check{Key: []byte(key), Condition: driver.IfAbsent})
				} else {
					tx.Writes = append(tx.Writes, put("a", key, key))
				}
			}
			e.transacted(tx)
			e.holds("a", "99", "99")
			e.holds("a", "96", nil)
		}},
		Case{ID: "KX-13", Name: "duplicate_token", Needs: idempotent, Run: func(t *testing.T, e *Env) {
			tx := driver.Transaction{
				Checks: []driver.Check{{Key: []byte("1"), Condition: driver.IfAbsent}},
				Writes: []driver.Write{put("a", "1", "x"), remove("a", "2")}, Token: e.newToken(1),
			}
			first := e.transacted(tx)
			e.must(put("a", "1", "y"))
			again := e.transacted(tx)
			if first.Duplicate || !again.Duplicate || !bytes.Equal(first.Results[0].Version, again.Results[0].Version) {
				t.Errorf("got %+v, and again %+v", first, again)
			}
			e.holds("a", "1", "y")
			reused := *tx.Token
			reused.Request = [16]byte{9}
			tx.Token, tx.ID = &reused, []byte("a")
			if _, err := e.transactor().Transact(t.Context(), e.Space, tx); !fault.Is(err, fault.TokenReused) {
				t.Errorf("reused: %s", show(err))
			}
		}},
		Case{ID: "KX-14", Name: "retry_on_conflict_bounded", Run: func(t *testing.T, e *Env) {
			// All want the same key: each is done, or says that it was not.
			var wait sync.WaitGroup
			var mu sync.Mutex
			done := 0
			for range 20 {
				wait.Go(func() {
					_, err := e.transactor().Transact(context.Background(), e.Space, driver.Transaction{ID: []byte("a"), Writes: []driver.Write{put("a", "k", "v")}})
					mu.Lock()
					defer mu.Unlock()
					if err == nil {
						done++
					} else if f := fault.From(err); f.Reason != fault.TxConflict || f.Outcome != fault.NotApplied {
						t.Error(show(err))
					}
				})
			}
			wait.Wait()
			if done == 0 {
				t.Error("none was done")
			}
		}},
		Case{ID: "KT-15", Name: "ttl_in_transaction", Needs: expires, Run: func(t *testing.T, e *Env) {
			at := e.Clock.Now().Add(time.Hour).Truncate(time.Millisecond)
			done := e.transacted(driver.Transaction{Writes: []driver.Write{until(put("a", "1", "x"), at), put("a", "2", "x")}})
			if !done.Results[0].ExpireAt.Equal(at) || !done.Results[1].ExpireAt.IsZero() {
				t.Errorf("got %+v", done)
			}
			e.Clock.Move(2 * time.Hour)
			e.holds("a", "1", nil)
			e.holds("a", "2", "x")
			e.transacted(driver.Transaction{Checks: []driver.Check{{Key: []byte("1"), Condition: driver.IfAbsent}}, Writes: []driver.Write{put("a", "1", "y")}})
		}},
	)
}

// bankTransfers moves money between accounts of one id and demands that none is made or lost: readers see the sum at every
// moment by a transaction of checks.
func bankTransfers(t *testing.T, e *Env) {
	const accounts, clients, transfers, each = 5, 50, 8, 100
	var opening []driver.Write
	for n := range accounts {
		opening = append(opening, put("a", fmt.Sprint(n), fmt.Sprint(each)))
	}
	e.transacted(driver.Transaction{Writes: opening})
	read := func(n int) (int, []byte) {
		it, err := e.Get(context.Background(), e.Space, name("a", fmt.Sprint(n)), false)
		if err != nil || it == nil {
			t.Errorf("account %d: %v, %s", n, it, show(err))
			return 0, nil
		}
		balance, err := strconv.Atoi(string(it.Value))
		if err != nil {
			t.Error(err)
		}
		return balance, it.Version
	}
	var wait sync.WaitGroup
	for range clients {
		wait.Go(func() {
			for moved := 0; moved < transfers && !t.Failed(); {
				from := rand.IntN(accounts)
				to := (from + 1 + rand.IntN(accounts-1)) % accounts
				a, versionA := read(from)
				b, versionB := read(to)
				_, err := e.transactor().Transact(context.Background(), e.Space, driver.Transaction{
					ID: []byte("a"), Checks: []driver.Check{
						{Key: []byte(fmt.Sprint(from)), Condition: driver.IfVersion, Version: versionA},
						{Key: []byte(fmt.Sprint(to)), Condition: driver.IfVersion, Version: versionB},
					},
					Writes: []driver.Write{put("a", fmt.Sprint(from), fmt.Sprint(a-1)), put("a", fmt.Sprint(to), fmt.Sprint(b+1))},
				})
				switch {
				case err == nil:
					moved++
				case fault.Is(err, fault.CheckFailed), fault.Is(err, fault.TxConflict):
					moved += rand.IntN(2) // not for ever: with fifty clients most lose
				default:
					t.Error(show(err))
				}
			}
		})
	}
	wait.Wait()
	sum := 0
	for n := range accounts {
		balance, _ := read(n)
		sum += balance
	}
	if sum != accounts*each {
		t.Errorf("the accounts hold %d, want %d", sum, accounts*each)
	}
}
