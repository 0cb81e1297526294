package conformance

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/shared/fault"
)

// newToken is a token of a nonce that nothing else uses, for a request.
func (e *Env) newToken(request byte) *driver.Token {
	t := &driver.Token{Request: [16]byte{request}, Until: e.Clock.Now().Add(time.Minute)}
	copy(t.Nonce[:], NewSpace()[5:])
	return t
}

func with(w driver.Write, t *driver.Token) driver.Write {
	w.Token = t
	return w
}

func idempotencyCases() []Case {
	return in("keyvalue.idempotency",
		Case{ID: "KV-31", Name: "duplicate_token_returns_first_result", Run: func(t *testing.T, e *Env) {
			e.must(put("a", "k", "zero"))
			w := with(put("a", "k", "one"), e.newToken(1))
			w.Previous, w.ExpireAt = true, e.Clock.Now().Add(time.Hour)
			first := e.must(w)
			e.must(put("a", "k", "two"))
			again := e.must(w)
			if first.Duplicate || !again.Duplicate || !bytes.Equal(first.Version, again.Version) || !again.Existed ||
				!again.ExpireAt.Equal(first.ExpireAt) || again.Previous == nil || string(again.Previous.Value) != "zero" {
				t.Errorf("got %+v, and again %+v", first, again)
			}
			e.holds("a", "k", "two")
			del := with(remove("a", "k"), e.newToken(2))
			e.must(del)
			e.must(put("a", "k", "three"))
			if again := e.must(del); !again.Duplicate || !again.Existed {
				t.Errorf("deleted again: %+v", again)
			}
			e.holds("a", "k", "three")
		}},
		Case{ID: "KV-31", Name: "duplicate_token_is_found_before_conditions", Run: func(t *testing.T, e *Env) {
			w := with(onlyIf(put("a", "k", "v"), driver.IfAbsent, nil), e.newToken(1))
			first := e.must(w)
			if again := e.must(w); !again.Duplicate || !bytes.Equal(first.Version, again.Version) {
				t.Errorf("got %+v, and again %+v", first, again)
			}
		}},
		Case{ID: "KV-31", Name: "what_was_refused_is_not_remembered", Run: func(t *testing.T, e *Env) {
			w := with(onlyIf(put("a", "k", "v"), driver.IfPresent, nil), e.newToken(1))
			e.refused(w, fault.NotFound, fault.KeyRequired)
			e.must(put("a", "k", "u"))
			if done := e.must(w); done.Duplicate {
				t.Error("a refused write counts as done")
			}
			e.holds("a", "k", "v")
		}},
		Case{ID: "KV-31", Name: "duplicates_at_once_are_done_once", Run: func(t *testing.T, e *Env) {
			w := with(put("a", "k", "v"), e.newToken(1))
			var wait sync.WaitGroup
			var first atomic.Int64
			versions := make([]string, 20)
			for n := range versions {
				wait.Go(func() {
					done, err := e.Write(context.Background(), e.Space, w)
					if err != nil {
						t.Error(show(err))
						return
					}
					if versions[n] = string(done.Version); !done.Duplicate {
						first.Add(1)
					}
				})
			}
			wait.Wait()
			for _, v := range versions {
				if v != versions[0] {
					t.Errorf("versions %x and %x", v, versions[0])
				}
			}
			if first.Load() != 1 {
				t.Errorf("%d were the first", first.Load())
			}
		}},
		Case{ID: "KV-31", Name: "tokens_of_a_batch_are_by_entry", Run: func(t *testing.T, e *Env) {
			writes := []driver.Write{with(put("a", "1", "x"), e.newToken(1)), with(put("b", "2", "x"), e.newToken(2)), put("a", "3", "x")}
			first := e.batch(writes...)
			e.must(put("b", "2", "y"))
			again := e.batch(with(put("a", "0", "x"), e.newToken(3)), writes[0], writes[1])
			if again[0].Duplicate || !again[1].Duplicate || !again[2].Duplicate || !bytes.Equal(again[1].Version, first[0].Version) ||
				!bytes.Equal(again[2].Version, first[1].Version) {
				t.Errorf("got %+v, and again %+v", first, again)
			}
			e.holds("b", "2", "y")
		}},
		Case{ID: "KV-31", Name: "token_is_forgotten_after_its_time", Run: func(t *testing.T, e *Env) {
			// By the store's clock or the case's: a driver may remember longer, so only the reverse is demanded.
			w := with(put("a", "k", "v"), e.newToken(1))
			e.must(w)
			e.Clock.Move(30 * time.Second)
			if !e.must(w).Duplicate {
				t.Error("forgotten before its time")
			}
			e.Clock.Move(-30 * time.Second)
		}},
		Case{ID: "KV-32", Name: "token_reused_other_body_refused", Run: func(t *testing.T, e *Env) {
			token := e.newToken(1)
			e.must(with(put("a", "k", "one"), token))
			other := *token
			other.Request = [16]byte{2}
			e.refused(with(put("a", "k", "two"), &other), fault.Invalid, fault.TokenReused)
			got := e.BatchWrite(t.Context(), e.Space, []driver.Write{with(put("a", "k", "two"), &other), put("a", "j", "one")})
			e.isFault(got[0].Written, got[0].Err, fault.Invalid, fault.TokenReused, fault.NotApplied)
			e.holds("a", "k", "one")
			e.holds("a", "j", "one")
		}},
		Case{ID: "KV-32", Name: "tokens_of_other_spaces_are_others", Run: func(t *testing.T, e *Env) {
			token := e.newToken(1)
			e.must(with(put("a", "k", "one"), token))
			here := e.Space
			e.Space = NewSpace()
			if e.must(with(put("a", "k", "two"), token)).Duplicate {
				t.Error("a token of another namespace was found")
			}
			e.Space = here
			e.holds("a", "k", "one")
		}},
		Case{ID: "KV-34", Name: "token_survives_proxy_restart", Needs: shared, Run: func(t *testing.T, e *Env) {
			token := e.newToken(1)
			first := e.must(with(put("a", "k", "v"), token))
			e.KeyValue = e.open().(driver.KeyValue)
			if again := e.must(with(put("a", "k", "v"), token)); !again.Duplicate || !bytes.Equal(again.Version, first.Version) {
				t.Errorf("got %+v, and again %+v", first, again)
			}
		}},
		Case{ID: "KV-31", Name: "many_tokens_do_not_mix", Run: func(t *testing.T, e *Env) {
			var writes []driver.Write
			for n := range 100 {
				writes = append(writes, with(put("a", fmt.Sprint(n), fmt.Sprint(n)), e.newToken(byte(n))))
			}
			first := e.batch(writes...)
			for n, again := range e.batch(writes...) {
				if !again.Duplicate || !bytes.Equal(again.Version, first[n].Version) {
					t.Fatalf("%d: %+v, and again %+v", n, first[n], again)
				}
			}
		}},
	)
}
