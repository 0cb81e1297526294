package server_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prism-gateway/prism/dataplane/server"
	bootstrapv1 "github.com/prism-gateway/prism/protos/prism/bootstrap/v1"
	"github.com/prism-gateway/prism/shared/testserver/vaultserver"
)

// TestWhatTheProxyMayNotDoAtItsProvidersIsKnownBeforeItIsNeeded has an OpenBao whose policy for the proxies lacks something.
func TestWhatTheProxyMayNotDoAtItsProvidersIsKnownBeforeItIsNeeded(t *testing.T) {
	v := vaultserver.Start(t, vaultserver.Options{})
	id, secret := v.EnableAppRole(t, "proxies", "1h", "proxies")
	file := filepath.Join(t.TempDir(), "secret-id")
	if err := os.WriteFile(file, []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct{ policy, capable, told string }{
		"all": {vaultserver.Leasing, `prism_credential_capable{provider="vault"} 1`, ""},
		"all but one": {
			"path \"sys/leases/revoke\" { capabilities = [\"update\"] }\npath \"sys/capabilities-self\" { capabilities = [\"update\"] }",
			`prism_credential_capable{provider="vault"} 0`, "the proxy's policy lacks update on auth/token/revoke-accessor",
		},
		"not even to ask": {`path "sys/leases/revoke" { capabilities = ["update"] }`, `prism_credential_capable{provider="vault"} 0`, "sys/capabilities-self"},
	} {
		t.Run(name, func(t *testing.T) {
			v.Policy(t, "proxies", tc.policy)
			c := settings(t)
			c.CredentialProviders = []*bootstrapv1.CredentialProvider{{Name: "vault", Type: &bootstrapv1.CredentialProvider_Vault{Vault: &bootstrapv1.VaultProvider{
				Address: v.Address(), CaFile: v.CAFile(), Login: &bootstrapv1.VaultProvider_AppRole{AppRole: &bootstrapv1.VaultAppRole{RoleId: id, SecretIdFile: file}},
			}}}}
			s, stop := run(t, c)
			until(t, s, "/metrics", tc.capable)
			until(t, s, "/readyz", "credential_capabilities")
			if _, body := get(t, s, "/readyz"); !strings.Contains(body, tc.told) || tc.told == "" && strings.Contains(body, "lacks") {
				t.Errorf("/readyz says %s", body)
			}
			if err := stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

// until waits for a page to contain a text.
func until(t *testing.T, s *server.Server, path, text string) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(20 * time.Second); ; <-tick.C {
		_, body := get(t, s, path)
		if strings.Contains(body, text) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s does not say %s:\n%s", path, text, body)
		}
	}
}
