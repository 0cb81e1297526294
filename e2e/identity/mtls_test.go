package identity_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/prism-gateway/prism/e2e/harness"
	bootstrapv1 "github.com/prism-gateway/prism/protos/prism/bootstrap/v1"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
)

// secured starts a cluster whose connections are all mTLS, with a namespace for services by their certificates.
func secured(t *testing.T) *harness.Cluster {
	t.Helper()
	c := harness.Start(t, harness.Options{
		Admins: 2, Etcd: 1, Proxies: 3, Owners: 2, Secure: true, Backends: []*configv1.Backend{{Name: "scratch", Type: "memory"}},
		ConfigureProxy: func(p *bootstrapv1.ProxyConfig) { p.Authentication = &bootstrapv1.Authentication{Required: true} },
	})
	c.Apply(t.Context(), &configv1.NamespaceRequest{
		Namespace: "orders", Team: "payments", Pattern: "keyvalue", Needs: &configv1.Needs{Durability: configv1.Durability_DURABILITY_NONE},
		Access: &configv1.Access{
			Writers: []*configv1.Principal{{Who: &configv1.Principal_Spiffe{Spiffe: harness.Tester}}},
			Readers: []*configv1.Principal{{Who: &configv1.Principal_Spiffe{Spiffe: "spiffe://prism.test/ns/*/sa/reader"}}},
		},
	})
	return c
}

// dial connects with a certificate; nil is plaintext.
func dial(t *testing.T, address string, as *tls.Config) *grpc.ClientConn {
	t.Helper()
	creds := insecure.NewCredentials()
	if as != nil {
		creds = credentials.NewTLS(as)
	}
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(creds))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func get(t *testing.T, conn grpc.ClientConnInterface, namespace string, md ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), md...), 5*time.Second)
	defer cancel()
	_, err := datav1.NewKeyValueClient(conn).Get(ctx, &datav1.GetRequest{Namespace: namespace, Id: []byte("a")})
	return reason(err)
}

// S2-I1, S2-I6, S2-T1: services are known by their certificates at every proxy, whether it owns the namespace or forwards.
func TestServicesAreKnownByTheirCertificates(t *testing.T) {
	c := secured(t)
	a := c.Authority
	a.Issue("reader", "spiffe://prism.test/ns/shop/sa/reader", 0)
	a.Issue("stranger", "spiffe://prism.test/ns/shop/sa/stranger", 0)
	a.Issue("expired", harness.Tester, time.Nanosecond)
	for _, p := range c.Proxies {
		if err := put(t.Context(), p, "orders", "a"); err != nil {
			t.Errorf("the tester at %s: %v\n%s", p.ID, err, p.Log())
		}
		reader := dial(t, p.Address, a.Client("reader"))
		if got := get(t, reader, "orders"); got != "OK" {
			t.Errorf("the reader reads at %s: %s", p.ID, got)
		}
		_, err := datav1.NewKeyValueClient(reader).Put(t.Context(), &datav1.PutRequest{Namespace: "orders", Id: []byte("a")})
		if got := reason(err); got != "PERMISSION_DENIED/OPERATION" {
			t.Errorf("the reader writes at %s: %s", p.ID, got)
		}
		stranger := dial(t, p.Address, a.Client("stranger"))
		for namespace, md := range map[string][]string{"orders": nil, "nowhere": nil} {
			if got := get(t, stranger, namespace, md...); got != "PERMISSION_DENIED/NAMESPACE" {
				t.Errorf("a stranger reads %s at %s: %s", namespace, p.ID, got)
			}
		}
		if got := get(t, stranger, "orders", "x-prism-hop", "1", "x-prism-caller-bin", "forged"); got != "PERMISSION_DENIED/NAMESPACE" {
			t.Errorf("a stranger who says to be a proxy reads at %s: %s", p.ID, got)
		}
		for name, as := range map[string]*tls.Config{"nobody": a.Client(""), "expired": a.Client("expired"), "plaintext": nil} {
			if got := get(t, dial(t, p.Address, as), "orders"); got != "UNAVAILABLE/" && got != "DEADLINE_EXCEEDED/" {
				t.Errorf("%s is let in by %s: %s", name, p.ID, got)
			}
		}
	}
}

// A proxy cannot be another than its certificate says, and what replicas ask each other is for replicas.
func TestProgramsAreWhoTheirCertificatesSay(t *testing.T) {
	c := secured(t)
	fleet := controlv1.NewFleetServiceClient(dial(t, c.Admins[0].FleetAddress, c.Authority.Client("proxy-0")))
	stream, err := fleet.Report(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&controlv1.ReportRequest{Member: &configv1.Member{Id: "proxy-1", Address: "127.0.0.1:1"}}); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = stream.Recv()
	}
	if got := reason(err); got != "PERMISSION_DENIED/CERT_INVALID" {
		t.Errorf("proxy-0 reports as proxy-1: %s (%v)", got, err)
	}
	if _, err := fleet.ListReports(t.Context(), &controlv1.ListReportsRequest{}); reason(err) != "PERMISSION_DENIED/OPERATION" {
		t.Errorf("a proxy asks what replicas ask: %v", err)
	}
	replica := controlv1.NewFleetServiceClient(dial(t, c.Admins[0].FleetAddress, c.Authority.Client("admin-1")))
	if _, err := replica.ListReports(t.Context(), &controlv1.ListReportsRequest{}); err != nil {
		t.Errorf("a replica: %v", err)
	}
}

// S2-I5: certificates that live for seconds are replaced under load; broken ones change nothing.
func TestCertificatesAreReplacedUnderLoad(t *testing.T) {
	c := secured(t)
	p := c.Proxies[0]
	for round := range 5 {
		for _, one := range c.Proxies {
			c.Authority.Issue(one.ID, fmt.Sprintf("spiffe://prism.test/prism/proxy/%s", one.ID), 0)
		}
		until := time.Now().Add(time.Second)
		for n := 0; time.Now().Before(until); n++ {
			if err := put(t.Context(), p, "orders", fmt.Sprint(round, n)); err != nil {
				t.Fatalf("round %d, call %d: %v", round, n, err)
			}
			if n%20 == 0 {
				if got := get(t, dial(t, p.Address, c.Authority.Client("tester")), "orders"); got != "OK" {
					t.Fatalf("round %d: a new connection: %s", round, got)
				}
			}
		}
	}
}

// People reach a secured Prism by the files that they name.
func TestPrismctlShowsACertificateAndAToken(t *testing.T) {
	c := secured(t)
	dir := c.Authority.Dir
	file := func(name string) string { return filepath.Join(dir, name) }
	context := filepath.Join(t.TempDir(), "context.yaml")
	text := fmt.Sprintf("current: e2e\ncontexts:\n  e2e: {admin: [%q], data: [%q], ca_file: %q, cert_file: %q, key_file: %q}\n",
		c.Admins[0].Address, c.Proxies[0].Address, file("ca.pem"), file("tester.pem"), file("tester-key.pem"))
	if err := os.WriteFile(context, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		env  []string
		args []string
		want string
	}{
		"a context":                   {[]string{"PRISM_CONTEXT_FILE=" + context}, []string{"kv", "put", "orders", "a", "", "hello"}, ""},
		"the control plane":           {[]string{"PRISM_CONTEXT_FILE=" + context}, []string{"namespace", "list"}, "orders"},
		"without TLS":                 {nil, []string{"--admin", c.Admins[0].Address, "namespace", "list"}, "does not answer"},
		"without a certificate":       {nil, []string{"--admin", c.Admins[0].Address, "--ca-file", file("ca.pem"), "namespace", "list"}, "does not answer"},
		"a certificate without a key": {nil, []string{"--admin", c.Admins[0].Address, "--ca-file", file("ca.pem"), "--cert-file", file("tester.pem"), "namespace", "list"}, "go together"},
	} {
		cmd := exec.Command(harness.Program(t, "bin/prismctl", "make build"), tc.args...)
		cmd.Env = append(os.Environ(), tc.env...)
		out, err := cmd.CombinedOutput()
		if (err == nil) != (len(tc.env) > 0) || !strings.Contains(string(out), tc.want) {
			t.Errorf("%s: %v: %s", name, err, out)
		}
	}
}
