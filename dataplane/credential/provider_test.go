package credential_test

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/prism-gateway/prism/dataplane/credential"
	"github.com/prism-gateway/prism/shared/secret"
)

// double is a provider that keeps its leases in memory and does what a test tells it. It is to the contract what a driver
// in memory is to a store's.
type double struct {
	dynamic  bool
	ttl      time.Duration // of credentials
	tokenTTL time.Duration // of logins
	maxTTL   time.Duration // of credentials, over all renewals; 0: none
	latency  time.Duration

	mu      sync.Mutex
	serial  int
	fail    map[string]error // by call: login, fetch, renew, revoke
	hang    chan struct{}    // calls wait for it; nil: they do not
	leases  map[string]*held // by id or accessor
	tokens  map[string]*held // logins, by token
	static  credential.Credential
	calls   []call
	revoked []string
	noOwn   bool
}

type held struct {
	token, accessor string // of the login that it was fetched with, or is
	login           bool
	owner           string
	born, ends      time.Time
	fetched         []string // with the login
}

type call struct {
	what string
	at   time.Time
}

func newDouble(ttl, tokenTTL time.Duration) *double {
	return &double{dynamic: true, ttl: ttl, tokenTTL: tokenTTL, fail: map[string]error{}, leases: map[string]*held{}, tokens: map[string]*held{}}
}

func (d *double) Type() string  { return "double" }
func (d *double) Dynamic() bool { return d.dynamic }

// begin takes note of a call and waits as long as it takes.
func (d *double) begin(ctx context.Context, what string) error {
	d.mu.Lock()
	d.calls = append(d.calls, call{what, time.Now()})
	err, hang := d.fail[what], d.hang
	d.mu.Unlock()
	if hang != nil {
		select {
		case <-hang:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if d.latency > 0 {
		select {
		case <-time.After(d.latency):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return err
}

func (d *double) Login(ctx context.Context, who *credential.Login) (credential.Lease, error) {
	if err := d.begin(ctx, "login"); err != nil {
		return credential.Lease{}, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	owner := "proxy"
	if who != nil {
		owner = who.Token.Reveal()
	} else if d.noOwn {
		return credential.Lease{}, credential.ErrNoIdentity
	}
	d.serial++
	accessor, token := fmt.Sprintf("accessor-%d", d.serial), fmt.Sprintf("canary-token-%d", d.serial)
	h := &held{token: token, accessor: accessor, login: true, owner: owner, born: time.Now(), ends: time.Now().Add(d.tokenTTL)}
	d.leases[accessor], d.tokens[token] = h, h
	return credential.Lease{ID: secret.New(accessor), Token: secret.New(token), TTL: d.tokenTTL, Renewable: true}, nil
}

// good returns the login of a token.
func (d *double) good(token secret.Text) *held {
	if h := d.tokens[token.Reveal()]; h != nil && d.leases[h.accessor] == h && time.Now().Before(h.ends) {
		return h
	}
	return nil
}

func (d *double) Fetch(ctx context.Context, r credential.Request) (credential.Issued, error) {
	if err := d.begin(ctx, "fetch"); err != nil {
		return credential.Issued{}, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.dynamic {
		return credential.Issued{Credential: d.static}, nil
	}
	login := d.good(r.As.Token)
	if login == nil {
		return credential.Issued{}, fmt.Errorf("no such token: %w", credential.ErrRefused)
	}
	d.serial++
	id := fmt.Sprintf("canary-lease-%d", d.serial)
	d.leases[id] = &held{token: login.token, accessor: login.accessor, owner: login.owner, born: time.Now(), ends: time.Now().Add(d.ttl)}
	login.fetched = append(login.fetched, id)
	return credential.Issued{
		Credential: credential.Credential{Username: fmt.Sprintf("%s-%s-%d", login.owner, r.Path, d.serial), Password: secret.New(fmt.Sprintf("canary-password-%d", d.serial))},
		Lease:      credential.Lease{ID: secret.New(id), TTL: d.ttl, Renewable: true},
	}, nil
}

func (d *double) Renew(ctx context.Context, l credential.Lease) (credential.Lease, error) {
	what := "renew"
	if l.Login {
		what = "renew-login"
	}
	if err := d.begin(ctx, what); err != nil {
		return credential.Lease{}, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	h, ok := d.leases[l.ID.Reveal()]
	if !ok || time.Now().After(h.ends) || d.good(secret.New(h.token)) == nil {
		return credential.Lease{}, fmt.Errorf("no such lease: %w", credential.ErrRefused)
	}
	h.ends = time.Now().Add(l.TTL)
	if d.maxTTL > 0 && !h.login && h.ends.After(h.born.Add(d.maxTTL)) {
		h.ends = h.born.Add(d.maxTTL)
	}
	l.TTL = time.Until(h.ends)
	return l, nil
}

func (d *double) Revoke(ctx context.Context, l credential.Lease) error {
	if err := d.begin(ctx, "revoke"); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if l.Token.IsZero() && d.good(l.As) == nil {
		return fmt.Errorf("no such token: %w", credential.ErrRefused)
	}
	d.dropLocked(l.ID.Reveal())
	return nil
}

// drop ends a lease, and with that of a login all that was fetched with it.
func (d *double) drop(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dropLocked(id)
}

func (d *double) dropLocked(id string) {
	if h, ok := d.leases[id]; ok && h.login {
		for _, fetched := range h.fetched {
			delete(d.leases, fetched)
		}
	}
	delete(d.leases, id)
	d.revoked = append(d.revoked, id)
}

// any is a lease or a login that has not ended; empty when there is none.
func (d *double) any(r *rand.Rand) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	ids := slices.Sorted(maps.Keys(d.leases))
	if len(ids) == 0 {
		return ""
	}
	return ids[r.IntN(len(ids))]
}

// all are the calls.
func (d *double) all() []call {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.calls)
}

// forget drops what it knows, without a trace.
func (d *double) forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.leases, d.tokens, d.calls, d.revoked = map[string]*held{}, map[string]*held{}, nil, nil
}

// alive counts what has not ended; of logins or of credentials.
func (d *double) alive(logins bool) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := 0
	for _, h := range d.leases {
		if h.login == logins && time.Now().Before(h.ends) && (logins || d.good(secret.New(h.token)) != nil) { // a lease ends with its login
			n++
		}
	}
	return n
}

func (d *double) failWith(what string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fail[what] = err
}

// down has every call fail as if the provider were not there; up has them work again.
func (d *double) down() {
	for _, what := range []string{"login", "fetch", "renew", "renew-login", "revoke"} {
		d.failWith(what, errDown)
	}
}

func (d *double) up() {
	for _, what := range []string{"login", "fetch", "renew", "renew-login", "revoke"} {
		d.failWith(what, nil)
	}
}

var errDown = fmt.Errorf("connection refused")

// times returns when a call was made.
func (d *double) times(what string) []time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []time.Time
	for _, c := range d.calls {
		if c.what == what {
			out = append(out, c.at)
		}
	}
	return out
}

// start runs a source over one provider named d until the test, or the bubble, ends, and then looks for secrets in all
// that it said.
func start(t testing.TB, d credential.Provider, change func(*credential.Config)) *credential.Source {
	t.Helper()
	log, registry := &output{}, prometheus.NewRegistry()
	cfg := credential.Config{
		Providers: map[string]credential.Provider{"d": d}, Registerer: registry,
		Logger: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if change != nil {
		change(&cfg)
	}
	s, err := credential.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		families, err := registry.Gather()
		if err != nil {
			t.Error(err)
		}
		if said := log.String() + fmt.Sprint(families, s.Providers()); strings.Contains(said, "canary") || strings.Contains(said, "accessor-") {
			t.Error("a log or a metric holds a secret")
		}
	})
	return s
}

// output is a log.
type output struct {
	mu   sync.Mutex
	text strings.Builder
}

// Write appends.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// as is a caller's login.
func as(name string) func() *credential.Login {
	return func() *credential.Login { return &credential.Login{Role: "r", Token: secret.New(name)} }
}

func key(owner string) credential.Key {
	return credential.Key{Provider: "d", Path: "database/creds/orders", Owner: owner}
}

func acquire(t *testing.T, s *credential.Source, owner string) *credential.Handle {
	t.Helper()
	h, err := s.Acquire(t.Context(), key(owner), as(owner))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// bubble runs a test by a clock of its own.
func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, f)
}
