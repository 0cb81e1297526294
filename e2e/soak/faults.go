package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/prism-gateway/prism/e2e/harness"
)

// breakage is one way to break a cluster, for a while.
type breakage struct {
	name string
	on   ground
	do   func(s *soak, random *rand.Rand) (repair func())
}

// ground is where a breakage is possible.
type ground int

const (
	anywhere ground = iota
	onLinks         // between programs on loopback
	onHosts         // of programs that have their own
)

// breakages are all there are. Each repairs what it broke.
var breakages = []breakage{
	{"kill a replica", anywhere, func(s *soak, random *rand.Rand) func() {
		return killed(s.anyAdmin(random).Process)
	}},
	{"kill an etcd member", anywhere, func(s *soak, random *rand.Rand) func() {
		return killed(s.cluster.Etcd[random.IntN(len(s.cluster.Etcd))])
	}},
	{"kill a proxy", anywhere, func(s *soak, random *rand.Rand) func() {
		return killed(s.anyProxy(random).Process)
	}},
	{"kill a validator", anywhere, func(s *soak, random *rand.Rand) func() {
		return killed(s.cluster.Validators[0].Process)
	}},
	{"stop a proxy", anywhere, func(s *soak, random *rand.Rand) func() {
		p := s.anyProxy(random)
		if !p.Stop(20 * time.Second) {
			s.bad("%s did not stop by itself", p.ID)
		}
		return started(p.Process)
	}},
	{"freeze a program", anywhere, func(s *soak, random *rand.Rand) func() {
		all := s.programs()
		p := all[random.IntN(len(all))]
		if !p.Running() {
			return func() {}
		}
		p.Pause()
		return p.Resume
	}},
	{"a proxy joins", anywhere, func(s *soak, _ *rand.Rand) func() {
		if len(s.cluster.Proxies) >= 2*proxies {
			return func() {}
		}
		p := s.cluster.Join()
		s.mu.Lock()
		s.proxies = append(slices.Clone(s.proxies), p)
		s.mu.Unlock()
		return func() {}
	}},
	{"a proxy leaves", anywhere, func(s *soak, random *rand.Rand) func() {
		running := slices.DeleteFunc(slices.Clone(s.cluster.Proxies), func(p *harness.Proxy) bool { return !p.Running() })
		if len(running) <= proxies {
			return func() {}
		}
		running[random.IntN(len(running))].Stop(20 * time.Second)
		return func() {}
	}},
	{"cut a replica off from etcd", onLinks, func(s *soak, random *rand.Rand) func() {
		return broken(random, s.cluster.Links.Etcd[random.IntN(len(s.cluster.Links.Etcd))]...)
	}},
	{"break one link to etcd", onLinks, func(s *soak, random *rand.Rand) func() {
		links := s.cluster.Links.Etcd[random.IntN(len(s.cluster.Links.Etcd))]
		return broken(random, links[random.IntN(len(links))])
	}},
	{"cut a proxy off from the replicas", onLinks, func(s *soak, random *rand.Rand) func() {
		return broken(random, s.cluster.Links.Fleet[random.IntN(len(s.cluster.Links.Fleet))]...)
	}},
	{"cut all proxies off from the replicas", onLinks, func(s *soak, random *rand.Rand) func() {
		return broken(random, slices.Concat(s.cluster.Links.Fleet...)...)
	}},
	{"break a link to a replica", onLinks, func(s *soak, random *rand.Rand) func() {
		links := s.cluster.Links.Fleet[random.IntN(len(s.cluster.Links.Fleet))]
		return broken(random, links[random.IntN(len(links))])
	}},
	{"break the replicas' links to each other", onLinks, func(s *soak, random *rand.Rand) func() {
		return broken(random, s.cluster.Links.Replicas...)
	}},
	{"break a proxy's link to the others", onLinks, func(s *soak, random *rand.Rand) func() {
		return broken(random, s.cluster.Links.Peers[random.IntN(len(s.cluster.Links.Peers))])
	}},
	{"break a proxy's link to applications", onLinks, func(s *soak, random *rand.Rand) func() {
		return broken(random, s.cluster.Links.Calls[random.IntN(len(s.cluster.Links.Calls))])
	}},
	{"pull a program's cable", onHosts, func(s *soak, random *rand.Rand) func() {
		all := s.programs()
		return s.pulled(all[random.IntN(len(all))])
	}},
	{"pull an etcd member's cable", onHosts, func(s *soak, random *rand.Rand) func() {
		return s.pulled(s.cluster.Etcd[random.IntN(len(s.cluster.Etcd))])
	}},
	{"pull all replicas' cables", onHosts, func(s *soak, _ *rand.Rand) func() {
		var all []*harness.Process
		for _, a := range s.cluster.Admins {
			all = append(all, a.Process)
		}
		return s.pulled(all...)
	}},
}

func (s *soak) anyProxy(random *rand.Rand) *harness.Proxy {
	running := slices.DeleteFunc(slices.Clone(s.cluster.Proxies), func(p *harness.Proxy) bool { return !p.Running() })
	return running[random.IntN(len(running))]
}

func killed(p *harness.Process) (repair func()) {
	p.Kill()
	return started(p)
}

// started starts a program, unless something else has done so.
func started(p *harness.Process) (repair func()) {
	return func() {
		if !p.Running() {
			p.Start()
		}
	}
}

// pulled pulls cables.
func (s *soak) pulled(programs ...*harness.Process) (repair func()) {
	for _, p := range programs {
		s.hosts.Pull(p.Name())
	}
	return func() {
		for _, p := range programs {
			s.hosts.Plug(p.Name())
		}
	}
}

// broken breaks links in one of the ways that a network does.
func broken(random *rand.Rand, links ...*harness.Relay) (repair func()) {
	all := []harness.Fault{
		harness.Blackhole, harness.Deaf, {Hold: true}, harness.Cut, harness.Trickle, {Delay: time.Duration(20+random.IntN(200)) * time.Millisecond},
	}
	harness.Set(all[random.IntN(len(all))], links...)
	return func() { harness.Set(harness.Healed, links...) }
}

// breakAll breaks the cluster in one way after the other, sometimes in two at once, until the time is over.
func (s *soak) breakAll(until time.Time, only string) {
	random := rand.New(rand.NewPCG(s.seed, 400))
	wait := func(least, most time.Duration) {
		time.Sleep(min(least+rand.N(most-least), max(0, time.Until(until)))) // faults last, and so do the times between them
	}
	possible := slices.DeleteFunc(slices.Clone(breakages), func(b breakage) bool {
		return only != "" && b.name != only || b.on == onLinks && s.hosts != nil || b.on == onHosts && s.hosts == nil
	})
	if len(possible) == 0 {
		s.Fatalf("%q is no way to break this cluster", only)
	}
	for time.Now().Before(until) {
		var repairs []func()
		for range 1 + random.IntN(4)/3 {
			b := possible[random.IntN(len(possible))]
			fmt.Println(time.Now().UTC().Format("15:04:05"), b.name)
			s.count(b.name)
			repairs = append(repairs, b.do(s, random))
			wait(500*time.Millisecond, 4*time.Second)
		}
		wait(time.Second, 5*time.Second)
		for _, repair := range repairs {
			repair()
		}
		wait(2*time.Second, 10*time.Second)
	}
}
