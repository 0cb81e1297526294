package vault_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/prism-gateway/prism/dataplane/credential"
	"github.com/prism-gateway/prism/dataplane/credential/vault"
	"github.com/prism-gateway/prism/shared/certs"
	"github.com/prism-gateway/prism/shared/testserver/vaultserver"
)

func TestConfigIsChecked(t *testing.T) {
	broken := write(t, "ca.pem", "no certificate")
	for name, cfg := range map[string]vault.Config{
		"no address":                     {},
		"no server":                      {Address: "vault"},
		"plaintext to another machine":   {Address: "http://vault.example.org:8200"},
		"another scheme":                 {Address: "ftp://127.0.0.1"},
		"a password in the address":      {Address: "https://u:p@vault.example.org"},
		"authorities that are not there": {Address: "https://vault.example.org", CAFile: broken + ".absent"},
		"authorities that are none":      {Address: "https://vault.example.org", CAFile: broken},
		"a namespace that is no header":  {Address: "https://vault.example.org", Namespace: "a\r\nX-Vault-Token: x"},
	} {
		if _, err := vault.New(cfg); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

// CR-24: authorities, a prefix before the API, mounts of other names, both versions of KV, namespaces.
func TestCR24Variants(t *testing.T) {
	server := vaultserver.Start(t, vaultserver.Options{})
	token := vault.TokenFile{Path: write(t, "token", server.RootToken())}
	server.Do(t, http.MethodPost, "sys/mounts/teams/one/secrets", map[string]any{"type": "kv", "options": map[string]string{"version": "2"}})
	server.Do(t, http.MethodPost, "sys/mounts/old", map[string]any{"type": "kv", "options": map[string]string{"version": "1"}})
	for _, password := range []string{"first", "second"} {
		server.Do(t, http.MethodPost, "teams/one/secrets/data/orders", map[string]any{"data": map[string]string{"username": "u", "password": password}})
	}
	server.Do(t, http.MethodPost, "teams/one/secrets/data/gone", map[string]any{"data": map[string]string{"password": "p"}})
	server.Do(t, http.MethodDelete, "teams/one/secrets/data/gone", nil)
	server.Do(t, http.MethodPost, "old/orders", map[string]string{"username": "u", "password": "old"})
	server.Do(t, http.MethodPost, "sys/namespaces/team-one", nil)
	server.Do(t, http.MethodPost, "team-one/sys/mounts/kv", map[string]any{"type": "kv", "options": map[string]string{"version": "2"}})
	server.Do(t, http.MethodPost, "team-one/kv/data/orders", map[string]any{"data": map[string]string{"password": "inside"}})

	target, err := url.Parse(server.Address())
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	ca, err := os.ReadFile(server.CAFile())
	if err != nil || !pool.AppendCertsFromPEM(ca) {
		t.Fatal(err)
	}
	proxy := httptest.NewServer(http.StripPrefix("/secrets", &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(target) },
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}},
	}))
	t.Cleanup(proxy.Close)

	good := vault.Config{Address: server.Address(), CAFile: server.CAFile(), Identity: token}
	with := func(change func(*vault.Config)) vault.Config { c := good; change(&c); return c }
	for name, tc := range map[string]struct {
		cfg  vault.Config
		path string
		want string // the password; empty: it does not come
		no   bool   // refused, rather than not answered
	}{
		"KV with versions":                {good, "teams/one/secrets/data/orders", "second", false},
		"one version of it":               {good, "teams/one/secrets/data/orders?version=1", "first", false},
		"one that was deleted":            {good, "teams/one/secrets/data/gone", "", true},
		"KV without versions":             {good, "old/orders", "old", false},
		"behind a prefix":                 {with(func(c *vault.Config) { c.Address = proxy.URL + "/secrets" }), "old/orders", "old", false},
		"in a namespace":                  {with(func(c *vault.Config) { c.Namespace = "team-one" }), "kv/data/orders", "inside", false},
		"not in the root":                 {good, "kv/data/orders", "", true},
		"a name that the certificate has": {with(func(c *vault.Config) { c.ServerName = "localhost" }), "old/orders", "old", false},
		"a name that it has not":          {with(func(c *vault.Config) { c.ServerName = "vault.example.org" }), "old/orders", "", false},
		"the system's authorities":        {with(func(c *vault.Config) { c.CAFile = "" }), "old/orders", "", false},
		"a token that is not there yet":   {with(func(c *vault.Config) { c.Identity = vault.TokenFile{Path: token.Path + ".absent"} }), "old/orders", "", false},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := vault.New(tc.cfg)
			if err != nil {
				t.Fatal(err)
			}
			as, err := p.Login(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			issued, err := p.Fetch(t.Context(), credential.Request{Path: tc.path, As: as})
			switch {
			case tc.want != "" && (err != nil || issued.Credential.Password.Reveal() != tc.want):
				t.Errorf("got another, or %v", err)
			case tc.want == "" && (err == nil || errors.Is(err, credential.ErrRefused) != tc.no):
				t.Errorf("told %v", err)
			}
		})
	}
}

func TestTheEnvironmentHasNoEffect(t *testing.T) {
	server := vaultserver.Start(t, vaultserver.Options{})
	for name, value := range map[string]string{
		"VAULT_ADDR": "https://127.0.0.1:1", "VAULT_TOKEN": server.RootToken(), "VAULT_NAMESPACE": "elsewhere", "VAULT_SKIP_VERIFY": "true",
		"VAULT_MAX_RETRIES": "9", "VAULT_CLIENT_TIMEOUT": "1ns", "VAULT_HEADERS": `{"X-Other":"1"}`, "VAULT_RATE_LIMIT": "0.001:1",
	} {
		t.Setenv(name, value)
	}
	p, err := vault.New(vault.Config{Address: server.Address(), CAFile: server.CAFile()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Login(t.Context(), nil); !errors.Is(err, credential.ErrNoIdentity) {
		t.Errorf("the proxy has an identity: %v", err)
	}
	if _, err := p.Fetch(t.Context(), credential.Request{Path: "sys/mounts"}); !errors.Is(err, credential.ErrRefused) {
		t.Errorf("without a token: %v", err)
	}
	unverified, err := vault.New(vault.Config{Address: server.Address()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unverified.Fetch(t.Context(), credential.Request{Path: "sys/mounts"}); err == nil || errors.Is(err, credential.ErrRefused) {
		t.Errorf("a certificate of nobody's authority is taken: %v", err)
	}
}

func TestCheckSaysWhatThePolicyLacks(t *testing.T) {
	server := vaultserver.Start(t, vaultserver.Options{})
	server.Policy(t, "little", `
path "auth/token/revoke-accessor" { capabilities = ["update"] }
path "auth/token/revoke-self" { capabilities = ["update"] }
path "sys/capabilities-self" { capabilities = ["update"] }`)
	roleID, secretID := server.EnableAppRole(t, "proxy", "1h", "little")
	p, err := vault.New(vault.Config{Address: server.Address(), CAFile: server.CAFile(), Identity: vault.AppRole{RoleID: roleID, SecretIDFile: write(t, "id", secretID)}})
	if err != nil {
		t.Fatal(err)
	}
	err = p.Check(t.Context(), "database/creds/orders")
	if !errors.Is(err, credential.ErrRefused) || !strings.Contains(err.Error(), "update on sys/leases/revoke, read on database/creds/orders") || strings.Contains(err.Error(), "accessor") {
		t.Errorf("told %v", err)
	}
}

func TestIssueGivesTheProxyItsCertificate(t *testing.T) {
	server := vaultserver.Start(t, vaultserver.Options{})
	server.Do(t, http.MethodPost, "sys/mounts/pki", map[string]any{"type": "pki", "config": map[string]any{"max_lease_ttl": "240h"}})
	server.Do(t, http.MethodPost, "pki/root/generate/internal", map[string]any{"common_name": "root", "ttl": "200h"})
	role := map[string]any{"allow_any_name": true, "allowed_uri_sans": "spiffe://*", "key_type": "ec", "key_bits": 256, "max_ttl": "48h"}
	server.Do(t, http.MethodPost, "pki/roles/prism", role)
	role["generate_lease"] = true
	server.Do(t, http.MethodPost, "pki/roles/leased", role)
	server.Policy(t, "pki", vaultserver.Leasing+`path "pki/*" { capabilities = ["update"] }`)
	roleID, secretID := server.EnableAppRole(t, "proxy", "1h", "pki")
	p, err := vault.New(vault.Config{Address: server.Address(), CAFile: server.CAFile(), Identity: vault.AppRole{RoleID: roleID, SecretIDFile: write(t, "id", secretID)}})
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "proxy.prod"}, DNSNames: []string{"proxy.example.org"}, IPAddresses: []net.IP{{10, 0, 0, 1}},
		URIs: []*url.URL{{Scheme: "spiffe", Host: "example.org", Path: "/proxy"}},
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	request := certs.Request{
		CommonName: "proxy.prod", URIs: []string{"spiffe://example.org/proxy"}, DNS: []string{"proxy.example.org"}, IPs: []string{"10.0.0.1"}, TTL: time.Hour,
		SigningRequest: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}),
	}
	for path, makes := range map[string]bool{"pki/sign/prism": false, "pki/issue/prism": true} {
		request.Path = path
		issued, err := p.Issue(t.Context(), request)
		if err != nil {
			t.Fatal(path, err)
		}
		block, _ := pem.Decode(issued.Certificate)
		leaf, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(issued.Authorities) {
			t.Fatal("no authorities")
		}
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "proxy.example.org"}); err != nil {
			t.Error(path, err)
		}
		if leaf.URIs[0].String() != "spiffe://example.org/proxy" || time.Until(leaf.NotAfter) > time.Hour+time.Minute || issued.Key.IsZero() == makes {
			t.Errorf("%s: %v until %v, with a key: %v", path, leaf.URIs, leaf.NotAfter, !issued.Key.IsZero())
		}
	}
	request.Path = "pki/sign/leased"
	if _, err := p.Issue(t.Context(), request); !errors.Is(err, credential.ErrRefused) || !strings.Contains(err.Error(), "generate_lease") {
		t.Errorf("a role that makes leases: %v", err)
	}
	if n := server.Requests(t, "auth/token/revoke-self"); n != 3 {
		t.Errorf("logged out %d times of 3", n)
	}
}

// What AWS is sent is what its documentation of signatures says; that STS takes it cannot be tried here.
func TestAWSLoginIsASignedQuestionWhoIAm(t *testing.T) {
	var body map[string]string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil || r.URL.Path != "/v1/auth/cloud/login" {
			t.Error(r.URL.Path, err)
		}
		w.Write([]byte(`{"auth":{"client_token":"t","accessor":"a","lease_duration":60,"renewable":true}}`))
	}))
	t.Cleanup(server.Close)
	identity := vault.AWS{
		AuthPath: "auth/cloud", Role: "proxy", ServerID: "vault.example.org", Region: "eu-west-1",
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: "AKIAEXAMPLE", SecretAccessKey: "canary-secret-key", SessionToken: "canary-session"}, nil
		}),
		Now: func() time.Time { return time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC) },
	}
	p, err := vault.New(vault.Config{Address: server.URL, Identity: identity})
	if err != nil {
		t.Fatal(err)
	}
	l, err := p.Login(t.Context(), nil)
	if err != nil || l.Token.Reveal() != "t" || l.ID.Reveal() != "a" || l.TTL != time.Minute {
		t.Fatal(l, err)
	}
	decode := func(name string) []byte {
		text, err := base64.StdEncoding.DecodeString(body[name])
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	var headers http.Header
	if err := json.Unmarshal(decode("iam_request_headers"), &headers); err != nil {
		t.Fatal(err)
	}
	if body["role"] != "proxy" || body["iam_http_request_method"] != "POST" || string(decode("iam_request_url")) != "https://sts.eu-west-1.amazonaws.com/" ||
		string(decode("iam_request_body")) != "Action=GetCallerIdentity&Version=2011-06-15" {
		t.Errorf("sent %v", body)
	}
	signed := headers.Get("Authorization")
	for _, want := range []string{
		"AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE/20260304/eu-west-1/sts/aws4_request", "x-vault-aws-iam-server-id", "x-amz-security-token", "host", "content-type",
	} {
		if !strings.Contains(signed, want) {
			t.Errorf("the signature lacks %s: %s", want, signed)
		}
	}
	if headers.Get("X-Vault-Aws-Iam-Server-Id") != "vault.example.org" || headers.Get("X-Amz-Date") != "20260304T050607Z" || headers.Get("Host") == "" {
		t.Errorf("headers %v", headers)
	}
	if bytes.Contains(decode("iam_request_headers"), []byte("canary-secret-key")) {
		t.Error("the key is sent")
	}
}

func TestAnAnswerThatIsTooLongOrNoneIsNoCredential(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"endless": func(w http.ResponseWriter, _ *http.Request) {
			for range 6 << 10 {
				if _, err := w.Write(make([]byte, 1024)); err != nil {
					return
				}
			}
		},
		"no JSON":  func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("canary-body")) },
		"an error": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500); w.Write([]byte("canary-body")) },
		"elsewhere": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "ftp://127.0.0.1/canary-body", http.StatusTemporaryRedirect)
		},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(answer)
			defer server.Close()
			p, err := vault.New(vault.Config{Address: server.URL})
			if err != nil {
				t.Fatal(err)
			}
			_, err = p.Fetch(t.Context(), credential.Request{Path: "kv/data/orders"})
			if err == nil || strings.Contains(err.Error(), "canary-body") {
				t.Errorf("told %v", err)
			}
		})
	}
}
