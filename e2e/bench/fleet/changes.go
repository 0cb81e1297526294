package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/prism-gateway/prism/e2e/harness"
	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
)

// changes measures one replica with its own etcd.
func changes(r *run) {
	c := r.start(harness.Options{})
	b := &changing{run: r, cluster: c, admin: c.Admins[0], variant: 1}
	b.sim = r.fleet(c, r.size.proxies)
	b.fromNone()
	r.load(c, perChange, r.size.namespaces)
	b.settle()
	for _, m := range []struct {
		goal    string
		measure func()
	}{
		{"L1", b.alone}, {"L2", b.underLoad}, {"L3", b.shared}, {"L5", b.rates}, {"L7", b.rolledBack}, {"L9", b.waiting},
		{"S8", b.stuck}, {"T1", b.tenants},
	} {
		if r.wanted(m.goal) || m.goal == "L3" && r.wanted("C1") {
			m.measure()
		}
	}
}

// changing is an installation on which namespaces are changed.
type changing struct {
	*run
	cluster *harness.Cluster
	admin   *harness.Admin
	sim     *simulator
	newest  uint64
	variant int // of namespaces; each change takes another
	next    int // namespace to change
}

// call is one change that was made.
type call struct {
	snapshot    uint64
	began, done time.Time
}

// one changes the next namespace.
func (b *changing) one() call {
	snapshot, began, took := b.change(b.admin, b.request(""))
	b.newest = max(b.newest, snapshot)
	return call{snapshot, began, began.Add(took)}
}

// request is the next change. Namespaces that follow each other are in different partitions.
func (b *changing) request(of string) *configv1.NamespaceRequest {
	b.next, b.variant = b.next+7, b.variant+1
	req := namespace(b.next%b.size.namespaces, b.variant%100_000)
	if of != "" {
		req.Namespace, req.Team = fmt.Sprintf("%s-%06d", of, b.next%1000), of
	}
	return req
}

// settle waits until nothing more comes into effect: what is told of a snapshot comes some seconds later.
func (b *changing) settle() {
	out, err := b.admin.Operator.GetSnapshot(context.Background(), &adminv1.GetSnapshotRequest{})
	if err != nil {
		b.Fatalf("newest snapshot: %v", err)
	}
	b.newest = out.GetSnapshot().GetVersion()
	b.sim.await(patience, "the newest snapshot in effect", func(rep report) error {
		if rep.Snapshot < b.newest {
			return fmt.Errorf("%d of %d", rep.Snapshot, b.newest)
		}
		return nil
	})
	time.Sleep(4 * time.Second)
}

// effects are the times from the beginning of calls until they were in effect on the last owner.
func (b *changing) effects(calls []call) (out []time.Duration) {
	for _, c := range calls {
		if sp, ok := b.sim.spread(c.snapshot, b.newest); ok {
			out = append(out, sp.Last.Sub(c.began))
		}
	}
	if len(out) < len(calls)*9/10 {
		b.Fatalf("of %d changes only %d came into effect", len(calls), len(out))
	}
	return out
}

func (b *changing) fromNone() {
	used := b.cpu(b.admin.Process)
	snapshot, began, took := b.change(b.admin, several(0, min(perChange, b.size.namespaces), 0)...)
	sp := b.sim.awaitSpread(patience, snapshot)
	if b.wanted("L6") {
		b.table.add(row{id: "L6", d: []time.Duration{sp.Last.Sub(began)}, cpu: b.cpu(b.admin.Process) - used,
			note: fmt.Sprintf("the call took %s; CPU of all of it", short(took))})
	}
}

func (b *changing) alone() {
	b.progress("L1: %d changes, one after the other", b.size.sample)
	used, garbage := b.cpu(b.admin.Process), b.metric(b.cluster, b.admin, "go_memstats_alloc_bytes_total")
	var calls []call
	for range b.size.sample {
		calls = append(calls, b.one())
	}
	used = (b.cpu(b.admin.Process) - used) / time.Duration(len(calls))
	garbage = b.metric(b.cluster, b.admin, "go_memstats_alloc_bytes_total") - garbage
	b.settle()
	var answers, pushes []time.Duration
	for _, c := range calls {
		answers = append(answers, c.done.Sub(c.began))
		if sp, ok := b.sim.spread(c.snapshot, b.newest); ok {
			pushes = append(pushes, sp.Last.Sub(sp.Committed))
		}
	}
	slices.Sort(answers)
	slices.Sort(pushes)
	b.table.add(row{id: "L1", d: b.effects(calls), cpu: used, note: fmt.Sprintf(
		"call returned p50 %s, p99 %s; recorded → in effect p50 %s, p99 %s; garbage %s a change; CPU and garbage with etcd",
		short(quantile(answers, 0.5)), short(quantile(answers, 0.99)), short(quantile(pushes, 0.5)), short(quantile(pushes, 0.99)), kib(garbage/float64(len(calls))))})
}

// at makes changes at a rate, each without waiting for those before, until the time is over. It returns those that were made and
// how long they took together.
func (b *changing) at(rate float64, d time.Duration, of string) (calls []call, took time.Duration) {
	var mu sync.Mutex // guards calls, failed
	var failed error
	var pending sync.WaitGroup
	slots := make(chan struct{}, 1024) // so that a replica that is too slow is not given without end
	began := time.Now()
	for n := 0; time.Since(began) < d; n++ {
		time.Sleep(time.Until(began.Add(time.Duration(float64(n) / rate * float64(time.Second)))))
		slots <- struct{}{}
		req := b.request(of)
		due := began.Add(time.Duration(float64(n) / rate * float64(time.Second)))
		pending.Go(func() {
			defer func() { <-slots }()
			snapshot, _, _, err := change(b.admin, req)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = err
				return
			}
			calls = append(calls, call{snapshot, due, time.Now()}) // from when it was due: waiting for others counts
		})
	}
	pending.Wait()
	took = time.Since(began)
	if failed != nil {
		b.Fatalf("changes at %v/s: %v", rate, failed)
	}
	return calls, took
}

func (b *changing) underLoad() {
	b.progress("L2: changes for %v while 100/s run", b.size.stretch)
	used := b.cpu(b.admin.Process)
	calls, took := b.at(100, b.size.stretch, "")
	used = (b.cpu(b.admin.Process) - used) / time.Duration(len(calls))
	b.settle()
	b.table.add(row{id: "L2", d: b.effects(calls), cpu: used, note: fmt.Sprintf("%.0f/s; the 100/s are themselves measured", float64(len(calls))/took.Seconds())})
}

func (b *changing) rates() {
	for _, rate := range []float64{500, 1000, 2000} {
		b.progress("L5: %v changes/s for %v", rate, b.size.stretch)
		used := b.cpu(b.admin.Process)
		calls, took := b.at(rate, b.size.stretch, "")
		used = (b.cpu(b.admin.Process) - used) / time.Duration(len(calls))
		b.settle()
		b.table.add(row{id: "L5", what: fmt.Sprintf("%.0f/s asked for", rate), d: b.effects(calls), cpu: used,
			note: fmt.Sprintf("%.0f/s done, %.1f changes a snapshot", float64(len(calls))/took.Seconds(), perSnapshot(calls))})
	}
}

func perSnapshot(calls []call) float64 {
	snapshots := map[uint64]bool{}
	for _, c := range calls {
		snapshots[c.snapshot] = true
	}
	return float64(len(calls)) / float64(max(1, len(snapshots)))
}

// shared changes the backend that all namespaces use, which every proxy is sent.
func (b *changing) shared() {
	n := b.size.sample / 30
	b.progress("L3: %d changes of a backend", n)
	used := b.cpu(b.admin.Process)
	var calls []call
	for i := range n {
		changed := proto.CloneOf(backends[0])
		changed.Labels = map[string]string{"turn": fmt.Sprint(b.variant + i)}
		began := time.Now()
		out, err := b.admin.Operator.ApplyBackends(context.Background(), &adminv1.ApplyBackendsRequest{
			Changes: []*adminv1.BackendChange{{Backend: changed}}, Note: &controlv1.ChangeNote{Author: "bench"},
		})
		if err != nil {
			b.Fatalf("backend: %v", err)
		}
		calls = append(calls, call{out.GetSnapshotVersion(), began, time.Now()})
		b.newest = out.GetSnapshotVersion()
		b.sim.awaitSpread(patience, b.newest) // so that none overtakes the one before
	}
	used = (b.cpu(b.admin.Process) - used) / time.Duration(n)
	if b.wanted("L3") {
		b.table.add(row{id: "L3", what: fmt.Sprintf("N=%d", b.size.proxies), d: b.effects(calls), cpu: used})
	}
	if b.wanted("C1") {
		// Each proxy is sent two responses, the set and its partitions, and some seconds of heartbeats are in it.
		b.table.add(row{id: "C1", text: short(used / time.Duration(b.size.proxies)), note: "a change of a backend divided by the proxies: two responses each, commit, etcd and the heartbeats of about 3 s"})
	}
}

func (b *changing) rolledBack() {
	b.progress("L7: rollbacks of %d namespaces", perChange)
	var writes, d []time.Duration
	var used time.Duration
	for i := range 3 {
		former := b.newest
		b.newest, _, _ = b.change(b.admin, several(0, min(perChange, b.size.namespaces), 100_000+i)...)
		b.sim.awaitSpread(patience, b.newest)
		before := b.cpu(b.admin.Process)
		snapshot, began, took := b.rollback(b.admin, former)
		sp := b.sim.awaitSpread(patience, snapshot)
		used += b.cpu(b.admin.Process) - before
		b.newest = snapshot
		writes, d = append(writes, took), append(d, sp.Last.Sub(began))
	}
	slices.Sort(writes)
	b.table.add(row{id: "L7", d: d, cpu: used / 3, note: fmt.Sprintf("the call took %s to %s; CPU of all of it", short(writes[0]), short(writes[2]))})
}

// waiting measures how much later than the last owner a caller knows.
func (b *changing) waiting() {
	n := b.size.sample / 10
	b.progress("L9: %d changes that are waited for", n)
	type known struct {
		call
		live time.Time
	}
	var all []known
	for range n {
		req := b.request("")
		watching, stop := context.WithCancel(context.Background())
		watch, err := b.admin.Control.WatchNamespaceStatus(watching, &controlv1.WatchNamespaceStatusRequest{Namespace: req.GetNamespace()})
		if err == nil {
			_, err = watch.Recv()
		}
		if err != nil {
			b.Fatalf("status: %v", err)
		}
		snapshot, began, _ := b.change(b.admin, req)
		b.newest = snapshot
		for {
			in, err := watch.Recv()
			if err == io.EOF || err != nil {
				b.Fatalf("status: %v", err)
			}
			if s := in.GetStatus(); s.GetLive() && s.GetSnapshotVersion() >= snapshot {
				break
			}
		}
		all = append(all, known{call{snapshot: snapshot, began: began}, time.Now()})
		stop()
	}
	b.settle()
	var late []time.Duration
	for _, k := range all {
		if sp, ok := b.sim.spread(k.snapshot, b.newest); ok {
			late = append(late, max(0, k.live.Sub(sp.Last)))
		}
	}
	b.table.add(row{id: "L9", what: "waiting", d: late})
	var queries []time.Duration
	used := b.cpu(b.admin.Process)
	for i := range n {
		began := time.Now()
		_, err := b.admin.Control.GetNamespace(context.Background(), &controlv1.GetNamespaceRequest{Namespace: name(i * 7 % b.size.namespaces)})
		if err != nil {
			b.Fatalf("get: %v", err)
		}
		queries = append(queries, time.Since(began))
	}
	b.table.add(row{id: "L9", what: "query", d: queries, cpu: (b.cpu(b.admin.Process) - used) / time.Duration(n)})
}

// stuck compares changes while one more proxy stands still with changes while it runs, in turn.
func (b *changing) stuck() {
	b.progress("S8: pairs with a proxy that stands still")
	one := b.simulate(b.cluster, "stuck", 1)
	one.await(patience, "the proxy holds partitions", func(rep report) error {
		if rep.Owning == 0 {
			return fmt.Errorf("none")
		}
		return nil
	})
	b.sim.settledWith(b.cluster, one)
	ratios, still, all := b.pairs(5, func(on bool) []call {
		if on {
			one.Pause() // shorter than the lease, so that no partition moves
			defer one.Resume()
		}
		var calls []call
		for began := time.Now(); time.Since(began) < b.size.stretch/3; {
			calls = append(calls, b.one())
		}
		return calls
	})
	b.table.add(row{id: "S8", d: still, note: fmt.Sprintf("the others' changes while it stands still; p99 against moments before: %s; p99 without %s", ratios, short(quantile(all, 0.99)))})
	one.Stop(20 * time.Second)
}

// tenants compares one team's changes while another changes as fast as it can with those while it rests, in turn.
func (b *changing) tenants() {
	b.progress("T1: pairs with a noisy team")
	b.change(b.admin, b.ofTeam("quiet")...)
	b.change(b.admin, b.ofTeam("noisy")...)
	var done atomic.Int64
	ratios, loaded, rested := b.pairs(3, func(on bool) []call {
		var stop atomic.Bool
		var noisy sync.WaitGroup
		if on {
			for w := range 64 {
				noisy.Go(func() {
					for i := w; !stop.Load(); i += 64 {
						req := namespace(0, i+int(done.Add(1)))
						req.Namespace, req.Team = fmt.Sprintf("noisy-%06d", i%1000), "noisy"
						if _, _, _, err := change(b.admin, req); err != nil && !strings.Contains(err.Error(), "quota") {
							b.Logf("noisy: %v", err)
							return
						}
					}
				})
			}
			defer func() { stop.Store(true); noisy.Wait() }()
		}
		var calls []call
		for began := time.Now(); time.Since(began) < b.size.stretch/2; time.Sleep(20 * time.Millisecond) {
			snapshot, began, took := b.change(b.admin, b.request("quiet"))
			calls = append(calls, call{snapshot, began, began.Add(took)})
		}
		return calls
	})
	b.table.add(row{id: "T1", d: loaded, note: fmt.Sprintf("the quiet team's while the noisy one has 64 changes under way; p99 against the team alone: %s; alone p99 %s", ratios, short(quantile(rested, 0.99)))})
}

// ofTeam are a team's thousand namespaces.
func (b *changing) ofTeam(of string) (out []*configv1.NamespaceRequest) {
	for i := range 1000 {
		req := namespace(i, 0)
		req.Namespace, req.Team = fmt.Sprintf("%s-%06d", of, i), of
		out = append(out, req)
	}
	return out
}

// pairs makes changes without and with something, in turn, and compares the p99 of each pair. It returns the ratios, for
// people, and all times with and without.
func (b *changing) pairs(n int, make func(on bool) []call) (ratios string, with, without []time.Duration) {
	type pair [2][]call
	var all []pair
	for range n {
		all = append(all, pair{make(false), make(true)})
	}
	b.settle()
	var texts []string
	for _, p := range all {
		off, on := b.effects(p[0]), b.effects(p[1])
		slices.Sort(off)
		slices.Sort(on)
		texts = append(texts, fmt.Sprintf("%.2f", float64(quantile(on, 0.99))/float64(max(1, quantile(off, 0.99)))))
		with, without = append(with, on...), append(without, off...)
	}
	slices.Sort(without)
	return strings.Join(texts, ", "), with, without
}
