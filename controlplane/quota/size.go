package quota

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/prism-gateway/prism/controlplane/snapshot"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
)

// How large the pieces of the configuration may be, in bytes. Each is what something below takes: one value of etcd, one
// message of xDS, the memory that a proxy stages a partition in.
const (
	MaxNamespace = 1 << 20  // one namespace's configuration
	MaxManifest  = 1 << 20  // the list of one partition's namespaces
	MaxPartition = 64 << 20 // all configurations of one partition
)

// listed is about what a namespace takes in the list of its partition, besides its name: hash and framing.
const listed = 40

// piece is something that has a size, and what it may be.
type piece struct {
	budget, what string // budget for programs, what for people
	size, limit  uint64
}

// CheckSizes refuses sets that make a piece larger than it may be: INVALID_ARGUMENT, reason TOO_LARGE, with the piece
// and both sizes.
func CheckSizes(base *snapshot.Tree, sets []snapshot.Set) error {
	for _, p := range pieces(base, sets) {
		if p.size > p.limit {
			return fault.Newf(fault.Invalid, fault.TooLarge, "%s would be %s, and may be %s", p.what, bytes(p.size), bytes(p.limit)).
				With("budget", p.budget).With("used", strconv.FormatUint(p.size, 10)).With("limit", strconv.FormatUint(p.limit, 10)).
				WithOutcome(fault.NotApplied)
		}
	}
	return nil
}

// SizeHeadroom says of each kind of piece, one line each, how near the largest of sets comes to its limit, where it is
// half of it or more.
func SizeHeadroom(base *snapshot.Tree, sets []snapshot.Set) []string {
	worst := map[string]piece{}
	for _, p := range pieces(base, sets) {
		if w := worst[p.budget]; 2*p.size >= p.limit && p.size > w.size {
			worst[p.budget] = p
		}
	}
	var lines []string
	for _, budget := range slices.Sorted(maps.Keys(worst)) {
		p := worst[budget]
		lines = append(lines, fmt.Sprintf("%s: %s of %s", p.what, bytes(p.size), bytes(p.limit)))
	}
	return lines
}

// pieces are those that sets make larger.
func pieces(base *snapshot.Tree, sets []snapshot.Set) []piece {
	var all []piece
	grown := map[ident.Partition]struct{ list, data int }{}
	for _, set := range sets {
		name, ok := strings.CutPrefix(set.Name, snapshot.NamespacePrefix)
		if !ok {
			continue
		}
		o, there := base.Namespace(name)
		p := ident.PartitionOf(name, base.Partitions())
		g := grown[p]
		g.data += len(set.Data) - len(o.Data)
		switch {
		case set.Data != nil && !there:
			g.list += len(set.Name) + listed
		case set.Data == nil && there:
			g.list -= len(set.Name) + listed
		}
		grown[p] = g
		if len(set.Data) > len(o.Data) {
			all = append(all, piece{"namespace", "the configuration of namespace " + name, uint64(len(set.Data)), MaxNamespace})
		}
	}
	for _, p := range slices.Sorted(maps.Keys(grown)) {
		g := grown[p]
		if g.list <= 0 && g.data <= 0 {
			continue
		}
		list, data := g.list, g.data
		c := base.Collection(p)
		for i := range c.Len() {
			o := c.At(i)
			list += len(o.Name) + listed
			data += len(o.Data)
		}
		all = append(all,
			piece{"partition_names", fmt.Sprintf("the list of the namespaces of partition %d", p), uint64(max(0, list)), MaxManifest},
			piece{"partition", fmt.Sprintf("the configuration of partition %d", p), uint64(max(0, data)), MaxPartition})
	}
	return all
}
