package oidcserver_test

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prism-gateway/prism/shared/testserver/oidcserver"
)

type token struct {
	Algorithm string `json:"alg"`
	Key       string `json:"kid"`

	Issuer   string   `json:"iss"`
	Subject  string   `json:"sub"`
	Audience audience `json:"aud"`
	Expires  int64    `json:"exp"`
	Issued   int64    `json:"iat"`
	Email    string   `json:"email"`
	Groups   []string `json:"groups"`
}

// audience is a name or a list of names.
type audience []string

func (a *audience) UnmarshalJSON(data []byte) error {
	if data[0] == '[' {
		return json.Unmarshal(data, (*[]string)(a))
	}
	*a = make([]string, 1)
	return json.Unmarshal(data, &(*a)[0])
}

// read decodes a token without asking whether it is right.
func read(t *testing.T, text string) token {
	t.Helper()
	var got token
	for _, part := range strings.Split(text, ".")[:2] {
		data, err := base64.RawURLEncoding.DecodeString(part)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(data, &got); err != nil {
			t.Fatal(err)
		}
	}
	return got
}

// keys are the names of the keys that an issuer publishes.
func keys(t *testing.T, s *oidcserver.Server) []string {
	t.Helper()
	response, err := http.Get(s.KeysURL())
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var set struct {
		Keys []struct {
			Name string `json:"kid"`
		} `json:"keys"`
	}
	if err := json.NewDecoder(response.Body).Decode(&set); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, key := range set.Keys {
		names = append(names, key.Name)
	}
	return names
}

func TestTokensSayWhoLoggedInAndForWhom(t *testing.T) {
	s := oidcserver.Start(t, oidcserver.Options{
		Users:     []oidcserver.User{{Email: "ann@example.com", Groups: []string{"orders", "admins"}}, {Email: "bob@example.com"}},
		Services:  []oidcserver.Service{{Name: "billing", Groups: []string{"payments"}}},
		Audiences: []string{"prism", "vault"}, Life: 10 * time.Minute,
	})
	for name, tc := range map[string]struct {
		token    string
		audience audience
		email    string
		groups   []string
	}{
		"a user":                          {s.Token(t, "ann@example.com"), audience{"prism"}, "ann@example.com", []string{"orders", "admins"}},
		"a user, for another audience":    {s.Token(t, "ann@example.com", "vault"), audience{"vault"}, "ann@example.com", []string{"orders", "admins"}},
		"a user of no group":              {s.Token(t, "bob@example.com"), audience{"prism"}, "bob@example.com", nil},
		"a service":                       {s.ServiceToken(t, "billing"), audience{"prism", "billing"}, "", []string{"payments"}},
		"a service, for another audience": {s.ServiceToken(t, "billing", "vault"), audience{"vault", "billing"}, "", []string{"payments"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := read(t, tc.token)
			if got.Issuer != s.Issuer() || got.Subject == "" || got.Email != tc.email || !slices.Equal(got.Groups, tc.groups) {
				t.Errorf("got %+v", got)
			}
			if got.Expires-got.Issued != 600 || got.Algorithm != "RS256" || !slices.Contains(keys(t, s), got.Key) {
				t.Errorf("got %+v", got)
			}
			if !slices.Equal(got.Audience, tc.audience) {
				t.Errorf("for %v, want %v", got.Audience, tc.audience)
			}
		})
	}
}

func TestRestartChangesTheKey(t *testing.T) {
	s := oidcserver.Start(t, oidcserver.Options{Users: []oidcserver.User{{Email: "ann@example.com"}}, Algorithm: "ES256"})
	before := read(t, s.Token(t, "ann@example.com"))
	s.Kill()
	s.Restart(t)
	after := read(t, s.Token(t, "ann@example.com"))
	if before.Algorithm != "ES256" || after.Issuer != before.Issuer || after.Subject != before.Subject {
		t.Errorf("got %+v, then %+v", before, after)
	}
	if published := keys(t, s); slices.Contains(published, before.Key) || !slices.Contains(published, after.Key) {
		t.Errorf("it publishes %v; it signed with %s, then with %s", published, before.Key, after.Key)
	}
}

func TestTwoIssuersBesideEachOther(t *testing.T) {
	users := []oidcserver.User{{Email: "ann@example.com"}}
	one, other := oidcserver.Start(t, oidcserver.Options{Users: users}), oidcserver.Start(t, oidcserver.Options{Users: users})
	a, b := read(t, one.Token(t, "ann@example.com")), read(t, other.Token(t, "ann@example.com"))
	if a.Issuer == b.Issuer || a.Key == b.Key {
		t.Errorf("got %+v and %+v", a, b)
	}
}
