package credential

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/prism-gateway/prism/shared/telemetry"
)

// Names of log attributes, where telemetry's mean: name, the provider; resource, the path; method, what was asked.
const (
	keyCount    = telemetry.KeyCount
	keyError    = telemetry.KeyError
	keyMethod   = telemetry.KeyMethod
	keyName     = telemetry.KeyName
	keyResource = telemetry.KeyResource
)

// metrics have labels of closed sets: the providers that are configured, what they are asked, what it came to.
type metrics struct {
	calls         *prometheus.CounterVec
	seconds       *prometheus.HistogramVec
	ttl           *prometheus.HistogramVec
	attempts      *prometheus.CounterVec
	hits          *prometheus.CounterVec
	refusals      *prometheus.CounterVec
	journalErrors prometheus.Counter
}

// supplierMetrics are those of one provider.
type supplierMetrics struct {
	m              *metrics
	name           string
	attempts, hits prometheus.Counter
}

func (m supplierMetrics) asked(call, outcome string, took time.Duration) {
	m.m.calls.WithLabelValues(m.name, call, outcome).Inc()
	m.m.seconds.WithLabelValues(m.name, call).Observe(took.Seconds())
}

func newMetrics(r prometheus.Registerer, s *Source) (*metrics, error) {
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "prism_credential_" + name, Help: help}, labels)
	}
	m := &metrics{
		calls: counters("calls_total", "Calls of providers (login, fetch, renew, revoke), by what they came to.", "provider", "call", "outcome"),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "prism_credential_call_seconds", Help: "How long calls of providers took.", NativeHistogramBucketFactor: 1.1,
		}, []string{"provider", "call"}),
		ttl: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "prism_credential_ttl_seconds", Help: "How long credentials live when they are given.",
			Buckets: prometheus.ExponentialBuckets(1, 4, 10),
		}, []string{"provider"}),
		attempts: counters("cache_attempts_total", "Credentials asked for.", "provider"),
		hits:     counters("cache_hits_total", "Credentials asked for that were there.", "provider"),
		refusals: counters("refused_by_store_total", "Credentials that a store did not take.", "provider"),
		journalErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "prism_credential_journal_errors_total", Help: "Leases that could not be written down.",
		}),
	}
	for name, sup := range s.suppliers {
		sup.counts = supplierMetrics{m: m, name: name, attempts: m.attempts.WithLabelValues(name), hits: m.hits.WithLabelValues(name)}
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.calls, m.seconds, m.ttl, m.attempts, m.hits, m.refusals, m.journalErrors, &levels{s}} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("credential: %w", err)
		}
	}
	return m, nil
}

// levels are what is held and what waits, told when asked.
type levels struct{ source *Source }

var (
	heldDesc = prometheus.NewDesc("prism_credential_held", "Credentials that are held.", []string{"provider"}, nil)
	failDesc = prometheus.NewDesc("prism_credential_failing", "Credentials that could not be had, renewed or replaced when that was last tried.", []string{"provider"}, nil)
	waitDesc = prometheus.NewDesc("prism_credential_queued", "Calls that wait for their turn, by what they are for.", []string{"provider", "class"}, nil)
	endDesc  = prometheus.NewDesc("prism_credential_ending", "Leases that are to be revoked.", []string{"provider"}, nil)
	upDesc   = prometheus.NewDesc("prism_credential_provider_up", "0 while a provider does not answer.", []string{"provider"}, nil)
	rateDesc = prometheus.NewDesc("prism_credential_issue_rate", "New credentials per second that are asked for at most now.", []string{"provider"}, nil)
	diskDesc = prometheus.NewDesc("prism_credential_journal_leases", "Leases that are written down and have not ended.", nil, nil)
)

// Describe is for prometheus.
func (*levels) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{heldDesc, failDesc, waitDesc, endDesc, upDesc, rateDesc, diskDesc} {
		out <- d
	}
}

// Collect is for prometheus.
func (l *levels) Collect(out chan<- prometheus.Metric) {
	s := l.source
	s.mu.Lock()
	defer s.mu.Unlock()
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	failing, now := map[*supplier]int{}, s.cfg.Now()
	for _, e := range s.entries {
		if e.err != nil {
			failing[e.sup]++
		}
	}
	for name, sup := range s.suppliers {
		gauge(heldDesc, float64(sup.held), name)
		gauge(failDesc, float64(failing[sup]), name)
		gauge(endDesc, float64(sup.ending), name)
		for c, class := range [classes]string{"renew", "revoke", "rotate", "new"} {
			gauge(waitDesc, float64(sup.queues[c].len()), name, class)
		}
		up := 1.0
		if sup.trouble(now) != nil {
			up = 0
		}
		gauge(upDesc, up, name)
		gauge(rateDesc, sup.issues.rate(), name)
	}
	gauge(diskDesc, float64(s.journal.len()))
}
