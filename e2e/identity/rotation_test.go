package identity_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"

	"github.com/prism-gateway/prism/e2e/harness"
)

// number is what a variable of the environment says, for runs that are larger than usual.
func number(t *testing.T, variable string, usual int64) int64 {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return usual
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// CR-03, CR-04: credentials that live four seconds, and cannot be renewed, are replaced every two under load without a failed
// call. The same load with credentials that stay says what the replacing costs.
func TestCredentialsRotateUnderLoadWithoutAFailedCall(t *testing.T) {
	for backend, role := range map[string]string{"pg-main": "orders", "redis": "people"} {
		t.Run(backend, func(t *testing.T) {
			w := start(t, 1, nil)
			w.vault.PostgreSQLRole(t, "quiet", "pg", "prism_rw", "1h", "1h")
			w.vault.PostgreSQLRole(t, "orders", "pg", "prism_rw", "4s", "4s")
			if backend == "redis" {
				w.vault.RedisRole(t, "quiet", "redis", "1h", "1h", `["~*","&*","+@all"]`)
			}
			w.vault.RedisRole(t, "people", "redis", "4s", "4s", `["~*","&*","+@all"]`)
			for _, role := range []string{"quiet", role} {
				w.Apply(t.Context(), request(role, backend, "vault://database/creds/"+role, configv1.CredentialScope_CREDENTIAL_SCOPE_PRINCIPAL))
			}
			const rounds = 4
			want := number(t, "PRISM_ROTATION_CALLS", 20_000)
			var quiet, rotating []time.Duration
			for range rounds { // in turns, so that both meet the same machine
				quiet = append(quiet, w.load(t, "quiet", want/10/rounds, 0)...)
				rotating = append(rotating, w.load(t, role, want/rounds, 4*time.Second)...)
			}
			issued := w.vault.Requests(t, "database/creds/"+role)
			t.Logf("%d calls, %d credentials of 2 callers; p50 %v, p99 %v; without rotation p50 %v, p99 %v", len(rotating), issued,
				quantile(rotating, 0.5), quantile(rotating, 0.99), quantile(quiet, 0.5), quantile(quiet, 0.99))
			if issued < 6 {
				t.Errorf("%d credentials were issued", issued)
			}
			harness.Eventually(t, 20*time.Second, "only the newest credentials are left", func() error {
				if left := w.vault.Leases(t, "database/creds/"+role+"/"); len(left) > 4 {
					return fmt.Errorf("%d leases", len(left))
				}
				return nil
			})
		})
	}
}

// load makes two callers call a namespace from eight places, at least so often and so long, and returns how long each call
// took. A call that fails is an error of the test.
func (w *world) load(t *testing.T, namespace string, want int64, least time.Duration) []time.Duration {
	t.Helper()
	var first sync.Once
	var done, failed atomic.Int64
	took := make([][]time.Duration, 8)
	p, until := w.Proxies[0], time.Now().Add(least)
	var wg sync.WaitGroup
	for n := range took {
		ctx := w.forever(t, w.writer(t, fmt.Sprint("caller", n%2)))
		wg.Go(func() {
			for done.Load() < want || time.Now().Before(until) {
				id := []byte(strconv.Itoa(int(done.Add(1)) % 1000))
				call, cancel := context.WithTimeout(ctx, 5*time.Second)
				began := time.Now()
				var err error
				if n%4 == 0 {
					_, err = p.KeyValue.Put(call, &datav1.PutRequest{Namespace: namespace, Id: id, Value: id})
				} else {
					_, err = p.KeyValue.Get(call, &datav1.GetRequest{Namespace: namespace, Id: id})
				}
				cancel()
				took[n] = append(took[n], time.Since(began))
				if err != nil {
					failed.Add(1)
					first.Do(func() { t.Errorf("%s: %v", reason(err), err) })
				}
			}
		})
	}
	wg.Wait()
	if failed.Load() > 0 {
		t.Errorf("%d of %d calls failed", failed.Load(), done.Load())
	}
	return slices.Concat(took...)
}

// quantile sorts.
func quantile(took []time.Duration, q float64) time.Duration {
	slices.Sort(took)
	return took[int(q*float64(len(took)-1))]
}
