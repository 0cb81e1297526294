package snapshot_test

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/prism-gateway/prism/controlplane/snapshot"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/ident"
)

// TestTeamUsageIsWhatIsThere makes random changes and rollbacks, and counts anew what Team keeps as it goes.
func TestTeamUsageIsWhatIsThere(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		trees := []*snapshot.Tree{snapshot.New(partitions)}
		for version := uint64(1); version <= uint64(rapid.IntRange(1, 15).Draw(rt, "edits")); version++ {
			base := trees[len(trees)-1]
			var next *snapshot.Tree
			var err error
			if rapid.IntRange(0, 5).Draw(rt, "rollback") == 0 {
				to := rapid.SampledFrom(trees).Draw(rt, "to")
				next, _, err = base.RollbackTo(to, version, snapshot.Note{})
			} else {
				set := snapshot.Set{Name: fmt.Sprint("ns/name-", rapid.IntRange(0, 20).Draw(rt, "name"))}
				if rapid.IntRange(0, 3).Draw(rt, "deletes") > 0 {
					set.Data = marshal(t, &configv1.NamespaceConfig{
						Namespace: set.Name[3:], Team: fmt.Sprint("team-", rapid.IntRange(0, 3).Draw(rt, "team")),
						StoragePrefix: rapid.StringN(0, 9, -1).Draw(rt, "content"),
					})
				}
				next, _, err = base.With(version, []snapshot.Set{set})
			}
			if err != nil {
				rt.Fatal(err)
			}
			trees = append(trees, next)
		}
		tree := rapid.SampledFrom(trees).Draw(rt, "tree")
		partitionsOf := map[ident.Partition]*snapshot.Collection{}
		for p := range ident.Partition(partitions) {
			partitionsOf[p] = tree.Collection(p)
		}
		other := rapid.SampledFrom(trees).Draw(rt, "other").Replace(tree.Version(), partitionsOf, nil)
		want := map[string]snapshot.TeamUsage{}
		for o := range tree.Namespaces("", "") {
			u := want[snapshot.TeamOf(o.Data)]
			want[snapshot.TeamOf(o.Data)] = snapshot.TeamUsage{Namespaces: u.Namespaces + 1, Bytes: u.Bytes + uint64(len(o.Data))}
		}
		for i := range 5 {
			team := fmt.Sprint("team-", i)
			if got := tree.Team(team); got != want[team] {
				rt.Fatalf("%s: %+v, want %+v", team, got, want[team])
			}
			if got := other.Team(team); got != want[team] {
				rt.Fatalf("%s, in a tree made of another: %+v, want %+v", team, got, want[team])
			}
		}
	})
}
