package quota

import (
	"strconv"
	"sync"
	"time"

	"github.com/prism-gateway/prism/shared/fault"
)

// burst is what may come at once: ten seconds' worth.
func (b Bounds) burst() float64 { return max(1, float64(b.ChangesPerMinute)/6) }

func (b Bounds) perSecond() float64 { return float64(b.ChangesPerMinute) / 60 }

// Rates counts the changes of teams against their bounds. The zero value has counted none. Its methods may be used from
// any number of goroutines.
type Rates struct {
	mu    sync.Mutex // guards all below
	teams map[string]*bucket
}

// bucket is what a team may still do at once; below 0 after a change that was larger than that.
type bucket struct {
	left float64
	at   time.Time
	full time.Time // from when on it is as if nothing had been counted
}

// maxIdle is how many teams are remembered before those with full buckets are forgotten.
const maxIdle = 1024

// Take counts n changes of a team, or refuses them with RESOURCE_EXHAUSTED, reason QUOTA, and says when to come back. A
// change that is larger than what may come at once is let pass when nothing else is counted, and what comes next waits
// for all of it.
func (r *Rates) Take(team string, b Bounds, n int, now time.Time) error {
	if b.ChangesPerMinute == 0 || n == 0 {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	at := r.bucketLocked(team, b, now)
	if want := min(float64(n), b.burst()); at.left < want {
		// The millisecond makes up for rounding, so that who comes back then is let in.
		wait := time.Duration((want-at.left)/b.perSecond()*float64(time.Second)) + time.Millisecond
		limit := thousands(uint64(b.ChangesPerMinute))
		return fault.Newf(fault.Exhausted, fault.Quota, "team %s may change %s namespaces a minute, %s of them at once: try again in %s",
			team, limit, thousands(uint64(b.burst())), wait.Round(time.Millisecond)).
			With("quota", "changes_per_minute").With("team", team).With("limit", strconv.FormatUint(uint64(b.ChangesPerMinute), 10)).
			WithRetry(wait).WithOutcome(fault.NotApplied)
	}
	at.count(b, n)
	return nil
}

// Count counts n changes that were let in elsewhere, or takes back -n that came to nothing.
func (r *Rates) Count(team string, b Bounds, n int, now time.Time) {
	if b.ChangesPerMinute == 0 || n == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	at := r.bucketLocked(team, b, now)
	at.count(b, n)
}

func (at *bucket) count(b Bounds, n int) {
	at.left = min(at.left-float64(n), b.burst())
	at.full = at.at.Add(time.Duration((b.burst() - at.left) / b.perSecond() * float64(time.Second)))
}

func (r *Rates) bucketLocked(team string, b Bounds, now time.Time) *bucket {
	at := r.teams[team]
	if at == nil {
		if len(r.teams) >= maxIdle {
			for name, old := range r.teams {
				if now.After(old.full) {
					delete(r.teams, name)
				}
			}
		}
		if r.teams == nil {
			r.teams = map[string]*bucket{}
		}
		at = &bucket{left: b.burst(), at: now}
		r.teams[team] = at
	}
	// A clock that was set back gives nothing, and nothing is taken away.
	if passed := now.Sub(at.at); passed > 0 {
		at.left = min(at.left+passed.Seconds()*b.perSecond(), b.burst())
		at.at = now
	} else if passed < -time.Minute {
		at.at = now
	}
	return at
}
