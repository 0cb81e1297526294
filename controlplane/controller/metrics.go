package controller

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
)

// metrics are those of releases, as this replica sees them.
type metrics struct {
	ended     *prometheus.CounterVec
	takenBack prometheus.Counter
	took      prometheus.Histogram
	underWay  map[uint64]bool
	known     map[uint64]int // of releases, under way and ended, how many objects each has taken back; nil at first
}

func newMetrics(s store, r prometheus.Registerer) (*metrics, error) {
	active := func(value func([]uint32) float64) func() float64 {
		return func() float64 {
			var waves []uint32
			if state := s.Released(); state != nil {
				for _, r := range state.Active() {
					waves = append(waves, r.GetWave())
				}
			}
			return value(waves)
		}
	}
	m := &metrics{
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "prism_release_ended_total", Help: "Releases that this replica saw end, by how they ended.",
		}, []string{"state"}),
		takenBack: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "prism_release_taken_back_total", Help: "Objects that this replica saw taken back by themselves; of each release 100 at most.",
		}),
		took: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "prism_release_refusal_duration_seconds", Help: "From a refusal of a proxy until what it refused was taken back in the store.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 14),
		}),
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{
		m.ended, m.takenBack, m.took,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "prism_release_active", Help: "Releases under way."},
			active(func(waves []uint32) float64 { return float64(len(waves)) })),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "prism_release_wave", Help: "The wave that the newest release under way has reached; 0 when none is."},
			active(func(waves []uint32) float64 {
				if len(waves) == 0 {
					return 0
				}
				return float64(waves[len(waves)-1])
			})),
	} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// count counts what has ended and was taken back since it was called before.
func (m *metrics) count(s store) {
	state := s.Released()
	if state == nil {
		return
	}
	before, first := m.known, m.known == nil // what was before this replica ran is not counted
	m.known = map[uint64]int{}
	ended := slices.DeleteFunc(slices.Clone(s.Ended()), func(r *recordv1.Release) bool {
		_, still := state.Release(r.GetSnapshot()) // the state is older than what has ended
		return still
	})
	for _, r := range slices.Concat(state.Active(), ended) {
		m.known[r.GetSnapshot()] = len(r.GetTakenBack())
		if n := len(r.GetTakenBack()) - before[r.GetSnapshot()]; !first && n > 0 {
			m.takenBack.Add(float64(n))
		}
	}
	for _, r := range ended {
		if _, was := before[r.GetSnapshot()]; !first && (!was || m.underWay[r.GetSnapshot()]) {
			m.ended.WithLabelValues(stateName(r.GetState())).Inc()
		}
	}
	m.underWay = map[uint64]bool{}
	for _, r := range state.Active() {
		m.underWay[r.GetSnapshot()] = true
	}
}

// stateName is done, rolled_back, aborted or superseded.
func stateName(s configv1.ReleaseState) string {
	switch s {
	case configv1.ReleaseState_RELEASE_STATE_DONE:
		return "done"
	case configv1.ReleaseState_RELEASE_STATE_ROLLED_BACK:
		return "rolled_back"
	case configv1.ReleaseState_RELEASE_STATE_ABORTED:
		return "aborted"
	}
	return "superseded"
}
