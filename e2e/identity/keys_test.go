package identity_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/prism-gateway/prism/e2e/harness"
	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"
	bootstrapv1 "github.com/prism-gateway/prism/protos/prism/bootstrap/v1"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/testserver/s3server"
)

// S2-O12: the keys of a store that has no users of its own stand at the provider, and what is put there instead is taken up.
func TestKeysOfAStoreThatHasNoUsers(t *testing.T) {
	store := s3server.Start(t, s3server.Options{})
	var w *world
	configure := own(t, &w)
	w = startAs(t, &w, 1, func(c *bootstrapv1.ProxyConfig) {
		configure(c)
		c.CredentialProviders[0].CacheTtl = durationpb.New(2 * time.Second)
	})
	w.canary.plant("a key of S3", s3server.Secret)
	w.vault.Do(t, http.MethodPost, "sys/mounts/kv", map[string]any{"type": "kv", "options": map[string]string{"version": "2"}})
	w.vault.Policy(t, "leasing", strings.Join([]string{`path "kv/data/s3" { capabilities = ["read"] }`, `path "auth/token/revoke-self" { capabilities = ["update"] }`}, "\n"))
	keys := func(secret string) {
		w.vault.Do(t, http.MethodPost, "kv/data/s3", map[string]any{"data": map[string]string{"username": s3server.Key, "password": secret}})
	}
	keys("not the secret")
	if _, err := w.Admin().Operator.ApplyBackends(t.Context(), &adminv1.ApplyBackendsRequest{Changes: []*adminv1.BackendChange{{Backend: &configv1.Backend{
		Name: "s3-main", Type: "s3", Endpoints: []string{store.Addr()}, CredentialPath: "vault://kv/data/s3",
		Config: map[string]string{"bucket": s3server.Bucket, "tls": "false"},
	}}}}); err != nil {
		t.Fatal(err)
	}
	req := request("orders", "s3-main", "", 0)
	req.Auth.Vault, req.Patterns[0].Slots = nil, []*configv1.Slot{{Name: "storage-s3"}}
	if _, err := w.Admin().Control.CreateNamespace(t.Context(), &controlv1.CreateNamespaceRequest{Request: req}); err != nil {
		t.Fatal(err)
	}
	p, alice := w.Proxies[0], w.forever(t, w.writer(t, "alice"))
	harness.Eventually(t, 20*time.Second, "the wrong keys are refused", func() error {
		err := put(alice, p, "orders", "a")
		if got := reason(err); got != "UNAVAILABLE/CREDENTIALS_UNAVAILABLE" {
			return err
		}
		return nil
	})
	keys(s3server.Secret)
	harness.Eventually(t, 20*time.Second, "the right keys are taken up", func() error { return put(alice, p, "orders", "a") })
	if got, err := p.KeyValue.Get(alice, &datav1.GetRequest{Namespace: "orders", Id: []byte("a")}); err != nil || string(got.GetItem().GetValue()) != "v" {
		t.Errorf("%v, %v", got, err)
	}
}
