package identity_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/prism-gateway/prism/e2e/harness"
	bootstrapv1 "github.com/prism-gateway/prism/protos/prism/bootstrap/v1"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
)

const path = "vault://database/creds/people"

// own gives the proxies a login of their own, so that they can give back what a killed one left.
func own(t *testing.T, w **world) func(*bootstrapv1.ProxyConfig) {
	file := filepath.Join(t.TempDir(), "secret-id")
	var id string
	return func(c *bootstrapv1.ProxyConfig) {
		if id == "" { // the first proxy's
			var secret string
			id, secret = (*w).vault.EnableAppRole(t, "proxies", "1h", "leasing")
			(*w).canary.plant("a secret id", secret)
			if err := os.WriteFile(file, []byte(secret), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		c.CredentialProviders[0].GetVault().Login = &bootstrapv1.VaultProvider_AppRole{AppRole: &bootstrapv1.VaultAppRole{RoleId: id, SecretIdFile: file}}
	}
}

// CR-12
func TestAKilledProxyLeavesNoLease(t *testing.T) {
	var w *world
	w = startAs(t, &w, 1, own(t, &w))
	w.Apply(t.Context(), request("orders", "redis", path, configv1.CredentialScope_CREDENTIAL_SCOPE_PRINCIPAL))
	p := w.Proxies[0]
	for n := range 10 {
		if err := put(w.as(t, w.writer(t, fmt.Sprint("caller", n))), p, "orders", "a"); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(w.vault.Leases(t, "database/creds/people/")); n != 10 {
		t.Fatalf("%d leases of ten callers", n)
	}
	p.Kill()
	p.Start()
	restarted := time.Now()
	harness.Eventually(t, 30*time.Second, "what the killed proxy had is given back", func() error {
		if n := len(w.vault.Leases(t, "database/creds/people/")); n > 0 {
			return fmt.Errorf("%d leases are left", n)
		}
		return nil
	})
	t.Logf("no lease was left %v after the start", time.Since(restarted))
}

// CR-07, CR-08, CR-09: who has a credential is served while the provider is away, and who has none is told soon and finds it again.
func TestAProviderThatIsAway(t *testing.T) {
	for name, tc := range map[string]struct{ away, back func(*world, *testing.T) }{
		"killed": {func(w *world, _ *testing.T) { w.vault.Kill() }, func(w *world, t *testing.T) { w.vault.Restart(t) }},
		"sealed": {func(w *world, t *testing.T) { w.vault.Seal(t) }, func(w *world, t *testing.T) { w.vault.Unseal(t) }},
		"hangs":  {func(w *world, t *testing.T) { w.vault.Pause(t) }, func(w *world, t *testing.T) { w.vault.Resume(t) }},
	} {
		t.Run(name, func(t *testing.T) {
			var w *world
			w = startAs(t, &w, 1, own(t, &w))
			w.Apply(t.Context(), request("orders", "redis", path, configv1.CredentialScope_CREDENTIAL_SCOPE_PRINCIPAL))
			p, alice, bob := w.Proxies[0], w.writer(t, "alice"), w.writer(t, "bob")
			if err := put(w.as(t, alice), p, "orders", "a"); err != nil {
				t.Fatal(err)
			}
			tc.away(w, t)
			for until := time.Now().Add(3 * time.Second); time.Now().Before(until); {
				if err := put(w.as(t, alice), p, "orders", "a"); err != nil {
					t.Fatalf("a caller that has its credential: %v", err)
				}
			}
			ctx, cancel := context.WithTimeout(w.forever(t, bob), 3*time.Second)
			defer cancel()
			if got := reason(put(ctx, p, "orders", "b")); got != "UNAVAILABLE/CREDENTIALS_UNAVAILABLE" && got != "DEADLINE_EXCEEDED/POOL" {
				t.Errorf("a caller that has none is told %s", got)
			}
			tc.back(w, t)
			harness.Eventually(t, 30*time.Second, "the caller that had none is served", func() error { return put(w.as(t, bob), p, "orders", "b") })
		})
	}
}
