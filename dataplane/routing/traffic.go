package routing

import (
	"sync/atomic"
	"time"
)

// Traffic counts the calls of one partition that this proxy answered. It outlives routes and tables, and lies on a cache
// line of its own. Its methods may be called from any goroutine; on nil they count nothing.
type Traffic struct {
	calls, failed, nanoseconds atomic.Uint64

	_ [40]byte
}

// Count notes a call that was answered after so long, and whether it failed by the fault of Prism or a backend.
func (t *Traffic) Count(failed bool, took time.Duration) {
	if t == nil {
		return
	}
	t.calls.Add(1)
	t.nanoseconds.Add(uint64(max(took, 0)))
	if failed {
		t.failed.Add(1)
	}
}

// Totals are the calls answered, those of them that failed, and the time that they all took. They are read one after the
// other, so a call that ends meanwhile may be in some of them only.
func (t *Traffic) Totals() (calls, failed uint64, took time.Duration) {
	if t == nil {
		return 0, 0, 0
	}
	return t.calls.Load(), t.failed.Load(), time.Duration(t.nanoseconds.Load())
}
