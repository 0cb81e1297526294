package identity_test

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"

	"github.com/prism-gateway/prism/e2e/harness"
)

// calls is how many are made while credentials rotate: PRISM_ROTATION_CALLS, or enough to see some rotations.
func calls(t *testing.T) int64 {
	t.Helper()
	text := os.Getenv("PRISM_ROTATION_CALLS")
	if text == "" {
		return 20_000
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// CR-03, CR-04: credentials that live four seconds, and cannot be renewed, are replaced under load without a failed call.
func TestCredentialsRotateUnderLoadWithoutAFailedCall(t *testing.T) {
	for backend, path := range map[string]string{"pg-main": "orders", "redis": "people"} {
		t.Run(backend, func(t *testing.T) {
			w := start(t, 1, nil)
			w.vault.PostgreSQLRole(t, "orders", "pg", "prism_rw", "4s", "4s")
			w.vault.RedisRole(t, "people", "redis", "4s", "4s", `["~*","&*","+@all"]`)
			w.Apply(t.Context(), request("orders", backend, "vault://database/creds/"+path, configv1.CredentialScope_CREDENTIAL_SCOPE_PRINCIPAL))
			p := w.Proxies[0]
			var done, failed atomic.Int64
			var first sync.Once
			var wg sync.WaitGroup
			want, least := calls(t), time.Now().Add(12*time.Second)
			for n := range 8 {
				ctx := w.forever(t, w.writer(t, fmt.Sprint("caller", n%2)))
				wg.Go(func() {
					for done.Load() < want || time.Now().Before(least) {
						id := []byte(strconv.Itoa(int(done.Add(1)) % 1000))
						call, cancel := context.WithTimeout(ctx, 5*time.Second)
						var err error
						if n%4 == 0 {
							_, err = p.KeyValue.Put(call, &datav1.PutRequest{Namespace: "orders", Id: id, Value: id})
						} else {
							_, err = p.KeyValue.Get(call, &datav1.GetRequest{Namespace: "orders", Id: id})
						}
						cancel()
						if err != nil {
							failed.Add(1)
							first.Do(func() { t.Errorf("%s: %v", reason(err), err) })
						}
					}
				})
			}
			wg.Wait()
			issued := w.vault.Requests(t, "database/creds/"+path)
			t.Logf("%d calls, %d failed, %d credentials of 2 callers", done.Load(), failed.Load(), issued)
			if failed.Load() > 0 || issued < 6 {
				t.Errorf("%d of %d calls failed, over %d credentials", failed.Load(), done.Load(), issued)
			}
			harness.Eventually(t, 20*time.Second, "only the newest credentials are left", func() error {
				if left := w.vault.Leases(t, "database/creds/"+path+"/"); len(left) > 4 {
					return fmt.Errorf("%d leases", len(left))
				}
				return nil
			})
		})
	}
}
