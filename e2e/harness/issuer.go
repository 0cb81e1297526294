package harness

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"time"
)

// Issuer signs bearer tokens with a key of its own and publishes that, as any issuer does: for tests that need tokens of all
// kinds and lives.
type Issuer struct {
	// URL is the issuer's name, Keys the URL of its JWK Set.
	URL, Keys string
	// Audience is what its tokens are for.
	Audience string

	key *rsa.PrivateKey
}

// StartIssuer runs one until the test ends.
func StartIssuer(t T, audience string) *Issuer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatalf("issuer: %v", err)
	}
	i := &Issuer{Audience: audience, key: key}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]any{"keys": []any{map[string]string{
			"kty": "RSA", "kid": "one", "use": "sig", "alg": "RS256",
			"n": encode(key.N.Bytes()), "e": encode(big.NewInt(int64(key.E)).Bytes()),
		}}})
	}))
	t.Cleanup(server.Close)
	i.URL, i.Keys = server.URL, server.URL+"/keys"
	return i
}

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// Token is a token of a subject that lives for a while, with further claims.
func (i *Issuer) Token(t T, subject string, life time.Duration, further map[string]any) string {
	t.Helper()
	now := time.Now()
	claims := map[string]any{"iss": i.URL, "sub": subject, "aud": i.Audience, "iat": now.Unix(), "exp": now.Add(life).Unix(), "jti": rand.Text()}
	maps.Copy(claims, further)
	head, err := json.Marshal(map[string]string{"alg": "RS256", "kid": "one", "typ": "JWT"})
	if err != nil {
		t.Fatalf("issuer: %v", err)
	}
	body, err := json.Marshal(claims)
	if err != nil {
		t.Fatalf("issuer: %v", err)
	}
	text := encode(head) + "." + encode(body)
	sum := sha256.Sum256([]byte(text))
	signature, err := rsa.SignPKCS1v15(rand.Reader, i.key, crypto.SHA256, sum[:])
	if err != nil {
		t.Fatalf("issuer: %v", err)
	}
	return text + "." + encode(signature)
}
