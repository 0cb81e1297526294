package authn

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/lestrrat-go/jwx/v2/jwa"
	"github.com/lestrrat-go/jwx/v2/jws"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/principal"
)

// Algorithms are the signatures that an issuer may be believed by.
var algorithms = []string{"RS256", "PS256", "ES256", "EdDSA"}

// Bounds of tokens.
const (
	mostTokenBytes = 16 << 10
	mostNames      = 256 // groups, and teams
	mostNameBytes  = 1024
	defaultLeeway  = 10 * time.Second
)

// Issuer is an issuer that is believed.
type Issuer struct {
	// URL is compared byte by byte with the claim iss.
	URL string
	// JWKSURL is where its keys are; empty means where its discovery document says.
	JWKSURL string
	// Audiences are those of which a token must name one. Required.
	Audiences []string
	// Algorithms are the signatures that are accepted; empty means RS256, PS256, ES256 and EdDSA.
	Algorithms []string
	// RootCAs are the authorities of its server; nil means the system's.
	RootCAs *x509.CertPool
	// GroupsClaim and TeamsClaim are the claims with the caller's groups and teams; empty means groups, and teams.
	GroupsClaim, TeamsClaim string
	// Leeway is how wrong its clock may be; 0 means 10 s.
	Leeway time.Duration
	// Services says that its tokens are of services, and not of users.
	Services bool
}

// Config makes a Verifier.
type Config struct {
	// Issuers are those that are believed.
	Issuers []Issuer
	// CacheSize is how many tokens are remembered; 0 means 100,000.
	CacheSize int
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Logger is required.
	Logger *slog.Logger
	// Registerer takes the metrics; nil: none.
	Registerer prometheus.Registerer
}

// Verifier believes tokens. Its methods may be called concurrently.
type Verifier struct {
	now      func() time.Time
	issuers  map[string]*issuer
	cache    *cache
	verified *prometheus.CounterVec
}

// New makes a Verifier. It does no I/O.
func New(cfg Config) (*Verifier, error) {
	if cfg.Logger == nil {
		return nil, errors.New("authn: Logger is required")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	v := &Verifier{
		now: cfg.Now, issuers: map[string]*issuer{}, cache: newCache(cmp.Or(cfg.CacheSize, 100_000)),
		verified: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "prism_authn_tokens_total", Help: "Bearer tokens looked at, by what came of it."}, []string{"result"}),
	}
	for _, i := range cfg.Issuers {
		if len(i.Algorithms) == 0 {
			i.Algorithms = algorithms
		}
		i.GroupsClaim, i.TeamsClaim = cmp.Or(i.GroupsClaim, "groups"), cmp.Or(i.TeamsClaim, "teams")
		i.Leeway = cmp.Or(i.Leeway, defaultLeeway)
		switch {
		case v.issuers[i.URL] != nil:
			return nil, fmt.Errorf("authn: issuer %s is there twice", i.URL)
		case len(i.Audiences) == 0:
			return nil, fmt.Errorf("authn: issuer %s: no audience is said, and a token for anybody is for nobody", i.URL)
		}
		for _, a := range i.Algorithms {
			if !slices.Contains(algorithms, a) {
				return nil, fmt.Errorf("authn: issuer %s: algorithm %q: want one of %s", i.URL, a, strings.Join(algorithms, ", "))
			}
		}
		made, err := newIssuer(i, cfg.Now, cfg.Logger)
		if err != nil {
			return nil, err
		}
		v.issuers[i.URL] = made
	}
	if cfg.Registerer == nil {
		return v, nil
	}
	for _, c := range []prometheus.Collector{v.verified, &collector{v}} {
		if err := cfg.Registerer.Register(c); err != nil {
			return nil, err
		}
	}
	return v, nil
}

// Run keeps the issuers' keys until ctx is done.
func (v *Verifier) Run(ctx context.Context) error {
	var running sync.WaitGroup
	for _, i := range v.issuers {
		running.Go(func() { i.run(ctx) })
	}
	running.Wait()
	return nil
}

// Knows reports whether an issuer is believed.
func (v *Verifier) Knows(url string) bool { return v.issuers[url] != nil }

// Ready says of each issuer why its tokens cannot be believed now; an issuer whose can is not in it.
func (v *Verifier) Ready() map[string]error {
	out := map[string]error{}
	for url, i := range v.issuers {
		if _, _, err := i.known(""); err != nil {
			out[url] = err
		}
	}
	return out
}

// Verify says what a token says, when it is believed. The error is a fault, whose text does not tell how to do better.
func (v *Verifier) Verify(ctx context.Context, text string) (*Token, error) {
	if len(text) > mostTokenBytes {
		v.verified.WithLabelValues("refused").Inc()
		return nil, invalid(fmt.Errorf("it is %d bytes long", len(text)))
	}
	hash := sha256.Sum256([]byte(text))
	now := v.now()
	if t, err, ok := v.cache.get(hash, now); ok {
		v.verified.WithLabelValues("remembered").Inc()
		return t, err
	}
	t, err := v.verify(ctx, text, hash, now)
	switch f := fault.From(err); {
	case err == nil:
		v.verified.WithLabelValues("believed").Inc()
		v.cache.put(hash, t, nil, now)
	case f.Code == fault.Unavailable:
		v.verified.WithLabelValues("unavailable").Inc()
	default:
		v.verified.WithLabelValues("refused").Inc()
		v.cache.put(hash, nil, err, now)
	}
	return t, err
}

func invalid(cause error) error {
	return fault.Wrap(cause, fault.Unauthenticated, fault.TokenInvalid, "the bearer token is not accepted").WithOutcome(fault.NotApplied)
}

// header is what is looked at of a JOSE header. What else may stand there (jku, x5u, jwk, x5c) is never followed.
type header struct {
	Algorithm string            `json:"alg"`
	KeyID     string            `json:"kid"`
	Type      string            `json:"typ"`
	Critical  []json.RawMessage `json:"crit"`
	Content   string            `json:"cty"`
}

// claims are those that are looked at by name.
type claims struct {
	Issuer    string          `json:"iss"`
	Subject   string          `json:"sub"`
	Audience  json.RawMessage `json:"aud"`
	Expires   *json.Number    `json:"exp"`
	NotBefore *json.Number    `json:"nbf"`
	IssuedAt  *json.Number    `json:"iat"`
}

func (v *Verifier) verify(ctx context.Context, text string, hash [sha256.Size]byte, now time.Time) (*Token, error) {
	parts := strings.Split(text, ".")
	if len(parts) != 3 {
		return nil, invalid(fmt.Errorf("it has %d parts, want 3", len(parts)))
	}
	var head header
	if err := part(parts[0], &head); err != nil {
		return nil, invalid(fmt.Errorf("header: %w", err))
	}
	var said claims
	if err := part(parts[1], &said); err != nil {
		return nil, invalid(fmt.Errorf("claims: %w", err))
	}
	i := v.issuers[said.Issuer] // which nothing proves yet: it says only whose keys to try
	if i == nil {
		return nil, fault.Wrap(errors.New("it is of another issuer"), fault.Unauthenticated, fault.IssuerUnknown, "the bearer token is of an issuer that is not believed here").WithOutcome(fault.NotApplied)
	}
	switch {
	case !slices.Contains(i.Algorithms, head.Algorithm):
		return nil, invalid(errors.New("its algorithm is not accepted of this issuer"))
	case len(head.Critical) > 0:
		return nil, invalid(errors.New("it demands extensions"))
	case head.Type != "" && !strings.EqualFold(head.Type, "JWT") && !strings.EqualFold(head.Type, "at+jwt"), head.Content != "":
		return nil, invalid(errors.New("it is of another type than JWT"))
	}
	if err := i.signed(ctx, text, head); err != nil {
		return nil, err
	}
	return i.token(parts[1], said, hash, now)
}

// signed verifies the signature.
func (i *issuer) signed(ctx context.Context, text string, head header) error {
	k, ok, err := i.key(ctx, head.KeyID)
	switch {
	case ok:
	case err != nil:
		return fault.Wrap(fmt.Errorf("issuer %s: %w", i.URL, err), fault.Unavailable, fault.Starting, "the issuer of the bearer token does not answer").
			WithOutcome(fault.NotApplied).WithRetry(time.Second)
	default:
		return invalid(errors.New("the issuer has no such key"))
	}
	if k.alg != "" && k.alg != head.Algorithm || !slices.Contains(k.kinds, head.Algorithm) {
		return invalid(errors.New("the issuer's key is for another algorithm"))
	}
	if _, err := jws.Verify([]byte(text), jws.WithCompact(), jws.WithKey(jwa.SignatureAlgorithm(head.Algorithm), k.public)); err != nil {
		return invalid(err)
	}
	return nil
}

// part decodes a part of a token. An object with a name twice is refused: two readers could believe different things.
func part(text string, into any) error {
	data, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil {
		return errors.New("it is not base64url")
	}
	if err := once(data); err != nil {
		return err
	}
	if err := json.Unmarshal(data, into); err != nil {
		return errors.New("it is not of the right form")
	}
	return nil
}

// once fails when the top of a JSON document is no object or has a name twice.
func once(data []byte) error {
	d := json.NewDecoder(bytes.NewReader(data))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return errors.New("it is no JSON object")
	}
	seen := map[string]bool{}
	for d.More() {
		t, err := d.Token()
		name, ok := t.(string)
		if err != nil || !ok || seen[folded(name)] {
			return errors.New("a name is there twice, or is none")
		}
		seen[folded(name)] = true
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return errors.New("it is no JSON")
		}
	}
	return nil
}

// folded is the same for all names that Go's decoder takes for one: it takes them in any case, and ſ for s.
func folded(name string) string {
	return strings.Map(func(r rune) rune {
		least := r
		for other := unicode.SimpleFold(r); other != r; other = unicode.SimpleFold(other) {
			least = min(least, other)
		}
		return least
	}, name)
}

// token checks the claims of a token whose signature is good.
func (i *issuer) token(payload string, said claims, hash [sha256.Size]byte, now time.Time) (*Token, error) {
	audiences, err := names(said.Audience)
	if err != nil || !slices.ContainsFunc(audiences, func(a string) bool { return slices.Contains(i.Audiences, a) }) {
		return nil, invalid(errors.New("it is for another audience"))
	}
	expires, err := moment(said.Expires)
	switch {
	case err != nil || expires.IsZero():
		return nil, invalid(errors.New("it does not say when it expires"))
	case !now.Before(expires.Add(i.Leeway)):
		return nil, fault.New(fault.Unauthenticated, fault.TokenExpired, "the bearer token has expired").WithOutcome(fault.NotApplied)
	}
	notBefore, err := moment(said.NotBefore)
	if err != nil || notBefore.After(now.Add(i.Leeway)) {
		return nil, invalid(errors.New("it is not good yet"))
	}
	issued, err := moment(said.IssuedAt)
	if err != nil || issued.After(now.Add(i.Leeway)) {
		return nil, invalid(errors.New("it says that it was issued in the future"))
	}
	if said.Subject == "" || len(said.Subject) > mostNameBytes {
		return nil, invalid(errors.New("it does not say whom it is about"))
	}
	who := &principal.Principal{Kind: principal.User, ID: said.Issuer + "#" + said.Subject, Issuer: said.Issuer, Subject: said.Subject}
	if i.Services {
		who.Kind = principal.Service
	}
	data, _ := base64.RawURLEncoding.DecodeString(payload) // it was decoded before
	var all map[string]json.RawMessage
	if err := json.Unmarshal(data, &all); err != nil {
		return nil, invalid(err)
	}
	if who.Groups, err = names(all[i.GroupsClaim]); err != nil {
		return nil, invalid(fmt.Errorf("groups: %w", err))
	}
	if who.Teams, err = names(all[i.TeamsClaim]); err != nil {
		return nil, invalid(fmt.Errorf("teams: %w", err))
	}
	return &Token{Principal: who, Issuer: said.Issuer, Audiences: audiences, IssuedAt: issued, ExpiresAt: expires.Add(i.Leeway), Hash: hash}, nil
}

// names reads a claim that is a string or a list of strings; absent is none.
func names(raw json.RawMessage) ([]string, error) {
	if len(raw) == 0 || string(raw) == "null" {
		return nil, nil
	}
	var list []string
	if raw[0] == '"' {
		var one string
		if err := json.Unmarshal(raw, &one); err != nil {
			return nil, errors.New("no string")
		}
		list = []string{one}
	} else if err := json.Unmarshal(raw, &list); err != nil {
		return nil, errors.New("neither a string nor a list of strings")
	}
	if len(list) > mostNames || slices.ContainsFunc(list, func(s string) bool { return len(s) > mostNameBytes }) {
		return nil, errors.New("too many, or too long")
	}
	return list, nil
}

// moment reads a NumericDate; absent is the zero time.
func moment(n *json.Number) (time.Time, error) {
	if n == nil {
		return time.Time{}, nil
	}
	seconds, err := n.Float64()
	if err != nil || seconds < 0 || seconds > 1e11 {
		return time.Time{}, errors.New("no time")
	}
	return time.UnixMilli(int64(seconds * 1000)), nil
}

// collector tells the issuers' state.
type collector struct{ v *Verifier }

var (
	fetchesDesc = prometheus.NewDesc("prism_authn_key_fetches_total", "Fetches of an issuer's keys, by what came of it.", []string{"issuer", "result"}, nil)
	ageDesc     = prometheus.NewDesc("prism_authn_key_age_seconds", "Since when the keys of an issuer are believed.", []string{"issuer"}, nil)
	skippedDesc = prometheus.NewDesc("prism_authn_keys_unusable", "Keys of an issuer that are left out.", []string{"issuer"}, nil)
)

// Describe is for Prometheus.
func (*collector) Describe(c chan<- *prometheus.Desc) {
	c <- fetchesDesc
	c <- ageDesc
	c <- skippedDesc
}

// Collect is for Prometheus.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	for _, url := range slices.Sorted(maps.Keys(c.v.issuers)) {
		i := c.v.issuers[url]
		failed := i.failed.Load()
		out <- prometheus.MustNewConstMetric(fetchesDesc, prometheus.CounterValue, float64(i.fetches.Load()-failed), url, "ok")
		out <- prometheus.MustNewConstMetric(fetchesDesc, prometheus.CounterValue, float64(failed), url, "failed")
		if set := i.keys.Load(); set != nil {
			out <- prometheus.MustNewConstMetric(ageDesc, prometheus.GaugeValue, c.v.now().Sub(set.fetched).Seconds(), url)
		}
		i.mu.Lock()
		skipped := i.skipped
		i.mu.Unlock()
		out <- prometheus.MustNewConstMetric(skippedDesc, prometheus.GaugeValue, float64(skipped), url)
	}
}
