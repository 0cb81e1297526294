package breaker_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/prism-gateway/prism/dataplane/breaker"
	"github.com/prism-gateway/prism/shared/fault"
)

var (
	down  = fault.New(fault.Unavailable, fault.BackendDown, "down")
	slow  = fault.New(fault.DeadlineExceeded, fault.Backend, "slow")
	gone  = fault.New(fault.Cancelled, fault.Client, "gone")
	wrong = fault.New(fault.Conflict, fault.VersionMismatch, "other")
)

// calls makes n calls that end with err and says how many were admitted.
func calls(b *breaker.Breaker, n int, err error) (admitted int) {
	for range n {
		if b.Begin() == nil {
			admitted++
			b.End(err)
		}
	}
	return admitted
}

func TestOpensAndClosesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(nil)
		if n := calls(b, 100, down); n != 20 || b.State() != breaker.Open {
			t.Fatalf("%d calls were admitted, state %s; want 20 and open", n, b.State())
		}
		err := b.Begin()
		f := fault.From(err)
		if !fault.Is(err, fault.BreakerOpen) || f.Outcome != fault.NotApplied || f.RetryAfter <= 0 {
			t.Errorf("refused with %+v", f)
		}
		time.Sleep(2 * time.Second)
		if err := b.Begin(); err != nil || b.State() != breaker.HalfOpen {
			t.Fatalf("the probe: %v, state %s", err, b.State())
		}
		if b.Begin() == nil {
			t.Error("a second call was let through beside the probe")
		}
		b.End(slow)
		time.Sleep(900 * time.Millisecond)
		if b.State() != breaker.Open || b.Begin() == nil {
			t.Errorf("a probe that failed leaves it %s, and for a second at least", b.State())
		}
		time.Sleep(4 * time.Second)
		if n := calls(b, 1, gone); n != 1 || b.State() == breaker.Closed {
			t.Errorf("a probe whose caller gave up: %d admitted, %s", n, b.State())
		}
		if n := calls(b, 10, nil); n != 10 || b.State() != breaker.Closed {
			t.Errorf("after a probe that succeeded: %d admitted, %s", n, b.State())
		}
		if n := calls(b, 19, down); n != 19 || b.State() != breaker.Closed {
			t.Errorf("what failed before counts: %d admitted, %s", n, b.State())
		}
	})
}

func TestAnAnswerLetsTheNextCallThrough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(nil)
		calls(b, 100, down)
		if n := calls(b, 10, nil); n != 0 {
			t.Fatalf("%d calls were admitted by an open breaker", n)
		}
		b.Answered()
		if n := calls(b, 10, nil); n != 10 || b.State() != breaker.Closed {
			t.Errorf("after an answer %d of 10 calls were admitted, state %s", n, b.State())
		}
	})
}

func TestStaysClosed(t *testing.T) {
	for name, ends := range map[string][]error{
		"refusals of writes":          {wrong},
		"callers that give up":        {gone},
		"fewer than half that fail":   {down, nil, nil},
		"a pool that is used up":      {fault.New(fault.DeadlineExceeded, fault.Pool, "pool")},
		"a proxy that is stopping":    {fault.New(fault.Unavailable, fault.Draining, "closed")},
		"a store that is full":        {fault.New(fault.Exhausted, fault.Backend, "full")},
		"one that fails now and then": {nil, nil, nil, nil, slow},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := breaker.New(nil)
				for range 100 {
					for _, err := range ends {
						if calls(b, 1, err) != 1 {
							t.Fatal("refused")
						}
					}
				}
			})
		})
	}
}

func TestOldFailuresAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(nil)
		for range 100 {
			if calls(b, 1, down) != 1 {
				t.Fatal("ten failures in ten seconds opened it")
			}
			time.Sleep(time.Second)
		}
		var none *breaker.Breaker
		if calls(none, 100, down) != 100 || none.State() != breaker.Closed {
			t.Error("none at all refuses")
		}
	})
}

func BenchmarkHealthy(b *testing.B) {
	br := breaker.New(nil)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if br.Begin() == nil {
				br.End(nil)
			}
		}
	})
}
