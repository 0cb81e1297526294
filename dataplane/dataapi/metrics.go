package dataapi

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"

	"github.com/prism-gateway/prism/shared/fault/faultgrpc"
)

// Metrics counts calls.
type Metrics struct {
	calls    *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	forwards *prometheus.CounterVec
	unknown  prometheus.Counter
	retries  prometheus.Counter
	methods  []*methodMetrics
	underWay atomic.Int64
}

// NewMetrics registers the metrics of the data services.
func NewMetrics(r prometheus.Registerer) (*Metrics, error) {
	m := &Metrics{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "prism_proxy_calls_total", Help: "Calls answered, by method and gRPC code."}, []string{"method", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "prism_proxy_call_duration_seconds", Help: "Time from the request's arrival to the answer, by method.",
			Buckets: []float64{50e-6, 100e-6, 200e-6, 400e-6, 800e-6, 1.6e-3, 3.2e-3, 6.4e-3, 12.8e-3, 25.6e-3, 51.2e-3, 0.1, 0.25, 1, 5, 30},
		}, []string{"method"}),
		forwards: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "prism_proxy_forwarded_calls_total", Help: "Calls taken to another proxy, by method."}, []string{"method"}),
		unknown: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "prism_proxy_unknown_method_calls_total", Help: "Calls of methods that do not exist."}),
		retries: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "prism_proxy_retries_total", Help: "Calls that were tried again because the store did not answer."}),
	}
	for _, c := range []prometheus.Collector{m.calls, m.seconds, m.forwards, m.unknown, m.retries} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// methodMetrics has a method's handles, so that a call looks nothing up.
type methodMetrics struct {
	codes     [codes.Unauthenticated + 1]prometheus.Counter
	seconds   prometheus.Observer
	calls     atomic.Uint64
	forwarded prometheus.Counter
}

func (m *Metrics) method(service, name string) *methodMetrics {
	label := service[len("prism.data.v1."):] + "/" + name
	out := &methodMetrics{seconds: m.seconds.WithLabelValues(label), forwarded: m.forwards.WithLabelValues(label)}
	for code := range out.codes {
		out.codes[code] = m.calls.WithLabelValues(label, codes.Code(code).String())
	}
	m.methods = append(m.methods, out)
	return out
}

// Calls is how many calls were answered since the start.
func (m *Metrics) Calls() (n uint64) {
	for _, method := range m.methods {
		n += method.calls.Load()
	}
	return n
}

// UnderWay is how many calls are being answered or taken to others.
func (m *Metrics) UnderWay() int64 { return m.underWay.Load() }

// ended counts a call and returns its code.
func (m *methodMetrics) ended(err error, took time.Duration) codes.Code {
	code := codes.OK
	if err != nil {
		if code = codes.Code(faultgrpc.FromStatus(err).Code); int(code) >= len(m.codes) || code == codes.OK {
			code = codes.Unknown
		}
	}
	m.calls.Add(1)
	m.codes[code].Inc()
	m.seconds.Observe(took.Seconds())
	return code
}

// ours reports whether a code tells of a fault of Prism or a backend.
func ours(code codes.Code) bool {
	switch code {
	case codes.Internal, codes.Unknown, codes.Unavailable, codes.DataLoss, codes.DeadlineExceeded:
		return true
	}
	return false
}
