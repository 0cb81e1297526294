// Package quota bounds what a team may have and how fast it may change it, and how large a piece of the configuration
// may be.
//
// Whatever makes a team's use smaller is never refused, also when the team has more than its quota because the quota was
// lowered.
package quota

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/prism-gateway/prism/controlplane/snapshot"
	"github.com/prism-gateway/prism/shared/fault"
)

// Bounds are what one team may have; 0 is without bound.
type Bounds struct {
	// Namespaces counts reserved names too.
	Namespaces uint64
	// Bytes are of the configurations of all its namespaces together.
	Bytes uint64
	// ChangesPerMinute counts namespaces made or changed.
	ChangesPerMinute uint32
	// Weight is its share when changes of several teams wait; 0 means 1.
	Weight uint32
}

// Quotas are the bounds of all teams. The zero value bounds nothing.
type Quotas struct {
	// Default is for the teams that Teams does not name.
	Default Bounds
	Teams   map[string]Bounds
}

// Of returns the bounds of a team.
func (q Quotas) Of(team string) Bounds {
	if b, ok := q.Teams[team]; ok {
		return b
	}
	return q.Default
}

// Use is what a team has.
type Use struct {
	Namespaces uint64 // those there are, and names reserved for others
	Bytes      uint64
}

// Reserved returns the names that are reserved for a team, whether or not there are such namespaces.
type Reserved func(team string) []string

// Check refuses sets that would let a team have more than it may. Violations are RESOURCE_EXHAUSTED with reason QUOTA.
func (q Quotas) Check(base *snapshot.Tree, sets []snapshot.Set, reserved Reserved) error {
	moved := q.measure(base, sets, reserved)
	for _, team := range slices.Sorted(maps.Keys(moved)) {
		if err := q.Of(team).check(team, moved[team].before, moved[team].after); err != nil {
			return err
		}
	}
	return nil
}

// CheckReservation refuses one more reserved name of a team.
func (q Quotas) CheckReservation(base *snapshot.Tree, team string, reserved Reserved) error {
	before := useOf(base, team, reserved, nil)
	after := before
	after.Namespaces++
	return q.Of(team).check(team, before, after)
}

// Headroom says, one line each, how far the teams of sets would be from their bounds.
func (q Quotas) Headroom(base *snapshot.Tree, sets []snapshot.Set, reserved Reserved) []string {
	var lines []string
	moved := q.measure(base, sets, reserved)
	for _, team := range slices.Sorted(maps.Keys(moved)) {
		b, use := q.Of(team), moved[team].after
		if b.Namespaces > 0 {
			lines = append(lines, fmt.Sprintf("team %s: %s of %s namespaces", team, thousands(use.Namespaces), thousands(b.Namespaces)))
		}
		if b.Bytes > 0 {
			lines = append(lines, fmt.Sprintf("team %s: %s of %s of configuration", team, bytes(use.Bytes), bytes(b.Bytes)))
		}
		if b.ChangesPerMinute > 0 {
			lines = append(lines, fmt.Sprintf("team %s: %s changes a minute, %s of them at once",
				team, thousands(uint64(b.ChangesPerMinute)), thousands(uint64(b.burst()))))
		}
	}
	return lines
}

func (b Bounds) check(team string, before, after Use) error {
	refuse := func(quota, what, used, limit, more string, usedN, limitN uint64) error {
		return fault.Newf(fault.Exhausted, fault.Quota, "team %s has %s of %s%s, and this change would add %s: delete some, or ask the operators for more",
			team, used, limit, what, more).
			With("quota", quota).With("team", team).With("used", strconv.FormatUint(usedN, 10)).With("limit", strconv.FormatUint(limitN, 10)).
			WithOutcome(fault.NotApplied)
	}
	switch {
	case b.Namespaces > 0 && after.Namespaces > b.Namespaces && after.Namespaces > before.Namespaces:
		return refuse("namespaces", " namespaces, with reserved names", thousands(before.Namespaces), thousands(b.Namespaces),
			thousands(after.Namespaces-before.Namespaces), before.Namespaces, b.Namespaces)
	case b.Bytes > 0 && after.Bytes > b.Bytes && after.Bytes > before.Bytes:
		return refuse("config_bytes", " of configuration", bytes(before.Bytes), bytes(b.Bytes), bytes(after.Bytes-before.Bytes), before.Bytes, b.Bytes)
	}
	return nil
}

// move is a team's use without sets and with them.
type move struct{ before, after Use }

// measure looks only at what the sets touch.
func (q Quotas) measure(base *snapshot.Tree, sets []snapshot.Set, reserved Reserved) map[string]move {
	moved := map[string]move{}
	made := map[string]bool{} // by the sets
	use := func(team string) move {
		m, ok := moved[team]
		if !ok {
			u := base.Team(team)
			m.before = Use{Namespaces: u.Namespaces, Bytes: u.Bytes}
			m.after = m.before
		}
		return m
	}
	for _, set := range sets {
		name, ok := strings.CutPrefix(set.Name, snapshot.NamespacePrefix)
		if !ok {
			continue
		}
		if o, there := base.Namespace(name); there {
			team := snapshot.TeamOf(o.Data)
			m := use(team)
			m.after.Namespaces--
			m.after.Bytes -= uint64(len(o.Data))
			moved[team] = m
		}
		if set.Data != nil {
			made[name] = true
			team := snapshot.TeamOf(set.Data)
			m := use(team)
			m.after.Namespaces++
			m.after.Bytes += uint64(len(set.Data))
			moved[team] = m
		}
	}
	for team, m := range moved {
		if q.Of(team).Namespaces == 0 {
			continue // nobody asks
		}
		m.before.Namespaces += pending(base, team, reserved, nil)
		m.after.Namespaces += pending(base, team, reserved, made)
		moved[team] = m
	}
	return moved
}

func useOf(base *snapshot.Tree, team string, reserved Reserved, made map[string]bool) Use {
	u := base.Team(team)
	return Use{Namespaces: u.Namespaces + pending(base, team, reserved, made), Bytes: u.Bytes}
}

// pending counts the reserved names of a team that are no namespaces yet.
func pending(base *snapshot.Tree, team string, reserved Reserved, made map[string]bool) uint64 {
	var n uint64
	for _, name := range reserved(team) {
		if _, there := base.Namespace(name); !there && !made[name] {
			n++
		}
	}
	return n
}

// thousands writes a number as people read it: 1,024.
func thousands(n uint64) string {
	s := strconv.FormatUint(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// bytes writes a size with its unit: 1.5 MiB.
func bytes(n uint64) string {
	value, units := float64(n), []string{"B", "KiB", "MiB", "GiB", "TiB"}
	for value >= 1024 && len(units) > 1 {
		value, units = value/1024, units[1:]
	}
	text := strconv.FormatFloat(value, 'f', 1, 64)
	return strings.TrimSuffix(text, ".0") + " " + units[0]
}
