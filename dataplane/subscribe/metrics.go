package subscribe

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	connected     prometheus.Gauge
	updates       *prometheus.CounterVec
	nacks         *prometheus.CounterVec
	resyncs       *prometheus.CounterVec
	timeouts      *prometheus.CounterVec
	reconnects    prometheus.Counter
	applySeconds  prometheus.Histogram
	persistErrors prometheus.Counter
	drifted       prometheus.Counter
	unsaved       prometheus.Gauge
	foreign       prometheus.Gauge
	propagation   prometheus.Histogram
}

func newMetrics(r prometheus.Registerer, c *Client) (*metrics, error) {
	counters := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "prism_subscribe_" + name, Help: help}, []string{label})
	}
	m := &metrics{
		connected: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "prism_subscribe_connected", Help: "1 while a control plane answers.",
		}),
		updates:  counters("updates_total", "Responses received, by type.", "type"),
		nacks:    counters("nacks_total", "Responses of which a part was refused, by type.", "type"),
		resyncs:  counters("resyncs_total", "Collections asked for anew because they did not verify, by what did not.", "reason"),
		timeouts: counters("timeouts_total", "Subscriptions that were not answered in time, by type.", "type"),
		reconnects: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "prism_subscribe_reconnects_total", Help: "Streams to the control plane that ended or did not come about.",
		}),
		applySeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "prism_subscribe_apply_seconds", Help: "Time until a received state was in effect.",
			NativeHistogramBucketFactor: 1.1,
		}),
		persistErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "prism_subscribe_persist_errors_total", Help: "Parts of the state that could not be written to disk, or were damaged there.",
		}),
	}
	m.drifted = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "prism_subscribe_drifted_total", Help: "Resources in use that were found not to be what their version stands for.",
	})
	m.unsaved = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "prism_subscribe_unsaved", Help: "1 while the newest state is not on disk yet.",
	})
	m.foreign = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "prism_subscribe_foreign_endpoints", Help: "Endpoints that are refused because another installation answers there.",
	})
	m.propagation = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name:    "prism_subscribe_propagation_seconds",
		Help:    "From the commit of a change, by the control plane's clock, until it was in effect here, by this proxy's.",
		Buckets: prometheus.ExponentialBuckets(0.001, 2, 14),
	})
	if r == nil {
		return m, nil
	}
	stale := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "prism_subscribe_staleness_seconds", Help: "For how long no control plane has answered; 0 while connected.",
	}, func() float64 { return c.Staleness().Seconds() })
	for _, collector := range []prometheus.Collector{
		m.connected, m.updates, m.nacks, m.resyncs, m.timeouts, m.reconnects, m.applySeconds, m.persistErrors, m.drifted, m.unsaved, m.foreign,
		m.propagation, stale,
	} {
		if err := r.Register(collector); err != nil {
			return nil, fmt.Errorf("subscribe: %w", err)
		}
	}
	return m, nil
}
