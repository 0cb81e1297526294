package conformance

import (
	"context"
	"math"
	"sync"
	"testing"
	"time"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/shared/fault"
)

func (e *Env) increment(key string, i driver.Increment) (driver.Incremented, error) {
	i.Name = name("a", key)
	return e.inst.(driver.Counter).Increment(context.Background(), e.Space, i)
}

// adds increments and demands a sum.
func (e *Env) adds(key string, i driver.Increment, want int64) driver.Incremented {
	e.t.Helper()
	done, err := e.increment(key, i)
	if err != nil || done.Value != want {
		e.t.Fatalf("got %d, %s, want %d", done.Value, show(err), want)
	}
	return done
}

func counterCases() []Case {
	return in("keyvalue.counter",
		Case{ID: "KC-01", Name: "increment_from_absent", Run: func(t *testing.T, e *Env) {
			done := e.adds("k", driver.Increment{Delta: 5}, 5)
			if it := e.holds("a", "k", "5"); string(it.Version) != string(done.Version) || done.Existed {
				t.Errorf("got %+v for %+v", done, it)
			}
			if again := e.adds("k", driver.Increment{Delta: 1, Initial: 100}, 6); !again.Existed || string(again.Version) == string(done.Version) {
				t.Errorf("got %+v after %+v", again, done)
			}
			e.adds("other", driver.Increment{Delta: 1, Initial: 100}, 101)
			w := put("a", "put", "41")
			w.ContentType, w.Metadata = "text/plain", map[string]string{"a": "b"}
			e.must(w)
			e.adds("put", driver.Increment{Delta: 1}, 42)
			if it := e.holds("a", "put", "42"); it.ContentType != "text/plain" || it.Metadata["a"] != "b" {
				t.Errorf("got %+v", it)
			}
		}},
		Case{ID: "KC-02", Name: "negative", Run: func(t *testing.T, e *Env) {
			e.adds("k", driver.Increment{Delta: -5}, -5)
			e.adds("k", driver.Increment{Delta: -1}, -6)
			e.adds("k", driver.Increment{Delta: 10}, 4)
			e.adds("k", driver.Increment{}, 4)
		}},
		Case{ID: "KC-03", Name: "overflow", Run: func(t *testing.T, e *Env) {
			e.adds("k", driver.Increment{Delta: math.MaxInt64}, math.MaxInt64)
			done, err := e.increment("k", driver.Increment{Delta: 1})
			e.isFault(done.Written, err, fault.OutOfRange, fault.Counter, fault.NotApplied)
			e.adds("k", driver.Increment{Delta: math.MinInt64}, -1)
			e.adds("low", driver.Increment{Delta: math.MinInt64}, math.MinInt64)
			done, err = e.increment("low", driver.Increment{Delta: -1})
			e.isFault(done.Written, err, fault.OutOfRange, fault.Counter, fault.NotApplied)
			done, err = e.increment("new", driver.Increment{Delta: 1, Initial: math.MaxInt64})
			e.isFault(done.Written, err, fault.OutOfRange, fault.Counter, fault.NotApplied)
			e.holds("a", "new", nil)
			// What a floating point number cannot hold.
			e.must(put("a", "exact", "9007199254740993"))
			e.adds("exact", driver.Increment{Delta: 2}, 9007199254740995)
		}},
		Case{ID: "KC-04", Name: "not_a_counter", Run: func(t *testing.T, e *Env) {
			for _, value := range []string{"", "x", "1.5", "+1", "01", "-0", " 1", "1 ", "9223372036854775808", "1\x00"} {
				e.must(put("a", "k", value))
				done, err := e.increment("k", driver.Increment{Delta: 1})
				e.isFault(done.Written, err, fault.FailedPrecondition, fault.NotACounter, fault.NotApplied)
				e.holds("a", "k", value)
			}
		}},
		Case{ID: "KC-05", Name: "exactly_once_with_token_under_retries", Needs: idempotent, Run: func(t *testing.T, e *Env) {
			var wait sync.WaitGroup
			for range 20 {
				token := e.newToken(1)
				for range 3 {
					wait.Go(func() {
						if _, err := e.increment("k", driver.Increment{Delta: 1, Token: token}); err != nil {
							t.Error(show(err))
						}
					})
				}
			}
			wait.Wait()
			token := e.newToken(2)
			first := e.adds("k", driver.Increment{Delta: 1, Token: token}, 21)
			again := e.adds("k", driver.Increment{Delta: 1, Token: token}, 21)
			if first.Duplicate || !again.Duplicate || string(first.Version) != string(again.Version) {
				t.Errorf("got %+v, and again %+v", first, again)
			}
			reused := *token
			reused.Request = [16]byte{3}
			done, err := e.increment("k", driver.Increment{Delta: 2, Token: &reused})
			e.isFault(done.Written, err, fault.Invalid, fault.TokenReused, fault.NotApplied)
		}},
		Case{ID: "KC-01", Name: "increments_at_once_lose_nothing", Run: func(t *testing.T, e *Env) {
			var wait sync.WaitGroup
			for range 20 {
				wait.Go(func() {
					for range 10 {
						if _, err := e.increment("k", driver.Increment{Delta: 1}); err != nil {
							t.Error(show(err))
						}
					}
				})
			}
			wait.Wait()
			e.holds("a", "k", "200")
		}},
		Case{ID: "KC-01", Name: "increment_and_expiry", Needs: expires, Run: func(t *testing.T, e *Env) {
			at := e.Clock.Now().Add(time.Hour).Truncate(time.Millisecond)
			if done := e.adds("k", driver.Increment{Delta: 1, ExpireAt: at}, 1); !done.ExpireAt.Equal(at) {
				t.Errorf("expires at %v, want %v", done.ExpireAt, at)
			}
			if done := e.adds("k", driver.Increment{Delta: 1, KeepExpiry: true}, 2); !done.ExpireAt.Equal(at) {
				t.Errorf("expires at %v, want %v kept", done.ExpireAt, at)
			}
			e.Clock.Move(2 * time.Hour)
			e.holds("a", "k", nil)
			e.adds("k", driver.Increment{Delta: 1, Initial: 10}, 11)
		}},
	)
}
