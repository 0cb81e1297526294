// Command fleet measures the control plane with the real programs: prism-admin, and in another process hundreds or
// thousands of simulated proxies. It prints each figure beside its goal, as a table in Markdown, and judges none: times on a
// shared machine prove nothing by themselves. Beside the times stands the processor time of an operation, which hardly
// depends on what else the machine does.
package main

import (
	"cmp"
	"flag"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/prism-gateway/prism/e2e/harness"
)

// A part measures several goals on one installation.
type part struct {
	name, what string
	goals      []string
	run        func(*run)
}

var parts = []part{
	{"changes", "one replica with its own etcd: changes, alone and under load", []string{"L1", "L2", "L3", "L5", "L6", "L7", "L9", "C1", "S8", "T1"}, changes},
	{"memory", "one replica, etcd in another process: memory, garbage, cold start", []string{"M1", "M2", "M4", "C2", "C3", "S3"}, memory},
	{"replicas", "three replicas on three nodes of etcd: replicas that die", []string{"S1", "S2", "S7"}, replicas},
	{"releases", "one replica with policies: waves, refusals", []string{"L8", "R1", "W1"}, releases},
}

// run is one part under way.
type run struct {
	harness.Bench
	size   size
	wanted func(goal string) bool
	table  *table
}

// size is how much is measured.
type size struct {
	quick                       bool
	proxies, namespaces, sample int
	// replicaProxies is how many proxies lose their replica.
	replicaProxies int
	stretch        time.Duration // of a load
}

var (
	full  = size{proxies: 1000, namespaces: 100_000, sample: 3000, replicaProxies: 3000, stretch: 15 * time.Second}
	quick = size{quick: true, proxies: 100, namespaces: 10_000, sample: 300, replicaProxies: 300, stretch: 3 * time.Second}
)

func main() {
	only := flag.String("only", "", "comma-separated goals or parts to measure; all without it")
	isQuick := flag.Bool("quick", false, "100 proxies and 10,000 namespaces instead of 1,000 and 100,000, and shorter")
	isMillion := flag.Bool("million", false, "instead, load 1,000,000 small namespaces, or as many as -namespaces says, and tell what becomes of it")
	proxies := flag.Int("proxies", 0, "how many simulated proxies; 0 is as many as the size says")
	namespaces := flag.Int("namespaces", 0, "how many namespaces; 0 is as many as the size says")
	flag.Usage = func() {
		fmt.Fprintln(os.Stderr, "usage: fleet [-only L1,memory] [-quick] [-proxies N] [-namespaces N] | fleet -million [-namespaces N]")
		for _, p := range parts {
			fmt.Fprintf(os.Stderr, "  %-9s %s (%s)\n", p.name, p.what, strings.Join(p.goals, ", "))
		}
	}
	flag.Parse()
	s := full
	if *isQuick {
		s = quick
	}
	if *proxies > 0 {
		s.proxies, s.replicaProxies = *proxies, *proxies
	}
	if *namespaces > 0 {
		s.namespaces = *namespaces
	}
	t := &table{}
	fmt.Printf("%s, %d cores, %s\n", runtime.Version(), runtime.NumCPU(), loadAverage())
	failed := false
	if *isMillion {
		r := &run{size: s, table: t}
		failed = !r.Do(func() { million(r, cmp.Or(*namespaces, 1_000_000)) })
	} else {
		fmt.Printf("%d proxies, %d namespaces, 1,024 partitions, 3 owners each, without TLS; proxies and replicas share the machine\n", s.proxies, s.namespaces)
		failed = !measure(s, t, selection(*only))
	}
	fmt.Printf("\n%s\n%s\n", t, loadAverage())
	if failed {
		os.Exit(1)
	}
}

// selection tells which goals and parts the flag names.
func selection(only string) func(p part, goal string) bool {
	names := strings.FieldsFunc(only, func(r rune) bool { return r == ',' })
	return func(p part, goal string) bool {
		return len(names) == 0 || slices.Contains(names, p.name) || slices.Contains(names, goal)
	}
}

// measure runs the parts of which any goal is wanted. One that fails does not keep the others from being measured.
func measure(s size, t *table, wanted func(part, string) bool) bool {
	ok := true
	for _, p := range parts {
		goal := func(goal string) bool { return wanted(p, goal) }
		if !slices.ContainsFunc(p.goals, goal) {
			continue
		}
		fmt.Fprintf(os.Stderr, "== %s: %s\n", p.name, p.what)
		began := time.Now()
		r := &run{size: s, wanted: goal, table: t}
		if !r.Do(func() { p.run(r) }) {
			ok = false
			fmt.Fprintf(os.Stderr, "bench: %s did not finish\n", p.name)
		}
		fmt.Fprintf(os.Stderr, "   (%.0f s, %s)\n", time.Since(began).Seconds(), loadAverage())
	}
	return ok
}

func loadAverage() string {
	data, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "load unknown"
	}
	return "load " + strings.Join(strings.Fields(string(data))[:3], " ")
}

// progress says on standard error what is being done.
func (r *run) progress(format string, args ...any) { r.Logf("   "+format, args...) }
