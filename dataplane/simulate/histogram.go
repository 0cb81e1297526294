package simulate

import (
	"math"
	"time"
)

const (
	// finest is the upper end of the first bucket; each further one ends growth times higher.
	finest = 10 * time.Microsecond
	growth = 1.04
	// buckets reach from finest to about 15 minutes.
	buckets = 470
)

// histogram counts times in buckets. The zero one is empty.
type histogram struct {
	count   uint64
	max     time.Duration
	buckets [buckets]uint64
}

func (h *histogram) add(d time.Duration) {
	d = max(d, 0) // clocks differ between machines
	h.count++
	h.max = max(h.max, d)
	at := 0
	if d > finest {
		at = min(int(math.Ceil(math.Log(float64(d)/float64(finest))/math.Log(growth))), buckets-1)
	}
	h.buckets[at]++
}

// quantile is the upper end of the bucket in which the share q of all times is reached, 0 without any.
func (h *histogram) quantile(q float64) time.Duration {
	rank := uint64(math.Ceil(q * float64(h.count)))
	seen := uint64(0)
	for at, n := range h.buckets {
		if seen += n; n > 0 && seen >= rank {
			return min(h.max, time.Duration(float64(finest)*math.Pow(growth, float64(at))))
		}
	}
	return 0
}

func (h *histogram) latency() Latency {
	return Latency{Count: h.count, P50: h.quantile(0.5).Seconds(), P99: h.quantile(0.99).Seconds(), Max: h.max.Seconds()}
}
