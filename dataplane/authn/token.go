// Package authn verifies bearer tokens (JWT) of the issuers that the proxy believes.
package authn

import (
	"crypto/sha256"
	"slices"
	"time"

	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/principal"
)

// Token is a bearer token that was verified. It does not change and is shared between calls.
type Token struct {
	// Principal is whom it speaks for, without a certificate.
	Principal *principal.Principal
	// Issuer and Audiences are those that it names.
	Issuer    string
	Audiences []string
	// IssuedAt and ExpiresAt bound its life; IssuedAt may be zero.
	IssuedAt, ExpiresAt time.Time
	// Hash is the SHA-256 of the token.
	Hash [sha256.Size]byte
}

// For reports whether a namespace that wants a certain issuer, or audience, takes the token; empty means any that the
// proxy believes. The error is a fault.
func (t *Token) For(issuer, audience string) error {
	switch {
	case issuer != "" && t.Issuer != issuer:
		return fault.New(fault.Unauthenticated, fault.IssuerUnknown, "the namespace takes no tokens of this issuer").WithOutcome(fault.NotApplied)
	case audience != "" && !slices.Contains(t.Audiences, audience):
		return fault.New(fault.Unauthenticated, fault.TokenInvalid, "the token is not meant for this namespace").WithOutcome(fault.NotApplied)
	}
	return nil
}
