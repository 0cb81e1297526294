package routing

import (
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// stripe counts some of a table's pins on a cache line of its own (two, as processors fetch them in pairs).
type stripe struct {
	pins atomic.Int64
	_    [120]byte
}

// retirement is what happens to a table after it was replaced.
type retirement struct {
	replaced atomic.Bool
	garbage  []*Route // routes that the next table no longer has
}

// Routes holds the table in effect. Its methods may be called concurrently.
type Routes struct {
	current atomic.Pointer[Table]
	swaps   atomic.Uint64
	now     func() time.Time
	stripes int // a power of two

	mu  sync.Mutex // guards old
	old []*Table   // replaced and not drained yet, oldest first
}

// New starts with an empty table. now is the clock; nil means time.Now.
func New(now func() time.Time) *Routes {
	if now == nil {
		now = time.Now
	}
	n := 1
	for n < runtime.GOMAXPROCS(0)*2 && n < 64 {
		n *= 2
	}
	r := &Routes{now: now, stripes: n}
	r.current.Store(r.prepare(NewTable(0)))
	return r
}

func (r *Routes) prepare(t *Table) *Table {
	t.stripes = make([]stripe, r.stripes)
	t.published = r.now()
	return t
}

// Pin keeps a table and its routes from being let go.
type Pin struct {
	table  *Table
	stripe *stripe
}

// Table is the table pinned.
func (p Pin) Table() *Table { return p.table }

// Acquire pins the table in effect. Each pin is released once, by Release.
func (r *Routes) Acquire() Pin {
	i := rand.Uint32()
	for {
		t := r.current.Load()
		s := &t.stripes[i&uint32(len(t.stripes)-1)]
		s.pins.Add(1)
		if r.current.Load() == t {
			return Pin{table: t, stripe: s}
		}
		// The table was replaced before it was pinned, and may be drained already.
		r.Release(Pin{table: t, stripe: s})
	}
}

// Release ends a pin. The last release of a replaced table lets go what only it used.
func (r *Routes) Release(p Pin) {
	if p.stripe.pins.Add(-1) == 0 && p.table.retired.replaced.Load() {
		r.retire()
	}
}

// Publish puts next into effect by one store. gone are the routes of the table before that next does not have: they
// are let go when no call can use them any more. Only one caller publishes at a time; next must not have been
// published before.
func (r *Routes) Publish(next *Table, gone []*Route) {
	before := r.current.Load()
	before.retired.garbage = gone
	r.mu.Lock()
	r.old = append(r.old, before)
	r.mu.Unlock()
	r.current.Store(r.prepare(next))
	r.swaps.Add(1)
	for _, route := range gone {
		if route.gone != nil { // sealed
			close(route.gone)
		}
	}
	before.retired.replaced.Store(true)
	r.retire()
}

// retire lets go what the oldest tables used, up to the first that is still pinned.
func (r *Routes) retire() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.old) > 0 {
		t := r.old[0]
		if !t.retired.replaced.Load() || t.pinned() {
			return
		}
		for _, route := range t.retired.garbage {
			for _, used := range route.Uses {
				used.Release()
			}
		}
		t.retired.garbage = nil
		r.old[0] = nil
		r.old = r.old[1:]
	}
}

// pinned reports whether a call may still use the table, which was replaced before: from then on a stripe that is
// once seen at zero only ever counts pins that are given back unused.
func (t *Table) pinned() bool {
	for i := range t.stripes {
		if t.stripes[i].pins.Load() != 0 {
			return true
		}
	}
	return false
}

// Current returns the table in effect without pinning it: for looking at it, not for using its routes.
func (r *Routes) Current() *Table { return r.current.Load() }

// Swaps is how many tables have been published.
func (r *Routes) Swaps() uint64 { return r.swaps.Load() }

// Undrained is how many replaced tables calls may still use.
func (r *Routes) Undrained() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.old)
}
