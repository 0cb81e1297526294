package identity_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prism-gateway/prism/e2e/harness"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/testserver/oidcserver"
)

// S0-B9, S0-G1, S1-20: a user logs in at a real OpenID provider, calls with the token, is seen by PostgreSQL under a name of
// its own, and is gone with the session.
func TestFromTheLoginToTheUserOfTheStore(t *testing.T) {
	dex := oidcserver.Start(t, oidcserver.Options{
		Users: []oidcserver.User{{Email: "ann@example.com", Groups: []string{"writers"}}, {Email: "ben@example.com"}}, Audiences: []string{"prism"},
	})
	var w *world
	w = startBy(t, &w, 1, nil, &harness.Issuer{URL: dex.Issuer(), Keys: dex.KeysURL(), Audience: "prism"}, "email")
	w.Apply(t.Context(), request("orders", "pg-main", "vault://database/creds/orders", configv1.CredentialScope_CREDENTIAL_SCOPE_SESSION))
	p := w.Proxies[0]
	ann, ben := w.as(t, dex.Token(t, "ann@example.com", "prism")), w.as(t, dex.Token(t, "ben@example.com", "prism"))
	sessions := datav1.NewSessionManagerClient(w.Dial(p.Address))
	made, err := sessions.CreateSession(ann, &datav1.CreateSessionRequest{Namespace: "orders"})
	if err != nil {
		t.Fatalf("%v\n%s", err, p.Log())
	}
	if err := put(ann, p, "orders", "a"); err != nil {
		t.Fatal(err)
	}
	if got := reason(put(ben, p, "orders", "a")); got != "PERMISSION_DENIED/NAMESPACE" {
		t.Errorf("ben, who is in no group: %s", got)
	}
	users := named(w.users(t), "ann")
	if len(users) != 1 {
		t.Fatalf("users %v", w.users(t))
	}
	if log := w.db.Log(t); !strings.Contains(log, "user="+users[0]+" ") || strings.Contains(log, "ben") {
		t.Errorf("PostgreSQL's log does not name %s, or names ben:\n%s", users[0], log)
	}
	if _, err := sessions.CloseSession(ann, &datav1.CloseSessionRequest{Namespace: "orders", Id: made.GetSession().GetId()}); err != nil {
		t.Fatal(err)
	}
	closed := time.Now()
	harness.Eventually(t, 10*time.Second, "ann's user goes", func() error {
		if left := w.users(t); len(left) > 0 {
			return fmt.Errorf("%v", left)
		}
		return nil
	})
	t.Logf("ann's user was gone %v after the session was closed", time.Since(closed))
}
