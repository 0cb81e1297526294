// Package placement gives partitions to proxies.
//
// It is a pure function of the fleet: every replica and every test that computes it gets the same table, and a proxy
// that joins or leaves moves little more than its fair share.
package placement

import (
	"cmp"
	"encoding/binary"
	"math"
	"slices"

	"github.com/buraksezer/consistent"
	"github.com/cespare/xxhash/v2"

	"github.com/prism-gateway/prism/shared/ident"
)

const (
	// load is how much more than the mean a proxy may be given, of primaries and of all owners alike.
	load = 1.25
	// points is how many places each proxy has on the ring. The ring sorts itself anew for each proxy it takes, so
	// that its cost grows with the square of fleet and points; and the number must not depend on the size of the
	// fleet, or everything would move when it changed. The bound on load evens out what few points leave uneven.
	points = 8
)

// Member is a proxy as placement sees it.
type Member struct {
	// ID names it, uniquely.
	ID string
	// Zone is where it can fail together with others; empty when unknown.
	Zone string
}

// Table says who owns which partition. It does not change once made.
type Table struct {
	owners [][]int
}

// Owners returns the owners of a partition by rank, as indices into the members sorted by ID. The caller must not change
// the slice.
func (t Table) Owners(p ident.Partition) []int { return t.owners[p] }

// Compute gives each of the partitions to owners of the members, or to all of them when they are fewer. The order of
// members does not matter; their IDs must differ. Without members nobody owns anything.
//
// The first owner comes from consistent hashing with bounded load. The others come from rendezvous hashing over the
// whole fleet, so that what a proxy held goes to many when it dies, first in zones that have no copy yet, and to no
// proxy that holds 1.25 times its share as long as another will do.
func Compute(members []Member, partitions uint32, owners int) Table {
	members = slices.Clone(members)
	slices.SortFunc(members, func(a, b Member) int { return cmp.Compare(a.ID, b.ID) })
	owners = min(owners, len(members))
	table := Table{owners: make([][]int, partitions)}
	if owners <= 0 {
		return table
	}
	c := computation{
		members: members,
		hashes:  make([]uint64, len(members)),
		held:    make([]int, len(members)),
		limit:   int(math.Ceil(load * float64(partitions) * float64(owners) / float64(len(members)))),
	}
	for i, m := range members {
		c.hashes[i] = xxhash.Sum64String(m.ID)
	}
	for p, first := range primaries(members, partitions) {
		table.owners[p] = append(make([]int, 0, owners), first)
		c.held[first]++
	}
	for rank := 1; rank < owners; rank++ {
		for p := range table.owners {
			next := c.next(uint64(p), table.owners[p])
			c.held[next]++
			table.owners[p] = append(table.owners[p], next)
		}
	}
	return table
}

// computation is the state of giving out the ranks after the first.
type computation struct {
	members []Member // sorted
	hashes  []uint64 // of the members' IDs
	held    []int    // how many partitions each member has so far
	limit   int      // how many it ought to have at most
}

// next chooses the member with the highest score for the partition. Room comes before another zone: a zone that has few
// proxies must not make them hold everything.
func (c *computation) next(partition uint64, have []int) int {
	best, bestClass, bestScore := -1, -1, uint64(0)
	for i := range c.members {
		if slices.Contains(have, i) {
			continue
		}
		class := 0
		if c.held[i] < c.limit {
			class = 2
		}
		if c.apart(i, have) {
			class++
		}
		score := mix(c.hashes[i] ^ mix(partition+1))
		if class > bestClass || class == bestClass && score > bestScore {
			best, bestClass, bestScore = i, class, score
		}
	}
	return best
}

// apart reports whether a member is in another zone than those who have the partition.
func (c *computation) apart(member int, have []int) bool {
	for _, h := range have {
		if c.members[h].Zone == c.members[member].Zone {
			return false
		}
	}
	return true
}

// primaries gives each partition its first owner.
func primaries(members []Member, partitions uint32) []int {
	ring := make([]consistent.Member, len(members))
	for i := range members {
		ring[i] = node{Member: &members[i], index: i}
	}
	c := consistent.New(ring, consistent.Config{
		Hasher:            hasher{},
		PartitionCount:    int(partitions),
		ReplicationFactor: points,
		Load:              load,
	})
	first := make([]int, partitions)
	for p := range first {
		first[p] = c.GetPartitionOwner(p).(node).index
	}
	return first
}

// node is a member on the ring.
type node struct {
	*Member
	index int
}

func (n node) String() string { return n.ID }

// hasher is the ring's hash. The ring hashes partitions as 8 bytes and members as "place:id".
type hasher struct{}

func (hasher) Sum64(b []byte) uint64 {
	if len(b) == 8 {
		return mix(binary.LittleEndian.Uint64(b) + 1)
	}
	return xxhash.Sum64(b)
}

// mix spreads a number over all 64 bits.
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	x ^= x >> 31
	return x
}
