package authn

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lestrrat-go/jwx/v2/jwk"
)

// How keys are fetched and for how long they are believed.
const (
	fetchTimeout = 5 * time.Second
	mostBytes    = 1 << 20
	mostKeys     = 1000 // of one issuer
	firstRetry   = 200 * time.Millisecond
	lastRetry    = 5 * time.Second
	leastAge     = time.Minute
	mostAge      = time.Hour
	defaultAge   = 15 * time.Minute
	staleFor     = 24 * time.Hour   // how long keys are believed that cannot be fetched again
	askedAgain   = 10 * time.Second // between fetches for keys that are not known
	unknownFor   = 30 * time.Second // how long a key is known not to be there
	mostUnknown  = 1000
)

// key is a public key of an issuer with the signatures that it may make.
type key struct {
	public crypto.PublicKey
	kinds  []string // the algorithms that it can be for
	alg    string   // the one that the issuer names; empty: any of these
}

// keySet is what an issuer published. It does not change.
type keySet struct {
	byID    map[string]key
	only    *key // the one key, where it is only one: for tokens that name none
	fetched time.Time
}

// issuer has the keys of one issuer. Those who verify never wait for a fetch of what they do not need.
type issuer struct {
	Issuer
	client *http.Client
	now    func() time.Time
	log    *slog.Logger
	keys   atomic.Pointer[keySet]
	wake   chan struct{} // asks for a fetch

	mu      sync.Mutex // guards what follows
	jwks    string     // found by discovery
	err     error      // of the last fetch
	asked   time.Time  // when a fetch for an unknown key began last
	unknown map[string]time.Time
	waiting chan struct{} // closed when the fetch that is wanted is done; nil: none is
	skipped int           // keys of the set in effect that could not be used
	fetches atomic.Int64
	failed  atomic.Int64
}

func newIssuer(i Issuer, now func() time.Time, log *slog.Logger) (*issuer, error) {
	for _, address := range []string{i.URL, i.JWKSURL} {
		if address == "" {
			continue
		}
		u, err := url.Parse(address)
		if err != nil {
			return nil, fmt.Errorf("authn: issuer %s: %w", i.URL, err)
		}
		if u.Scheme != "https" && !(u.Scheme == "http" && loopback(u.Hostname())) {
			return nil, fmt.Errorf("authn: issuer %s: want https, or http on loopback", i.URL)
		}
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{RootCAs: i.RootCAs, MinVersion: tls.VersionTLS12}
	transport.MaxIdleConns, transport.IdleConnTimeout = 2, time.Minute
	return &issuer{
		Issuer: i, now: now, log: log, wake: make(chan struct{}, 1), unknown: map[string]time.Time{},
		client: &http.Client{Transport: transport, Timeout: fetchTimeout, CheckRedirect: func(to *http.Request, via []*http.Request) error {
			if to.URL.Host != via[0].URL.Host || to.URL.Scheme != via[0].URL.Scheme || len(via) > 3 {
				return errors.New("it redirects to another host, or away from TLS")
			}
			return nil
		}},
	}, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// run keeps the keys fresh until ctx ends.
func (i *issuer) run(ctx context.Context) {
	defer i.client.CloseIdleConnections()
	retry := firstRetry
	for {
		age, err := i.fetch(ctx)
		if ctx.Err() != nil {
			return
		}
		wait := age*4/5 + rand.N(age/5+1) // before it is old, and not all proxies at once
		if err == nil {
			retry = firstRetry
		} else {
			wait = retry/2 + rand.N(retry)
			retry = min(2*retry, lastRetry)
		}
		i.fetchedWith(err)
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		case <-i.wake:
			timer.Stop()
		}
	}
}

// fetchedWith tells those who wait for a fetch, and the log when it is news.
func (i *issuer) fetchedWith(err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if err != nil && i.err == nil {
		i.log.Warn("the keys of an issuer cannot be fetched", "issuer", i.URL, "error", err)
	} else if err == nil && i.err != nil {
		i.log.Info("the keys of an issuer are fetched again", "issuer", i.URL)
	}
	i.err = err
	if i.waiting != nil {
		close(i.waiting)
		i.waiting = nil
	}
}

// fetch asks the issuer for its keys, and says how long they are fresh.
func (i *issuer) fetch(ctx context.Context) (time.Duration, error) {
	i.fetches.Add(1)
	age, err := i.tryFetch(ctx)
	if err != nil {
		i.failed.Add(1)
	}
	return age, err
}

func (i *issuer) tryFetch(ctx context.Context) (time.Duration, error) {
	from := cmp.Or(i.JWKSURL, i.jwks)
	if from == "" {
		found, err := i.discover(ctx)
		if err != nil {
			return 0, err
		}
		from = found
	}
	data, header, err := i.get(ctx, from)
	if err != nil {
		i.jwks = "" // it may have moved
		return 0, err
	}
	set, skipped, err := parseKeys(data)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", from, err)
	}
	set.fetched = i.now()
	i.keys.Store(set)
	i.mu.Lock()
	i.skipped, i.unknown = skipped, map[string]time.Time{}
	i.mu.Unlock()
	return freshFor(header), nil
}

// discover finds out where the keys are (OpenID Connect Discovery 1.0, section 4).
func (i *issuer) discover(ctx context.Context) (string, error) {
	at := strings.TrimSuffix(i.URL, "/") + "/.well-known/openid-configuration"
	data, _, err := i.get(ctx, at)
	if err != nil {
		return "", err
	}
	var document struct {
		Issuer string `json:"issuer"`
		JWKS   string `json:"jwks_uri"`
	}
	if err := json.Unmarshal(data, &document); err != nil {
		return "", fmt.Errorf("%s: %w", at, err)
	}
	u, err := url.Parse(document.JWKS)
	switch {
	case document.Issuer != i.URL:
		return "", fmt.Errorf("%s: says that the issuer is %q", at, document.Issuer)
	case err != nil || u.Scheme != "https" && !(u.Scheme == "http" && loopback(u.Hostname())):
		return "", fmt.Errorf("%s: jwks_uri %q: want https, or http on loopback", at, document.JWKS)
	}
	i.jwks = document.JWKS
	return i.jwks, nil
}

func (i *issuer) get(ctx context.Context, from string) ([]byte, http.Header, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return nil, nil, err
	}
	request.Header.Set("Accept", "application/json")
	response, err := i.client.Do(request)
	if err != nil {
		return nil, nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, nil, fmt.Errorf("%s: %s", from, response.Status)
	}
	data, err := io.ReadAll(io.LimitReader(response.Body, mostBytes+1))
	switch {
	case err != nil:
		return nil, nil, err
	case len(data) > mostBytes:
		return nil, nil, fmt.Errorf("%s: more than %d bytes", from, mostBytes)
	}
	return data, response.Header, nil
}

// freshFor is what the issuer says of how long its answer is fresh, within bounds.
func freshFor(h http.Header) time.Duration {
	age := defaultAge
	for directive := range strings.SplitSeq(h.Get("Cache-Control"), ",") {
		if text, ok := strings.CutPrefix(strings.ToLower(strings.TrimSpace(directive)), "max-age="); ok {
			if n, err := strconv.ParseUint(text, 10, 31); err == nil {
				age = time.Duration(n) * time.Second
			}
		}
	}
	return min(max(age, leastAge), mostAge)
}

// parseKeys reads a JWK Set. A key that cannot be used is left out and counted: it is not to break the others.
func parseKeys(data []byte) (set *keySet, skipped int, err error) {
	var document struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(data, &document); err != nil {
		return nil, 0, err
	}
	if len(document.Keys) > mostKeys {
		return nil, 0, fmt.Errorf("more than %d keys", mostKeys)
	}
	set = &keySet{byID: map[string]key{}}
	usable := 0
	for _, raw := range document.Keys {
		id, k, ok := parseKey(raw)
		if !ok {
			skipped++
			continue
		}
		usable++
		set.only = &k
		if id != "" {
			set.byID[id] = k
		}
	}
	if usable == 0 {
		return nil, skipped, fmt.Errorf("none of %d keys can be used", len(document.Keys))
	}
	if usable > 1 {
		set.only = nil
	}
	return set, skipped, nil
}

func parseKey(raw []byte) (id string, k key, ok bool) {
	parsed, err := jwk.ParseKey(raw)
	if err != nil || parsed.KeyUsage() != "" && parsed.KeyUsage() != string(jwk.ForSignature) {
		return "", key{}, false
	}
	public, err := parsed.PublicKey()
	if err != nil {
		return "", key{}, false // also what is symmetric: nobody signs with what all can read
	}
	k = key{alg: parsed.Algorithm().String()}
	if public.Raw(&k.public) != nil {
		return "", key{}, false
	}
	switch p := k.public.(type) {
	case *rsa.PublicKey:
		k.kinds = []string{"RS256", "PS256"}
		ok = p.N.BitLen() >= 2048
	case *ecdsa.PublicKey:
		k.kinds = []string{"ES256"}
		ok = p.Curve == elliptic.P256()
	case ed25519.PublicKey:
		k.kinds = []string{"EdDSA"}
		ok = true
	}
	return parsed.KeyID(), k, ok
}

// key returns the key that a token names, asking the issuer when it is not known. An error is of the issuer.
func (i *issuer) key(ctx context.Context, id string) (k key, ok bool, err error) {
	if k, ok, err = i.known(id); ok || err != nil && i.keys.Load() != nil {
		return k, ok, err
	}
	wait := i.want(id)
	if wait == nil {
		return key{}, false, i.trouble()
	}
	select {
	case <-wait:
	case <-ctx.Done():
		return key{}, false, ctx.Err()
	}
	if k, ok, err = i.known(id); !ok && err == nil {
		i.miss(id)
		err = i.trouble()
	}
	return k, ok, err
}

// known looks for a key in what was fetched.
func (i *issuer) known(id string) (key, bool, error) {
	set := i.keys.Load()
	switch {
	case set == nil:
		return key{}, false, i.trouble()
	case i.now().Sub(set.fetched) > staleFor:
		return key{}, false, errors.New("its keys could not be fetched for a day")
	}
	if id == "" {
		if set.only == nil {
			return key{}, false, nil
		}
		return *set.only, true, nil
	}
	k, ok := set.byID[id]
	return k, ok, nil
}

// trouble is why keys are missing: nil when the issuer answered.
func (i *issuer) trouble() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.err == nil && i.keys.Load() == nil {
		return errors.New("its keys have not been fetched yet")
	}
	return i.err
}

// want asks for a fetch because of a key that is not known, unless that was asked a moment ago; it returns what is closed
// when the fetch is done. An issuer that does not answer is asked by run alone.
func (i *issuer) want(id string) <-chan struct{} {
	i.mu.Lock()
	defer i.mu.Unlock()
	now, first := i.now(), i.keys.Load() == nil
	switch until, missed := i.unknown[id]; {
	case i.err != nil && first:
		return nil
	case i.waiting != nil:
		return i.waiting
	case !first && (missed && now.Before(until) || now.Sub(i.asked) < askedAgain):
		return nil
	}
	i.waiting = make(chan struct{})
	if first {
		return i.waiting // the fetch is under way
	}
	i.asked = now
	select {
	case i.wake <- struct{}{}:
	default:
	}
	return i.waiting
}

// miss remembers that a key is not there.
func (i *issuer) miss(id string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.unknown) >= mostUnknown {
		i.unknown = map[string]time.Time{}
	}
	i.unknown[id] = i.now().Add(unknownFor)
}
