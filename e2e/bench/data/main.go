// Command data measures the data plane with the real programs: a proxy before each store, beside a bare gRPC
// pass-through to the same store and, where there is one, the store's own client in the load generator. The three run in
// turn, several times, and what counts are the medians of the ratios. It prints each figure beside its goal and judges
// none: times on a shared machine prove nothing by themselves.
package main

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/prism-gateway/prism/e2e/harness"
)

// run is one part under way.
type run struct {
	harness.Bench
	quick bool
	table table
}

// scaled shortens a time for -quick.
func (r *run) scaled(d time.Duration) time.Duration {
	if r.quick {
		return d / 8
	}
	return d
}

func main() {
	only := flag.String("only", "", "comma-separated parts to run: the stores, start, neighbour, retries; all without it")
	quick := flag.Bool("quick", false, "an eighth of the time, for trying the bench itself")
	flag.Parse()
	wanted := strings.FieldsFunc(*only, func(c rune) bool { return c == ',' })
	fmt.Printf("%s, %d cores, load %s; values of 256 B, without TLS; store, programs and load share the machine\n", runtime.Version(), runtime.NumCPU(), load1())
	type part struct {
		name string
		run  func(*run)
	}
	var parts []part
	for _, s := range stores {
		parts = append(parts, part{s.kind, func(r *run) { compare(r, s) }})
	}
	parts = append(parts, part{"start", coldStart}, part{"neighbour", neighbour}, part{"retries", amplification})
	for _, p := range parts {
		if len(wanted) > 0 && !slices.Contains(wanted, p.name) {
			continue
		}
		r := &run{quick: *quick, table: table{part: p.name}}
		began := time.Now()
		if !r.Do(func() { p.run(r) }) {
			fmt.Fprintf(os.Stderr, "data: %s did not finish\n", p.name)
			os.Exit(1)
		}
		fmt.Printf("   (%.0f s, load %s)\n", time.Since(began).Seconds(), load1())
	}
}

func load1() string {
	data, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Fields(string(data))[0]
}

// table prints figures as they are measured.
type table struct {
	part   string
	headed bool
}

func (t *table) add(id, what, figure, goal, remarks string) {
	if !t.headed {
		fmt.Printf("\n== %s\n\n| id | what | measured | goal | remarks |\n|---|---|---|---|---|\n", t.part)
		t.headed = true
	}
	fmt.Printf("| %s | %s | %s | %s | %s |\n", id, what, figure, goal, remarks)
}
