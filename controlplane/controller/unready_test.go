package controller_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
)

// seen is what a namespace is set to where a view is served; empty when it is not there.
func seen(v release.View, name string) string {
	config := &configv1.NamespaceConfig{}
	if o, ok := v.Partition.Object("ns/" + name); ok {
		_ = proto.Unmarshal(o.Data, config)
	}
	return config.GetStoragePrefix()
}

// label is how a backend is labelled where a view is served.
func label(v release.View, name string) string {
	b := &configv1.Backend{}
	if o, ok := v.Shared.Object("backend/" + name); ok {
		_ = proto.Unmarshal(o.Data, b)
	}
	return b.GetLabels()["label"]
}

func unready(c *controlv1.CellState, name string) {
	if uint32(partitionOf(name)) == c.GetPartition() {
		c.Unready = append(c.Unready, &controlv1.Unready{Namespace: name, Reason: "no connection to spare"})
	}
}

// takenBack are the names of what a release took back.
func takenBack(r *recordv1.Release) []string {
	var all []string
	for _, t := range r.GetTakenBack() {
		all = append(all, t.GetName())
	}
	slices.Sort(all)
	return all
}

func TestOnlyWhatCannotServeGoesBack(t *testing.T) {
	var many []string
	for i := range 200 {
		many = append(many, fmt.Sprintf("many-%d", i))
	}
	for name, tc := range map[string]struct {
		names, bound []string // namespaces of the release, and others that are bound to the backend of it
		cannot       func(v release.View, name string) bool
		want         configv1.ReleaseState
		back         []string
		reason       string
	}{
		"one of several": {names, nil, func(v release.View, name string) bool {
			return name == "orders" && seen(v, name) == "new"
		}, done, []string{"ns/orders"}, "no connection to spare"},
		"a few of many": {many, nil, func(v release.View, name string) bool {
			return strings.HasSuffix(name, "-77") && seen(v, name) == "new" || strings.HasSuffix(name, "-177") && seen(v, name) == "new"
		}, done, []string{"ns/many-177", "ns/many-77"}, "no connection to spare"},
		"all of many, however few the first wave reaches": {many, nil, func(v release.View, name string) bool {
			return seen(v, name) == "new"
		}, rolledBack, nil, "wave 2 (rank 0 of the first partitions): namespace many-"},
		"the only one": {names[:1], nil, func(v release.View, name string) bool {
			return seen(v, name) == "new"
		}, rolledBack, nil, "namespace orders not ready at proxy-"},
		"because of a backend, which goes back": {names, []string{"kept-a", "kept-b"}, func(v release.View, name string) bool {
			return strings.HasPrefix(name, "kept-") && label(v, "spare") == "new"
		}, done, []string{"backend/spare"}, "no connection to spare"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newKept()
				k.commit(t, release.Order{Objects: 1000}, release.Policies{}, append(sets(t, tc.names, "old"), backend(t, "spare", "old"))...)
				changes := sets(t, tc.names, "new")
				for _, name := range tc.bound {
					k.commit(t, release.Order{}, release.Policies{}, namespace(t, name, "old", "spare"))
				}
				if tc.bound != nil {
					changes = append(changes, backend(t, "spare", "new"))
				}
				snapshot := k.commit(t, release.Order{Objects: 1000}, inWaves(), changes...)
				s := newScript(k, 0, 3)
				for _, proxy := range []string{"proxy-0", "proxy-1", "proxy-2"} {
					s.change(proxy, func(c *controlv1.CellState, v release.View) {
						for _, name := range slices.Concat(tc.names, tc.bound) {
							if tc.cannot(v, name) {
								unready(c, name)
							}
						}
					})
				}
				stop := lead(t, k, s)
				defer stop()
				time.Sleep(30 * time.Minute)
				synctest.Wait()
				r := k.release(t, snapshot)
				if r.GetState() != tc.want {
					t.Fatalf("%v in wave %d: %s; taken back %v", r.GetState(), r.GetWave(), r.GetReason(), takenBack(r))
				}
				if tc.want == rolledBack {
					if !strings.Contains(r.GetReason(), tc.reason) {
						t.Errorf("%q does not tell %q", r.GetReason(), tc.reason)
					}
					return
				}
				if back := takenBack(r); !slices.Equal(back, tc.back) {
					t.Errorf("taken back: %v, want %v", back, tc.back)
				}
				if why := r.GetTakenBack()[0].GetWhy(); why.GetReason() != "not ready at "+why.GetProxy()+": "+tc.reason || why.GetBuild() != "v3" {
					t.Errorf("why: %v", why)
				}
				for _, name := range tc.names {
					want := "new"
					if slices.Contains(tc.back, "ns/"+name) {
						want = "old"
					}
					if got := k.content(t, name); got != want {
						t.Errorf("%s is %q, want %q", name, got, want)
					}
				}
			})
		})
	}
}

// TestWhatCannotServeGoesBackInEtcd kills the leader before, so that the next finds what cannot serve as it is.
func TestWhatCannotServeGoesBackInEtcd(t *testing.T) {
	at := prefix(t)
	policies := release.Policies{Scoped: &configv1.ReleasePolicy{Soak: durationpb.New(0), Silence: durationpb.New(3 * time.Second)}}
	a, b := startUnder(t, at, "a", policies), startUnder(t, at, "b", policies)
	a.join(t)
	var before []snapshot.Set
	for _, name := range names {
		before = append(before, namespace(t, name, "old", ""))
	}
	a.change(t, before...)
	for _, r := range []*replica{a, b} {
		for _, proxy := range []string{"proxy-0", "proxy-1", "proxy-2", "validator-0"} {
			r.script.change(proxy, func(c *controlv1.CellState, v release.View) {
				if seen(v, "orders") == "new" {
					unready(c, "orders")
				}
			})
		}
	}
	version := a.change(t, sets(t, names, "new")...)
	a.until(t, "the first wave", func() bool {
		r, ok := a.Released().Release(version)
		return ok && r.GetWave() == release.WaveValidators
	})
	leader, other := a, b
	if b.Leading() {
		leader, other = b, a
	}
	leader.kill()
	r := other.ended(t, version)
	if r.GetState() != done || !slices.Equal(takenBack(r), []string{"ns/orders"}) {
		t.Fatalf("%v, taken back %v: %s", r.GetState(), takenBack(r), r.GetReason())
	}
	if orders, users := contentOf(t, other.Head(), "orders"), contentOf(t, other.Head(), "users"); orders != "old" || users != "new" {
		t.Errorf("orders %q, users %q", orders, users)
	}
}
