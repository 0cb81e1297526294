package nats_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/testserver/natsserver"
)

// certificate makes one of the loopback address, which nobody else has signed, and writes it and its key into files.
func certificate(t *testing.T) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "nats"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
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
	return write("cert.pem", "CERTIFICATE", cert), write("key.pem", "PRIVATE KEY", secret)
}

// TestTLS trusts only whom it was told to.
func TestTLS(t *testing.T) {
	cert, key := certificate(t)
	other, _ := certificate(t)
	server := natsserver.Start(t, natsserver.Options{Config: fmt.Sprintf("tls { cert_file: %q, key_file: %q }", cert, key)})
	down := func(err error) error { return is(err, fault.Unavailable, fault.BackendDown, fault.NotApplied) }
	for name, c := range map[string]struct {
		settings map[string]string
		want     func(err error) error
	}{
		"the server's authority":   {map[string]string{"tls": "true", "ca_file": cert}, func(err error) error { return err }},
		"the file alone":           {map[string]string{"ca_file": cert}, func(err error) error { return err }},
		"another authority":        {map[string]string{"ca_file": other}, down},
		"the system's authorities": {map[string]string{"tls": "true"}, down},
		"a file that is not there": {map[string]string{"ca_file": cert + "x"}, down},
		"a file of something else": {map[string]string{"ca_file": key}, down},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, driver.Config{Endpoints: []string{server.Addr()}, Settings: c.settings})
			_, err := s.Write(t.Context(), "s", put("a", "k", "v"))
			if err := c.want(err); err != nil {
				t.Error(err)
			}
		})
	}
}
