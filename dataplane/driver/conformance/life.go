package conformance

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/shared/fault"
)

func lifeCases() []Case {
	return in("keyvalue",
		Case{ID: "LF-01", Name: "backend_absent_at_start_then_comes", Needs: server, Run: func(t *testing.T, e *Env) {
			e.backend.Stop(t)
			late := e.open().(driver.KeyValue)
			done, err := late.Write(t.Context(), e.Space, put("a", "k", "v"))
			e.isFault(done, err, fault.Unavailable, fault.BackendDown, fault.NotApplied)
			if err := late.(driver.Instance).Ping(t.Context()); !fault.Is(err, fault.BackendDown) {
				t.Errorf("ping: %s", show(err))
			}
			if _, err := late.Get(t.Context(), e.Space, name("a", "k"), false); !fault.Is(err, fault.BackendDown) {
				t.Errorf("get: %s", show(err))
			}
			e.backend.Start(t)
			e.KeyValue = late
			e.must(put("a", "k", "v"))
			e.holds("a", "k", "v")
		}},
		Case{ID: "LF-02", Name: "backend_stop_start_data_there", Needs: shared, Run: func(t *testing.T, e *Env) {
			e.must(put("a", "k", "v"))
			e.must(put("a", "k2", "v2"))
			if e.backend.Stop != nil {
				e.backend.Stop(t)
				if _, err := e.Get(t.Context(), e.Space, name("a", "k"), false); fault.From(err) == nil || fault.From(err).Code != fault.Unavailable {
					t.Errorf("get while it is down: %s", show(err))
				}
				e.backend.Start(t)
			} else if err := e.inst.Close(); err != nil {
				t.Fatal(err)
			} else {
				e.inst = e.open()
				e.KeyValue = e.inst.(driver.KeyValue)
			}
			e.holds("a", "k", "v")
			e.holds("a", "k2", "v2")
			e.must(put("a", "k3", "v3"))
		}},
		Case{ID: "LF-06", Name: "closing_while_busy", Run: closingWhileBusy},
	)
}

// closingWhileBusy closes an instance under load: each call ends, with its result or with a fault, and a write that was
// not applied is not there.
func closingWhileBusy(t *testing.T, e *Env) {
	busy := e.open()
	kv := busy.(driver.KeyValue)
	var wait sync.WaitGroup
	var calls atomic.Int64
	under := make(chan struct{})
	var once sync.Once
	outcomes := make([]map[string]fault.Outcome, 8) // per writer: key to the outcome, applied when it succeeded
	for writer := range outcomes {
		outcomes[writer] = map[string]fault.Outcome{}
		wait.Go(func() {
			for n := 0; ; n++ {
				key := fmt.Sprintf("%d-%d", writer, n)
				_, err := kv.Write(context.Background(), e.Space, put("a", key, "v"))
				if calls.Add(1) == 100 {
					once.Do(func() { close(under) })
				}
				if err == nil {
					outcomes[writer][key] = fault.Applied
					continue
				}
				f, ok := errors.AsType[*fault.Fault](err)
				if !ok || f.Outcome == "" || f.Code == fault.Internal {
					t.Errorf("write: %s", show(err))
				} else {
					outcomes[writer][key] = f.Outcome
				}
				return
			}
		})
	}
	<-under
	if err := busy.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	wait.Wait()
	if !e.backend.Shared {
		return
	}
	for _, of := range outcomes {
		for key, outcome := range of {
			if it := e.get("a", key); outcome != fault.OutcomeUnknown && (it != nil) != (outcome == fault.Applied) {
				t.Errorf("%s: outcome %s, item there: %v", key, outcome, it != nil)
			}
		}
	}
}
