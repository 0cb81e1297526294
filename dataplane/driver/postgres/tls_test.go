package postgres_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/shared/certs/authority"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/secret"
	"github.com/prism-gateway/prism/shared/testserver/postgresserver"
)

// certificate makes one of an address, which nobody else has signed, and its key, as PEM.
func certificate(t *testing.T, address string) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "postgres"}, IPAddresses: []net.IP{net.ParseIP(address)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	signed, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: signed}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// TestTLS sends nothing to a server that is not who it should be, and nothing in clear unless it is told to.
func TestTLS(t *testing.T) {
	start := func(address string) (*postgresserver.Server, string) {
		cert, key := certificate(t, address)
		file := filepath.Join(t.TempDir(), "ca.pem")
		if err := os.WriteFile(file, cert, 0o600); err != nil {
			t.Fatal(err)
		}
		return postgresserver.Start(t, postgresserver.Options{
			Settings: []string{"ssl=on", "ssl_cert_file=server.crt", "ssl_key_file=server.key"},
			Files: map[string][]byte{
				"server.crt": cert, "server.key": key,
				"pg_hba.conf": []byte("hostssl all all 127.0.0.1/32 scram-sha-256\nhostnossl postgres all 127.0.0.1/32 scram-sha-256\n"),
			},
		}), file
	}
	right, ca := start("127.0.0.1")
	misnamed, itsCA := start("127.0.0.2")
	for name, c := range map[string]struct {
		server   *postgresserver.Server
		settings map[string]string
		works    bool
	}{
		"the server's authority":            {right, map[string]string{"ca_file": ca}, true},
		"another authority":                 {right, map[string]string{"ca_file": itsCA}, false},
		"the system's authorities":          {right, nil, false},
		"a file that is not there":          {right, map[string]string{"ca_file": ca + "x"}, false},
		"a certificate of another address":  {misnamed, map[string]string{"ca_file": itsCA}, false},
		"require looks at no certificate":   {misnamed, map[string]string{"sslmode": "require"}, true},
		"disable, and the server wants TLS": {right, map[string]string{"sslmode": "disable"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config(t, c.server)
			delete(cfg.Settings, "sslmode")
			for k, v := range c.settings {
				cfg.Settings[k] = v
			}
			_, err := open(t, cfg).Write(t.Context(), "s", put("a", "", "v"))
			if c.works {
				if err != nil {
					t.Error(chain(err))
				}
				return
			}
			if err := is(err, fault.Unavailable, fault.BackendDown, fault.NotApplied); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestClientCertificate is who the proxy is where the server asks for one.
func TestClientCertificate(t *testing.T) {
	clients, err := authority.New("the users' authority", time.Now)
	if err != nil {
		t.Fatal(err)
	}
	pair := func(name string) authority.Pair {
		pair, err := clients.Issue(authority.Request{CommonName: name, Client: true})
		if err != nil {
			t.Fatal(err)
		}
		return pair
	}
	right, other := pair(postgresserver.User), pair("somebody")
	server := postgresserver.Start(t, postgresserver.Options{
		TLS: true, Settings: []string{"ssl_ca_file=clients.pem"},
		Files: map[string][]byte{"clients.pem": right.Authority, "pg_hba.conf": []byte("hostssl all all 127.0.0.1/32 cert\n")},
	})
	for name, c := range map[string]struct {
		certificate []byte
		key         secret.Text
		want        fault.Reason
	}{
		"the user's":     {right.Certificate, right.Key, ""},
		"another user's": {other.Certificate, other.Key, fault.CredentialsUnavailable},
		"none":           {nil, secret.Text{}, fault.CredentialsUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			i := open(t, driver.Config{
				Name: "store", Endpoints: []string{server.Addr()}, Username: postgresserver.User, Certificate: c.certificate, PrivateKey: c.key,
				Settings: map[string]string{"database": "postgres", "ca_file": server.CAFile()},
			})
			_, err := i.Write(t.Context(), "s", put("a", "k", "v"))
			if (err == nil) != (c.want == "") || err != nil && !fault.Is(err, c.want) {
				t.Errorf("%v, want %s", err, c.want)
			}
		})
	}
}
