package certs

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"strings"
	"time"

	bootstrapv1 "github.com/prism-gateway/prism/protos/prism/bootstrap/v1"
	"github.com/prism-gateway/prism/shared/principal"
)

// defaultDepth is the most certificates of a caller's chain, the root's with it.
const defaultDepth = 3

var (
	errNotLoaded = errors.New("certs: there is no certificate yet")
	// suites are those of TLS 1.2 that HTTP/2 permits; TLS 1.3 has its own.
	suites = []uint16{
		tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
		tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
		tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
	}
)

// ServerConfig is what a listener asks of its callers.
type ServerConfig struct {
	// ClientAuth is whether they show a certificate; unspecified means that they must. One that is shown must be good.
	ClientAuth bootstrapv1.ClientCertificates
	// MaxDepth is the most certificates from a caller's up to and with the root's; 0 means 3.
	MaxDepth int
	// Protocols are offered by ALPN; nil means h2.
	Protocols []string
}

// Server is TLS of a listener, for as long as the Source is there. Each handshake uses what is current then; a caller's
// certificate that passed is in ConnectionState.VerifiedChains. A session is never resumed, because that would pass by
// what changed since.
func (s *Source) Server(cfg ServerConfig) *tls.Config {
	auth := tls.RequireAndVerifyClientCert
	if cfg.ClientAuth == bootstrapv1.ClientCertificates_CLIENT_CERTIFICATES_OPTIONAL {
		auth = tls.VerifyClientCertIfGiven
	}
	if cfg.Protocols == nil {
		cfg.Protocols = []string{"h2"}
	}
	depth := cmp.Or(cfg.MaxDepth, defaultDepth)
	base := s.base()
	base.NextProtos, base.ClientAuth = cfg.Protocols, auth
	each := base.Clone()
	base.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		m := s.current.Load()
		if m == nil {
			return nil, errNotLoaded
		}
		c := each.Clone()
		c.Certificates, c.ClientCAs = []tls.Certificate{*m.own}, m.roots
		c.VerifyConnection = func(state tls.ConnectionState) error {
			if len(state.PeerCertificates) == 0 {
				return nil // by the leave of ClientAuth
			}
			return m.check(state.VerifiedChains, x509.ExtKeyUsageClientAuth, depth, s.cfg.Now())
		}
		return c, nil
	}
	return base
}

// ClientConfig is what a client asks of its servers.
type ClientConfig struct {
	// ServerName is the name, or address, that the server's certificate must carry. Empty means, without Verify, the name
	// that was dialled; who dials an address must tell it here, except through ClientCredentials.
	ServerName string
	// Verify says who the server may be, by the principal that its certificate names. Nil: the name tells.
	Verify func(*principal.Principal) error
}

// Client is TLS of a client that shows the program's certificate, for as long as the Source is there. Each handshake uses
// what is current then.
func (s *Source) Client(cfg ClientConfig) *tls.Config {
	c := s.base()
	c.NextProtos = []string{"h2"}
	c.ServerName = cfg.ServerName
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		if own := s.Certificate(); own != nil {
			return own, nil
		}
		return nil, errNotLoaded
	}
	c.InsecureSkipVerify = true // VerifyConnection verifies, by the authorities of now instead of those of when it was made
	c.VerifyConnection = func(state tls.ConnectionState) error {
		m := s.current.Load()
		if m == nil {
			return errNotLoaded
		}
		return m.server(state, cfg, s.cfg.Now())
	}
	return c
}

func (s *Source) base() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, CipherSuites: suites, SessionTicketsDisabled: true, Time: s.cfg.Now}
}

// server verifies a server.
func (m *material) server(state tls.ConnectionState, cfg ClientConfig, now time.Time) error {
	leaf, between := state.PeerCertificates[0], x509.NewCertPool()
	for _, c := range state.PeerCertificates[1:] {
		between.AddCert(c)
	}
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots: m.roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return &tls.CertificateVerificationError{UnverifiedCertificates: state.PeerCertificates, Err: err}
	}
	if err := m.check(chains, x509.ExtKeyUsageServerAuth, 0, now); err != nil {
		return err
	}
	name := cfg.ServerName
	if name == "" && cfg.Verify == nil {
		if name = state.ServerName; name == "" {
			return errors.New("certs: the server was dialled by its address: ClientConfig.ServerName must tell it")
		}
	}
	if name != "" {
		if err := leaf.VerifyHostname(name); err != nil {
			return &tls.CertificateVerificationError{UnverifiedCertificates: state.PeerCertificates, Err: err}
		}
	}
	if cfg.Verify == nil {
		return nil
	}
	p, err := principal.FromServerCertificate(leaf)
	if err != nil {
		return err
	}
	return cfg.Verify(p)
}

// check adds what verifying against the pool leaves open. One chain that passes is enough. A depth of 0 does not bound.
func (m *material) check(chains [][]*x509.Certificate, use x509.ExtKeyUsage, depth int, now time.Time) error {
	err := errors.New("certs: there is no chain")
	for _, chain := range chains {
		if err = m.checkChain(chain, use, depth, now); err == nil {
			return nil
		}
	}
	return err
}

func (m *material) checkChain(chain []*x509.Certificate, use x509.ExtKeyUsage, depth int, now time.Time) error {
	leaf := chain[0]
	switch {
	case depth > 0 && len(chain) > depth:
		return refusal{reasonDepth, leaf}
	case leaf.IsCA, leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0, !forUse(leaf, use):
		return refusal{reasonUsage, leaf}
	}
	if m.domains != nil {
		name := principal.FromCertificate
		if use == x509.ExtKeyUsageServerAuth {
			name = principal.FromServerCertificate
		}
		p, err := name(leaf)
		if err != nil || p.SPIFFE == "" {
			return refusal{reasonName, leaf}
		}
		domain, _, _ := strings.Cut(strings.TrimPrefix(p.SPIFFE, "spiffe://"), "/")
		if !m.speaksFor(domain, chain) {
			return refusal{reasonAuthority, leaf}
		}
	}
	return m.revocation(chain, now)
}

// Why a certificate is refused, as Reason tells it. The set is closed.
const (
	reasonNone      = "no_certificate"
	reasonAuthority = "unknown_authority"
	reasonExpired   = "expired"
	reasonRevoked   = "revoked"
	reasonOldList   = "revocation_list_expired"
	reasonNoList    = "revocation_list_missing"
	reasonDepth     = "too_deep"
	reasonUsage     = "wrong_usage"
	reasonName      = "wrong_name"
	reasonOther     = "other"
)

var reasons = []string{
	reasonNone, reasonAuthority, reasonExpired, reasonRevoked, reasonOldList, reasonNoList, reasonDepth, reasonUsage, reasonName, reasonOther,
}

// refusal is why a certificate that comes from a known authority is refused all the same.
type refusal struct {
	reason string
	leaf   *x509.Certificate
}

// Error tells the reason.
func (r refusal) Error() string {
	return "certs: the certificate is refused: " + strings.ReplaceAll(r.reason, "_", " ")
}

// Reason is why a handshake failed, for a metric: one of no_certificate, unknown_authority, expired, revoked,
// revocation_list_expired, revocation_list_missing, too_deep, wrong_usage, wrong_name, other.
func Reason(err error) string {
	var own refusal
	var invalid x509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	switch {
	case errors.As(err, &own):
		return own.reason
	case errors.As(err, &unknown):
		return reasonAuthority
	case errors.As(err, &host):
		return reasonName
	case errors.As(err, &invalid):
		switch invalid.Reason {
		case x509.Expired:
			return reasonExpired
		case x509.IncompatibleUsage:
			return reasonUsage
		case x509.TooManyIntermediates:
			return reasonDepth
		}
	case err != nil && strings.Contains(err.Error(), "client didn't provide a certificate"): // crypto/tls has no value for it
		return reasonNone
	}
	return reasonOther
}
