package certs_test

import (
	"context"
	"crypto/tls"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prism-gateway/prism/shared/certs"
	"github.com/prism-gateway/prism/shared/secret"
	"github.com/prism-gateway/prism/shared/testserver/vaultserver"
)

// What a real PKI secrets engine issues, signs and revokes is what a Source takes.
func TestAPKIEngineForReal(t *testing.T) {
	v := vaultserver.Start(t, vaultserver.Options{})
	v.Do(t, "POST", "sys/mounts/pki", map[string]any{"type": "pki", "config": map[string]any{"max_lease_ttl": "240h"}})
	v.Do(t, "POST", "pki/root/generate/internal", map[string]any{"common_name": "root", "ttl": "200h"})
	v.Do(t, "POST", "sys/mounts/below", map[string]any{"type": "pki"})
	request := answer(t, v.Do(t, "POST", "below/intermediate/generate/internal", map[string]any{"common_name": "below"}))
	signed := answer(t, v.Do(t, "POST", "pki/root/sign-intermediate", map[string]any{"csr": request["csr"], "ttl": "100h"}))
	v.Do(t, "POST", "below/intermediate/set-signed", map[string]any{"certificate": signed["certificate"].(string) + "\n" + signed["issuing_ca"].(string)})
	role := map[string]any{
		"allow_any_name": true, "allowed_uri_sans": "spiffe://*", "server_flag": true, "client_flag": true, "key_type": "ec", "key_bits": 256, "max_ttl": "48h", "require_cn": false,
	}
	v.Do(t, "POST", "below/roles/prism", role)
	issue := func(_ context.Context, r certs.Request) (certs.Issued, error) {
		got := answer(t, v.Do(t, "POST", r.Path, map[string]any{
			"common_name": r.CommonName, "uri_sans": strings.Join(r.URIs, ","), "alt_names": strings.Join(r.DNS, ","), "ip_sans": strings.Join(r.IPs, ","),
			"ttl": r.TTL.String(), "csr": string(r.SigningRequest),
		}))
		chain, ok := got["ca_chain"].([]any)
		if !ok || len(chain) != 2 {
			return certs.Issued{}, errors.New("the answer has no chain")
		}
		issued := certs.Issued{Certificate: []byte(got["certificate"].(string) + "\n" + chain[0].(string)), Authorities: []byte(chain[1].(string))}
		if key, ok := got["private_key"].(string); ok {
			issued.Key = secret.New(key)
		}
		return issued, nil
	}
	at := func(path string) watched {
		from := ofVault(0)
		from.GetVaultPki().Path = path
		return load(t, from, func(c *certs.Config) { c.Issue = issue })
	}
	for _, path := range []string{"below/sign/prism", "below/issue/prism"} {
		w := at(path)
		s := serve(t, w.Server(certs.ServerConfig{}))
		conn, err := s.dial(at("below/sign/prism").Client(takes("spiffe://example.org/proxy")))
		if err != nil {
			t.Fatalf("%s: %v, %v", path, err, <-s.refused)
		}
		conn.Close()
	}

	// Its lists of revoked certificates are lists that files may hold.
	caller, next := at("below/sign/prism"), at("below/sign/prism")
	root := answer(t, v.Do(t, "GET", "pki/cert/ca", nil))["certificate"].(string)
	v.Do(t, "POST", "below/revoke", map[string]any{"certificate": string(pemOf(caller.Certificate().Leaf))})
	dir := t.TempDir()
	put(t, filepath.Join(dir, "crl.pem"), []byte(answer(t, v.Do(t, "GET", "below/cert/crl", nil))["certificate"].(string)))
	own, err := newAuthority(t).Issue(program("proxy"))
	if err != nil {
		t.Fatal(err)
	}
	own.Authority = []byte(root)
	files := filed(t, dir, own)
	files.CrlFile = filepath.Join(dir, "crl.pem")
	s := serve(t, load(t, ofFiles(files)).Server(certs.ServerConfig{}))
	for _, tc := range []struct {
		caller watched
		want   string
	}{{next, ""}, {caller, "revoked"}} {
		conn, err := s.dial(&tls.Config{InsecureSkipVerify: true, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return tc.caller.Certificate(), nil
		}})
		if err == nil {
			conn.Close()
			if tc.want != "" {
				t.Error("a revoked certificate passes")
			}
		} else if refused := <-s.refused; certs.Reason(refused) != tc.want {
			t.Errorf("refused as %s, want %q: %v", certs.Reason(refused), tc.want, refused)
		}
	}
}

func answer(t testing.TB, out map[string]any) map[string]any {
	t.Helper()
	data, ok := out["data"].(map[string]any)
	if !ok {
		t.Fatalf("the answer has no data: %v", out)
	}
	return data
}
