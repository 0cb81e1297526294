package s3_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/shared/secret"
)

// TestTemporaryKeys are shown with their token, which is signed too. No store that can be run here knows such keys, so what
// is sent is looked at.
func TestTemporaryKeys(t *testing.T) {
	sent := make(chan http.Header, 10)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sent <- r.Header
		w.WriteHeader(http.StatusForbidden)
	}))
	t.Cleanup(server.Close)
	s := open(t, driver.Config{
		Name: "items", Endpoints: []string{server.Listener.Addr().String()}, Username: "ASIAKEY", Password: secret.New("secret"), Token: secret.New("the token"),
		Settings: map[string]string{"bucket": "items", "tls": "false"},
	})
	if _, err := s.Get(t.Context(), "s", put("a", "k", "").Name, false); err == nil {
		t.Error("a refusal is no error")
	}
	got := <-sent
	if got.Get("X-Amz-Security-Token") != "the token" || !strings.Contains(got.Get("Authorization"), "x-amz-security-token") {
		t.Errorf("sent %v", got)
	}
}
