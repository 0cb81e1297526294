package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// goal is what a figure is to be, from the goals of the control plane, and what a prototype of the push alone reached on two
// loaded cores where that is the same thing.
type goal struct{ id, what, target, floor string }

var goals = []goal{
	{"L1", "one namespace changed: call began → in effect on all owners", "p50 ≤ 8 ms, p99 ≤ 30 ms", "p50 1.1–1.7, p99 4.5–7.8 ms"},
	{"L2", "the same while 100 changes/s run", "p50 ≤ 12 ms, p99 ≤ 50 ms", ""},
	{"L3", "a backend changed → in effect on all proxies", "N=100: p99 ≤ 30 ms; N=1,000: p50 ≤ 25, p99 ≤ 80 ms", "10 % of namespaces → 1,000 proxies 0.42–0.75 s"},
	{"L5", "changes at a rate: call began → in effect on all owners", "500/s with p99 ≤ 100 ms", "burst 880–5,700/s"},
	{"L6", "10,000 namespaces in one change, from none → live everywhere", "≤ 5 s", "write 0.72–1.6 s, push 0.42–0.75 s"},
	{"L7", "rollback of 10,000 namespaces → in effect on all proxies", "write ≤ 20 ms; p99 ≤ 2 s", "1,000 namespaces 195–241 ms"},
	{"L8", "refused by a proxy → on the requester's status", "p99 ≤ 200 ms", "first refusal after 23–196 ms"},
	{"L9", "in effect on the last owner → the waiting call returns; status query", "≤ 50 ms; query ≤ 10 ms", ""},
	{"M1", "prism-admin memory per proxy, without TLS", "≤ 64 KiB, 0 B per namespace", "16 KB heap + 26 KB stack"},
	{"M2", "prism-admin memory per namespace", "≤ 2.5 × encoded + 300 B; 100,000 ≤ 300 MiB", "1.96 KB for 1.4 KB"},
	{"M4", "memory after churn and deletion of everything", "within 10 % of start", ""},
	{"C1", "prism-admin CPU per push per stream, answer included", "≤ 60 µs", "60–84 µs"},
	{"C2", "garbage per changed namespace", "≤ 23 KiB with 3 owners", ""},
	{"C3", "longest hold of a lock on the push path", "≤ 1 ms", "60–120 µs per call"},
	{"S1", "one of three replicas killed → its proxies current on another", "≤ 5 s, ≤ 1 KiB each", "1,000 warm 0.50–0.98 s, 0 resources"},
	{"S2", "all replicas restarted → all proxies current", "≤ 20 s at N=10,000; peak ≤ 1.3 × steady", "cold 3.2–4.4 s"},
	{"S3", "prism-admin started → ready", "≤ 5 s", "1.7–2.7 s from etcd"},
	{"S7", "size of the question a proxy comes back with", "≤ 1 KiB", ""},
	{"S8", "one proxy that does not read: the others' changes", "p99 ± 10 %", ""},
	{"T1", "one team at many times its share: another's changes", "p99 ≤ 1.5 ×", ""},
	{"R1", "bad change through waves → taken back", "≤ 5 % of proxies got it; ≤ 5 s after the gate", "rolled back 111–261 ms after the refusal"},
	{"W1", "good change through waves without soak", "", "waves 8–211 ms each"},
}

// row is one figure. A goal may have several.
type row struct {
	id   string
	what string // what differs from the goal's words; empty when nothing does
	text string // the figure, where it is not a distribution
	d    []time.Duration
	cpu  time.Duration // per operation; 0 is not measured
	note string
}

// table collects rows and prints them in the order of the goals.
type table struct{ rows []row }

// add takes a figure, and tells it at once: a run that is cut off has not measured for nothing.
func (t *table) add(r row) {
	slices.Sort(r.d)
	t.rows = append(t.rows, r)
	for _, g := range goals {
		if g.id == r.id {
			fmt.Fprint(os.Stderr, r.line(g))
		}
	}
}

func (t *table) String() string {
	var b strings.Builder
	b.WriteString("| id | what | n | p50 | p99 | max | CPU per operation | goal | floor | remarks |\n|---|---|---|---|---|---|---|---|---|---|\n")
	for _, g := range goals {
		for _, r := range t.rows {
			if r.id == g.id {
				b.WriteString(r.line(g))
			}
		}
	}
	return b.String()
}

func (r row) line(g goal) string {
	what := g.what
	if r.what != "" {
		what += "; " + r.what
	}
	n, p50, p99, highest := "", r.text, "", ""
	if len(r.d) > 0 {
		n, p50, p99, highest = fmt.Sprint(len(r.d)), short(quantile(r.d, 0.5)), short(quantile(r.d, 0.99)), short(r.d[len(r.d)-1])
	}
	cpu := ""
	if r.cpu > 0 {
		cpu = short(r.cpu)
	}
	return fmt.Sprintf("| %s | %s | %s | %s | %s | %s | %s | %s | %s | %s |\n", g.id, what, n, p50, p99, highest, cpu, g.target, g.floor, r.note)
}

// quantile is that of sorted times.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

// short writes a time with three digits or so.
func short(d time.Duration) string {
	switch {
	case d < 100*time.Microsecond:
		d = d.Round(100 * time.Nanosecond)
	case d < 10*time.Millisecond:
		d = d.Round(10 * time.Microsecond)
	case d < time.Second:
		d = d.Round(100 * time.Microsecond)
	default:
		d = d.Round(10 * time.Millisecond)
	}
	return d.String()
}

func mib(n int64) string { return fmt.Sprintf("%.0f MiB", float64(n)/(1<<20)) }

func kib(n float64) string { return fmt.Sprintf("%.1f KiB", n/1024) }
