package main

import (
	"strings"
	"testing"
	"time"
)

func TestQuantilesOfSortedTimes(t *testing.T) {
	hundred := make([]time.Duration, 100)
	for i := range hundred {
		hundred[i] = time.Duration(i+1) * time.Millisecond
	}
	for _, c := range []struct {
		name string
		of   []time.Duration
		q    float64
		want time.Duration
	}{
		{"of nothing", nil, 0.5, 0},
		{"of one", hundred[:1], 0.99, time.Millisecond},
		{"half", hundred, 0.5, 51 * time.Millisecond},
		{"99 of 100", hundred, 0.99, 100 * time.Millisecond},
		{"all", hundred, 1, 100 * time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := quantile(c.of, c.q); got != c.want {
				t.Errorf("%v, want %v", got, c.want)
			}
		})
	}
}

func TestTheTableIsInTheOrderOfTheGoals(t *testing.T) {
	var tab table
	tab.add(row{id: "S3", text: "text instead"})
	tab.add(row{id: "L1", what: "more", d: []time.Duration{3 * time.Millisecond, time.Millisecond}, cpu: 1500 * time.Microsecond, note: "remark"})
	lines := strings.Split(strings.TrimSpace(tab.String()), "\n")
	if len(lines) != 4 {
		t.Fatalf("%d lines:\n%s", len(lines), tab.String())
	}
	if want := "; more | 2 | 3ms | 3ms | 3ms | 1.5ms |"; !strings.Contains(lines[2], want) || !strings.HasPrefix(lines[2], "| L1 |") || !strings.HasSuffix(lines[2], "| remark |") {
		t.Errorf("%q has no %q", lines[2], want)
	}
	if !strings.HasPrefix(lines[3], "| S3 |") || !strings.Contains(lines[3], "|  | text instead |  |  |  |") {
		t.Errorf("%q", lines[3])
	}
	for _, line := range lines {
		if strings.Count(line, "|") != strings.Count(lines[0], "|") {
			t.Errorf("%q has other columns than %q", line, lines[0])
		}
	}
}

func TestEveryGoalOfAPartIsInTheTable(t *testing.T) {
	known := map[string]bool{}
	for _, g := range goals {
		known[g.id] = true
	}
	for _, p := range parts {
		for _, g := range p.goals {
			if !known[g] {
				t.Errorf("%s measures %s, which has no row", p.name, g)
			}
		}
	}
}

func TestMetricsAreFound(t *testing.T) {
	text := "# HELP go_x Things.\n# TYPE go_x gauge\ngo_x_total 7\ngo_x 1.5e+06\n"
	if v, err := metricOf(text, "go_x"); err != nil || v != 1.5e6 {
		t.Errorf("%v, %v; want 1.5e6", v, err)
	}
	if _, err := metricOf(text, "go_y"); err == nil {
		t.Error("a metric is found that is not there")
	}
}

func TestThePeakIsFound(t *testing.T) {
	if n, err := peakOf("Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t 1024 kB\n"); err != nil || n != 2<<20 {
		t.Errorf("%d, %v; want 2 MiB", n, err)
	}
	if _, err := peakOf("Name:\tx\n"); err == nil {
		t.Error("a peak is found that is not there")
	}
}

func TestASpreadThatComesInPartsIsOne(t *testing.T) {
	s := &simulator{r: &run{}, spreads: map[uint64]spread{}}
	s.take(`{"connected":3,"snapshots":[{"snapshot":5,"cells":2,"first_at":"2026-01-01T00:00:01Z","last_at":"2026-01-01T00:00:02Z"}]}`)
	s.take(`{"connected":4,"snapshots":[{"snapshot":5,"cells":1,"first_at":"2026-01-01T00:00:09Z","last_at":"2026-01-01T00:00:09Z"}]}`)
	if got := s.report().Connected; got != 4 {
		t.Errorf("%d connected, want 4", got)
	}
	sp, ok := s.spread(4, 6) // 4 was overtaken by 5
	if !ok || sp.Cells != 3 || sp.First.Second() != 1 || sp.Last.Second() != 9 {
		t.Errorf("%+v, %v; want three cells from second 1 to 9", sp, ok)
	}
	if _, ok := s.spread(6, 6); ok {
		t.Error("a snapshot is in effect that was not told of")
	}
}
