package subscribe

import (
	"cmp"
	"slices"
	"time"

	"github.com/prism-gateway/prism/shared/ident"
	"github.com/prism-gateway/prism/shared/telemetry"
)

// What is in effect is looked over again and again, a little at a time: whether the bytes still have the hashes that the
// root stands for, and whether the routes are still what was made of them. A round takes lookRound, or longer with more
// than lookMost members to look at in each step.
const (
	lookEvery = 100 * time.Millisecond
	lookRound = 10 * time.Second
	lookMost  = 100
)

// lookout is how far the loop has come with that.
type lookout struct {
	at     time.Time       // of the next step; zero when nothing is looked over
	next   ident.Partition // where it goes on
	credit int             // members that may be looked at now

	spoilt map[ident.Hash][]string // shared sets whose bytes have changed, with the members' names
}

// look does one step.
func (l *loop) look(now time.Time) {
	l.lookout.at = now.Add(lookEvery)
	l.wakeAt(l.lookout.at)
	if l.applying != nil || len(l.order) == 0 {
		return // what is in effect changes just now
	}
	total := 0
	for _, c := range l.order {
		total += c.weight()
	}
	share := min(total/int(lookRound/lookEvery)+1, lookMost)
	l.lookout.credit = min(l.lookout.credit, 0) + share
	for range l.order {
		if l.lookout.credit <= 0 {
			return
		}
		at, _ := slices.BinarySearchFunc(l.order, l.lookout.next, func(c *cell, p ident.Partition) int { return cmp.Compare(c.partition, p) })
		if at == len(l.order) {
			at = 0
			l.lookAtSets()
		}
		c := l.order[at]
		l.lookout.next = c.partition + 1
		l.lookout.credit -= c.weight()
		l.lookAt(c)
	}
}

// weight is what looking at the cell costs, in members.
func (c *cell) weight() int {
	if c.live == nil {
		return 1
	}
	return 1 + len(c.live.members)
}

// lookAtSets looks at the shared sets, once in a round.
func (l *loop) lookAtSets() {
	l.lookout.spoilt = nil
	for root, set := range l.sets {
		names := set.drifted()
		if len(names) == 0 {
			continue
		}
		if l.lookout.spoilt == nil {
			l.lookout.spoilt = map[ident.Hash][]string{}
		}
		l.lookout.spoilt[root] = names
		if !l.shared.wantFull {
			l.shared.spoilt = true
			l.scheduleResync(l.shared, "drift")
		}
		if set == l.shared.have {
			continue
		}
		for _, c := range l.order { // an older set comes with a partition that needs it
			if c.live != nil && c.live.shared == root && !c.wantFull {
				c.spoilt = true
				l.scheduleResync(&c.collection, "drift")
				break
			}
		}
	}
}

// lookAt looks at one partition. What has drifted is told, and repaired: from the bytes where they are intact, else from
// the control plane.
func (l *loop) lookAt(c *cell) {
	if _, changing := l.changed[c.partition]; changing || c.live == nil || c.have != c.live {
		return
	}
	names := c.live.drifted()
	spoilt := len(names) > 0
	set := l.lookout.spoilt[c.live.shared]
	names = append(names, set...)
	for _, name := range l.c.cfg.Check(c.partition, c.applied) {
		if _, refused := c.refused[name]; !refused && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		if !slices.Contains(c.drifted, name) {
			l.c.metrics.drifted.Inc()
			l.log.Error("what is in use is not what its version stands for; it is repaired",
				telemetry.KeyResource, name, telemetry.KeyPartition, c.name)
		}
	}
	if !slices.Equal(names, c.drifted) {
		c.drifted = names
		l.updateStatus(c)
		l.publish()
	}
	switch {
	case spoilt && !c.wantFull:
		c.spoilt = true
		l.scheduleResync(&c.collection, "drift")
	case !spoilt && len(names) > len(set):
		l.changed[c.partition] = struct{}{}
	}
}

// drifted names the members whose bytes no longer have the hash that the root stands for, and the sentinel's root where
// the manifest no longer has it.
func (v *version) drifted() (names []string) {
	root, err := ident.HashFrom(v.sentinel.GetRoot())
	if v.manifest.Len() > 0 && (err != nil || root != ident.HashOf(v.manifest.Encode())) || len(v.members) != v.manifest.Len() {
		names = append(names, "root "+root.String())
	}
	for _, e := range v.manifest.Entries() {
		if o, ok := v.members[e.Name]; !ok || o.Hash != e.Hash || ident.HashOf(o.Data) != e.Hash {
			names = append(names, e.Name)
		}
	}
	return names
}
