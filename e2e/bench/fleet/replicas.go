package main

import (
	"fmt"
	"time"

	"github.com/prism-gateway/prism/e2e/harness"
)

// replicas measures three replicas on three nodes of etcd.
func replicas(r *run) {
	c := r.start(harness.Options{Admins: 3, Etcd: 3})
	s := r.fleet(c, r.size.replicaProxies)
	r.load(c, 0, r.size.namespaces)
	b := &changing{run: r, cluster: c, admin: c.Admins[0], sim: s}
	b.settle()
	b.settle()

	r.progress("S1: one replica is killed")
	steady := r.rss(c.Admins[1].Process)
	before := s.report()
	c.Admins[0].Kill()
	s.await(patience, "all proxies current on others", func(rep report) error {
		if rep.Connected < s.proxies || rep.Reconnects == before.Reconnects || rep.Away.Count < rep.Reconnects {
			return fmt.Errorf("%d connected, %d came back, %d are current", rep.Connected, rep.Reconnects-before.Reconnects, rep.Away.Count)
		}
		return nil
	})
	rep := s.report()
	back := rep.Away.Count - before.Away.Count
	if r.wanted("S1") {
		p50, p99, highest := rep.Away.times()
		r.table.add(row{id: "S1", what: fmt.Sprintf("N=%d", s.proxies), d: []time.Duration{highest}, note: fmt.Sprintf(
			"the slowest of %d; p50 %s, p99 %s; %d resources sent again, %d B of configuration each", back, short(p50), short(p99),
			rep.Resumed-before.Resumed, (rep.ResumedBytes-before.ResumedBytes)/max(1, back))})
	}
	if r.wanted("S7") {
		r.table.add(row{id: "S7", text: fmt.Sprintf("%d B", rep.AskedMax), note: fmt.Sprintf("the largest of %d, %d partitions each", back, 3*1024/s.proxies)})
	}
	if !r.wanted("S2") {
		return
	}
	r.progress("S2: all replicas are killed and started")
	for _, a := range c.Admins {
		a.Kill()
	}
	before = s.report()
	began := time.Now()
	for _, a := range c.Admins {
		a.Start()
	}
	c.WaitReady(patience)
	ready := time.Since(began)
	s.await(patience, "all proxies current", func(rep report) error {
		if rep.Connected < s.proxies || rep.Away.Count < before.Away.Count+uint64(s.proxies) {
			return fmt.Errorf("%d connected, %d current", rep.Connected, rep.Away.Count-before.Away.Count)
		}
		return nil
	})
	took := time.Since(began)
	var used time.Duration
	var most int64
	for _, a := range c.Admins {
		used += r.cpu(a.Process)
		if n, err := peak(a.Pid()); err == nil {
			most = max(most, n)
		}
	}
	after := s.report()
	r.table.add(row{id: "S2", what: fmt.Sprintf("N=%d, M=%d", s.proxies, r.size.namespaces), d: []time.Duration{took}, cpu: used, note: fmt.Sprintf(
		"to within the second in which the proxies report; replicas ready after %s; peak RSS %s, %.2f × the %s before; %d resources sent again; CPU of the three together",
		short(ready), mib(most), float64(most)/float64(steady), mib(steady), after.Resumed-before.Resumed)})
}
