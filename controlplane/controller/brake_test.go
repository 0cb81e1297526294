package controller_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/prism-gateway/prism/controlplane/controller"
	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
)

func sets(t testing.TB, names []string, content string) []snapshot.Set {
	t.Helper()
	var all []snapshot.Set
	for _, name := range names {
		all = append(all, namespace(t, name, content, ""))
	}
	return all
}

// person makes a step that a person asked for.
func person(t testing.TB, k *kept, step release.Step) {
	t.Helper()
	if _, err := k.Step(t.Context(), func(*release.State) (release.Step, error) { return step, nil }); err != nil {
		t.Fatal(err)
	}
}

// brake runs a Brake until the test ends.
func brake(t *testing.T, k *kept) (*controller.Brake, *prometheus.Registry) {
	t.Helper()
	metrics := prometheus.NewPedanticRegistry()
	b, err := controller.NewBrake(controller.Config{Store: k, Fleet: newScript(k, 0, 3), Registerer: metrics, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return b, metrics
}

// value is what the only metric of a name stands at.
func value(t *testing.T, r *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name && len(f.GetMetric()) == 1 {
			return f.GetMetric()[0].GetGauge().GetValue() + f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("there is no metric %s, or several", name)
	return 0
}

func partitionOf(name string) ident.Partition { return ident.PartitionOf(name, partitions) }

func rejection(k *kept, name string) *configv1.Rejection {
	o, _ := k.Released().Head().Namespace(name)
	return &configv1.Rejection{Resource: "ns/" + name, Version: o.Hash.String(), Field: "patterns[0]", Reason: "no such driver"}
}

func TestWhatIsRefusedGoesBackAndTheRestGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKept()
		snapshot := begin(t, k, release.Order{})
		person(t, k, release.Step{Release: snapshot, Do: release.Wave, Wave: 1})
		b, metrics := brake(t, k)
		synctest.Wait()
		b.Refused("proxy-1", "v3", []*configv1.Rejection{rejection(k, "orders")}, "", partitionOf("orders"))
		synctest.Wait()
		r := k.release(t, snapshot)
		if r.GetState() != running || len(r.GetTakenBack()) != 1 || k.content(t, "orders") != "old" || k.content(t, "users") != "new" {
			t.Fatalf("%v, orders %q, users %q", r, k.content(t, "orders"), k.content(t, "users"))
		}
		why := r.GetTakenBack()[0].GetWhy()
		if why.GetReason() != "proxy-1 refused ns/orders: patterns[0]: no such driver (build v3)" || why.GetProxy() != "proxy-1" || why.GetRejection() == nil {
			t.Errorf("why: %v", why)
		}
		if active, wave, back := value(t, metrics, "prism_release_active"), value(t, metrics, "prism_release_wave"), value(t, metrics, "prism_release_taken_back_total"); active != 1 || wave != 1 || back != 1 {
			t.Errorf("metrics tell of %v under way, wave %v, %v taken back", active, wave, back)
		}
		person(t, k, release.Step{Release: snapshot, Do: release.Abort, Author: "sre"})
		synctest.Wait()
		if aborted := value(t, metrics, "prism_release_ended_total"); aborted != 1 {
			t.Errorf("metrics tell of %v that were aborted", aborted)
		}
	})
}

func TestManyRefusalsAreOneStep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKept()
		var many []string
		for i := range 1000 {
			many = append(many, fmt.Sprintf("many-%d", i))
		}
		k.commit(t, release.Order{Objects: 1000}, release.Policies{}, sets(t, many, "old")...)
		snapshot := k.commit(t, release.Order{Objects: 1000}, inWaves(), append(sets(t, many, "new"), namespace(t, "good", "new", ""))...)
		person(t, k, release.Step{Release: snapshot, Do: release.Wave, Wave: 1})
		refused := map[ident.Partition][]*configv1.Rejection{}
		for _, name := range many {
			refused[partitionOf(name)] = append(refused[partitionOf(name)], rejection(k, name))
		}
		k.mu.Lock()
		k.trouble = fault.New(fault.Unavailable, fault.StoreDown, "etcd does not answer")
		k.mu.Unlock()
		b, _ := brake(t, k)
		for p, all := range refused {
			b.Refused("proxy-1", "v3", all, "", p)
		}
		synctest.Wait()
		k.mu.Lock()
		k.trouble = nil
		k.mu.Unlock()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if len(k.steps) != 2 || len(k.steps[1].Objects) != 1000 || !strings.Contains(k.steps[1].Reason, "(and 999 more)") {
			t.Fatalf("%d steps", len(k.steps))
		}
		if k.content(t, "many-7") != "old" || k.content(t, "good") != "new" || k.release(t, snapshot).GetState() != running {
			t.Errorf("many-7 %q, good %q, %v", k.content(t, "many-7"), k.content(t, "good"), k.release(t, snapshot).GetState())
		}
	})
}

func TestWhatAReleaseDoesNotHoldIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKept()
		snapshot := begin(t, k, release.Order{})
		stale := rejection(k, "orders")
		k.commit(t, release.Order{AtOnce: true}, inWaves(), namespace(t, "calm", "new", ""))
		newer := k.commit(t, release.Order{}, inWaves(), namespace(t, "orders", "newer", ""))
		person(t, k, release.Step{Release: newer, Do: release.Wave, Wave: 1})
		b, _ := brake(t, k)
		b.Refused("proxy-1", "v3", []*configv1.Rejection{stale, rejection(k, "calm"), {Resource: "ns/nobody"}, {Resource: "backend/none"}}, "", partitionOf("orders"))
		synctest.Wait()
		if len(k.steps) != 1 || k.content(t, "orders") != "newer" || k.content(t, "calm") != "new" {
			t.Errorf("%d steps, orders %q, calm %q", len(k.steps), k.content(t, "orders"), k.content(t, "calm"))
		}
		b.Refused("proxy-1", "v3", []*configv1.Rejection{rejection(k, "orders")}, "", partitionOf("orders"))
		synctest.Wait()
		if got := k.content(t, "orders"); got != "old" || k.release(t, newer).GetState() != rolledBack || k.release(t, snapshot).GetState() != running {
			t.Errorf("orders %q, the newer %v, the older %v", got, k.release(t, newer).GetState(), k.release(t, snapshot).GetState())
		}
	})
}

func TestAWholeRefusalTakesBackTheReleasesThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKept()
		k.commit(t, release.Order{}, release.Policies{}, sets(t, names, "old")...)
		here := k.commit(t, release.Order{}, inWaves(), namespace(t, "orders", "new", ""))
		elsewhere := k.commit(t, release.Order{}, inWaves(), namespace(t, "users", "new", ""))
		for _, snapshot := range []uint64{here, elsewhere} {
			person(t, k, release.Step{Release: snapshot, Do: release.Wave, Wave: 1})
		}
		if partitionOf("orders") == partitionOf("users") {
			t.Fatal("both are in one partition")
		}
		b, _ := brake(t, k)
		b.Refused("proxy-1", "v3", nil, "the root does not match", partitionOf("orders"))
		synctest.Wait()
		r := k.release(t, here)
		if want := "proxy-1 refused all of " + partitionOf("orders").String() + ": the root does not match (build v3)"; r.GetState() != rolledBack || r.GetReason() != want {
			t.Errorf("%v, %q; want %q", r.GetState(), r.GetReason(), want)
		}
		if k.release(t, elsewhere).GetState() != running || k.content(t, "orders") != "old" {
			t.Errorf("the other is %v, orders %q", k.release(t, elsewhere).GetState(), k.content(t, "orders"))
		}
	})
}
