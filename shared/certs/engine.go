package certs

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"net/url"
	"time"

	bootstrapv1 "github.com/prism-gateway/prism/protos/prism/bootstrap/v1"
	"github.com/prism-gateway/prism/shared/secret"
)

const (
	defaultTTL   = 24 * time.Hour
	issueTimeout = 30 * time.Second
)

// Issue asks a PKI secrets engine for a certificate. Its errors must not hold a secret.
type Issue func(context.Context, Request) (Issued, error)

// Request is what a PKI secrets engine is asked for.
type Request struct {
	// Provider and Path say whom to ask what, such as vault and pki/issue/prism-proxy.
	Provider, Path string
	// CommonName, URIs, DNS and IPs are what the certificate is to say.
	CommonName     string
	URIs, DNS, IPs []string
	// TTL is for how long.
	TTL time.Duration
	// SigningRequest is the same as PKCS #10, PEM, with a key that stays here: for paths that sign (pki/sign/...). Paths that
	// issue make a key themselves.
	SigningRequest []byte
}

// Issued is what a PKI secrets engine answers.
type Issued struct {
	// Certificate is PEM, the intermediate authorities after it.
	Certificate []byte
	// Key is PEM; zero when the key of the signing request was signed.
	Key secret.Text
	// Authorities are the roots to believe, PEM.
	Authorities []byte
}

// engine is a PKI secrets engine.
type engine struct {
	want  *bootstrapv1.VaultPki
	issue Issue
	now   func() time.Time
}

func (e *engine) patient() bool { return true }

// load asks for a certificate.
func (e *engine) load(ctx context.Context) (*material, error) {
	r := Request{Provider: e.want.GetProvider(), Path: e.want.GetPath(), CommonName: e.want.GetCommonName(), URIs: e.want.GetUriSans(), TTL: defaultTTL}
	if e.want.GetTtl() != nil {
		r.TTL = e.want.GetTtl().AsDuration()
	}
	key, err := r.sign(e.want.GetNames())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, issueTimeout)
	defer cancel()
	got, err := e.issue(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("%s of %s: %w", r.Path, r.Provider, err)
	}
	if !got.Key.IsZero() {
		key = []byte(got.Key.Reveal())
	}
	m, err := parse(got.Certificate, key, got.Authorities, nil, e.now())
	if err != nil {
		return nil, fmt.Errorf("%s of %s: %w", r.Path, r.Provider, err)
	}
	return m, nil
}

// sign makes the signing request, and the key that it is for.
func (r *Request) sign(names []string) (key []byte, err error) {
	want := &x509.CertificateRequest{Subject: pkix.Name{CommonName: r.CommonName}}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			r.IPs, want.IPAddresses = append(r.IPs, name), append(want.IPAddresses, ip)
		} else {
			r.DNS, want.DNSNames = append(r.DNS, name), append(want.DNSNames, name)
		}
	}
	for _, text := range r.URIs {
		u, err := url.Parse(text)
		if err != nil {
			return nil, err
		}
		want.URIs = append(want.URIs, u)
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, err
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, want, private)
	if err != nil {
		return nil, err
	}
	r.SigningRequest = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: request})
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// watch replaces the certificate at half of its life.
func (e *engine) watch(ctx context.Context, m *material, take func(*material, error) error) error {
	for failed := 0; ; {
		wait := backoff(failed, later)
		if failed == 0 {
			half := m.own.Leaf.NotAfter.Sub(m.loadedAt) / 2
			wait = max(time.Second, m.loadedAt.Add(half-half/10+mathrand.N(half/5+1)).Sub(e.now()))
		}
		if !pause(ctx, wait) {
			return nil
		}
		next, err := e.load(ctx)
		switch err = take(next, err); err {
		case nil:
			m, failed = next, 0
		default:
			failed++
		}
	}
}
