package placement_test

import (
	"slices"
	"testing"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/placement"
)

func members(names ...string) []*configv1.Member {
	var list []*configv1.Member
	for _, n := range names {
		list = append(list, &configv1.Member{Id: n, Address: n + ":8980"})
	}
	return list
}

func names(a *configv1.Assignment, indices []uint32) []string {
	var list []string
	for _, i := range indices {
		list = append(list, a.GetMembers()[i].GetId())
	}
	slices.Sort(list)
	return list
}

func TestAssign(t *testing.T) {
	for name, tc := range map[string]struct {
		placement *recordv1.Placement
		owners    []string // of every partition, sorted
		loading   []string
		members   []string
	}{
		"settled: the fleet owns, nobody loads": {
			placement: &recordv1.Placement{Members: members("b", "a"), Owners: 3},
			owners:    []string{"a", "b"}, members: []string{"a", "b"},
		},
		"a joiner loads while the former owners serve": {
			placement: &recordv1.Placement{Members: members("a", "b", "c"), Previous: members("a", "b"), Owners: 3},
			owners:    []string{"a", "b"}, loading: []string{"c"}, members: []string{"a", "b", "c"},
		},
		"a leaver that lives serves until the new owner is ready": {
			placement: &recordv1.Placement{Members: members("b"), Previous: members("a"), Owners: 1},
			owners:    []string{"a"}, loading: []string{"b"}, members: []string{"a", "b"},
		},
		"who is gone owns nothing": {
			placement: &recordv1.Placement{Members: members("b", "c"), Previous: members("a", "b"), Gone: []string{"a"}, Owners: 2},
			owners:    []string{"b"}, loading: []string{"c"}, members: []string{"b", "c"},
		},
		"where all former owners are gone the new ones own at once": {
			placement: &recordv1.Placement{Members: members("b"), Previous: members("a"), Gone: []string{"a"}, Owners: 1},
			owners:    []string{"b"}, members: []string{"b"},
		},
		"who is gone and comes back loads": {
			placement: &recordv1.Placement{Members: members("a", "b"), Previous: members("a", "b"), Gone: []string{"a"}, Owners: 2},
			owners:    []string{"b"}, loading: []string{"a"}, members: []string{"a", "b"},
		},
		"a draining proxy is given nothing": {
			placement: &recordv1.Placement{Members: append(members("a"), &configv1.Member{Id: "b", Draining: true}), Owners: 3},
			owners:    []string{"a"}, members: []string{"a", "b"},
		},
		"a validator is given nothing, and loads nothing": {
			placement: &recordv1.Placement{
				Members: append(members("a"), &configv1.Member{Id: "v", Validator: true}), Previous: members("a"), Owners: 3,
			},
			owners: []string{"a"}, members: []string{"a", "v"},
		},
		"validators alone own nothing": {
			placement: &recordv1.Placement{Members: []*configv1.Member{{Id: "v", Validator: true}}, Owners: 3}, members: []string{"v"},
		},
		"no fleet": {placement: &recordv1.Placement{Owners: 3}},
	} {
		t.Run(name, func(t *testing.T) {
			a := placement.Assign(tc.placement, 8)
			if got := names(a, []uint32{0, 1, 2}[:len(a.GetMembers())]); !slices.Equal(got, tc.members) {
				t.Errorf("members %v, want %v", got, tc.members)
			}
			if len(a.GetPartitions()) != 8 {
				t.Fatalf("%d partitions, want 8", len(a.GetPartitions()))
			}
			for p, entry := range a.GetPartitions() {
				if got := names(a, entry.GetOwners()); !slices.Equal(got, tc.owners) {
					t.Errorf("partition %d: owners %v, want %v", p, got, tc.owners)
				}
				if got := names(a, entry.GetLoading()); !slices.Equal(got, tc.loading) {
					t.Errorf("partition %d: loading %v, want %v", p, got, tc.loading)
				}
			}
		})
	}
}

func TestSurvivorsKeepTheirRankWhilePartitionsMove(t *testing.T) {
	before := placement.Assign(&recordv1.Placement{Members: members("a", "b", "c", "d", "e"), Owners: 3}, 64)
	moving := placement.Assign(&recordv1.Placement{
		Members: members("a", "b", "d", "e"), Previous: members("a", "b", "c", "d", "e"), Gone: []string{"c"}, Owners: 3,
	}, 64)
	for p := range before.GetPartitions() {
		var want, got []string
		for _, i := range before.GetPartitions()[p].GetOwners() {
			if id := before.GetMembers()[i].GetId(); id != "c" {
				want = append(want, id)
			}
		}
		for _, i := range moving.GetPartitions()[p].GetOwners() {
			got = append(got, moving.GetMembers()[i].GetId())
		}
		if !slices.Equal(got, want) {
			t.Errorf("partition %d: owners %v, want %v", p, got, want)
		}
	}
}
