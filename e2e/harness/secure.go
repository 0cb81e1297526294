package harness

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	bootstrapv1 "github.com/prism-gateway/prism/protos/prism/bootstrap/v1"
	"github.com/prism-gateway/prism/shared/certs/authority"
)

// Tester is the SPIFFE id by which a test calls the programs of a cluster that is secured.
const Tester = "spiffe://prism.test/ns/e2e/sa/tester"

// Authority is the authority of a cluster that is secured, with the directory where certificates are.
type Authority struct {
	*authority.Authority
	Dir string

	t T
}

func newAuthority(t T, dir string) *Authority {
	t.Helper()
	dir = filepath.Join(dir, "certificates")
	root, err := authority.New("e2e", nil)
	if err == nil {
		err = os.Mkdir(dir, 0o700)
	}
	if err != nil {
		t.Fatalf("authority: %v", err)
	}
	return &Authority{Authority: root, Dir: dir, t: t}
}

// Issue writes the certificate of a SPIFFE id into files that begin with a name.
func (a *Authority) Issue(name, id string, ttl time.Duration) *bootstrapv1.Certificates {
	a.t.Helper()
	pair, err := a.Authority.Issue(authority.Request{
		URIs: []string{id}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}, DNS: []string{"localhost"}, TTL: ttl, Client: true, Server: true,
	})
	if err == nil {
		err = pair.Write(a.Dir, name)
	}
	if err != nil {
		a.t.Fatalf("certificate of %s: %v", name, err)
	}
	return &bootstrapv1.Certificates{Source: &bootstrapv1.Certificates_Files{Files: &bootstrapv1.CertificateFiles{
		CertFile: filepath.Join(a.Dir, name+".pem"), KeyFile: filepath.Join(a.Dir, name+"-key.pem"), CaFile: filepath.Join(a.Dir, "ca.pem"),
	}}}
}

// listener is TLS of a program of the cluster: proxies are named below proxy, replicas below admin.
func (a *Authority) listener(kind, id string) *bootstrapv1.ListenerTls {
	return &bootstrapv1.ListenerTls{Certificates: a.Issue(id, "spiffe://prism.test/prism/"+kind+"/"+id, 0)}
}

// Client is TLS of a client that shows the certificate written under a name; empty shows none.
func (a *Authority) Client(name string) *tls.Config {
	a.t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(a.Certificate())
	c := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2"}, ServerName: "127.0.0.1"}
	if name != "" {
		own, err := tls.LoadX509KeyPair(filepath.Join(a.Dir, name+".pem"), filepath.Join(a.Dir, name+"-key.pem"))
		if err != nil {
			a.t.Fatalf("certificate of %s: %v", name, err)
		}
		c.Certificates = []tls.Certificate{own}
	}
	return c
}

// credentials are how the test reaches the programs.
func (c *Cluster) credentials() grpc.DialOption {
	if c.Authority == nil {
		return grpc.WithTransportCredentials(insecure.NewCredentials())
	}
	return grpc.WithTransportCredentials(credentials.NewTLS(c.Authority.Client("tester")))
}
