package authn_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/metadata"

	"github.com/prism-gateway/prism/dataplane/authn"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/principal"
)

// idp is an issuer with real keys, on loopback.
type idp struct {
	*httptest.Server
	mu      sync.Mutex
	keys    []map[string]any
	headers map[string]string
	fail    int // answers so many requests for keys with 503
	raw     []byte
	asked   atomic.Int64
	hang    chan struct{} // requests for keys wait for it; nil: they do not
}

func newIDP(t testing.TB) *idp {
	t.Helper()
	i := &idp{headers: map[string]string{}}
	mux := http.NewServeMux()
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]string{"issuer": i.URL, "jwks_uri": i.URL + "/keys"})
	})
	mux.HandleFunc("/keys", func(w http.ResponseWriter, r *http.Request) {
		i.asked.Add(1)
		i.mu.Lock()
		keys, raw, hang := i.keys, i.raw, i.hang
		fail := i.fail > 0
		i.fail--
		maps.DeleteFunc(i.headers, func(k, v string) bool { w.Header().Set(k, v); return false })
		i.mu.Unlock()
		if hang != nil {
			select {
			case <-hang:
			case <-r.Context().Done():
				return
			}
		}
		switch {
		case fail:
			http.Error(w, "not now", http.StatusServiceUnavailable)
		case raw != nil:
			_, _ = w.Write(raw)
		default:
			_ = json.NewEncoder(w).Encode(map[string]any{"keys": keys})
		}
	})
	i.Server = httptest.NewServer(mux)
	t.Cleanup(i.Close)
	return i
}

func (i *idp) set(change func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	change()
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// signer is a key pair that signs by one algorithm.
type signer struct {
	id, alg string
	key     crypto.Signer
}

func (s signer) jwk() map[string]any {
	out := map[string]any{"kid": s.id, "use": "sig"}
	switch k := s.key.Public().(type) {
	case *rsa.PublicKey:
		out["kty"], out["n"], out["e"] = "RSA", b64(k.N.Bytes()), b64(big.NewInt(int64(k.E)).Bytes())
	case *ecdsa.PublicKey:
		point, _ := k.Bytes()
		out["kty"], out["crv"], out["x"], out["y"] = "EC", "P-256", b64(point[1:33]), b64(point[33:])
	case ed25519.PublicKey:
		out["kty"], out["crv"], out["x"] = "OKP", "Ed25519", b64(k)
	}
	return out
}

func (s signer) sign(head, claims map[string]any) string {
	h, _ := json.Marshal(head)
	c, _ := json.Marshal(claims)
	return s.signRaw(b64(h) + "." + b64(c))
}

func (s signer) signRaw(text string) string {
	sum := sha256.Sum256([]byte(text))
	var signature []byte
	var err error
	switch k := s.key.(type) {
	case *rsa.PrivateKey:
		if s.alg == "PS256" {
			signature, err = rsa.SignPSS(rand.Reader, k, crypto.SHA256, sum[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
		} else {
			signature, err = rsa.SignPKCS1v15(rand.Reader, k, crypto.SHA256, sum[:])
		}
	case *ecdsa.PrivateKey:
		var r, v *big.Int
		r, v, err = ecdsa.Sign(rand.Reader, k, sum[:])
		if err == nil {
			signature = append(r.FillBytes(make([]byte, 32)), v.FillBytes(make([]byte, 32))...)
		}
	case ed25519.PrivateKey:
		signature = ed25519.Sign(k, []byte(text))
	}
	if err != nil {
		panic(err)
	}
	return text + "." + b64(signature)
}

var keysOnce = sync.OnceValue(func() map[string]signer {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	return map[string]signer{
		"RS256": {"rsa-1", "RS256", rsaKey}, "PS256": {"rsa-1", "PS256", rsaKey}, "ES256": {"ec-1", "ES256", ecKey}, "EdDSA": {"ed-1", "EdDSA", edKey},
	}
})

// canary must be nowhere but in tokens.
const canary = "kanarienvogel"

func goodClaims(i *idp) map[string]any {
	now := time.Now()
	return map[string]any{
		"iss": i.URL, "sub": "alice", "aud": []string{"other", "prism"}, "exp": now.Add(time.Hour).Unix(), "iat": now.Unix(), "nbf": now.Unix(),
		"groups": []string{"analytics"}, "teams": "payments", "email": canary + "@example.org",
	}
}

// verifier runs one for the issuer until the test ends, and waits until it has keys.
func verifier(t testing.TB, i *idp, change ...func(*authn.Config)) (*authn.Verifier, *bytes.Buffer) {
	t.Helper()
	log := &lockedBuffer{}
	cfg := authn.Config{Issuers: []authn.Issuer{{URL: i.URL, Audiences: []string{"prism"}}}, Logger: slog.New(slog.NewJSONHandler(log, nil))}
	for _, c := range change {
		c(&cfg)
	}
	v, err := authn.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- v.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if strings.Contains(log.String(), canary) {
			t.Errorf("the log tells of a token: %s", log)
		}
	})
	return v, &log.Buffer
}

type lockedBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.String()
}

func ready(t testing.TB, v *authn.Verifier) {
	t.Helper()
	for until := time.Now().Add(20 * time.Second); len(v.Ready()) > 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("not ready: %v", v.Ready())
		}
	}
}

func publish(i *idp, signers ...signer) {
	i.set(func() {
		i.keys = nil
		for _, s := range signers {
			i.keys = append(i.keys, s.jwk())
		}
	})
}

func TestGoodTokensAreBelieved(t *testing.T) {
	i, all := newIDP(t), keysOnce()
	publish(i, all["RS256"], all["ES256"], all["EdDSA"])
	v, _ := verifier(t, i)
	ready(t, v)
	for alg, s := range all {
		t.Run(alg, func(t *testing.T) {
			for _, typ := range []string{"JWT", "at+jwt", ""} {
				head := map[string]any{"alg": alg, "kid": s.id}
				if typ != "" {
					head["typ"] = typ
				}
				text := s.sign(head, goodClaims(i))
				token, err := v.Verify(t.Context(), text)
				if err != nil {
					t.Fatalf("%v, %v", err, fault.From(err).Unwrap())
				}
				again, err := v.Verify(t.Context(), text)
				if err != nil || again != token {
					t.Errorf("the second time %v", err)
				}
				want := principal.Principal{Kind: principal.User, ID: i.URL + "#alice", Issuer: i.URL, Subject: "alice", Groups: []string{"analytics"}, Teams: []string{"payments"}}
				if got := fmt.Sprintf("%+v", *token.Principal); got != fmt.Sprintf("%+v", want) || token.Hash != sha256.Sum256([]byte(text)) {
					t.Errorf("it speaks for %s", got)
				}
				if token.For(i.URL, "prism") != nil || token.For("", "other") != nil || !fault.Is(token.For("https://x", ""), fault.IssuerUnknown) || !fault.Is(token.For("", "third"), fault.TokenInvalid) {
					t.Error("namespaces that want another token take it, or those that want this one do not")
				}
			}
		})
	}
}

// SE-11
func TestForgedAndConfusedTokensAreRefused(t *testing.T) {
	i, all := newIDP(t), keysOnce()
	publish(i, all["RS256"], all["ES256"], all["EdDSA"])
	v, log := verifier(t, i)
	ready(t, v)
	rs := all["RS256"]
	stranger := newStranger(t)
	good := func(change func(head, claims map[string]any)) string {
		head, claims := map[string]any{"alg": "RS256", "kid": "rsa-1", "typ": "JWT"}, goodClaims(i)
		change(head, claims)
		return rs.sign(head, claims)
	}
	der, err := x509.MarshalPKIXPublicKey(rs.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	hs := func(secret []byte) string {
		h, _ := json.Marshal(map[string]any{"alg": "HS256", "kid": "rsa-1", "typ": "JWT"})
		c, _ := json.Marshal(goodClaims(i))
		text := b64(h) + "." + b64(c)
		mac := hmac.New(sha256.New, secret)
		mac.Write([]byte(text))
		return text + "." + b64(mac.Sum(nil))
	}
	whole := good(func(_, _ map[string]any) {})
	cut := strings.Split(whole, ".")
	raw := func(head, claims string) string { return rs.signRaw(b64([]byte(head)) + "." + b64([]byte(claims))) }
	for name, tc := range map[string]struct {
		token string
		want  fault.Reason
	}{
		"alg none without signature":       {b64([]byte(`{"alg":"none","typ":"JWT"}`)) + "." + cut[1] + ".", fault.TokenInvalid},
		"alg None":                         {b64([]byte(`{"alg":"None"}`)) + "." + cut[1] + ".", fault.TokenInvalid},
		"no alg":                           {raw(`{"kid":"rsa-1"}`, `{}`), fault.IssuerUnknown},
		"HS256 with the public key as DER": {hs(der), fault.TokenInvalid},
		"HS256 with the public key as PEM": {hs(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})), fault.TokenInvalid},
		"HS256 with nothing":               {hs(nil), fault.TokenInvalid},
		"RS256 by another key":             {stranger.sign(map[string]any{"alg": "RS256", "kid": "rsa-1"}, goodClaims(i)), fault.TokenInvalid},
		"its own key in jwk":               {stranger.sign(map[string]any{"alg": "RS256", "kid": "rsa-1", "jwk": stranger.jwk()}, goodClaims(i)), fault.TokenInvalid},
		"a key at jku":                     {stranger.sign(map[string]any{"alg": "RS256", "kid": "stranger", "jku": stranger.url + "/jku"}, goodClaims(i)), fault.TokenInvalid},
		"a certificate at x5u":             {stranger.sign(map[string]any{"alg": "RS256", "kid": "stranger", "x5u": stranger.url + "/x5u"}, goodClaims(i)), fault.TokenInvalid},
		"kid that is a path":               {good(func(h, _ map[string]any) { h["kid"] = "../../../dev/null" }), fault.TokenInvalid},
		"kid that is SQL":                  {good(func(h, _ map[string]any) { h["kid"] = "' OR 1=1 --" }), fault.TokenInvalid},
		"kid that is null":                 {good(func(h, _ map[string]any) { h["kid"] = nil }), fault.TokenInvalid},
		"kid that is a number":             {good(func(h, _ map[string]any) { h["kid"] = 7 }), fault.TokenInvalid},
		"kid of a key of another kind":     {good(func(h, _ map[string]any) { h["kid"] = "ec-1" }), fault.TokenInvalid},
		"ES256 by a key for RSA":           {good(func(h, _ map[string]any) { h["alg"] = "ES256" }), fault.TokenInvalid},
		"RS512":                            {good(func(h, _ map[string]any) { h["alg"] = "RS512" }), fault.TokenInvalid},
		"crit":                             {good(func(h, _ map[string]any) { h["crit"] = []string{"b64"}; h["b64"] = false }), fault.TokenInvalid},
		"another typ":                      {good(func(h, _ map[string]any) { h["typ"] = "logout+jwt" }), fault.TokenInvalid},
		"nested":                           {good(func(h, _ map[string]any) { h["cty"] = "JWT" }), fault.TokenInvalid},
		"another issuer":                   {good(func(_, c map[string]any) { c["iss"] = "https://evil.example.org" }), fault.IssuerUnknown},
		"the issuer with a slash":          {good(func(_, c map[string]any) { c["iss"] = i.URL + "/" }), fault.IssuerUnknown},
		"the issuer in capitals":           {good(func(_, c map[string]any) { c["iss"] = strings.ToUpper(i.URL) }), fault.IssuerUnknown},
		"no issuer":                        {good(func(_, c map[string]any) { delete(c, "iss") }), fault.IssuerUnknown},
		"another audience":                 {good(func(_, c map[string]any) { c["aud"] = "billing" }), fault.TokenInvalid},
		"the audience's beginning":         {good(func(_, c map[string]any) { c["aud"] = "prism-admin" }), fault.TokenInvalid},
		"no audience":                      {good(func(_, c map[string]any) { delete(c, "aud") }), fault.TokenInvalid},
		"expired":                          {good(func(_, c map[string]any) { c["exp"] = time.Now().Add(-time.Minute).Unix() }), fault.TokenExpired},
		"no expiry":                        {good(func(_, c map[string]any) { delete(c, "exp") }), fault.TokenInvalid},
		"expiry as text":                   {good(func(_, c map[string]any) { c["exp"] = "tomorrow" }), fault.TokenInvalid},
		"expiry beyond all time":           {good(func(_, c map[string]any) { c["exp"] = 1e300 }), fault.TokenInvalid},
		"not good yet":                     {good(func(_, c map[string]any) { c["nbf"] = time.Now().Add(time.Minute).Unix() }), fault.TokenInvalid},
		"issued in the future":             {good(func(_, c map[string]any) { c["iat"] = time.Now().Add(time.Hour).Unix() }), fault.TokenInvalid},
		"nobody":                           {good(func(_, c map[string]any) { delete(c, "sub") }), fault.TokenInvalid},
		"groups that are a number":         {good(func(_, c map[string]any) { c["groups"] = 1 }), fault.TokenInvalid},
		"thousands of groups":              {good(func(_, c map[string]any) { c["groups"] = strings.Split(strings.Repeat("g,", 300), ",") }), fault.TokenInvalid},
		"a claim twice":                    {raw(`{"alg":"RS256","kid":"rsa-1"}`, fmt.Sprintf(`{"iss":%q,"sub":"alice","sub":"root","aud":"prism","exp":%d}`, i.URL, time.Now().Add(time.Hour).Unix())), fault.TokenInvalid},
		"a claim twice in another case":    {raw(`{"alg":"RS256","kid":"rsa-1"}`, fmt.Sprintf(`{"iss":%q,"sub":"alice","SUB":"root","aud":"prism","exp":%d}`, i.URL, time.Now().Add(time.Hour).Unix())), fault.TokenInvalid},
		"a claim twice in another s":       {raw(`{"alg":"RS256","kid":"rsa-1"}`, fmt.Sprintf(`{"iss":%q,"sub":"alice","ſub":"root","aud":"prism","exp":%d}`, i.URL, time.Now().Add(time.Hour).Unix())), fault.TokenInvalid},
		"the algorithm twice":              {raw(`{"alg":"RS256","alg":"none","kid":"rsa-1"}`, fmt.Sprintf(`{"iss":%q}`, i.URL)), fault.TokenInvalid},
		"claims that are a list":           {raw(`{"alg":"RS256","kid":"rsa-1"}`, `[]`), fault.TokenInvalid},
		"changed claims":                   {cut[0] + "." + b64([]byte(`{"iss":"`+i.URL+`","sub":"root"}`)) + "." + cut[2], fault.TokenInvalid},
		"a signature that is cut":          {whole[:len(whole)-4], fault.TokenInvalid},
		"no signature":                     {cut[0] + "." + cut[1] + ".", fault.TokenInvalid},
		"two parts":                        {cut[0] + "." + cut[1], fault.TokenInvalid},
		"four parts":                       {whole + ".x", fault.TokenInvalid},
		"five parts, encrypted":            {whole + ".x.y", fault.TokenInvalid},
		"JSON serialization":               {`{"payload":"` + cut[1] + `","signatures":[{"protected":"` + cut[0] + `","signature":"` + cut[2] + `"}]}`, fault.TokenInvalid},
		"padding":                          {cut[0] + "=." + cut[1] + "." + cut[2], fault.TokenInvalid},
		"nothing":                          {"", fault.TokenInvalid},
		"dots":                             {"..", fault.TokenInvalid},
		"1 MiB":                            {strings.Repeat("a", 1<<20), fault.TokenInvalid},
		"1 MiB of claims, signed":          {good(func(_, c map[string]any) { c["x"] = strings.Repeat("a", 1<<20) }), fault.TokenInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			for range 2 { // and again out of memory
				token, err := v.Verify(t.Context(), tc.token)
				f := fault.From(err)
				if token != nil || !fault.Is(err, tc.want) || f.Code != fault.Unauthenticated || f.Outcome != fault.NotApplied {
					t.Fatalf("%+v, %v", token, err)
				}
				if strings.Contains(f.Text, "kid") || strings.Contains(f.Text, "alg") || strings.Contains(fmt.Sprintf("%v %v", f, f.Unwrap()), canary) {
					t.Errorf("the error tells too much: %v, %v", f, f.Unwrap())
				}
			}
		})
	}
	if n := stranger.asked.Load(); n != 0 {
		t.Errorf("a token made the verifier ask a stranger %d times", n)
	}
	if strings.Contains(log.String(), cut[2]) {
		t.Error("a signature is in the log")
	}
	if _, err := v.Verify(t.Context(), whole); err != nil {
		t.Errorf("the token that they were made of is not believed: %v", err)
	}
}

// stranger signs for nobody who is believed, and counts who asks it for keys.
type strangerIDP struct {
	signer
	url   string
	asked atomic.Int64
}

func newStranger(t *testing.T) *strangerIDP {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	s := &strangerIDP{signer: signer{"stranger", "RS256", key}}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		s.asked.Add(1)
		_ = json.NewEncoder(w).Encode(map[string]any{"keys": []any{s.jwk()}})
	}))
	t.Cleanup(server.Close)
	s.url = server.URL
	return s
}

func token(s signer, i *idp) string {
	return s.sign(map[string]any{"alg": s.alg, "kid": s.id}, goodClaims(i))
}

// J1: an issuer that is away at first is asked again soon. J6: answers that are errors leave nothing behind.
func TestAnIssuerThatIsAwayAtFirstIsAskedUntilItAnswers(t *testing.T) {
	i, all := newIDP(t), keysOnce()
	publish(i, all["ES256"])
	i.set(func() { i.fail = 5 })
	v, _ := verifier(t, i)
	before := runtime.NumGoroutine()
	_, err := v.Verify(t.Context(), token(all["ES256"], i))
	if f := fault.From(err); err != nil && (f.Code != fault.Unavailable || f.RetryAfter == 0) {
		t.Errorf("until then: %v", err)
	}
	if errs := v.Ready(); errs[i.URL] == nil && i.asked.Load() < 6 {
		t.Errorf("it is ready without keys: %v", errs)
	}
	ready(t, v)
	if _, err := v.Verify(t.Context(), token(all["ES256"], i)); err != nil {
		t.Error(err)
	}
	i.CloseClientConnections()
	if now := runtime.NumGoroutine(); now > before+10 {
		t.Errorf("%d goroutines, %d before", now, before)
	}
}

// J2, J3: who verifies with a key that is known does not wait for a fetch.
func TestKnownKeysServeWhileOthersAreFetched(t *testing.T) {
	i, all := newIDP(t), keysOnce()
	publish(i, all["ES256"])
	v, _ := verifier(t, i)
	ready(t, v)
	hang := make(chan struct{})
	i.set(func() { i.hang = hang })
	ctx, cancel := context.WithCancel(t.Context())
	waiting := make(chan error, 1)
	go func() {
		_, err := v.Verify(ctx, token(all["EdDSA"], i)) // a key that is not known: it is asked for
		waiting <- err
	}()
	for i.asked.Load() < 2 {
		time.Sleep(time.Millisecond)
	}
	for range 100 {
		if _, err := v.Verify(t.Context(), token(all["ES256"], i)); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	if err := <-waiting; err == nil {
		t.Error("who gave up was told that its token is good")
	}
	close(hang)
}

// J4: a new key is known at its first use, once, and keys that do not exist do not make the verifier ask again and again.
func TestANewKeyIsKnownAtItsFirstUse(t *testing.T) {
	i, all := newIDP(t), keysOnce()
	publish(i, all["ES256"])
	v, _ := verifier(t, i)
	ready(t, v)
	publish(i, all["ES256"], all["EdDSA"])
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if _, err := v.Verify(t.Context(), token(all["EdDSA"], i)); err != nil {
				t.Errorf("%v: %v", err, fault.From(err).Unwrap())
			}
		})
	}
	wg.Wait()
	if n := i.asked.Load(); n != 2 {
		t.Errorf("the issuer was asked %d times, want 2", n)
	}
	for n := range 200 {
		s := all["ES256"]
		s.id = fmt.Sprint("none-", n)
		if _, err := v.Verify(t.Context(), token(s, i)); !fault.Is(err, fault.TokenInvalid) {
			t.Fatal(err)
		}
	}
	if n := i.asked.Load(); n != 2 {
		t.Errorf("after 200 keys that do not exist it was asked %d times", n)
	}
}

// J5, J12: keys without alg serve; keys that cannot be used do not break the others.
func TestOneBadKeyDoesNotBreakTheOthers(t *testing.T) {
	i, all := newIDP(t), keysOnce()
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	good := all["RS256"]
	encrypting := all["ES256"].jwk()
	encrypting["use"] = "enc"
	other := all["ES256"].jwk()
	other["kid"], other["alg"] = "ec-for-another", "ES384"
	i.set(func() {
		i.keys = []map[string]any{
			{"kty": "RSA", "kid": "broken", "n": "!", "e": "AQAB"}, {"kty": "oct", "kid": "symmetric", "k": "c2VjcmV0"}, {"kty": "XX"}, {},
			signer{"small", "RS256", small}.jwk(), encrypting, other, good.jwk(),
		}
	})
	registry := prometheus.NewRegistry()
	v, _ := verifier(t, i, func(c *authn.Config) { c.Registerer = registry })
	ready(t, v)
	if _, err := v.Verify(t.Context(), token(good, i)); err != nil {
		t.Error(err)
	}
	for name, s := range map[string]signer{"too small": {"small", "RS256", small}, "for encryption": all["ES256"], "for another algorithm": {"ec-for-another", "ES256", all["ES256"].key}} {
		if _, err := v.Verify(t.Context(), token(s, i)); !fault.Is(err, fault.TokenInvalid) {
			t.Errorf("a key that is %s: %v", name, err)
		}
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprint(families)
	if !strings.Contains(text, "prism_authn_keys_unusable") || strings.Contains(text, canary) {
		t.Error(text)
	}
}

// J6: an answer without end, a redirect, and what is no set of keys, are refused; the keys before stay.
func TestWhatIsNoSetOfKeysChangesNothing(t *testing.T) {
	for name, answer := range map[string][]byte{"too long": bytes.Repeat([]byte(" "), 2<<20), "no JSON": []byte("<html>"), "no keys": []byte(`{"keys":[]}`), "of another form": []byte(`{"keys":{"a":1}}`)} {
		t.Run(name, func(t *testing.T) {
			i, all := newIDP(t), keysOnce()
			publish(i, all["ES256"])
			v, _ := verifier(t, i)
			ready(t, v)
			i.set(func() { i.raw = answer })
			if _, err := v.Verify(t.Context(), token(all["EdDSA"], i)); err == nil {
				t.Error("a token by a key that is not known is believed")
			}
			if i.asked.Load() < 2 {
				t.Error("the issuer was not asked")
			}
			if _, err := v.Verify(t.Context(), token(all["ES256"], i)); err != nil {
				t.Errorf("the key that was known serves no more: %v", err)
			}
		})
	}
}

// J6: an issuer that sends its proxies elsewhere, or from TLS to plaintext or back, has no keys.
func TestARedirectIsNotFollowedElsewhere(t *testing.T) {
	var elsewhere atomic.Int64
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) }))
	defer other.Close()
	for name, to := range map[string]func(r *http.Request) string{
		"another host":   func(*http.Request) string { return other.URL },
		"another scheme": func(r *http.Request) string { return "https://" + r.Host + "/keys" },
	} {
		t.Run(name, func(t *testing.T) {
			issuer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, to(r), http.StatusFound) }))
			defer issuer.Close()
			log := &lockedBuffer{}
			v, err := authn.New(authn.Config{Issuers: []authn.Issuer{{URL: issuer.URL, JWKSURL: issuer.URL + "/k", Audiences: []string{"prism"}}}, Logger: slog.New(slog.NewJSONHandler(log, nil))})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- v.Run(ctx) }()
			for until := time.Now().Add(10 * time.Second); !strings.Contains(log.String(), "redirects to another host, or away from TLS"); time.Sleep(time.Millisecond) {
				if time.Now().After(until) {
					t.Fatalf("the log says %s", log)
				}
			}
			cancel()
			if err := <-done; err != nil || elsewhere.Load() > 0 {
				t.Errorf("%v, %d calls elsewhere", err, elsewhere.Load())
			}
		})
	}
}

func TestIssuersAreCheckedAtTheStart(t *testing.T) {
	for name, i := range map[string]authn.Issuer{
		"plaintext": {URL: "http://idp.example.org", Audiences: []string{"a"}}, "no audience": {URL: "https://idp.example.org"},
		"keys in plaintext": {URL: "https://idp.example.org", JWKSURL: "http://idp.example.org/k", Audiences: []string{"a"}},
		"HS256":             {URL: "https://idp.example.org", Audiences: []string{"a"}, Algorithms: []string{"HS256"}},
	} {
		if _, err := authn.New(authn.Config{Issuers: []authn.Issuer{i}, Logger: slog.New(slog.DiscardHandler)}); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

// SE-10
func TestACallBringsOneToken(t *testing.T) {
	for name, tc := range map[string]struct {
		md   metadata.MD
		want string
		bad  bool
	}{
		"none":             {metadata.MD{}, "", false},
		"standard":         {metadata.Pairs("authorization", "Bearer abc"), "abc", false},
		"in another case":  {metadata.Pairs("authorization", "bEARER abc"), "abc", false},
		"ours":             {metadata.Pairs("x-prism-token", "abc"), "abc", false},
		"both":             {metadata.Pairs("authorization", "Bearer abc", "x-prism-token", "abc"), "", true},
		"twice":            {metadata.Pairs("authorization", "Bearer abc", "authorization", "Bearer abc"), "", true},
		"ours twice":       {metadata.Pairs("x-prism-token", "abc", "x-prism-token", "abc"), "", true},
		"basic":            {metadata.Pairs("authorization", "Basic abc"), "", true},
		"no scheme":        {metadata.Pairs("authorization", "abc"), "", true},
		"nothing after it": {metadata.Pairs("authorization", "Bearer "), "", true},
		"two in one":       {metadata.Pairs("authorization", "Bearer a b"), "", true},
		"a list":           {metadata.Pairs("authorization", "Bearer a,b"), "", true},
		"empty":            {metadata.Pairs("x-prism-token", ""), "", true},
	} {
		got, found, err := authn.Bearer(tc.md)
		if got != tc.want || (err != nil) != tc.bad || found != (tc.want != "") || err != nil && !fault.Is(err, fault.TokenInvalid) {
			t.Errorf("%s: %q, %t, %v", name, got, found, err)
		}
	}
}

func FuzzVerify(f *testing.F) {
	i, all := newIDP(f), keysOnce()
	publish(i, all["RS256"], all["ES256"], all["EdDSA"])
	v, _ := verifier(f, i)
	ready(f, v)
	good := map[string]bool{}
	for _, s := range all {
		text := token(s, i)
		good[text] = true
		f.Add(text)
	}
	f.Add("..")
	f.Fuzz(func(t *testing.T, text string) {
		if _, err := v.Verify(t.Context(), text); err == nil && !good[text] {
			t.Errorf("believed: %q", text)
		}
	})
}

func FuzzBearer(f *testing.F) {
	f.Add("Bearer abc", "")
	f.Add("", "abc")
	f.Fuzz(func(t *testing.T, standard, ours string) {
		md := metadata.MD{}
		if standard != "" {
			md["authorization"] = []string{standard}
		}
		if ours != "" {
			md["x-prism-token"] = []string{ours}
		}
		token, found, err := authn.Bearer(md)
		if found && (err != nil || token == "" || strings.ContainsAny(token, " ,") || standard != "" && ours != "") {
			t.Errorf("%q, %q: %q, %v", standard, ours, token, err)
		}
	})
}

// BenchmarkVerify is what a token costs: verified, and remembered.
func BenchmarkVerify(b *testing.B) {
	i, all := newIDP(b), keysOnce()
	publish(i, all["RS256"], all["ES256"], all["EdDSA"])
	v, _ := verifier(b, i)
	ready(b, v)
	for _, alg := range []string{"RS256", "ES256"} {
		b.Run("first/"+alg, func(b *testing.B) {
			tokens := make([]string, b.N)
			for n := range tokens {
				claims := goodClaims(i)
				claims["jti"] = fmt.Sprint(b.N, n)
				tokens[n] = all[alg].sign(map[string]any{"alg": alg, "kid": all[alg].id}, claims)
			}
			b.ResetTimer()
			for _, text := range tokens {
				if _, err := v.Verify(b.Context(), text); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("remembered", func(b *testing.B) {
		text := token(all["ES256"], i)
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if _, err := v.Verify(b.Context(), text); err != nil {
					b.Error(err)
				}
			}
		})
	})
}
