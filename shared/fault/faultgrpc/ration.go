package faultgrpc

import (
	"sync"
	"time"

	"github.com/prism-gateway/prism/shared/fault"
)

// How many lines of one reason are logged in what time.
const (
	rationLines = 5
	rationTime  = time.Second
)

// maxReasons bounds what is remembered: a fault that came from another program may have any reason.
const maxReasons = 100

// ration lets few lines of a reason through, so that a backend that is down under load does not fill the log.
type ration struct {
	mu   sync.Mutex // guards told
	told map[fault.Reason]*told
}

// told is what was said of a reason since begin.
type told struct {
	begin          time.Time
	lines, leftOut int
}

func newRation() *ration { return &ration{told: map[fault.Reason]*told{}} }

// take reports whether a line may be written, and how many of the same reason were left out before it.
func (r *ration) take(reason fault.Reason, now time.Time) (leftOut int, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.told[reason]
	if t == nil {
		if len(r.told) >= maxReasons {
			clear(r.told)
		}
		t = &told{begin: now}
		r.told[reason] = t
	}
	if now.Sub(t.begin) >= rationTime {
		leftOut = t.leftOut
		*t = told{begin: now}
	}
	if t.lines == rationLines {
		t.leftOut++
		return 0, false
	}
	t.lines++
	return leftOut, true
}
