package controller_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/prism-gateway/prism/controlplane/controller"
	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	"github.com/prism-gateway/prism/controlplane/store"
	"github.com/prism-gateway/prism/controlplane/store/embedded"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
)

// patience is how long a test waits for what must come; nothing passes or fails by taking less.
const patience = 30 * time.Second

// etcd serves all tests of the package, each under its own prefix.
var etcd *embedded.Server

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "prism-controller")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	if etcd, err = embedded.Start(embedded.Config{Dir: dir, Volatile: true, Log: quiet()}); err != nil {
		panic(err)
	}
	defer etcd.Close()
	return m.Run()
}

// replica is a store of its own, a controller that stands for election, and a Brake.
type replica struct {
	*store.Store
	script *script
	brake  *controller.Brake
	kill   func() // ends all of it
}

// quick is the policy of waves that are held only until all serve.
func quick() release.Policies {
	return release.Policies{Scoped: &configv1.ReleasePolicy{Soak: durationpb.New(0), Silence: durationpb.New(patience)}}
}

// runs tells apart the runs of one test.
var runs atomic.Int64

// prefix is a part of etcd for one run of one test.
func prefix(t *testing.T) string { return fmt.Sprintf("%s-%d", t.Name(), runs.Add(1)) }

func start(t *testing.T, prefix, name string) *replica {
	t.Helper()
	return startUnder(t, prefix, name, quick())
}

func startUnder(t *testing.T, prefix, name string, policies release.Policies) *replica {
	t.Helper()
	client, err := etcd.Client()
	if err != nil {
		t.Fatal(err)
	}
	s, err := store.New(store.Config{
		Client: client, Prefix: prefix, Name: name, Partitions: partitions, LeaderTTL: time.Second, Policies: policies, Log: quiet(),
	})
	if err != nil {
		t.Fatal(err)
	}
	script := newScript(s, 1, 3)
	cfg := controller.Config{Store: s, Fleet: script, Observe: script.observe, Logger: quiet()}
	c, err := controller.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	b, err := controller.NewBrake(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for _, part := range []func(context.Context) error{s.Run, b.Run, func(ctx context.Context) error { return s.Lead(ctx, c.Run) }} {
		running.Go(func() {
			if err := part(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	kill := sync.OnceFunc(func() {
		cancel()
		running.Wait()
		client.Close()
	})
	t.Cleanup(kill)
	r := &replica{Store: s, script: script, brake: b, kill: kill}
	r.until(t, "it has loaded", func() bool { return s.Head() != nil })
	return r
}

// join puts the script's proxies into the store.
func (r *replica) join(t *testing.T) {
	t.Helper()
	for _, m := range r.script.leases() {
		if _, _, err := r.PutMember(t.Context(), m, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
}

// until waits until something is so that the store tells of.
func (r *replica) until(t *testing.T, what string, so func() bool) {
	t.Helper()
	moved, stop := r.Watch()
	defer stop()
	fleet, stopFleet := r.WatchFleet()
	defer stopFleet()
	enough := time.NewTimer(patience)
	defer enough.Stop()
	for !so() {
		select {
		case <-moved:
		case <-fleet:
		case <-enough.C:
			t.Fatalf("never: %s; under way %v, ended %v", what, r.Released().Active(), r.Ended())
		}
	}
}

func (r *replica) change(t *testing.T, sets ...snapshot.Set) uint64 {
	t.Helper()
	c, err := r.Commit(t.Context(), release.Order{}, func(*snapshot.Tree, uint64) ([]snapshot.Set, error) { return sets, nil })
	if err != nil {
		t.Fatal(err)
	}
	return c.Snapshot.GetVersion()
}

// ended waits until a release has ended.
func (r *replica) ended(t *testing.T, snapshot uint64) *recordv1.Release {
	t.Helper()
	var found *recordv1.Release
	r.until(t, "the release ends", func() bool {
		for _, e := range r.Ended() {
			if e.GetSnapshot() == snapshot {
				found = e
			}
		}
		return found != nil
	})
	return found
}

func TestTheLeaderIsKilledInTheMiddleOfARelease(t *testing.T) {
	at := prefix(t)
	a, b := start(t, at, "a"), start(t, at, "b")
	a.join(t)
	a.change(t, sets(t, names, "old")...)
	before := a.Released()
	for _, r := range []*replica{a, b} { // nobody comes to serve the second wave
		for _, proxy := range []string{"proxy-0", "proxy-1", "proxy-2"} {
			r.script.change(proxy, func(c *controlv1.CellState, _ release.View) {
				c.ServingRoot, c.SnapshotVersion = before.Head().Collection(ident.Partition(c.GetPartition())).Root().Bytes(), before.Head().Version()
			})
		}
	}
	snapshot := a.change(t, sets(t, names, "new")...)
	a.until(t, "the second wave", func() bool {
		r, ok := a.Released().Release(snapshot)
		return ok && r.GetWave() == release.WaveFirst
	})
	leader, other := a, b
	if b.Leading() {
		leader, other = b, a
	}
	leader.kill()
	for _, proxy := range []string{"proxy-0", "proxy-1", "proxy-2"} {
		other.script.change(proxy, nil)
	}
	if r := other.ended(t, snapshot); r.GetState() != done || !slices.Equal(waves(r), []int{1, 2, 3, 4, 5}) {
		t.Errorf("%v after %v: %s", r.GetState(), waves(r), r.GetReason())
	}
}

// TestPeopleAndTheControllerDoNotGetInEachOthersWay aborts releases while their waves go on.
func TestPeopleAndTheControllerDoNotGetInEachOthersWay(t *testing.T) {
	at := prefix(t)
	r, second := start(t, at, "a"), start(t, at, "b")
	r.join(t)
	r.change(t, sets(t, names, "old")...)
	for i := range 20 {
		snapshot := r.change(t, namespace(t, names[i%len(names)], time.Now().String(), ""))
		_, err := second.Step(t.Context(), func(s *release.State) (release.Step, error) {
			return release.Step{Release: snapshot, Do: release.Abort, Author: "sre"}, nil
		})
		if err != nil && fault.From(err).Reason != fault.Release {
			t.Fatal(err)
		}
		if e := second.ended(t, snapshot); e.GetState() == rolledBack || err == nil && e.GetState() != configv1.ReleaseState_RELEASE_STATE_ABORTED {
			t.Errorf("%v, %v: %s", err, e.GetState(), e.GetReason())
		}
	}
}

func TestARefusalIsTakenBackByTheReplicaThatHearsOfIt(t *testing.T) {
	at := prefix(t)
	leader, other := start(t, at, "a"), start(t, at, "b") // whoever leads
	leader.join(t)
	leader.change(t, sets(t, names, "old")...)
	for _, r := range []*replica{leader, other} { // the first wave is held
		r.script.change("validator-0", func(c *controlv1.CellState, _ release.View) { c.ServingRoot, c.SnapshotVersion = nil, 0 })
	}
	snapshot := leader.change(t, sets(t, names, "new")...)
	other.until(t, "the first wave", func() bool {
		r, ok := other.Released().Release(snapshot)
		return ok && r.GetWave() == release.WaveValidators
	})
	o, _ := other.Head().Namespace("orders")
	began := time.Now()
	other.brake.Refused("validator-0", "v3", []*configv1.Rejection{{Resource: "ns/orders", Version: o.Hash.String(), Reason: "no such driver"}}, "", partitionOf("orders"))
	other.until(t, "it is taken back", func() bool {
		r, ok := other.Released().Release(snapshot)
		return ok && len(r.GetTakenBack()) == 1
	})
	t.Logf("taken back in etcd after %v", time.Since(began))
	leader.script.change("validator-0", nil)
	other.script.change("validator-0", nil)
	if r := leader.ended(t, snapshot); r.GetState() != done || len(r.GetTakenBack()) != 1 {
		t.Errorf("%v, taken back %v: %s", r.GetState(), r.GetTakenBack(), r.GetReason())
	}
	for name, want := range map[string]string{"orders": "old", "users": "new"} {
		if got := contentOf(t, leader.Head(), name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}
