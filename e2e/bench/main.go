// Command bench measures what the design promises, with the real programs, as ratios against a baseline in the same
// run. It prints each figure beside its goal and judges none: times on a shared machine prove nothing by themselves.
package main

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/prism-gateway/prism/e2e/harness"
)

// A part is one table of figures.
type part struct {
	name, what string
	run        func(*run)
}

var parts = []part{
	{"live", "request accepted until served by all owners, 10,000 namespaces, 3 proxies", benchLive},
	{"memory", "memory of prism-admin per namespace", benchMemory},
}

func main() {
	only := flag.String("only", "", "comma-separated parts to run; all without it")
	quick := flag.Bool("quick", false, "a tenth of the time, for trying the bench itself")
	flag.Usage = func() {
		fmt.Fprintln(os.Stderr, "usage: bench [-only live,memory] [-quick]")
		for _, p := range parts {
			fmt.Fprintf(os.Stderr, "  %-8s %s\n", p.name, p.what)
		}
	}
	flag.Parse()
	wanted := strings.FieldsFunc(*only, func(r rune) bool { return r == ',' })
	fmt.Printf("%s, %d cores, %s\n", runtime.Version(), runtime.NumCPU(), loadAverage())
	for _, p := range parts {
		if len(wanted) > 0 && !contains(wanted, p.name) {
			continue
		}
		fmt.Printf("\n== %s: %s\n", p.name, p.what)
		r := &run{quick: *quick}
		began := time.Now()
		if !r.Do(func() { p.run(r) }) {
			fmt.Fprintf(os.Stderr, "bench: %s did not finish\n", p.name)
			os.Exit(1)
		}
		fmt.Printf("   (%.0f s, %s)\n", time.Since(began).Seconds(), loadAverage())
	}
}

func contains(list []string, s string) bool {
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}

func loadAverage() string {
	data, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "load unknown"
	}
	return "load " + strings.Join(strings.Fields(string(data))[:3], " ")
}

// run is one part under way.
type run struct {
	harness.Bench
	quick bool
}
