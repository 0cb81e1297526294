// Package authority is a small certificate authority: for a Prism on one machine, and for tests.
package authority

import (
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/prism-gateway/prism/shared/secret"
)

const (
	lives     = 10 * 365 * 24 * time.Hour // an authority
	leafLives = 24 * time.Hour
	backdated = time.Minute // so that clocks may differ a little
)

// Authority signs certificates. Its methods may be called concurrently.
type Authority struct {
	now   func() time.Time
	cert  *x509.Certificate
	key   *ecdsa.PrivateKey
	chain []byte // PEM of an intermediate authority's certificates, empty for a root
	root  []byte // PEM
}

// Request is what a certificate is to say.
type Request struct {
	// CommonName is service.environment or service.environment.region.
	CommonName string
	// Units are the organizational units, the teams of a caller.
	Units []string
	// URIs are names such as a SPIFFE id, DNS and IPs those of a server.
	URIs []string
	DNS  []string
	IPs  []net.IP
	// TTL is for how long it is good; default a day.
	TTL time.Duration
	// Client and Server say what it is for.
	Client, Server bool
}

// Pair is a certificate with what belongs to it.
type Pair struct {
	// Certificate is PEM: the certificate, and the intermediate authorities after it.
	Certificate []byte
	// Key is PEM, PKCS #8.
	Key secret.Text
	// Authority is the root's certificate, PEM.
	Authority []byte
	// Leaf is the certificate.
	Leaf *x509.Certificate
}

// New makes a root authority that is good for ten years from now on. now is the clock of what it signs; nil means time.Now.
func New(name string, now func() time.Time) (*Authority, error) {
	a, err := empty(name, now)
	if err != nil {
		return nil, err
	}
	if a.cert, err = sign(a.cert, a.cert, a.key.Public(), a.key); err != nil {
		return nil, err
	}
	a.root = encode("CERTIFICATE", a.cert.Raw)
	return a, nil
}

// Open makes a root authority again of what PEM and Key gave.
func Open(certificate []byte, key secret.Text, now func() time.Time) (*Authority, error) {
	if now == nil {
		now = time.Now
	}
	block, _ := pem.Decode(certificate)
	keyBlock, _ := pem.Decode([]byte(key.Reveal()))
	if block == nil || keyBlock == nil {
		return nil, errors.New("authority: want a certificate and a key, PEM")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("authority: %w", err)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(keyBlock.Bytes)
	if err != nil {
		return nil, errors.New("authority: the key is not PKCS #8")
	}
	signer, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || !cert.IsCA || !signer.PublicKey.Equal(cert.PublicKey) {
		return nil, errors.New("authority: the key is not that of the authority's certificate")
	}
	return &Authority{now: now, cert: cert, key: signer, root: encode("CERTIFICATE", cert.Raw)}, nil
}

func empty(name string, now func() time.Time) (*Authority, error) {
	if now == nil {
		now = time.Now
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := now()
	return &Authority{now: now, key: key, cert: &x509.Certificate{
		Subject:   pkix.Name{Organization: []string{"Prism"}, CommonName: name},
		NotBefore: t.Add(-backdated), NotAfter: t.Add(lives),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}}, nil
}

// PEM is the certificate of the root, which others are to believe.
func (a *Authority) PEM() []byte { return a.root }

// Certificate is the authority's own.
func (a *Authority) Certificate() *x509.Certificate { return a.cert }

// Key is the authority's private key, PEM, for Open.
func (a *Authority) Key() (secret.Text, error) { return encodeKey(a.key) }

// Intermediate makes an authority whose certificate this one signs.
func (a *Authority) Intermediate(name string) (*Authority, error) {
	below, err := empty(name, a.now)
	if err != nil {
		return nil, err
	}
	if below.cert, err = sign(below.cert, a.cert, below.key.Public(), a.key); err != nil {
		return nil, err
	}
	below.chain, below.root = append(encode("CERTIFICATE", below.cert.Raw), a.chain...), a.root
	return below, nil
}

// Issue makes a key and signs its certificate.
func (a *Authority) Issue(r Request) (Pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Pair{}, err
	}
	leaf, err := a.Sign(r, key.Public())
	if err != nil {
		return Pair{}, err
	}
	text, err := encodeKey(key)
	if err != nil {
		return Pair{}, err
	}
	return Pair{Certificate: append(encode("CERTIFICATE", leaf.Raw), a.chain...), Key: text, Authority: a.root, Leaf: leaf}, nil
}

// Sign signs a certificate of a key that another keeps.
func (a *Authority) Sign(r Request, key crypto.PublicKey) (*x509.Certificate, error) {
	t := a.now()
	c := &x509.Certificate{
		Subject:   pkix.Name{Organization: []string{"Prism"}, OrganizationalUnit: r.Units, CommonName: r.CommonName},
		NotBefore: t.Add(-backdated), NotAfter: t.Add(cmp.Or(r.TTL, leafLives)),
		DNSNames: r.DNS, IPAddresses: r.IPs,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
	}
	if r.Client {
		c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	if r.Server {
		c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	for _, text := range r.URIs {
		u, err := url.Parse(text)
		if err != nil {
			return nil, fmt.Errorf("authority: %w", err)
		}
		c.URIs = append(c.URIs, u)
	}
	return sign(c, a.cert, key, a.key)
}

// Revoke makes the list, PEM, of certificates of this authority that are good no longer. It is to be replaced after ttl.
func (a *Authority) Revoke(ttl time.Duration, revoked ...*x509.Certificate) ([]byte, error) {
	t := a.now()
	list := &x509.RevocationList{Number: big.NewInt(t.UnixNano()), ThisUpdate: t.Add(-backdated), NextUpdate: t.Add(ttl)}
	for _, c := range revoked {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: t})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, a.cert, a.key)
	if err != nil {
		return nil, fmt.Errorf("authority: %w", err)
	}
	return encode("X509 CRL", der), nil
}

// Write puts a pair into a directory as name.pem and name-key.pem, which its owner alone can read, and the authority as
// ca.pem. Each file is there whole or not at all.
func (p Pair) Write(dir, name string) error {
	for _, f := range []struct {
		name string
		data []byte
		mode os.FileMode
	}{{name + ".pem", p.Certificate, 0o644}, {name + "-key.pem", []byte(p.Key.Reveal()), 0o600}, {"ca.pem", p.Authority, 0o644}} {
		if err := replace(filepath.Join(dir, f.name), f.data, f.mode); err != nil {
			return fmt.Errorf("authority: %w", err)
		}
	}
	return nil
}

func replace(path string, data []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err = errors.Join(err, f.Chmod(mode), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

func sign(c, parent *x509.Certificate, key crypto.PublicKey, by crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key, by) // which makes the serial number too
	if err != nil {
		return nil, fmt.Errorf("authority: %w", err)
	}
	return x509.ParseCertificate(der)
}

func encodeKey(key *ecdsa.PrivateKey) (secret.Text, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return secret.Text{}, fmt.Errorf("authority: %w", err)
	}
	return secret.New(string(encode("PRIVATE KEY", der))), nil
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
