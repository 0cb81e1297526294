package gate

import (
	"cmp"
	"slices"
	"time"

	"github.com/prism-gateway/prism/controlplane/release"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/ident"
)

// Survey lists the cells of the partitions that a release under way concerns, by wave, partition and proxy, with nothing
// known of them but what those that it has reached are to have. The assignment says who owns what and who is a validator.
// Who has left the fleet is for Missing to say.
func Survey(s *release.State, snapshot uint64, a *configv1.Assignment) []Cell {
	var validators []string
	for _, m := range a.GetMembers() {
		if m.GetValidator() {
			validators = append(validators, m.GetId())
		}
	}
	var cells []Cell
	for _, p := range s.Concerned(snapshot) {
		add := func(proxy string, rank release.Rank) {
			c := Cell{
				Partition: p, Proxy: proxy, Rank: rank, Wave: s.WaveOf(snapshot, p, rank), Reached: s.Reached(snapshot, p, rank),
			}
			if c.Reached {
				v := s.View(p, rank)
				c.Wants = []Roots{{v.Partition.Root(), v.Shared.Root()}}
			}
			cells = append(cells, c)
		}
		for _, v := range validators {
			add(v, release.Validator)
		}
		if int(p) >= len(a.GetPartitions()) {
			continue
		}
		for rank, i := range a.GetPartitions()[p].GetOwners() {
			add(a.GetMembers()[i].GetId(), release.Rank(rank))
		}
		for _, i := range a.GetPartitions()[p].GetLoading() {
			add(a.GetMembers()[i].GetId(), release.Other)
		}
	}
	slices.SortFunc(cells, func(x, y Cell) int {
		return cmp.Or(cmp.Compare(x.Wave, y.Wave), cmp.Compare(x.Partition, y.Partition), cmp.Compare(x.Proxy, y.Proxy))
	})
	return cells
}

// Missing marks the cells of proxies that are none of the members, who are those that are alive.
func Missing(cells []Cell, members []*recordv1.MemberLease) {
	alive := make(map[string]bool, len(members))
	for _, lease := range members {
		alive[lease.GetMember().GetId()] = true
	}
	for i := range cells {
		cells[i].Gone = !alive[cells[i].Proxy]
	}
}

// NextWave returns the first wave after the one that a release has reached that has cells, and the last one when none
// has.
func NextWave(cells []Cell, reached int) int {
	next := release.WaveAll
	for _, c := range cells {
		if c.Wave > reached && c.Wave < next {
			next = c.Wave
		}
	}
	return next
}

// Pending finds the objects that a release holds, by name, with the versions that it brings; a deletion brings none.
func Pending(s *release.State, snapshot uint64) func(name string) (version ident.Hash, ok bool) {
	return func(name string) (ident.Hash, bool) {
		if pendingIn(s, name) != snapshot {
			return ident.Hash{}, false
		}
		newest, _ := s.Head().Object(name)
		return newest.Hash, true
	}
}

// Observe notes what is known of a cell; of its rejections those of the objects that are pending, in the versions that
// the release brings, and those of the whole partition. A state that is nil is nothing.
func (c *Cell) Observe(s *controlv1.CellState, pending func(name string) (ident.Hash, bool)) {
	if s == nil {
		return
	}
	c.Build, c.Snapshot = s.GetBuild(), s.GetSnapshotVersion()
	if s.GetLastSeen() != nil {
		c.Seen = s.GetLastSeen().AsTime()
	}
	c.Sent.Partition = root(s.GetSentRoot())
	if c.Sent.Partition == c.wanted().Partition {
		c.Sent = c.wanted() // no one tells what shared root went with it
	}
	c.Accepted = Roots{root(s.GetAcceptedRoot()), root(s.GetAcceptedSharedRoot())}
	c.Serving = Roots{root(s.GetServingRoot()), root(s.GetServingSharedRoot())}
	for _, r := range s.GetRejections() {
		if Concerns(r, c.Partition, pending) {
			c.Rejections = append(c.Rejections, r)
		}
	}
	for _, u := range s.GetUnready() {
		c.Unready = append(c.Unready, Unready{Namespace: u.GetNamespace(), Reason: u.GetReason()})
	}
	if t := s.GetTraffic(); t != nil {
		c.Now = &Traffic{Calls: t.GetCalls(), Failed: t.GetFailed(), Took: t.GetTook().AsDuration(), Since: t.GetSince().AsTime()}
	}
}

// wanted is the newest state that the cell is to have.
func (c *Cell) wanted() Roots {
	if len(c.Wants) == 0 {
		return Roots{}
	}
	return c.Wants[0]
}

// Concerns reports whether a rejection is of an object that is pending, in the version that the release brings, or of
// the whole partition.
func Concerns(r *configv1.Rejection, p ident.Partition, pending func(name string) (ident.Hash, bool)) bool {
	if r.GetResource() == p.String() {
		return true
	}
	version, ok := pending(r.GetResource())
	return ok && (r.GetVersion() == "" || r.GetVersion() == version.String())
}

func root(data []byte) ident.Hash {
	h, err := ident.HashFrom(data)
	if err != nil {
		return ident.Hash{}
	}
	return h
}

// Held says for how long a wave is held more, for people.
func Held(left time.Duration) string { return "held " + seconds(left+time.Second-1) + " more" }
