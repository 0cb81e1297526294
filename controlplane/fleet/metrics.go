package fleet

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are of the proxies that report to this replica: the sum over all replicas is the fleet.
type metrics struct {
	propagation prometheus.Histogram
	resyncs     prometheus.Counter
}

// census counts the proxies when it is asked to.
type census struct {
	fleet                                   *Fleet
	reporting, stale, behind, drifted, lost *prometheus.Desc
}

func newMetrics(f *Fleet, registerer prometheus.Registerer) (*metrics, error) {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("prism_fleet_"+name, help, labels, nil)
	}
	m := &metrics{
		propagation: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "prism_fleet_propagation_seconds", Help: "From the commit of a change until a proxy had it in effect, as proxies report it.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 14),
		}),
		resyncs: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "prism_fleet_resyncs_total", Help: "Partitions sent in full to a proxy because what it served had drifted.",
		}),
	}
	if registerer == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.propagation, m.resyncs, &census{
		fleet:     f,
		reporting: desc("reporting", "Proxies that report to this replica, by state.", "state"),
		stale:     desc("stale_seconds", "The age of the oldest configuration of proxies that report to this replica, 0 while all are connected."),
		behind:    desc("cells_behind", "Partitions of owners that report to this replica that serve something else than they ought to."),
		drifted:   desc("drifted", "Resources whose content in use has drifted, on proxies that report to this replica; a partition that serves another state than it accepted is one."),
		lost:      desc("journal_lost_total", "Reports that were not noted in the journal, because the disk took none for long."),
	}} {
		if err := registerer.Register(c); err != nil {
			return nil, fmt.Errorf("fleet: metrics: %w", err)
		}
	}
	return m, nil
}

func (m *metrics) propagated(took time.Duration) { m.propagation.Observe(max(0, took).Seconds()) }

// Describe says what Collect counts.
func (c *census) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.reporting, c.stale, c.behind, c.drifted, c.lost} {
		to <- d
	}
}

// Collect counts.
func (c *census) Collect(to chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	states := map[string]int{"ready": 0, "not_ready": 0, "draining": 0, "validator": 0, "silent": 0}
	var stale time.Duration
	behind, now := 0, time.Now()
	for _, r := range c.fleet.reports.all() {
		if r.ended {
			continue
		}
		states[r.state(now, c.fleet.cfg.Lease)]++
		stale = max(stale, r.last.GetStale().AsDuration())
		behind += c.fleet.standing(&r).behind
	}
	for state, n := range states {
		gauge(c.reporting, float64(n), state)
	}
	gauge(c.stale, stale.Seconds())
	gauge(c.behind, float64(behind))
	gauge(c.drifted, float64(c.fleet.drift.count()))
	if c.fleet.cfg.Journal != nil {
		to <- prometheus.MustNewConstMetric(c.lost, prometheus.CounterValue, float64(c.fleet.cfg.Journal.Lost()))
	}
}

// state is one of ready, not_ready, draining, validator and silent.
func (r *report) state(now time.Time, lease time.Duration) string {
	switch {
	case now.Sub(r.heard) > lease:
		return "silent"
	case r.last.GetMember().GetDraining():
		return "draining"
	case r.last.GetMember().GetValidator():
		return "validator"
	case r.last.GetReady():
		return "ready"
	}
	return "not_ready"
}
