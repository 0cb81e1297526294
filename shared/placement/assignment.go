package placement

import (
	"cmp"
	"slices"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/ident"
)

// MemberOf is the proxy as placement sees it: its zone is its labels region and zone.
func MemberOf(m *configv1.Member) Member {
	zone := m.GetLabels()["zone"]
	if region := m.GetLabels()["region"]; region != "" {
		zone = region + "/" + zone
	}
	return Member{ID: m.GetId(), Zone: zone}
}

// Assign says who owns and who loads each partition under a placement. It is the same for all who compute it; the answer
// shares the placement's members and must not be changed. Who is leaving and who is a validator is given nothing.
//
// While partitions move, the owners are those of the former fleet that live, and the owners of the new fleet that are not
// among them are loading. Where no former owner lives there is nobody to wait for: the new owners own it at once.
func Assign(p *recordv1.Placement, partitions uint32) *configv1.Assignment {
	next := place(p.GetMembers(), partitions, int(p.GetOwners()))
	former := next
	moving := len(p.GetPrevious()) > 0
	if moving {
		former = place(p.GetPrevious(), partitions, int(p.GetOwners()))
	}
	a := &configv1.Assignment{
		Epoch:      p.GetEpoch(),
		Members:    living(p),
		Partitions: make([]*configv1.PartitionOwners, partitions),
	}
	index := make(map[string]uint32, len(a.Members))
	for i, m := range a.Members {
		index[m.GetId()] = uint32(i)
	}
	indices := func(ids []string) []uint32 {
		var found []uint32
		for _, id := range ids {
			if i, ok := index[id]; ok {
				found = append(found, i)
			}
		}
		return found
	}
	for i := range a.Partitions {
		partition := ident.Partition(i)
		wanted := indices(next.ids(partition))
		owners := wanted
		if moving {
			live := slices.DeleteFunc(former.ids(partition), func(id string) bool { return slices.Contains(p.GetGone(), id) })
			if owners = indices(live); len(owners) == 0 {
				owners = wanted
			}
		}
		entry := &configv1.PartitionOwners{Owners: owners}
		for _, w := range wanted {
			if !slices.Contains(owners, w) {
				entry.Loading = append(entry.Loading, w)
			}
		}
		a.Partitions[i] = entry
	}
	return a
}

// living are the members of the new fleet and those of the former one that are not gone, sorted.
func living(p *recordv1.Placement) []*configv1.Member {
	members := slices.Clone(p.GetMembers())
	for _, m := range p.GetPrevious() {
		same := func(o *configv1.Member) bool { return o.GetId() == m.GetId() }
		if !slices.Contains(p.GetGone(), m.GetId()) && !slices.ContainsFunc(p.GetMembers(), same) {
			members = append(members, m)
		}
	}
	slices.SortFunc(members, func(a, b *configv1.Member) int { return cmp.Compare(a.GetId(), b.GetId()) })
	return members
}

// placed is a table with the names of those it gives partitions to.
type placed struct {
	table   Table
	members []Member // sorted
}

func place(members []*configv1.Member, partitions uint32, owners int) placed {
	var fleet []Member
	for _, m := range members {
		if !m.GetDraining() && !m.GetValidator() {
			fleet = append(fleet, MemberOf(m))
		}
	}
	slices.SortFunc(fleet, func(a, b Member) int { return cmp.Compare(a.ID, b.ID) })
	return placed{table: Compute(fleet, partitions, owners), members: fleet}
}

func (p placed) ids(partition ident.Partition) []string {
	var ids []string
	for _, i := range p.table.Owners(partition) {
		ids = append(ids, p.members[i].ID)
	}
	return ids
}
