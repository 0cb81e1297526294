package certs

import (
	"crypto/x509"

	"github.com/prism-gateway/prism/shared/principal"
)

// Verify returns whom a client's certificate names that was shown elsewhere than in a handshake, with the intermediate
// authorities after it, if it would be taken in one now.
func (s *Source) Verify(chain []*x509.Certificate) (*principal.Principal, error) {
	m := s.current.Load()
	if m == nil || len(chain) == 0 {
		return nil, errNotLoaded
	}
	between, now := x509.NewCertPool(), s.cfg.Now()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	chains, err := chain[0].Verify(x509.VerifyOptions{
		Roots: m.roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return nil, err
	}
	if err := m.check(chains, x509.ExtKeyUsageClientAuth, 0, now); err != nil {
		return nil, err
	}
	return principal.FromCertificate(chain[0])
}
