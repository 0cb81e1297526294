package store_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/snapshot"
)

// BenchmarkNoisyTeam is how long nine teams wait for their changes, ten a second of each, alone and beside a tenth team:
// one with ten times that, one that always has 256 changes waiting, and one whose changes are of 1,000 namespaces. Both
// are measured in turns, because the machine is not always equally fast. ratio-p99 is what matters.
func BenchmarkNoisyTeam(b *testing.B) {
	const n = 10_000
	_, s := filled(b, n)
	change := func(ctx context.Context, team string, objects int) error {
		content, first := fmt.Sprint(rand.Uint64()), rand.IntN(n-objects)
		var sets []snapshot.Set
		for i := range objects {
			sets = append(sets, sized(b, first+i, content))
		}
		_, err := s.Commit(ctx, release.Order{Team: team, Objects: objects}, edit(sets...))
		return err
	}
	// steady makes a team's changes at a rate, whatever becomes of those before.
	steady := func(ctx context.Context, team string, each time.Duration, took func(time.Duration)) {
		var under sync.WaitGroup
		defer under.Wait()
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Duration(rand.ExpFloat64() * float64(each))):
			}
			under.Go(func() {
				began := time.Now()
				if change(context.WithoutCancel(ctx), team, 1) == nil {
					took(time.Since(began))
				}
			})
		}
	}
	closed := func(ctx context.Context, callers, objects int) {
		var under sync.WaitGroup
		defer under.Wait()
		for range callers {
			under.Go(func() {
				for ctx.Err() == nil {
					_ = change(ctx, "noisy", objects) // refused or late: the next
				}
			})
		}
	}
	for name, noise := range map[string]func(context.Context){
		"ten-times": func(ctx context.Context) { steady(ctx, "noisy", 10*time.Millisecond, func(time.Duration) {}) },
		"flood":     func(ctx context.Context) { closed(ctx, 256, 1) },
		"large":     func(ctx context.Context) { closed(ctx, 4, 1000) },
	} {
		b.Run(name, func(b *testing.B) {
			took := map[bool][]time.Duration{}
			for b.Loop() {
				for _, noisy := range []bool{false, true} {
					ctx, cancel := context.WithTimeout(b.Context(), 3*time.Second)
					var running sync.WaitGroup
					var mu sync.Mutex
					for team := range 9 {
						running.Go(func() {
							steady(ctx, fmt.Sprint("team-", team), 100*time.Millisecond, func(d time.Duration) {
								mu.Lock()
								defer mu.Unlock()
								took[noisy] = append(took[noisy], d)
							})
						})
					}
					if noisy {
						running.Go(func() { noise(ctx) })
					}
					running.Wait()
					cancel()
				}
			}
			quantile := func(noisy bool, q float64) float64 {
				slices.Sort(took[noisy])
				return float64(took[noisy][int(q*float64(len(took[noisy])-1))].Microseconds()) / 1000
			}
			b.ReportMetric(quantile(false, 0.5), "alone-p50-ms")
			b.ReportMetric(quantile(false, 0.99), "alone-p99-ms")
			b.ReportMetric(quantile(true, 0.5), "beside-p50-ms")
			b.ReportMetric(quantile(true, 0.99), "beside-p99-ms")
			b.ReportMetric(quantile(true, 0.99)/quantile(false, 0.99), "ratio-p99")
			b.ReportMetric(0, "ns/op")
		})
	}
}
