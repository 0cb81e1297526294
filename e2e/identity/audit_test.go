package identity_test

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/prism-gateway/prism/e2e/harness"
	bootstrapv1 "github.com/prism-gateway/prism/protos/prism/bootstrap/v1"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
)

// S2-AU1, SE-16: each access has one record, on the proxy that answered it, denied ones with the reason; also over a kill.
func TestEachAccessIsRecorded(t *testing.T) {
	dir := t.TempDir()
	w := start(t, 3, func(c *bootstrapv1.ProxyConfig) {
		c.Audit = &bootstrapv1.AuditConfig{Sink: &bootstrapv1.AuditConfig_Files{Files: &bootstrapv1.AuditFiles{Dir: dir, MaxFileBytes: 64 << 10}}}
	})
	req := request("orders", "redis", path, configv1.CredentialScope_CREDENTIAL_SCOPE_PRINCIPAL)
	req.Policies = &configv1.Policies{Audit: configv1.AuditPolicy_AUDIT_POLICY_STRICT}
	w.Apply(t.Context(), req)
	alice, mallory := w.as(t, w.writer(t, "alice")), w.as(t, w.issuer.Token(t, "mallory", 1<<40, nil))
	const each = 50
	for range each {
		for _, p := range w.Proxies {
			if err := put(alice, p, "orders", "a"); err != nil {
				t.Fatal(err)
			}
			if _, err := p.KeyValue.Get(mallory, &datav1.GetRequest{Namespace: "orders", Id: []byte("a")}); reason(err) != "PERMISSION_DENIED/NAMESPACE" {
				t.Fatal(err)
			}
		}
	}
	for _, p := range w.Proxies {
		p.Kill() // strict: what was answered is recorded
	}
	w.canary.searchFiles(t, dir)
	var verified struct {
		Chains []struct {
			Chain, Damage string
			Records       int
		}
	}
	prismctl(t, &verified, "audit", "verify", dir, "-o", "json")
	total := 0
	for _, c := range verified.Chains {
		total += c.Records
		if c.Damage != "" {
			t.Errorf("%s: %s", c.Chain, c.Damage)
		}
	}
	if total != 2*each*len(w.Proxies) {
		t.Errorf("%d records of %d calls", total, 2*each*len(w.Proxies))
	}
	var listed struct {
		Records []struct{ Principal, Kind, Session, Namespace, Operation, Backend, Result, Reason string }
	}
	prismctl(t, &listed, "audit", "list", dir, "--denied", "--limit", "1000", "-o", "json")
	if len(listed.Records) != each*len(w.Proxies) {
		t.Errorf("%d denied accesses are recorded", len(listed.Records))
	}
	for _, r := range listed.Records[:min(1, len(listed.Records))] {
		if r.Principal != w.issuer.URL+"#mallory" || r.Kind != "user" || r.Operation != "KeyValue/Get" || r.Backend != "" || r.Reason != "NAMESPACE" {
			t.Errorf("%+v", r)
		}
	}
	prismctl(t, &listed, "audit", "list", dir, "--principal", w.issuer.URL+"#alice", "--limit", "1", "-o", "json")
	if r := listed.Records[0]; r.Backend != "redis-main" || r.Result != "OK" || r.Session == "" {
		t.Errorf("%+v", r)
	}
}

// prismctl runs it and reads its answer.
func prismctl(t *testing.T, into any, args ...string) {
	t.Helper()
	cmd := exec.Command(harness.Program(t, filepath.Join("bin", "prismctl"), "make build"), args...)
	out, err := cmd.Output()
	if err == nil {
		err = json.Unmarshal(out, into)
	}
	if err != nil {
		t.Fatalf("prismctl %v: %v: %s", args, err, out)
	}
}
