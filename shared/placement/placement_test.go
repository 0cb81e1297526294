package placement_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/prism-gateway/prism/shared/ident"
	"github.com/prism-gateway/prism/shared/placement"
)

const partitions = 1024

func fleet(n int) []placement.Member {
	members := make([]placement.Member, n)
	for i := range members {
		members[i] = placement.Member{ID: fmt.Sprintf("proxy-%04d", i)} // sorted, so that indices in tables are these
	}
	return members
}

// ids are the owners of a partition by name. members must be sorted.
func ids(members []placement.Member, table placement.Table, p ident.Partition) []string {
	var names []string
	for _, i := range table.Owners(p) {
		names = append(names, members[i].ID)
	}
	return names
}

func TestLoadIsBounded(t *testing.T) {
	for _, n := range []int{1, 2, 3, 5, 20, 200, 2000} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			owners := min(3, n)
			table := placement.Compute(fleet(n), partitions, 3)
			first, all := make([]int, n), make([]int, n)
			for p := range ident.Partition(partitions) {
				have := table.Owners(p)
				if len(have) != owners {
					t.Fatalf("%s has %d owners, want %d", p, len(have), owners)
				}
				for rank, o := range have {
					if slices.Contains(have[:rank], o) {
						t.Fatalf("%s has an owner twice: %v", p, have)
					}
					all[o]++
				}
				first[have[0]]++
			}
			bound := func(copies int) int { return int(math.Ceil(1.25 * float64(copies) * partitions / float64(n))) }
			if got, most := slices.Max(first), bound(1); got > most {
				t.Errorf("a proxy is the first owner of %d partitions, want at most %d", got, most)
			}
			if got, most := slices.Max(all), bound(owners); got > most {
				t.Errorf("a proxy owns %d partitions, want at most %d", got, most)
			}
		})
	}
}

func TestOneProxyMovesItsShare(t *testing.T) {
	for _, n := range []int{2, 3, 5, 20, 200, 2000} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			members := fleet(n)
			whole := placement.Compute(members, partitions, 3)
			for _, gone := range []int{0, n / 2, n - 1}[:min(3, 1+2000/n)] {
				rest := slices.Delete(slices.Clone(members), gone, gone+1)
				without := placement.Compute(rest, partitions, 3)
				moved := 0 // places that must be loaded when it leaves, and given up when it joins
				for p := range ident.Partition(partitions) {
					before := ids(members, whole, p)
					for _, id := range ids(rest, without, p) {
						if !slices.Contains(before, id) {
							moved++
						}
					}
				}
				share, most := float64(3*partitions)/float64(n), 0
				if n > 3 { // else all own everything, before and after
					most = int(1.4*share) + 8
				}
				if moved > most {
					t.Errorf("%d places moved without %s, want at most %d: its share is %.0f", moved, members[gone].ID, most, share)
				}
			}
		})
	}
}

func TestOrderDoesNotMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		members := fleet(rapid.IntRange(1, 40).Draw(t, "n"))
		for i := range members {
			members[i].Zone = rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "zone")
		}
		owners := rapid.IntRange(1, 5).Draw(t, "owners")
		want := placement.Compute(members, 64, owners)
		shuffled := slices.Clone(members)
		rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0)).Shuffle(len(shuffled), func(i, j int) {
			shuffled[i], shuffled[j] = shuffled[j], shuffled[i]
		})
		got := placement.Compute(shuffled, 64, owners)
		for p := range ident.Partition(64) {
			if !slices.Equal(got.Owners(p), want.Owners(p)) {
				t.Fatalf("%s: %v in one order, %v in another", p, want.Owners(p), got.Owners(p))
			}
		}
	})
}

func TestCopiesAreInDifferentZones(t *testing.T) {
	members := fleet(12)
	for i := range members {
		members[i].Zone = []string{"a", "b", "c"}[i%3]
	}
	table := placement.Compute(members, partitions, 3)
	for p := range ident.Partition(partitions) {
		zones := map[string]bool{}
		for _, o := range table.Owners(p) {
			zones[members[o].Zone] = true
		}
		if len(zones) != 3 {
			t.Fatalf("%s is in %d zones of 3", p, len(zones))
		}
	}
}

func TestSmallZoneIsNotOverloaded(t *testing.T) {
	members := fleet(10)
	for i := range members {
		members[i].Zone = "big"
	}
	members[3].Zone = "small"
	table := placement.Compute(members, partitions, 3)
	held := 0
	for p := range ident.Partition(partitions) {
		if slices.Contains(table.Owners(p), 3) {
			held++
		}
	}
	if most := int(math.Ceil(1.25 * 3 * partitions / 10)); held > most {
		t.Errorf("the only proxy of a zone owns %d partitions, want at most %d", held, most)
	}
}

func TestWithoutProxiesNobodyOwns(t *testing.T) {
	table := placement.Compute(nil, 8, 3)
	for p := range ident.Partition(8) {
		if len(table.Owners(p)) != 0 {
			t.Errorf("%s has owners %v", p, table.Owners(p))
		}
	}
}

func TestMoreProxiesThanPartitions(t *testing.T) {
	table := placement.Compute(fleet(100), 16, 3)
	for p := range ident.Partition(16) {
		if len(table.Owners(p)) != 3 {
			t.Errorf("%s has %d owners", p, len(table.Owners(p)))
		}
	}
}

func BenchmarkCompute(b *testing.B) {
	for _, n := range []int{3, 200, 2000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			members := fleet(n)
			for b.Loop() {
				placement.Compute(members, partitions, 3)
			}
		})
	}
}
