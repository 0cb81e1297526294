package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/prism-gateway/prism/e2e/harness"
)

// memory measures what one replica keeps. etcd is a process of its own, so that its memory, garbage and CPU are not counted. The
// replica is started again before its memory is taken, so that what loading left behind is not counted either.
func memory(r *run) {
	c := r.start(harness.Options{Etcd: 1, Lease: time.Minute})
	a := c.Admins[0]
	r.restart(a)
	time.Sleep(2 * time.Second)
	empty := r.rss(a.Process)
	b := &changing{run: r, cluster: c, admin: a, variant: 1, sim: r.fleet(c, r.size.proxies)}
	first, _, _ := r.change(a, namespace(0, 0))
	withProxies := b.again()
	b.newest = r.load(c, 1, r.size.namespaces)
	b.settle()

	b.sim.Pause() // no stream comes while the replica loads
	ready := r.restart(a)
	time.Sleep(2 * time.Second)
	alone := r.rss(a.Process)
	b.sim.Resume()
	b.sim.current(b.cluster)
	loaded := b.again()
	n := float64(r.size.namespaces)
	if r.wanted("S3") {
		r.table.add(row{id: "S3", what: fmt.Sprintf("M=%d", r.size.namespaces), d: []time.Duration{ready}, cpu: r.cpu(a.Process), note: "CPU until some seconds later"})
	}
	if r.wanted("M1") {
		r.table.add(row{id: "M1", text: kib(float64(withProxies-empty) / float64(r.size.proxies)), note: fmt.Sprintf(
			"RSS with %d proxies over without, without namespaces; with %d namespaces %s; two connections each: configuration and reports",
			r.size.proxies, r.size.namespaces, kib(float64(loaded-alone)/float64(r.size.proxies)))})
	}
	if r.wanted("M2") {
		r.table.add(row{id: "M2", text: kib(float64(alone-empty) / n), note: fmt.Sprintf(
			"RSS %s over %s empty, after a start; live heap %s", mib(alone), mib(empty), mib(int64(r.live(c, a))))})
	}
	if r.wanted("C2") || r.wanted("C3") {
		b.garbage()
	}
	if r.wanted("M4") {
		b.churn(first, withProxies)
	}
}

// live is about how much memory is reachable: the collector runs next at twice that.
func (r *run) live(c *harness.Cluster, a *harness.Admin) float64 {
	return r.metric(c, a, "go_memstats_next_gc_bytes") / 2
}

// again starts the replica again, waits until all proxies are back and returns its memory.
func (b *changing) again() int64 {
	b.restart(b.admin)
	b.sim.current(b.cluster)
	time.Sleep(3 * time.Second)
	return b.rss(b.admin.Process)
}

// current waits until all proxies are connected, and reported.
func (s *simulator) current(c *harness.Cluster) {
	time.Sleep(2 * time.Second) // for the next report
	s.settled(c)
}

// garbage makes changes and divides what was allocated and used by them.
func (b *changing) garbage() {
	n := b.size.sample / 3
	b.progress("C2: %d changes", n)
	allocated, used := b.metric(b.cluster, b.admin, "go_memstats_alloc_bytes_total"), b.cpu(b.admin.Process)
	began := time.Now()
	for range n {
		b.one()
	}
	stretch := time.Since(began)
	allocated, used = b.metric(b.cluster, b.admin, "go_memstats_alloc_bytes_total")-allocated, b.cpu(b.admin.Process)-used
	// What heartbeats cost in the same time is not the changes'.
	idle, idleUsed := b.metric(b.cluster, b.admin, "go_memstats_alloc_bytes_total"), b.cpu(b.admin.Process)
	time.Sleep(stretch)
	idle, idleUsed = b.metric(b.cluster, b.admin, "go_memstats_alloc_bytes_total")-idle, b.cpu(b.admin.Process)-idleUsed
	if b.wanted("C2") {
		b.table.add(row{id: "C2", text: kib((allocated - idle) / float64(n)), cpu: (used - idleUsed) / time.Duration(n),
			note: fmt.Sprintf("without etcd; %s and %s of it are what the fleet costs at rest in the same time, left out", kib(idle/float64(n)), short(idleUsed/time.Duration(n)))})
	}
	if b.wanted("C3") {
		b.table.add(row{id: "C3", text: "not measured here", note: "go test -run '^$' -bench Hold ./controlplane/push"})
	}
}

// churn changes namespaces for a while, deletes all, and sees what memory is left.
func (b *changing) churn(first uint64, before int64) {
	stretch := 4 * b.size.stretch
	b.progress("M4: %v of changes, then everything is deleted", stretch)
	calls, _ := b.at(200, stretch, "")
	b.settle()
	full := b.rss(b.admin.Process)
	b.rollback(b.admin, first)
	b.settle()
	least, took := b.rss(b.admin.Process), time.Duration(0)
	patience := 3 * time.Minute // the collector runs at least every two
	if b.size.quick {
		patience = 5 * time.Second
	}
	for began := time.Now(); time.Since(began) < patience; time.Sleep(time.Second) {
		if now := b.rss(b.admin.Process); now < least-least/50 {
			least, took = now, time.Since(began)
		}
	}
	b.table.add(row{id: "M4", text: fmt.Sprintf("%+.0f %%", 100*(float64(least)/float64(before)-1)), note: fmt.Sprintf(
		"RSS %s with the same proxies before, %s after %d changes, least %s, %v after the deletion; live heap %s",
		mib(before), mib(full), len(calls), mib(least), took.Round(time.Second), mib(int64(b.live(b.cluster, b.admin))))})
}

// peak is the most memory that a process has had, in bytes.
func peak(pid int) (int64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	return peakOf(string(data))
}

// peakOf finds it in the text of /proc/PID/status.
func peakOf(status string) (int64, error) {
	for line := range strings.Lines(status) {
		if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			var kb int64
			_, err := fmt.Sscanf(value, "%d kB", &kb)
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("no VmHWM in the status of a process")
}
