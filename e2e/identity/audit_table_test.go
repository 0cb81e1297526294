package identity_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	bootstrapv1 "github.com/prism-gateway/prism/protos/prism/bootstrap/v1"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/testserver/postgresserver"
)

// S2-AU1, SE-16, SE-18: records in a table that all proxies share, opened by a user of PostgreSQL that is replaced every two
// seconds meanwhile.
func TestRecordsInATable(t *testing.T) {
	var w *world
	configure := own(t, &w)
	w = startAs(t, &w, 2, func(c *bootstrapv1.ProxyConfig) {
		if configure(c); c.GetId() == "proxy-0" { // once
			w.vault.PostgreSQLRole(t, "audit", "pg", "prism_rw", "4s", "4s")
		}
		c.Credentials = &bootstrapv1.CredentialPolicy{Margin: durationpb.New(time.Second)}
		c.Audit = &bootstrapv1.AuditConfig{Sink: &bootstrapv1.AuditConfig_Postgres{Postgres: &bootstrapv1.AuditPostgres{
			Endpoint: w.db.Addr(), Database: "postgres", CredentialPath: "vault://database/creds/audit",
		}}}
	})
	req := request("orders", "redis", path, configv1.CredentialScope_CREDENTIAL_SCOPE_PRINCIPAL)
	req.Policies = &configv1.Policies{Audit: configv1.AuditPolicy_AUDIT_POLICY_STRICT}
	w.Apply(t.Context(), req)
	var callers []context.Context // an owner for each, so that all record
	for n := range 6 {
		callers = append(callers, w.forever(t, w.writer(t, fmt.Sprint("caller", n))))
	}
	calls := 0
	for until := time.Now().Add(9 * time.Second); time.Now().Before(until); {
		for _, p := range w.Proxies {
			if err := put(callers[calls/2%len(callers)], p, "orders", "a"); err != nil {
				t.Fatalf("call %d: %v\n%s", calls, err, p.Log())
			}
			calls++
		}
	}
	if issued := w.vault.Requests(t, "database/creds/audit"); issued < 6 {
		t.Errorf("%d credentials were issued", issued)
	}
	var verified struct {
		Chains []struct {
			Chain, Damage string
			Records       int
		}
	}
	t.Setenv("PGPASSWORD", postgresserver.Password)
	database := "postgres://" + postgresserver.User + "@" + w.db.Addr() + "/postgres?sslmode=disable"
	prismctl(t, &verified, "audit", "verify", "--postgres", database, "-o", "json")
	total := 0
	for _, c := range verified.Chains {
		total += c.Records
		if c.Damage != "" {
			t.Errorf("%s: %s", c.Chain, c.Damage)
		}
	}
	t.Logf("%d records of %d calls in %d chains", total, calls, len(verified.Chains))
	if total != calls {
		t.Error("not each call has one record")
	}
	var listed struct{ Records []struct{ Principal string } }
	prismctl(t, &listed, "audit", "list", "--postgres", database, "--limit", "3", "-o", "json")
	if len(listed.Records) != 3 || !strings.Contains(listed.Records[0].Principal, "#caller") {
		t.Errorf("%+v", listed)
	}
	rows, err := w.admin.Query(t.Context(), "SELECT line FROM prism_access_line")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			t.Fatal(err)
		}
		w.canary.search("a record", line)
	}
}
