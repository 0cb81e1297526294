package controller

import (
	"maps"
	"slices"

	"github.com/prism-gateway/prism/controlplane/release/gate"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
)

// lost is what a leader remembers of the proxies that a release has reached. The zero value remembers nothing.
type lost struct {
	reached, leaving, dead map[string]bool
}

// look notes who was reached and who lives. One that drained before it went is not dead; one that died stays so when it
// comes back.
func (l *lost) look(cells []gate.Cell, members []*recordv1.MemberLease) {
	if l.reached == nil {
		*l = lost{reached: map[string]bool{}, leaving: map[string]bool{}, dead: map[string]bool{}}
	}
	alive := make(map[string]bool, len(members))
	for _, m := range members {
		alive[m.GetMember().GetId()] = true
		l.leaving[m.GetMember().GetId()] = m.GetMember().GetDraining()
	}
	for i := range cells {
		if c := &cells[i]; c.Reached && alive[c.Proxy] {
			l.reached[c.Proxy] = true
		}
	}
	for proxy := range l.reached {
		if !alive[proxy] && !l.leaving[proxy] {
			l.dead[proxy] = true
		}
	}
}

// names are those that died, sorted.
func (l *lost) names() []string { return slices.Sorted(maps.Keys(l.dead)) }
