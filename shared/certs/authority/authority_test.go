package authority_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prism-gateway/prism/shared/certs/authority"
	"github.com/prism-gateway/prism/shared/secret"
)

func newAuthority(t *testing.T, now func() time.Time) *authority.Authority {
	t.Helper()
	a, err := authority.New("test", now)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func verified(t *testing.T, p authority.Pair, at time.Time, use x509.ExtKeyUsage) ([][]*x509.Certificate, error) {
	t.Helper()
	pair, err := tls.X509KeyPair(p.Certificate, []byte(p.Key.Reveal()))
	if err != nil {
		t.Fatal(err)
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AppendCertsFromPEM(p.Authority)
	for _, der := range pair.Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		between.AddCert(c)
	}
	return pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{use}})
}

func TestIssuedCertificatesSayWhatWasAsked(t *testing.T) {
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	root := newAuthority(t, func() time.Time { return now })
	below, err := root.Intermediate("below")
	if err != nil {
		t.Fatal(err)
	}
	for name, a := range map[string]*authority.Authority{"by the root": root, "by an intermediate authority": below} {
		t.Run(name, func(t *testing.T) {
			p, err := a.Issue(authority.Request{
				CommonName: "proxy-1.prod.eu", Units: []string{"platform"}, URIs: []string{"spiffe://example.org/proxy-1"}, DNS: []string{"localhost"},
				IPs: []net.IP{net.IPv4(127, 0, 0, 1)}, TTL: time.Hour, Client: true,
			})
			if err != nil {
				t.Fatal(err)
			}
			chains, err := verified(t, p, now, x509.ExtKeyUsageClientAuth)
			if err != nil {
				t.Fatal(err)
			}
			leaf := chains[0][0]
			if leaf.Subject.CommonName != "proxy-1.prod.eu" || leaf.Subject.OrganizationalUnit[0] != "platform" || leaf.URIs[0].String() != "spiffe://example.org/proxy-1" ||
				leaf.VerifyHostname("localhost") != nil || leaf.VerifyHostname("127.0.0.1") != nil || leaf.IsCA || !leaf.NotAfter.Equal(now.Add(time.Hour)) {
				t.Errorf("%+v", leaf)
			}
			if _, err := verified(t, p, now.Add(2*time.Hour), x509.ExtKeyUsageClientAuth); err == nil {
				t.Error("it is good for longer than asked")
			}
			if _, err := verified(t, p, now, x509.ExtKeyUsageServerAuth); err == nil {
				t.Error("it is good for servers")
			}
		})
	}
	if _, err := root.Issue(authority.Request{URIs: []string{"spiffe://x/%zz"}}); err == nil {
		t.Error("a URI that is none passes")
	}
}

func TestAnAuthorityIsKept(t *testing.T) {
	a := newAuthority(t, nil)
	key, err := a.Key()
	if err != nil {
		t.Fatal(err)
	}
	again, err := authority.Open(a.PEM(), key, nil)
	if err != nil {
		t.Fatal(err)
	}
	p, err := again.Issue(authority.Request{CommonName: "a.b", Server: true})
	if err != nil {
		t.Fatal(err)
	}
	p.Authority = a.PEM()
	if _, err := verified(t, p, time.Now(), x509.ExtKeyUsageServerAuth); err != nil {
		t.Error(err)
	}
	otherKey, err := newAuthority(t, nil).Key()
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		certificate []byte
		key         secret.Text
	}{
		"nothing":          {nil, secret.Text{}},
		"no certificate":   {[]byte("canary"), key},
		"no key":           {a.PEM(), secret.New("canary")},
		"another's key":    {a.PEM(), otherKey},
		"no authority":     {p.Certificate, p.Key},
		"a key for a cert": {[]byte(key.Reveal()), key},
		"a cert for a key": {a.PEM(), secret.New(string(a.PEM()))},
	} {
		if _, err := authority.Open(tc.certificate, tc.key, nil); err == nil || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFilesAreWrittenForTheirOwner(t *testing.T) {
	dir := t.TempDir()
	a := newAuthority(t, nil)
	for range 2 { // the second time over the first
		p, err := a.Issue(authority.Request{CommonName: "a.b", Client: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Write(dir, "own"); err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]struct {
			text string
			mode os.FileMode
		}{"own.pem": {string(p.Certificate), 0o644}, "own-key.pem": {p.Key.Reveal(), 0o600}, "ca.pem": {string(a.PEM()), 0o644}} {
			text, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			info, err := os.Stat(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			if string(text) != want.text || info.Mode().Perm() != want.mode {
				t.Errorf("%s: mode %v, or another content", name, info.Mode())
			}
		}
		if text := fmt.Sprintf("%v %+v %#v", p.Key, p, p); strings.Contains(text, strings.Split(p.Key.Reveal(), "\n")[1]) {
			t.Error("a key is printed")
		}
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".*")); err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
	if err := (authority.Pair{}).Write(filepath.Join(dir, "away"), "own"); err == nil {
		t.Error("a directory that is not there is written into")
	}
}

func TestRevokedCertificatesAreListed(t *testing.T) {
	a := newAuthority(t, nil)
	p, err := a.Issue(authority.Request{CommonName: "a.b", Client: true})
	if err != nil {
		t.Fatal(err)
	}
	text, err := a.Revoke(time.Hour, p.Leaf)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(string(text), "-----BEGIN X509 CRL-----") {
		t.Errorf("%s", text)
	}
}
