package credential

import (
	"container/heap"
	"math/rand/v2"
	"time"
)

// timer is when the scheduler looks at something next.
type timer struct {
	at    time.Time
	index int // in timers; -1: not in it
	fire  interface {
		dueLocked(s *Source, now time.Time)
	}
}

// timers is a heap, the earliest first.
type timers []*timer

func (t timers) Len() int           { return len(t) }
func (t timers) Less(i, j int) bool { return t[i].at.Before(t[j].at) }
func (t timers) Swap(i, j int) {
	t[i], t[j] = t[j], t[i]
	t[i].index, t[j].index = i, j
}

// Push is for package heap.
func (t *timers) Push(x any) {
	timer := x.(*timer)
	timer.index = len(*t)
	*t = append(*t, timer)
}

// Pop is for package heap.
func (t *timers) Pop() any {
	old := *t
	last := old[len(old)-1]
	old[len(old)-1] = nil
	*t = old[:len(old)-1]
	last.index = -1
	return last
}

// armLocked sets when t fires; the zero time means not at all.
func (s *Source) armLocked(t *timer, at time.Time) {
	switch {
	case at.IsZero() && t.index >= 0:
		heap.Remove(&s.timers, t.index)
	case at.IsZero():
	case t.index < 0:
		t.at = at
		heap.Push(&s.timers, t)
	default:
		t.at = at
		heap.Fix(&s.timers, t.index)
	}
	if t.index == 0 {
		s.signal()
	}
}

// earliest returns the earliest of the times that are not zero.
func earliest(times ...time.Time) time.Time {
	var first time.Time
	for _, t := range times {
		if !t.IsZero() && (first.IsZero() || t.Before(first)) {
			first = t
		}
	}
	return first
}

// halfway is when to renew what lives that long: at half of it, a fifth of that sooner or later, so that what began
// together does not renew together. A crowd is spread over as long as half a life, so that its first renewals are as many
// a second as all later ones.
func halfway(life time.Duration, crowd bool) time.Duration {
	first := 0.4
	if crowd {
		first = 0.1
	}
	return time.Duration(float64(life) * (first + (0.6-first)*rand.Float64()))
}

// backOff is how long to wait after so many failures in a row: random, of a bound that doubles.
func backOff(failures int, first, most time.Duration) time.Duration {
	bound := most
	if shift := failures - 1; shift < 16 {
		bound = min(most, first<<max(shift, 0))
	}
	return first/4 + rand.N(bound)
}
