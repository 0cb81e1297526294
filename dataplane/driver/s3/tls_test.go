package s3_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/testserver/s3server"
)

// certificate makes one for the loopback address, and its key, in files.
func certificate(t *testing.T) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "s3"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return write("cert.pem", "CERTIFICATE", der), write("key.pem", "PRIVATE KEY", pkcs8)
}

// TestTLS trusts only whom it was told to.
func TestTLS(t *testing.T) {
	cert, key := certificate(t)
	other, _ := certificate(t)
	server := s3server.Start(t, s3server.Options{Cert: cert, CertKey: key})
	for name, c := range map[string]struct {
		caFile string
		ok     bool
	}{
		"the server's authority":   {cert, true},
		"another authority":        {other, false},
		"the system's authorities": {"", false},
		"a file that is not there": {cert + "x", false},
		"a file of something else": {key, false},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config(server)
			delete(cfg.Settings, "tls")
			if c.caFile != "" {
				cfg.Settings["ca_file"] = c.caFile
			}
			_, err := open(t, cfg).Write(t.Context(), "s", put("a", "k", "v"))
			if c.ok && err != nil || !c.ok && is(err, fault.Unavailable, fault.BackendDown, fault.NotApplied) != nil {
				t.Errorf("got %v (%v)", err, errors.Unwrap(err))
			}
		})
	}
}
