package certs

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	loads, failures prometheus.Counter
	refused         *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer, s *Source) (*metrics, error) {
	of := prometheus.Labels{"name": s.cfg.Name}
	m := &metrics{
		loads: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "prism_certs_loads_total", Help: "Certificates that were put into use.", ConstLabels: of,
		}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "prism_certs_failures_total", Help: "Times that certificates could not be had or used.", ConstLabels: of,
		}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "prism_certs_refused_total", Help: "Connections of callers that did not come about, by why.", ConstLabels: of,
		}, []string{"reason"}),
	}
	for _, reason := range reasons {
		m.refused.WithLabelValues(reason) // so that each is there from the start
	}
	if r == nil {
		return m, nil
	}
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "prism_certs_" + name, Help: help, ConstLabels: of}, value)
	}
	for _, c := range []prometheus.Collector{
		m.loads, m.failures, m.refused,
		gauge("broken", "1 while what is at the source cannot be used, and the last good is.", func() float64 {
			if s.isBroken() {
				return 1
			}
			return 0
		}),
		gauge("expiry_timestamp_seconds", "When the certificate in use ends.", s.ends(func(m *material) time.Time { return m.own.Leaf.NotAfter })),
		gauge("authority_expiry_timestamp_seconds", "When the first of the authorities ends.", s.ends(func(m *material) (first time.Time) {
			for _, c := range m.authorities {
				first = earlier(first, c.NotAfter)
			}
			return first
		})),
		gauge("revocation_expiry_timestamp_seconds", "When the first of the lists of revoked certificates ends; 0 without one.", s.ends(func(m *material) (first time.Time) {
			for _, l := range m.lists {
				first = earlier(first, l.list.NextUpdate)
			}
			return first
		})),
	} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("certs: %w", err)
		}
	}
	return m, nil
}

// ends is a time of what is in use as a gauge tells it, 0 when there is none.
func (s *Source) ends(of func(*material) time.Time) func() float64 {
	return func() float64 {
		m := s.current.Load()
		if m == nil {
			return 0
		}
		t := of(m)
		if t.IsZero() {
			return 0
		}
		return float64(t.Unix())
	}
}

func earlier(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}
