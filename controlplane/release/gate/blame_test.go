package gate_test

import (
	"slices"
	"testing"

	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/release/gate"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/ident"
)

// cannot is a cell of a namespace's partition that the release has reached and that cannot serve the namespace.
func cannot(name string) gate.Cell {
	c := reached(0)
	c.Partition, c.Unready = ident.PartitionOf(name, partitions), []gate.Unready{{Namespace: name, Reason: "pool closed"}}
	return c
}

func TestANamespaceThatAReleaseHasNothingToDoWithIsExcused(t *testing.T) {
	scoped := release.Policies{Scoped: &configv1.ReleasePolicy{}}
	s := release.Settled(snapshot.New(partitions))
	for _, name := range []string{"orders", "users", "carts", "quiet"} {
		s = changed(t, s, release.Policies{}, namespace(t, name, "old"))
	}
	s = changed(t, s, scoped, namespace(t, "orders", "new"), namespace(t, "carts", "new"))
	first := s.Head().Version()
	s = changed(t, s, scoped, namespace(t, "users", "new"))
	done, err := s.Apply(release.Step{Release: first, Do: release.Eject, Objects: []release.Ejected{{Name: "ns/carts", Reason: "not ready"}}, Reason: "some"}, start)
	if err != nil {
		t.Fatal(err)
	}
	s = done.State
	r, _ := s.Release(first)
	if got := r.GetTakenBack()[0].GetWhy().GetReason(); got != "not ready" {
		t.Errorf("taken back because of %q, want the reason of the object", got)
	}
	for name, excused := range map[string]bool{
		"orders": false, // pending in it
		"users":  true,  // pending in another
		"carts":  true,  // taken back
		"quiet":  false, // whatever it is
	} {
		cells := []gate.Cell{cannot(name)}
		gate.Excuse(s, r, cells)
		if got := cells[0].Unready[0].Before; got != excused {
			t.Errorf("%s is excused: %v, want %v", name, got, excused)
		}
	}
}

func TestCure(t *testing.T) {
	s := release.Settled(snapshot.New(partitions))
	names := []string{"a0", "a1", "a2", "a3"}
	for _, name := range append(names, "quiet") {
		s = changed(t, s, release.Policies{}, namespace(t, name, "old"))
	}
	var sets []snapshot.Set
	for _, name := range names {
		sets = append(sets, namespace(t, name, "new"))
	}
	s = changed(t, s, release.Policies{Scoped: &configv1.ReleasePolicy{}}, sets...)
	out := func(name string, over bool) gate.Outage {
		return gate.Outage{Namespace: name, Proxy: "proxy-1", Build: "v3", Reason: "pool closed", Over: over}
	}
	for name, tc := range map[string]struct {
		outages []gate.Outage
		gone    int
		want    []string
	}{
		"one of several":                         {[]gate.Outage{out("a0", true)}, 0, []string{"ns/a0"}},
		"several of few":                         {[]gate.Outage{out("a0", true), out("a1", true)}, 0, nil},
		"those that may come to serve count too": {[]gate.Outage{out("a0", true), out("a1", false)}, 0, nil},
		"those that have gone back count too":    {[]gate.Outage{out("a0", true)}, 1, nil},
		"one that is not the release's":          {[]gate.Outage{out("quiet", true)}, 0, nil},
		"one that is not, and may come to serve": {[]gate.Outage{out("a0", true), out("quiet", false)}, 0, []string{"ns/a0"}},
	} {
		t.Run(name, func(t *testing.T) {
			objects, more := gate.Cure(s, s.Head().Version(), []gate.Cell{reached(0)}, tc.outages, tc.gone)
			var got []string
			for _, o := range objects {
				got = append(got, o.Name)
				if o.Reason != "not ready at proxy-1: pool closed" || o.Proxy != "proxy-1" || o.Build != "v3" {
					t.Errorf("%+v", o)
				}
			}
			if !slices.Equal(got, tc.want) || more != len(tc.want) {
				t.Errorf("%v and %d more go back, want %v", got, more, tc.want)
			}
		})
	}
}
