package snapshot

import (
	"maps"

	"github.com/cespare/xxhash/v2"
	"google.golang.org/protobuf/encoding/protowire"
)

// TeamUsage is what the namespaces of one team are together.
type TeamUsage struct {
	Namespaces uint64
	Bytes      uint64 // of their configurations
}

// plus adds; sums wrap around, so that what is taken away is added as well.
func (u TeamUsage) plus(v TeamUsage) TeamUsage {
	return TeamUsage{Namespaces: u.Namespaces + v.Namespaces, Bytes: u.Bytes + v.Bytes}
}

// Team returns what the namespaces of a team are together.
func (t *Tree) Team(name string) TeamUsage { return t.teams.of(name) }

// TeamOf finds the team in a marshalled NamespaceConfig and decodes nothing else: it is asked of many.
func TeamOf(data []byte) string {
	const teamField = 9
	for len(data) > 0 {
		field, kind, n := protowire.ConsumeTag(data)
		if n < 0 {
			return ""
		}
		data = data[n:]
		if n = protowire.ConsumeFieldValue(field, kind, data); n < 0 {
			return ""
		}
		if field == teamField && kind == protowire.BytesType {
			value, _ := protowire.ConsumeBytes(data)
			return string(value)
		}
		data = data[n:]
	}
	return ""
}

// teamShards bounds what a change copies of the usages of very many teams.
const teamShards = 64

// teams are the usages of all teams that have a namespace, in shards that trees share. nil has none.
type teams [teamShards]map[string]TeamUsage

func shardOf(team string) int { return int(xxhash.Sum64String(team) % teamShards) }

func (t *teams) of(team string) TeamUsage {
	if t == nil {
		return TeamUsage{}
	}
	return t[shardOf(team)][team]
}

// with returns the usages with others added.
func (t *teams) with(moved map[string]TeamUsage) *teams {
	var next *teams
	var copied [teamShards]bool
	for team, u := range moved {
		if u == (TeamUsage{}) {
			continue
		}
		if next == nil {
			next = new(teams)
			if t != nil {
				*next = *t
			}
		}
		n := shardOf(team)
		if !copied[n] {
			copied[n] = true
			if next[n] = maps.Clone(next[n]); next[n] == nil {
				next[n] = map[string]TeamUsage{}
			}
		}
		if sum := next[n][team].plus(u); sum != (TeamUsage{}) {
			next[n][team] = sum
		} else {
			delete(next[n], team)
		}
	}
	if next == nil {
		return t
	}
	return next
}

// moveTeams adds what the usages of teams change by when one state of a partition becomes another. It looks only at the
// objects that differ, so nothing need be kept for each partition.
func moveTeams(moved map[string]TeamUsage, from, to *Collection) {
	add := func(o Object, times int) {
		if o.Data == nil {
			return
		}
		n := uint64(times)
		team := TeamOf(o.Data)
		moved[team] = moved[team].plus(TeamUsage{Namespaces: n, Bytes: n * uint64(len(o.Data))})
	}
	for _, d := range DiffCollections(from, to) {
		add(d.Before, -1)
		add(d.After, +1)
	}
}
