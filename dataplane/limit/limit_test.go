package limit_test

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prism-gateway/prism/dataplane/limit"
	"github.com/prism-gateway/prism/shared/fault"
)

func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := limit.New(limit.Bounds{Rate: 10})
		admitted := func() (n int, last error) {
			for {
				if last = l.Begin(); last != nil {
					return n, last
				}
				l.End()
				n++
			}
		}
		n, err := admitted()
		if n != 10 {
			t.Errorf("%d calls at once, want one second's 10", n)
		}
		if f := fault.From(err); f.Code != fault.Exhausted || f.Reason != fault.Rate || f.Outcome != fault.NotApplied || f.RetryAfter != 100*time.Millisecond {
			t.Errorf("refused with %+v, want a tenth of a second to wait", f)
		}
		time.Sleep(500 * time.Millisecond)
		if n, _ := admitted(); n != 5 {
			t.Errorf("%d calls after half a second, want 5", n)
		}
		l.SetBounds(limit.Bounds{Rate: 20})
		if n, _ := admitted(); n != 0 {
			t.Errorf("a change of the bound gave a fresh allowance of %d", n)
		}
		l.SetBounds(limit.Bounds{})
		for range 1000 {
			if err := l.Begin(); err != nil {
				t.Fatalf("without bound: %v", err)
			}
			l.End()
		}
	})
}

func TestConcurrency(t *testing.T) {
	l := limit.New(limit.Bounds{Concurrency: 3})
	for range 3 {
		if err := l.Begin(); err != nil {
			t.Fatal(err)
		}
	}
	if f := fault.From(l.Begin()); f == nil || f.Code != fault.Exhausted || f.Reason != fault.Bulkhead || f.RetryAfter == 0 {
		t.Errorf("the fourth: %+v", f)
	}
	l.End()
	if err := l.Begin(); err != nil {
		t.Errorf("after one ended: %v", err)
	}
}

func TestConcurrencyIsNeverExceeded(t *testing.T) {
	l := limit.New(limit.Bounds{Concurrency: 4})
	var inside, most atomic.Int64
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 1000 {
				if l.Begin() != nil {
					continue
				}
				n := inside.Add(1)
				for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
				}
				inside.Add(-1)
				l.End()
			}
		})
	}
	wg.Wait()
	if most.Load() > 4 || l.Underway() != 0 {
		t.Errorf("at most %d at once, %d left; want 4 and none", most.Load(), l.Underway())
	}
}

func TestStreamsAndCallsDoNotTakeFromEachOther(t *testing.T) {
	l := limit.New(limit.Bounds{Concurrency: 2})
	for range 2 {
		if err := l.BeginStream(); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.BeginStream(); !fault.Is(err, fault.Bulkhead) {
		t.Errorf("a third stream: %v", err)
	}
	for range 2 {
		if err := l.Begin(); err != nil {
			t.Errorf("a call beside open streams: %v", err)
		}
	}
	l.EndStream()
	if err := l.BeginStream(); err != nil {
		t.Errorf("a stream after one has ended: %v", err)
	}
}

func TestRetriesAreATenthOfTheCalls(t *testing.T) {
	l := limit.New(limit.Bounds{})
	retried := 0
	for range 1000 {
		l.Reached()
		for range 3 { // as many as there are
			if l.Retry() {
				retried++
			}
		}
	}
	if retried != 100 {
		t.Errorf("%d retries for 1,000 calls, want 100", retried)
	}
	for range 1000 {
		l.Reached()
	}
	for retried = 0; l.Retry(); retried++ {
	}
	if retried != 10 {
		t.Errorf("%d were saved up, want 10", retried)
	}
}
