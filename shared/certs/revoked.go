package certs

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"slices"
	"sync"
	"time"
)

// revoked is a list of revoked certificates (CRL).
type revoked struct {
	list    *x509.RevocationList
	serials map[string]bool
	signers sync.Map // SHA-256 of an authority's certificate -> whether it signed the list; of verified chains only, so few
}

func newRevoked(der []byte) (*revoked, error) {
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, err
	}
	if list.NextUpdate.IsZero() {
		return nil, errors.New("a list does not say when the next comes")
	}
	for _, e := range list.Extensions {
		if e.Critical { // such as a list of differences, or of a part: taken for a whole one it would hide something
			return nil, errors.New("a list has a critical extension, which is not known here")
		}
	}
	r := &revoked{list: list, serials: make(map[string]bool, len(list.RevokedCertificateEntries))}
	for _, e := range list.RevokedCertificateEntries {
		r.serials[string(e.SerialNumber.Bytes())] = true
	}
	list.RevokedCertificateEntries, list.Raw = nil, nil // what is needed is in serials; RawTBSRevocationList stays to be verified
	return r, nil
}

// by reports whether the authority made the list.
func (r *revoked) by(authority *x509.Certificate) bool {
	if !bytes.Equal(r.list.RawIssuer, authority.RawSubject) {
		return false
	}
	key := sha256.Sum256(authority.Raw)
	if known, ok := r.signers.Load(key); ok {
		return known.(bool)
	}
	good := r.list.CheckSignatureFrom(authority) == nil
	r.signers.Store(key, good)
	return good
}

// after reports whether a list is newer than another of its authority.
func (r *revoked) after(other *revoked) bool {
	if other == nil || !r.list.ThisUpdate.Equal(other.list.ThisUpdate) || r.list.Number == nil || other.list.Number == nil {
		return other == nil || r.list.ThisUpdate.After(other.list.ThisUpdate)
	}
	return r.list.Number.Cmp(other.list.Number) > 0
}

// revocation says why a chain is not good by the lists, which are there or not: without any nothing is checked. With
// lists, the authority of the leaf must have one, and every list that counts must be current: an old one may lack what
// was revoked since.
func (m *material) revocation(chain []*x509.Certificate, now time.Time) error {
	if len(m.lists) == 0 {
		return nil
	}
	for i, c := range chain[:len(chain)-1] {
		var newest *revoked
		for _, l := range m.lists {
			if l.after(newest) && l.by(chain[i+1]) {
				newest = l
			}
		}
		switch {
		case newest == nil && i == 0:
			return refusal{reasonNoList, chain[0]}
		case newest == nil:
		case newest.serials[string(c.SerialNumber.Bytes())]:
			return refusal{reasonRevoked, chain[0]}
		case now.After(newest.list.NextUpdate):
			return refusal{reasonOldList, chain[0]}
		}
	}
	return nil
}

// speaksFor reports whether the root of a chain may speak for a trust domain.
func (m *material) speaksFor(domain string, chain []*x509.Certificate) bool {
	return m.domains == nil || m.domains[domain][sha256.Sum256(chain[len(chain)-1].Raw)]
}

// forUse reports whether a certificate says that it is for that.
func forUse(c *x509.Certificate, use x509.ExtKeyUsage) bool {
	return slices.Contains(c.ExtKeyUsage, use) || slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny)
}
