package gate

import (
	"slices"
	"strings"

	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/ident"
)

// tolerable is of how many objects that have come to proxies one may keep a namespace from being served before the whole
// release goes back.
const tolerable = 10

// Excuse marks the namespaces that cannot serve and that a release has nothing to do with any more as such that could not
// before: what it changed of them has gone back, or is pending in another release.
func Excuse(s *release.State, r *recordv1.Release, cells []Cell) {
	back := map[string]bool{}
	for _, t := range r.GetTakenBack() {
		back[t.GetName()] = true
	}
	for i := range cells {
		for j := range cells[i].Unready {
			u := &cells[i].Unready[j]
			if u.Before || !cells[i].Reached {
				continue
			}
			names := involved(s, u.Namespace)
			if of := func(name string) bool { return pendingIn(s, name) == r.GetSnapshot() }; slices.ContainsFunc(names, of) {
				continue
			}
			u.Before = slices.ContainsFunc(names, func(name string) bool { return back[name] || pendingIn(s, name) != 0 })
		}
	}
}

// Cure says what of a release is to go back so that namespaces can be served: those with which there is no patience any
// more, with the backends that they are bound to. Nothing is when that would not help, or would be no small part of what
// the release has brought to its cells. gone is how many have gone back so already, and more how many do now.
func Cure(s *release.State, snapshotVersion uint64, cells []Cell, outages []Outage, gone int) (objects []release.Ejected, more int) {
	blamed, over := map[string]bool{}, map[string]bool{}
	for _, o := range outages {
		var own []string
		for _, name := range involved(s, o.Namespace) {
			if pendingIn(s, name) == snapshotVersion {
				own = append(own, name)
			}
		}
		if len(own) == 0 {
			if o.Over {
				return nil, 0
			}
			continue
		}
		blamed[own[len(own)-1]] = true // of several the backend
		if !o.Over {
			continue
		}
		over[own[len(own)-1]] = true
		for _, name := range own {
			if !slices.ContainsFunc(objects, func(e release.Ejected) bool { return e.Name == name }) {
				objects = append(objects, release.Ejected{Name: name, Proxy: o.Proxy, Build: o.Build, Reason: o.Text()})
			}
		}
	}
	bad := gone + len(blamed)
	if single := bad == 1 && s.Held(snapshotVersion) > 1; !single && tolerable*bad >= gone+brought(s, snapshotVersion, cells) {
		return nil, 0
	}
	return objects, len(over)
}

// brought counts what a release has brought to its cells.
func brought(s *release.State, snapshotVersion uint64, cells []Cell) int {
	reached := map[ident.Partition]bool{}
	for i := range cells {
		reached[cells[i].Partition] = reached[cells[i].Partition] || cells[i].Reached && cells[i].Rank != release.Other
	}
	n := 0
	for _, d := range s.Pending(snapshotVersion) {
		name, ok := strings.CutPrefix(d.Name, snapshot.NamespacePrefix)
		if !ok || reached[ident.PartitionOf(name, s.Head().Partitions())] {
			n++
		}
	}
	return n
}

// involved are the objects that decide whether a namespace can be served: the namespace and then the backends that it is
// or was bound to.
func involved(s *release.State, namespace string) []string {
	names := []string{snapshot.NamespacePrefix + namespace}
	for _, tree := range []*snapshot.Tree{s.Head(), s.Stable()} {
		o, ok := tree.Namespace(namespace)
		if !ok {
			continue
		}
		bound, err := o.Bound()
		if err != nil {
			continue // it was read before it was recorded
		}
		slices.Sort(bound)
		for _, b := range bound {
			if name := snapshot.BackendPrefix + b; !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	return names
}

// pendingIn is the release in which an object is pending; 0 when it is in none.
func pendingIn(s *release.State, name string) uint64 {
	r, _ := s.Of(name)
	return r.GetSnapshot()
}
