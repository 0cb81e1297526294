package authn_test

import (
	"net/http/httptest"
	"slices"
	"testing"

	"github.com/prism-gateway/prism/dataplane/authn"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/principal"
	"github.com/prism-gateway/prism/shared/testserver/oidcserver"
)

// at is an issuer as verifier takes it.
func at(s *oidcserver.Server) *idp { return &idp{Server: &httptest.Server{URL: s.Issuer()}} }

// TestTokensOfRealIssuers has two of them: one for people, and one for services, which signs with another algorithm.
func TestTokensOfRealIssuers(t *testing.T) {
	people := oidcserver.Start(t, oidcserver.Options{
		Users:     []oidcserver.User{{Email: "ann@example.org", Groups: []string{"analytics", "admins"}}, {Email: canary + "@example.org"}},
		Audiences: []string{"prism", "other"},
	})
	services := oidcserver.Start(t, oidcserver.Options{Services: []oidcserver.Service{{Name: "billing", Groups: []string{"payments"}}}, Algorithm: "ES256"})
	v, _ := verifier(t, at(people), func(c *authn.Config) {
		c.Issuers = []authn.Issuer{
			{URL: people.Issuer(), Audiences: []string{"prism"}},
			{URL: services.Issuer(), Audiences: []string{"prism"}, Algorithms: []string{"ES256"}, TeamsClaim: "groups", Services: true},
		}
	})
	ready(t, v)

	for name, tc := range map[string]struct {
		token  string
		issuer *oidcserver.Server
		kind   principal.Kind
		groups []string
		teams  []string
	}{
		"a user":             {people.Token(t, "ann@example.org"), people, principal.User, []string{"analytics", "admins"}, nil},
		"a user of no group": {people.Token(t, canary+"@example.org"), people, principal.User, nil, nil},
		"a service":          {services.ServiceToken(t, "billing"), services, principal.Service, []string{"payments"}, []string{"payments"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := v.Verify(t.Context(), tc.token)
			if err != nil {
				t.Fatalf("%v: %v", err, fault.From(err).Unwrap())
			}
			p := got.Principal
			if p.Kind != tc.kind || p.Issuer != tc.issuer.Issuer() || p.Subject == "" || p.ID != p.Issuer+"#"+p.Subject {
				t.Errorf("got %+v", p)
			}
			if !slices.Equal(p.Groups, tc.groups) || !slices.Equal(p.Teams, tc.teams) {
				t.Errorf("groups %v, teams %v", p.Groups, p.Teams)
			}
			if err := got.For(tc.issuer.Issuer(), "prism"); err != nil {
				t.Error(err)
			}
		})
	}

	if _, err := v.Verify(t.Context(), people.Token(t, "ann@example.org", "other")); !fault.Is(err, fault.TokenInvalid) {
		t.Errorf("a token for another: %v", err)
	}
}

// TestAnIssuerThatEndsAndComesAgainWithAnotherKey is believed by what it published while it is away, and by what it publishes
// when it is there again.
func TestAnIssuerThatEndsAndComesAgainWithAnotherKey(t *testing.T) {
	issuer := oidcserver.Start(t, oidcserver.Options{Users: []oidcserver.User{{Email: "ann@example.org"}, {Email: "bob@example.org"}}})
	v, _ := verifier(t, at(issuer))
	ready(t, v)
	first, second := issuer.Token(t, "ann@example.org"), issuer.Token(t, "bob@example.org")
	issuer.Kill()
	if _, err := v.Verify(t.Context(), first); err != nil {
		t.Errorf("while it is away: %v: %v", err, fault.From(err).Unwrap())
	}
	issuer.Restart(t)
	if _, err := v.Verify(t.Context(), issuer.Token(t, "ann@example.org")); err != nil {
		t.Errorf("by its new key: %v: %v", err, fault.From(err).Unwrap())
	}
	if _, err := v.Verify(t.Context(), second); !fault.Is(err, fault.TokenInvalid) {
		t.Errorf("by the key that it publishes no more: %v", err)
	}
}
