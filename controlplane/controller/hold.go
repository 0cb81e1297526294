package controller

import (
	"time"

	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/release/gate"
	"github.com/prism-gateway/prism/shared/ident"
)

// mostWanted bounds how many states are remembered that a cell was to have since a wave began.
const mostWanted = 256

// hold is what a leader remembers of a wave while it holds it.
type hold struct {
	wave  int
	since time.Time // from when the cells are expected to have it
	held  time.Time // since when all that were reached serve it; zero until then
	cells map[cellKey]*memory
	wants map[rankKey][]gate.Roots // newest first
}

type cellKey struct {
	partition ident.Partition
	proxy     string
}

type rankKey struct {
	partition ident.Partition
	rank      release.Rank
}

// memory is what is remembered of one cell.
type memory struct {
	wave    int
	reached bool
	since   time.Time
	then    *gate.Traffic        // its calls when it was first seen in the wave, or when the release reached it
	unready map[string]time.Time // since when a namespace was seen not to serve
	before  map[string]bool      // those that did not when the wave began
}

func newHold(wave int, now time.Time) *hold {
	return &hold{wave: wave, since: now, cells: map[cellKey]*memory{}, wants: map[rankKey][]gate.Roots{}}
}

// look adds what is remembered to cells, and remembers what is new.
func (h *hold) look(cells []gate.Cell, now time.Time) {
	for i := range cells {
		c := &cells[i]
		m := h.cells[cellKey{c.Partition, c.Proxy}]
		if m == nil {
			m = &memory{reached: c.Reached, since: now}
			h.cells[cellKey{c.Partition, c.Proxy}] = m
		}
		if c.Reached && !m.reached { // its rank changed
			*m = memory{reached: true, since: now, before: keys(m.unready), unready: m.unready}
		}
		m.wave = c.Wave
		if m.then == nil {
			m.then = c.Now
		}
		c.Since, c.Then = m.since, m.then
		h.unready(c, m, now)
		h.want(c)
	}
}

// begin takes what was seen of the cells as how they were before the wave.
func (h *hold) begin() {
	for _, m := range h.cells {
		m.reached = m.reached || m.wave <= h.wave
		m.before = keys(m.unready)
	}
}

// anew lets the wave be held from its beginning again, and calls be counted from now on: those that failed because of
// what went back do not tell against the rest.
func (h *hold) anew() {
	h.held = time.Time{}
	for _, m := range h.cells {
		m.then = nil
	}
}

func keys(m map[string]time.Time) map[string]bool {
	if len(m) == 0 {
		return nil
	}
	out := map[string]bool{}
	for k := range m {
		out[k] = true
	}
	return out
}

func (h *hold) unready(c *gate.Cell, m *memory, now time.Time) {
	if len(c.Unready) == 0 {
		m.unready = nil
		return
	}
	since := map[string]time.Time{}
	for i := range c.Unready {
		u := &c.Unready[i]
		u.Since = now
		if earlier, ok := m.unready[u.Namespace]; ok {
			u.Since = earlier
		}
		since[u.Namespace] = u.Since
		u.Before = m.before[u.Namespace]
	}
	m.unready = since
}

// want remembers what a cell is to have, because what it reports may be what it was to have a moment ago.
func (h *hold) want(c *gate.Cell) {
	if !c.Reached {
		return
	}
	key := rankKey{c.Partition, c.Rank}
	before := h.wants[key]
	if len(before) == 0 || before[0] != c.Wants[0] {
		before = append([]gate.Roots{c.Wants[0]}, before[:min(len(before), mostWanted-1)]...)
		h.wants[key] = before
	}
	c.Wants = before
}
