// Package principal is who calls: a service, by its certificate or its token, or a user, by a token.
//
// It is pure: others verify certificates and tokens, and make principals of what they say.
package principal

import (
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// Kind is what kind of principal it is.
type Kind int

// The kinds.
const (
	Anonymous Kind = iota // nobody told who calls
	Service
	User
)

// String names the kind.
func (k Kind) String() string { return [...]string{"anonymous", "service", "user"}[k] }

// Principal is who calls. It does not change once made. A nil Principal is anonymous.
type Principal struct {
	Kind Kind
	// ID names it in audit records and is the same from call to call: a SPIFFE id, "cn:" and a common name, or an issuer,
	// '#' and a subject.
	ID string
	// SPIFFE is its SPIFFE id, where it has one.
	SPIFFE string
	// Name, Environment and Region are those of a common name service.environment.region; Region may be "unknown".
	Name, Environment, Region string
	// Issuer and Subject are those of its token.
	Issuer, Subject string
	// Groups and Teams are what it belongs to. They are not to be changed.
	Groups, Teams []string
	// Certificate is the SHA-256 of the certificate that it showed; zero when it showed none.
	Certificate [sha256.Size]byte
}

// maxNameBytes bounds what a certificate may call its owner.
const maxNameBytes = 2048

// FromCertificate makes the principal of a caller's certificate, which was verified. Its SPIFFE id counts; without one its
// common name does, service.environment or service.environment.region. Its organizational units are its teams.
func FromCertificate(c *x509.Certificate) (*Principal, error) {
	if !isFor(c, x509.ExtKeyUsageClientAuth) {
		return nil, errors.New("certificate: is not for clients (extended key usage clientAuth)")
	}
	return named(c)
}

// FromServerCertificate is FromCertificate for the certificate of a server that was called.
func FromServerCertificate(c *x509.Certificate) (*Principal, error) {
	if !isFor(c, x509.ExtKeyUsageServerAuth) {
		return nil, errors.New("certificate: is not for servers (extended key usage serverAuth)")
	}
	return named(c)
}

func isFor(c *x509.Certificate, use x509.ExtKeyUsage) bool {
	return slices.Contains(c.ExtKeyUsage, use) || slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny)
}

func named(c *x509.Certificate) (*Principal, error) {
	p := &Principal{Kind: Service, Teams: slices.Clone(c.Subject.OrganizationalUnit), Certificate: sha256.Sum256(c.Raw)}
	var ids []*url.URL
	for _, u := range c.URIs {
		if strings.EqualFold(u.Scheme, "spiffe") {
			ids = append(ids, u)
		}
	}
	switch len(ids) {
	case 0:
		return p.byCommonName(c.Subject.CommonName)
	case 1:
		id := ids[0].String()
		if err := CheckSPIFFE(id); err != nil {
			return nil, fmt.Errorf("certificate: %w", err)
		}
		p.ID, p.SPIFFE = id, id
		return p, nil
	}
	return nil, errors.New("certificate: has more than one SPIFFE id")
}

func (p *Principal) byCommonName(cn string) (*Principal, error) {
	parts := strings.Split(cn, ".")
	if len(cn) > maxNameBytes || len(parts) < 2 || len(parts) > 3 {
		return nil, errors.New("certificate: has no SPIFFE id, and its common name is not service.environment or service.environment.region")
	}
	for _, part := range parts {
		if !label(part) {
			return nil, errors.New("certificate: a part of its common name is not of a-z, A-Z, 0-9, '-', '_'")
		}
	}
	p.ID, p.Name, p.Environment, p.Region = "cn:"+cn, parts[0], parts[1], "unknown"
	if len(parts) == 3 {
		p.Region = parts[2]
	}
	return p, nil
}

func label(s string) bool {
	return s != "" && strings.IndexFunc(s, func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '-' || r == '_')
	}) < 0
}

// CheckSPIFFE reports what is wrong with a SPIFFE id, by the rules of the SPIFFE-ID standard, section 2.
func CheckSPIFFE(id string) error {
	rest, ok := strings.CutPrefix(id, "spiffe://")
	domain, path, hasPath := strings.Cut(rest, "/")
	switch {
	case !ok:
		return errors.New("a SPIFFE id begins with spiffe://")
	case len(id) > maxNameBytes:
		return fmt.Errorf("a SPIFFE id has at most %d bytes", maxNameBytes)
	case domain == "" || strings.IndexFunc(domain, notDomain) >= 0:
		return errors.New("a trust domain is of a-z, 0-9, '.', '-', '_'")
	case !hasPath:
		return nil
	}
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "" || segment == "." || segment == ".." || strings.IndexFunc(segment, notSegment) >= 0 {
			return errors.New("a segment of a SPIFFE id is of a-z, A-Z, 0-9, '.', '-', '_', and neither empty nor '.' nor '..'")
		}
	}
	return nil
}

func notDomain(r rune) bool {
	return !('a' <= r && r <= 'z' || '0' <= r && r <= '9' || r == '.' || r == '-' || r == '_')
}

func notSegment(r rune) bool { return notDomain(r) && !('A' <= r && r <= 'Z') }
