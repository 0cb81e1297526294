package main

import (
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/prism-gateway/prism/dataplane/simulate"
)

// reports are told how a simulation goes.
type reports interface {
	step(simulate.Report) error
	summary(simulate.Report) error
}

func printer(format string, w io.Writer, proxies int) reports {
	if format == "json" {
		return jsonReports{json.NewEncoder(w)}
	}
	return &tableReports{w: w, watched: watched(w), proxies: proxies}
}

// jsonReports writes one object a line.
type jsonReports struct{ to *json.Encoder }

func (r jsonReports) step(report simulate.Report) error { return r.to.Encode(report) }

func (r jsonReports) summary(report simulate.Report) error { return r.to.Encode(report) }

// tableReports writes a line a second where a person looks, and a summary.
type tableReports struct {
	w       io.Writer
	watched bool
	proxies int
	lines   int
	last    simulate.Report
}

// titleEvery is after how many lines the titles of the columns are repeated.
const titleEvery = 20

func (r *tableReports) step(now simulate.Report) error {
	last := r.last
	r.last = now
	if !r.watched {
		return nil
	}
	if r.lines%titleEvery == 0 {
		fmt.Fprintf(r.w, "%6s %11s %8s %9s %9s %10s %9s %9s %9s %7s %7s\n",
			"TIME", "CONNECTED", "CELLS", "SNAPSHOT", "APPLIED/S", "RECEIVED/S", "P50", "P99", "MAX", "NACKS", "RECONN")
	}
	r.lines++
	_, err := fmt.Fprintf(r.w, "%5.0fs %5d/%-5d %8d %9d %9d %10s %9s %9s %9s %7d %7d\n",
		now.Elapsed, now.Connected, r.proxies, now.Cells, now.Snapshot, now.Applied-last.Applied, size(now.Received-last.Received),
		span(now.InEffect.Count, now.InEffect.P50), span(now.InEffect.Count, now.InEffect.P99), span(now.InEffect.Count, now.InEffect.Max),
		now.Nacks, now.Reconnects)
	return err
}

func (r *tableReports) summary(s simulate.Report) error {
	fmt.Fprintf(r.w, "\n%d proxies for %v: %d connected, %d hold partitions, %d cells, newest snapshot %d\n",
		s.Proxies, time.Duration(s.Elapsed*float64(time.Second)).Round(100*time.Millisecond), s.Connected, s.Owning, s.Cells, s.Snapshot)
	latency := func(what string, l simulate.Latency) {
		fmt.Fprintf(r.w, "%-44s n %d  p50 %s  p99 %s  max %s\n", what, l.Count, span(l.Count, l.P50), span(l.Count, l.P99), span(l.Count, l.Max))
	}
	latency("commit until in effect on a cell", s.InEffect)
	latency("commit until in effect on the last cell", s.Everywhere)
	fmt.Fprintf(r.w, "states of cells applied %d, resources received %d in %d responses, refused responses %d\n", s.Applied, s.Resources, s.Responses, s.Nacks)
	_, err := fmt.Fprintf(r.w, "bytes received %s, sent %s; streams opened again %d, received again on them %d resources, %s\n",
		size(s.Received), size(s.Sent), s.Reconnects, s.Resumed, size(s.ResumedBytes))
	if s.Away.Count > 0 {
		latency("end of a stream until current on another", s.Away)
	}
	if len(s.Partitions) == 0 {
		return err
	}
	fmt.Fprintf(r.w, "\n%9s %8s %11s %7s %16s %16s\n", "PARTITION", "PROXIES", "NAMESPACES", "STATES", "OLDEST SNAPSHOT", "NEWEST SNAPSHOT")
	for _, p := range s.Partitions {
		_, err = fmt.Fprintf(r.w, "%9d %8d %11d %7d %16d %16d\n", p.Partition, p.Proxies, p.Namespaces, p.Roots, p.Oldest, p.Newest)
	}
	return err
}

// span writes a time for people; without any measured it is a dash.
func span(count uint64, seconds float64) string {
	if count == 0 {
		return "-"
	}
	d := time.Duration(seconds * float64(time.Second))
	switch {
	case d < 10*time.Millisecond:
		d = d.Round(10 * time.Microsecond)
	case d < time.Second:
		d = d.Round(100 * time.Microsecond)
	default:
		d = d.Round(10 * time.Millisecond)
	}
	return d.String()
}

// size writes a number of bytes for people.
func size(n uint64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	value, units := float64(n)/unit, "KiB"
	for _, larger := range []string{"MiB", "GiB", "TiB"} {
		if value < unit {
			break
		}
		value, units = value/unit, larger
	}
	return fmt.Sprintf("%.1f %s", value, units)
}
