package controller_test

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/prism-gateway/prism/controlplane/release"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/ident"
)

const (
	running    = configv1.ReleaseState_RELEASE_STATE_RUNNING
	done       = configv1.ReleaseState_RELEASE_STATE_DONE
	rolledBack = configv1.ReleaseState_RELEASE_STATE_ROLLED_BACK
)

// names are namespaces of several partitions.
var names = []string{"orders", "users", "carts", "events", "stock", "prices"}

// begin records namespaces that everybody has, then a change of them in waves, whose number it returns.
func begin(t testing.TB, k *kept, order release.Order) uint64 {
	t.Helper()
	for _, name := range names {
		k.commit(t, release.Order{}, release.Policies{}, namespace(t, name, "old", ""))
	}
	sets := append(sets(t, names, "new"), backend(t, "spare", "new"))
	return k.commit(t, order, inWaves(), sets...)
}

// waves are the waves that a release has gone through.
func waves(r *recordv1.Release) []int {
	var all []int
	for _, e := range r.GetEvents() {
		if e.GetWhat() == "wave" {
			all = append(all, int(e.GetWave()))
		}
	}
	return all
}

func TestAReleaseGoesThroughItsWaves(t *testing.T) {
	for name, tc := range map[string]struct {
		validators, proxies int
		names               int
		want                []int
	}{
		"all of them":   {1, 3, 6, []int{1, 2, 3, 4, 5}},
		"no validators": {0, 3, 6, []int{2, 3, 4, 5}},
		"two owners":    {0, 2, 6, []int{2, 3, 4, 5}},
		"one owner":     {0, 1, 6, []int{2, 3, 5}},
		"one partition, so the first is all rank 0": {0, 3, 1, []int{2, 4, 5}},
		"no proxy at all": {0, 0, 6, []int{5}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newKept()
				names := names[:tc.names]
				for _, name := range names {
					k.commit(t, release.Order{}, release.Policies{}, namespace(t, name, "old", ""))
				}
				snapshot := k.commit(t, release.Order{}, inWaves(), sets(t, names, "new")...)
				started := time.Now()
				stop := lead(t, k, newScript(k, tc.validators, tc.proxies))
				defer stop()
				time.Sleep(10 * time.Minute)
				synctest.Wait()
				r := k.release(t, snapshot)
				if r.GetState() != done || !slices.Equal(waves(r), tc.want) {
					t.Fatalf("%v after waves %v, want done after %v: %s", r.GetState(), waves(r), tc.want, r.GetReason())
				}
				// A wave without cells is not held.
				held := 0
				for _, w := range tc.want {
					if w < release.WaveAll || tc.proxies > 2 {
						held++
					}
				}
				if took := r.GetEndedAt().AsTime().Sub(started); took < time.Duration(held)*30*time.Second || took > time.Duration(held)*30*time.Second+time.Second {
					t.Errorf("%d waves of 30 s took %v", held, took)
				}
				if k.Released().Stable() != k.Released().Head() {
					t.Error("something is pending still")
				}
			})
		})
	}
}

func TestWhatIsWrongWithAWaveTakesTheReleaseBack(t *testing.T) {
	old := map[ident.Partition]release.View{}
	for name, tc := range map[string]struct {
		how  func(k *kept) func(c *controlv1.CellState, v release.View)
		want string
	}{
		"a proxy is silent": {func(*kept) func(*controlv1.CellState, release.View) {
			last := timestamppb.Now()
			return func(c *controlv1.CellState, _ release.View) { c.LastSeen = last }
		}, "proxy-0 in p/00"},
		"a proxy does not come to serve it": {func(k *kept) func(*controlv1.CellState, release.View) {
			state := k.Released()
			return func(c *controlv1.CellState, _ release.View) {
				v := state.View(ident.Partition(c.GetPartition()), release.Other) // as it was before
				c.ServingRoot, c.AcceptedRoot, c.SentRoot, c.SnapshotVersion = v.Partition.Root().Bytes(), v.Partition.Root().Bytes(), v.Partition.Root().Bytes(), v.Snapshot
			}
		}, "waits for it to be sent (given 20 s)"},
		"a namespace that it does not change cannot serve": {func(*kept) func(*controlv1.CellState, release.View) {
			return func(c *controlv1.CellState, v release.View) {
				if v.Partition.Root() != old[ident.Partition(c.GetPartition())].Partition.Root() {
					c.Unready = []*controlv1.Unready{{Namespace: "quiet", Reason: "no connection to spare"}}
				}
			}
		}, "namespace quiet not ready at proxy-"},
		"calls fail": {func(*kept) func(*controlv1.CellState, release.View) {
			boot := timestamppb.Now()
			return func(c *controlv1.CellState, v release.View) {
				n := uint64(time.Since(boot.AsTime()) / time.Second)
				c.Traffic = &controlv1.Traffic{Calls: 100 * n, Since: boot}
				if v.Partition.Root() != old[ident.Partition(c.GetPartition())].Partition.Root() {
					c.Traffic.Failed = 10 * n
				}
			}
		}, "calls failed on the"},
		"a whole partition is refused": {func(*kept) func(*controlv1.CellState, release.View) {
			return func(c *controlv1.CellState, _ release.View) {
				c.Rejections = []*configv1.Rejection{{Resource: ident.Partition(c.GetPartition()).String(), Reason: "the root does not match"}}
			}
		}, "the root does not match"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newKept()
				snapshot := begin(t, k, release.Order{})
				for p := range ident.Partition(partitions) {
					old[p] = k.Released().View(p, release.Other)
				}
				s := newScript(k, 0, 3)
				s.change("proxy-0", tc.how(k))
				s.change("proxy-1", tc.how(k))
				s.change("proxy-2", tc.how(k))
				stop := lead(t, k, s)
				defer stop()
				time.Sleep(10 * time.Minute)
				synctest.Wait()
				r := k.release(t, snapshot)
				if r.GetState() != rolledBack || !strings.Contains(r.GetReason(), "wave 2 (rank 0 of the first partitions)") {
					t.Fatalf("%v in wave %d: %s", r.GetState(), r.GetWave(), r.GetReason())
				}
				if want := strings.Replace(tc.want, "proxy-0 in p/00", "has not been heard of for 20 s", 1); !strings.Contains(r.GetReason(), want) {
					t.Errorf("%q does not tell %q", r.GetReason(), want)
				}
				for _, name := range names {
					if got := k.content(t, name); got != "old" {
						t.Errorf("%s is %q", name, got)
					}
				}
			})
		})
	}
}

func TestAPausedReleaseIsHeldUntilSomebodyResumes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKept()
		snapshot := begin(t, k, release.Order{})
		stop := lead(t, k, newScript(k, 1, 3))
		defer stop()
		time.Sleep(45 * time.Second) // the second wave
		synctest.Wait()
		person(t, k, release.Step{Release: snapshot, Do: release.Pause, Author: "sre"})
		time.Sleep(time.Hour)
		synctest.Wait()
		if r := k.release(t, snapshot); r.GetWave() != 2 {
			t.Fatalf("wave %d, %v", r.GetWave(), r.GetState())
		}
		person(t, k, release.Step{Release: snapshot, Do: release.Resume, Author: "sre"})
		time.Sleep(time.Second)
		synctest.Wait()
		if r := k.release(t, snapshot); r.GetWave() != 3 {
			t.Errorf("wave %d after it was resumed, %v", r.GetWave(), r.GetState())
		}
	})
}

func TestWhatIsNotConfirmedInTimeGoesBack(t *testing.T) {
	for name, tc := range map[string]struct {
		policies release.Policies
		confirm  bool
		after    time.Duration
		want     configv1.ReleaseState
	}{
		"at once, not confirmed":           {release.Policies{}, false, 0, rolledBack},
		"at once, confirmed":               {release.Policies{}, true, 5 * time.Minute, done},
		"in waves, not confirmed":          {inWaves(), false, 0, rolledBack},
		"in waves, confirmed before":       {inWaves(), true, time.Minute, done},
		"in waves, confirmed after all is": {inWaves(), true, 9 * time.Minute, done},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newKept()
				k.commit(t, release.Order{}, release.Policies{}, namespace(t, "orders", "old", ""))
				snapshot := k.commit(t, release.Order{ConfirmWithin: 10 * time.Minute}, tc.policies, namespace(t, "orders", "new", ""))
				stop := lead(t, k, newScript(k, 1, 3))
				defer stop()
				time.Sleep(tc.after)
				synctest.Wait()
				if r := k.release(t, snapshot); r.GetState() != running {
					t.Fatalf("%v before anybody confirmed: %s", r.GetState(), r.GetReason())
				}
				if tc.confirm {
					person(t, k, release.Step{Release: snapshot, Do: release.Confirm, Author: "sre"})
				}
				time.Sleep(time.Hour)
				synctest.Wait()
				r, content := k.release(t, snapshot), map[configv1.ReleaseState]string{done: "new", rolledBack: "old"}[tc.want]
				if r.GetState() != tc.want || k.content(t, "orders") != content {
					t.Errorf("%v and %q, want %v and %q: %s", r.GetState(), k.content(t, "orders"), tc.want, content, r.GetReason())
				}
				if took := r.GetEndedAt().AsTime().Sub(r.GetStartedAt().AsTime()); tc.want == rolledBack && (took < 10*time.Minute || took > 10*time.Minute+time.Second) {
					t.Errorf("taken back after %v", took)
				}
			})
		})
	}
}

func TestAnotherLeaderGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKept()
		snapshot := begin(t, k, release.Order{})
		s := newScript(k, 1, 3)
		stop := lead(t, k, s)
		time.Sleep(80 * time.Second) // 20 s into the third wave
		synctest.Wait()
		stop()
		if r := k.release(t, snapshot); r.GetWave() != 3 {
			t.Fatalf("wave %d, %v", r.GetWave(), r.GetState())
		}
		stop = lead(t, k, s)
		defer stop()
		time.Sleep(29 * time.Second)
		synctest.Wait()
		if r := k.release(t, snapshot); r.GetWave() != 3 {
			t.Errorf("wave %d: the new leader has not held it", r.GetWave())
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if r := k.release(t, snapshot); r.GetWave() != 4 {
			t.Errorf("wave %d after the new leader held it", r.GetWave())
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if r := k.release(t, snapshot); r.GetState() != done || !slices.Equal(waves(r), []int{1, 2, 3, 4, 5}) {
			t.Errorf("%v after %v", r.GetState(), waves(r))
		}
	})
}

func TestAProxyThatLeavesTheFleetDoesNotHurtTheRelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKept()
		snapshot := begin(t, k, release.Order{})
		s := newScript(k, 0, 3)
		stop := lead(t, k, s)
		defer stop()
		time.Sleep(40 * time.Second)
		last := timestamppb.Now()
		s.change("proxy-1", func(c *controlv1.CellState, _ release.View) { c.LastSeen = last })
		time.Sleep(10 * time.Second) // its lease runs out; the placement has not noticed yet
		k.mu.Lock()
		k.members = slices.DeleteFunc(slices.Clone(k.members), func(m *recordv1.MemberLease) bool { return m.GetMember().GetId() == "proxy-1" })
		k.mu.Unlock()
		time.Sleep(time.Hour)
		synctest.Wait()
		if r := k.release(t, snapshot); r.GetState() != done {
			t.Errorf("%v: %s", r.GetState(), r.GetReason())
		}
	})
}

// TestAFleetThatIsNotKnownYetIsNotPassedBy is about a replica that hears of the release first and of the proxies then.
func TestAFleetThatIsNotKnownYetIsNotPassedBy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKept()
		snapshot := begin(t, k, release.Order{})
		s := newScript(k, 1, 3)
		stop := lead(t, k, s)
		defer stop()
		k.mu.Lock()
		k.members = nil
		k.mu.Unlock()
		time.Sleep(time.Minute)
		synctest.Wait()
		if r := k.release(t, snapshot); r.GetWave() != release.WaveValidators {
			t.Errorf("wave %d without a proxy", r.GetWave())
		}
		k.mu.Lock()
		k.members = s.leases()
		k.mu.Unlock()
		time.Sleep(time.Hour)
		synctest.Wait()
		if r := k.release(t, snapshot); r.GetState() != done || !slices.Equal(waves(r), []int{1, 2, 3, 4, 5}) {
			t.Errorf("%v after %v: %s", r.GetState(), waves(r), r.GetReason())
		}
	})
}

func TestReleasesGoTheirWaysBesideEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKept()
		first := begin(t, k, release.Order{})
		stop := lead(t, k, newScript(k, 1, 3))
		defer stop()
		time.Sleep(15 * time.Second)
		second := k.commit(t, release.Order{}, inWaves(), namespace(t, "extra", "new", ""))
		synctest.Wait()
		person(t, k, release.Step{Release: first, Do: release.Pause})
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if r := k.release(t, second); r.GetState() != done {
			t.Errorf("the second is %v: %s", r.GetState(), r.GetReason())
		}
		if r := k.release(t, first); r.GetWave() != 1 || r.GetState() == running {
			t.Errorf("the first is in wave %d, %v", r.GetWave(), r.GetState())
		}
		// Changes outside of all releases go on, and what proxies serve lags behind them.
		person(t, k, release.Step{Release: first, Do: release.Resume})
		for i := range 300 {
			k.commit(t, release.Order{}, release.Policies{}, namespace(t, "busy-"+names[i%len(names)], time.Now().String(), ""))
			time.Sleep(time.Second)
		}
		synctest.Wait()
		if r := k.release(t, first); r.GetState() != done {
			t.Errorf("the first is %v in wave %d: %s", r.GetState(), r.GetWave(), r.GetReason())
		}
	})
}

func TestWhatNobodyIsBoundToNeedsNoProof(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKept()
		k.commit(t, release.Order{}, release.Policies{}, backend(t, "spare", "old"))
		snapshot := k.commit(t, release.Order{}, inWaves(), backend(t, "spare", "new"))
		stop := lead(t, k, newScript(k, 1, 3))
		defer stop()
		time.Sleep(time.Second)
		synctest.Wait()
		if r := k.release(t, snapshot); r.GetState() != done {
			t.Errorf("%v in wave %d", r.GetState(), r.GetWave())
		}
	})
}

// TestARefusalThatOnlyReportsTellIsObeyed is about a replica that died after it had heard of it.
func TestARefusalThatOnlyReportsTellIsObeyed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKept()
		snapshot := begin(t, k, release.Order{})
		s := newScript(k, 1, 3)
		s.change("validator-0", func(c *controlv1.CellState, _ release.View) {
			c.Rejections = []*configv1.Rejection{{Resource: "ns/orders", Field: "patterns[0]", Reason: "no such driver"}}
		})
		stop := lead(t, k, s)
		defer stop()
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		r := k.release(t, snapshot)
		if r.GetState() != done || len(r.GetTakenBack()) != 1 || r.GetTakenBack()[0].GetName() != "ns/orders" {
			t.Fatalf("%v, taken back: %v", r.GetState(), r.GetTakenBack())
		}
		if why := r.GetTakenBack()[0].GetWhy(); why.GetProxy() != "validator-0" || why.GetBuild() != "v3" || why.GetRejection().GetField() != "patterns[0]" {
			t.Errorf("why: %v", why)
		}
		if k.content(t, "orders") != "old" || k.content(t, "users") != "new" {
			t.Errorf("orders %q, users %q", k.content(t, "orders"), k.content(t, "users"))
		}
	})
}
