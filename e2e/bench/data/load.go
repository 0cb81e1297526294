package main

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// call does one operation; i tells calls apart.
type call func(ctx context.Context, i int) error

// sample is what one stretch of load gave.
type sample struct {
	calls              int
	perSecond          float64
	p50, p90, p99, top time.Duration // top is the 99.9th percentile
	// Of the program, per call; 0 when there is none.
	cpu            time.Duration
	objects, bytes float64
}

func newSample(latencies []time.Duration, d time.Duration) sample {
	slices.Sort(latencies)
	at := func(q float64) time.Duration { return latencies[int(q*float64(len(latencies)-1))] }
	return sample{
		calls: len(latencies), perSecond: float64(len(latencies)) / d.Seconds(),
		p50: at(0.5), p90: at(0.9), p99: at(0.99), top: at(0.999),
	}
}

// closed calls from a number of clients, one call after the other each, after a warm-up of a quarter of the time.
func closed(ctx context.Context, r *run, t *target, do call, clients int, d time.Duration) sample {
	var wg sync.WaitGroup
	latencies := make([][]time.Duration, clients)
	warm := time.Now().Add(d / 4)
	end := warm.Add(d)
	var failed atomic.Pointer[error]
	for c := range clients {
		wg.Go(func() {
			for i := c; failed.Load() == nil; i += clients {
				began := time.Now()
				if began.After(end) {
					return
				}
				if err := do(ctx, i); err != nil {
					failed.Store(&err)
					return
				}
				if began.After(warm) {
					latencies[c] = append(latencies[c], time.Since(began))
				}
			}
		})
	}
	time.Sleep(time.Until(warm))
	before := t.usage(r)
	time.Sleep(time.Until(end))
	after := t.usage(r)
	wg.Wait()
	if err := failed.Load(); err != nil {
		r.Fatalf("%s: %v", t.name, *err)
	}
	return after.since(before, newSample(slices.Concat(latencies...), d))
}

// open makes calls at a fixed rate, whether those before are answered or not. A call's time begins when it should have
// begun, so that a pause of the program counts for all calls that it kept waiting (coordinated omission).
func open(ctx context.Context, r *run, t *target, do call, rate int, d time.Duration) sample {
	n := int(d.Seconds() * float64(rate))
	latencies := make([]time.Duration, n)
	var wg sync.WaitGroup
	var failed atomic.Pointer[error]
	begin := time.Now().Add(10 * time.Millisecond)
	for i := range n {
		due := begin.Add(time.Duration(i) * time.Second / time.Duration(rate))
		time.Sleep(time.Until(due))
		wg.Go(func() {
			if err := do(ctx, i); err != nil {
				failed.Store(&err)
			}
			latencies[i] = time.Since(due)
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		r.Fatalf("%s: %v", t.name, *err)
	}
	return newSample(latencies, d)
}

// pairs is what the targets gave in each round, in the order of the targets.
type pairs [][]sample

// rounds loads the targets in turn.
func rounds(n int, targets []*target, load func(*target) sample) pairs {
	var out pairs
	for range n {
		var one []sample
		for _, t := range targets {
			one = append(one, load(t))
		}
		out = append(out, one)
	}
	return out
}

// median is that of a figure over the rounds.
func (p pairs) median(of func(round []sample) float64) float64 {
	var all []float64
	for _, round := range p {
		all = append(all, of(round))
	}
	slices.Sort(all)
	return all[len(all)/2]
}

// of is the median of one target's figure.
func (p pairs) of(target int, figure func(sample) float64) float64 {
	return p.median(func(round []sample) float64 { return figure(round[target]) })
}

// ratio is the median of one target's figure over another's.
func (p pairs) ratio(target, base int, figure func(sample) float64) float64 {
	return p.median(func(round []sample) float64 { return figure(round[target]) / math.Max(figure(round[base]), 1e-9) })
}

// more is the median of one target's figure less another's.
func (p pairs) more(target, base int, figure func(sample) float64) float64 {
	return p.median(func(round []sample) float64 { return figure(round[target]) - figure(round[base]) })
}

func perSecond(s sample) float64 { return s.perSecond }
func cpu(s sample) float64       { return micros(s.cpu) }
func p50(s sample) float64       { return micros(s.p50) }
func p90(s sample) float64       { return micros(s.p90) }
func p99(s sample) float64       { return micros(s.p99) }
func top(s sample) float64       { return micros(s.top) }
func objects(s sample) float64   { return s.objects }
func bytesOf(s sample) float64   { return s.bytes }

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }

func us(f float64) string { return fmt.Sprintf("%.0f µs", f) }
