package controller_test

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
)

// draining is a change that drains a namespace and asks for its removal.
func draining(t testing.TB, tree *snapshot.Tree, name string) snapshot.Set {
	t.Helper()
	o, _ := tree.Namespace(name)
	config := &configv1.NamespaceConfig{}
	if err := proto.Unmarshal(o.Data, config); err != nil {
		t.Fatal(err)
	}
	config.Draining, config.Removal = true, &configv1.Removal{Author: "ann", Message: "moved", RequestId: "r1"}
	return snapshot.Set{Name: o.Name, Author: "ann", Data: marshal(t, config), Kind: recordv1.ChangeKind_CHANGE_KIND_DRAIN}
}

func TestADrainedNamespaceIsRemovedAfterItsRelease(t *testing.T) {
	for name, tc := range map[string]struct {
		step release.Action // that a person asks for in the second wave; none is 0
		late bool           // whether an owner has not drained it when the release is done
		gone bool
	}{
		"when it is done":                       {0, false, true},
		"when it was pushed":                    {release.Push, false, true},
		"not before every owner has drained it": {release.Push, true, false},
		"not when it was aborted":               {release.Abort, false, false},
		"not when it was taken back":            {release.TakeBack, false, false},
		"not while it is paused":                {release.Pause, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newKept()
				k.commit(t, release.Order{}, release.Policies{}, sets(t, names, "old")...)
				version := k.commit(t, release.Order{}, inWaves(), draining(t, k.Released().Head(), "orders"))
				s := newScript(k, 1, 3)
				if tc.late {
					s.change("proxy-1", func(c *controlv1.CellState, _ release.View) { unready(c, "orders") })
				}
				stop := lead(t, k, s)
				defer stop()
				time.Sleep(45 * time.Second)
				synctest.Wait()
				if k.content(t, "orders") != "old" {
					t.Fatal("it is removed in the second wave")
				}
				if tc.step != 0 {
					person(t, k, release.Step{Release: version, Do: tc.step, Reason: "why"})
				}
				time.Sleep(time.Hour)
				synctest.Wait()
				if gone := k.content(t, "orders") == ""; gone != tc.gone {
					t.Fatalf("it is gone: %v, want %v", gone, tc.gone)
				}
				if !tc.gone {
					if tc.late {
						s.change("proxy-1", nil)
						synctest.Wait()
						if k.content(t, "orders") != "" {
							t.Error("it is there when the last owner has drained it")
						}
					}
					return
				}
				if len(k.removed) != 1 || k.removed[0].GetAuthor() != "ann" || k.removed[0].GetMessage() != "moved" || k.removed[0].GetRequestId() != "r1" || k.removed[0].GetInRelease() {
					t.Errorf("recorded: %v", k.removed)
				}
				if len(k.Released().Active()) != 0 || k.content(t, "users") != "old" {
					t.Errorf("under way %v, users is %q", k.Released().Active(), k.content(t, "users"))
				}
			})
		})
	}
}

// TestANewLeaderRemovesWhatWasDrained kills the leader while the drain is under way.
func TestANewLeaderRemovesWhatWasDrained(t *testing.T) {
	at := prefix(t)
	a, b := start(t, at, "a"), start(t, at, "b")
	a.join(t)
	a.change(t, sets(t, names, "old")...)
	for _, r := range []*replica{a, b} { // the first wave is held
		r.script.change("validator-0", func(c *controlv1.CellState, _ release.View) { c.ServingRoot, c.SnapshotVersion = nil, 0 })
	}
	var many []snapshot.Set
	for _, name := range names {
		many = append(many, draining(t, a.Head(), name))
	}
	version := a.change(t, many...)
	a.until(t, "the first wave", func() bool {
		r, ok := a.Released().Release(version)
		return ok && r.GetWave() == release.WaveValidators
	})
	leader, other := a, b
	if b.Leading() {
		leader, other = b, a
	}
	leader.kill()
	other.script.change("validator-0", nil)
	if r := other.ended(t, version); r.GetState() != done {
		t.Fatalf("%v: %s", r.GetState(), r.GetReason())
	}
	other.until(t, "all are removed", func() bool {
		return !slices.ContainsFunc(names, func(name string) bool { _, there := other.Head().Namespace(name); return there })
	})
}
