package push

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are labelled by the kind of resource: assignment, shared, namespace, unknown.
type metrics struct {
	streams   prometheus.Gauge
	slow      prometheus.Gauge
	admitted  prometheus.Counter
	refused   prometheus.Counter
	responses *prometheus.CounterVec
	resources *prometheus.CounterVec
	nacks     *prometheus.CounterVec
	untold    prometheus.Counter
}

func newMetrics(registerer prometheus.Registerer) (*metrics, error) {
	byKind := []string{"kind"}
	m := &metrics{
		streams: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "prism_push_streams", Help: "Proxies that have a stream to this replica.",
		}),
		slow: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "prism_push_streams_slow", Help: "Streams of proxies that have not acknowledged a response for 5 s.",
		}),
		admitted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "prism_push_streams_admitted_total", Help: "Streams taken; with those refused, how a storm is let in.",
		}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "prism_push_streams_refused_total", Help: "Streams told to come back because too many came at once.",
		}),
		responses: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "prism_push_responses_total", Help: "Responses sent to proxies.",
		}, byKind),
		resources: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "prism_push_resources_total", Help: "Resources sent to proxies, sentinels among them.",
		}, byKind),
		nacks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "prism_push_nacks_total", Help: "Responses of which proxies refused something.",
		}, byKind),
		untold: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "prism_push_nacks_untold_total", Help: "NACKs that were not passed on to releases because too many waited.",
		}),
	}
	if registerer == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.streams, m.slow, m.admitted, m.refused, m.responses, m.resources, m.nacks, m.untold} {
		if err := registerer.Register(c); err != nil {
			return nil, fmt.Errorf("push: metrics: %w", err)
		}
	}
	return m, nil
}
