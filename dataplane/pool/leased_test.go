package pool_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prism-gateway/prism/dataplane/credential"
	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/dataplane/pool"
	"github.com/prism-gateway/prism/dataplane/session"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/principal"
	"github.com/prism-gateway/prism/shared/secret"
)

// guard is a store that knows its users: what a test needs to see whose connections serve whom, and how many there are. Its
// users are made and removed by the provider of the same name.
type guard struct {
	ttl time.Duration

	mu          sync.Mutex
	users       map[string]string // name -> the login that it was fetched with
	serial      int
	connections map[string]int // by user
	most, now   int
	made        atomic.Int64
}

func newGuard(ttl time.Duration) *guard {
	return &guard{ttl: ttl, users: map[string]string{}, connections: map[string]int{}}
}

// The driver.

func (g *guard) Type() string         { return "guarded" }
func (g *guard) Interfaces() []string { return []string{"keyvalue"} }

func (g *guard) Open(cfg driver.Config) (driver.Instance, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.connections[cfg.Username] += cfg.MaxConnections
	g.now += cfg.MaxConnections
	g.most = max(g.most, g.now)
	return &line{guard: g, user: cfg.Username, size: cfg.MaxConnections}, nil
}

// line is the connections of one user.
type line struct {
	guard  *guard
	user   string
	size   int
	once   sync.Once
	closed atomic.Bool
}

func (l *line) ask() error {
	_, err := l.login()
	return err
}

// login is what the user was fetched with.
func (l *line) login() (string, error) {
	l.guard.mu.Lock()
	defer l.guard.mu.Unlock()
	if l.closed.Load() {
		return "", fault.New(fault.Internal, fault.Bug, "it is used after it was closed")
	}
	login, ok := l.guard.users[l.user]
	if !ok {
		return "", fault.New(fault.Unavailable, fault.CredentialsUnavailable, "no such user").WithOutcome(fault.NotApplied)
	}
	return login, nil
}

func (l *line) Ping(context.Context) error { return l.ask() }

func (l *line) Close() error {
	l.once.Do(func() {
		l.closed.Store(true)
		l.guard.mu.Lock()
		defer l.guard.mu.Unlock()
		l.guard.connections[l.user] -= l.size
		l.guard.now -= l.size
	})
	return nil
}

// Get answers with the owner of the user that asked.
func (l *line) Get(context.Context, driver.Space, driver.Name, bool) (*driver.Item, error) {
	login, err := l.login()
	if err != nil {
		return nil, err
	}
	owner, _, _ := strings.Cut(login, " by login ")
	return &driver.Item{Value: []byte(owner)}, nil
}

func (l *line) Write(context.Context, driver.Space, driver.Write) (driver.Written, error) {
	return driver.Written{}, l.ask()
}
func (l *line) BatchGet(context.Context, driver.Space, []driver.Name, bool) []driver.GetResult {
	return nil
}
func (l *line) BatchWrite(context.Context, driver.Space, []driver.Write) []driver.WriteResult {
	return nil
}

// provider makes the guard's users.
type provider struct{ *guard }

func (p provider) Type() string  { return "guard" }
func (p provider) Dynamic() bool { return true }

func (p provider) Login(_ context.Context, who *credential.Login) (credential.Lease, error) {
	owner := "the proxy"
	if who != nil {
		owner = who.Token.Reveal()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.serial++
	token := fmt.Sprint(owner, " by login ", p.serial)
	return credential.Lease{Login: true, ID: secret.New(token), Token: secret.New(token), TTL: time.Hour, Renewable: true}, nil
}

func (p provider) Fetch(_ context.Context, r credential.Request) (credential.Issued, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.serial++
	p.made.Add(1)
	user := fmt.Sprint("u", p.serial)
	p.users[user] = r.As.Token.Reveal()
	return credential.Issued{Credential: credential.Credential{Username: user, Password: secret.New("p")}, Lease: credential.Lease{ID: secret.New(user), TTL: p.ttl}}, nil
}

func (p provider) Renew(_ context.Context, l credential.Lease) (credential.Lease, error) {
	return l, nil
}

func (p provider) Revoke(_ context.Context, l credential.Lease) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.users, l.ID.Reveal())
	maps.DeleteFunc(p.users, func(_, login string) bool { return login == l.ID.Reveal() }) // all goes that was fetched with it
	return nil
}

// leasing runs a set of pools, sessions and a source of credentials until the test ends.
func leasing(t *testing.T, g *guard, budget int) (*pool.Set, *session.Manager) {
	t.Helper()
	source, err := credential.New(credential.Config{
		Providers: map[string]credential.Provider{"guard": provider{g}}, Logger: slog.New(slog.DiscardHandler),
		Policy: credential.Policy{Margin: g.ttl / 4, IssuesPerSecond: 10_000, RenewalsPerSecond: 10_000, Linger: time.Millisecond},
	})
	if err != nil {
		t.Fatal(err)
	}
	sessions, err := session.New(session.Config{})
	if err != nil {
		t.Fatal(err)
	}
	set, err := pool.New(pool.Config{Drivers: []driver.Driver{g}, Source: source, MaxPerBackend: budget})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var running sync.WaitGroup
	running.Go(func() { _ = source.Run(ctx) })
	running.Go(func() { _ = sessions.Run(ctx) })
	t.Cleanup(func() {
		set.Close()
		cancel()
		running.Wait()
	})
	return set, sessions
}

var lease = pool.Lease{Namespace: "orders", Provider: "guard", Path: "creds", Scope: pool.ByPrincipal, Login: credential.Login{Role: "callers"}}

// as is the context of a caller's call, in its session.
func as(t *testing.T, m *session.Manager, who string) (context.Context, *session.Session) {
	t.Helper()
	s, err := m.Begin("orders", session.Policy{TTL: time.Hour, Idle: time.Hour}, session.Claim{
		Principal: &principal.Principal{ID: who}, Token: sha256.Sum256([]byte(who)), Login: secret.New(who),
	})
	if err != nil {
		t.Fatal(err)
	}
	return context.WithValue(t.Context(), session.Key{}, s), s
}

// SE-19, CR-03, CR-15: many callers, credentials that live a second, sessions that come and go, and few connections.
// No call is served by another's user, none fails for a rotation, and there are never more connections than the budget.
func TestEachCallerIsServedByItsOwnUserWhileCredentialsRotate(t *testing.T) {
	g := newGuard(time.Second)
	set, sessions := leasing(t, g, 60)
	l, err := set.Lease(pool.Spec{Backend: "main", Type: "guarded"}, lease)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Release()
	var calls, refused atomic.Int64
	var wg sync.WaitGroup
	until := time.Now().Add(3 * time.Second)
	for n := range 12 {
		wg.Go(func() {
			who := fmt.Sprint("caller", n%6)
			for round := 0; time.Now().Before(until); round++ {
				ctx, s := as(t, sessions, who)
				for range 50 {
					call, cancel := context.WithTimeout(ctx, 10*time.Second)
					item, err := l.Get(call, "", driver.Name{}, false)
					cancel()
					calls.Add(1)
					switch {
					case fault.Is(err, fault.Revoked): // its other half closed the session
						refused.Add(1)
					case err != nil:
						t.Errorf("%s: %v", who, err)
						return
					case string(item.Value) != who:
						t.Errorf("%s was served by a user of %s", who, item.Value)
						return
					}
				}
				if n >= 6 && round%3 == 0 {
					_ = sessions.Close("orders", s.ID(), session.Claim{Principal: s.Principal()}) // a fresh one begins
				}
			}
		})
	}
	wg.Wait()
	g.mu.Lock()
	most := g.most
	g.mu.Unlock()
	t.Logf("%d calls, %d of closed sessions, %d users made, at most %d connections", calls.Load(), refused.Load(), g.made.Load(), most)
	if most > 60 || g.made.Load() < 20 {
		t.Errorf("%d connections, %d users", most, g.made.Load())
	}
}

// CR-10, CR-16, CR-17
func TestACredentialIsSharedByAPrincipalsSessionsAndGoesWithTheLast(t *testing.T) {
	g := newGuard(time.Hour)
	set, sessions := leasing(t, g, 0)
	l, err := set.Lease(pool.Spec{Backend: "main", Type: "guarded"}, lease)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Release()
	claim := func(token string) session.Claim {
		return session.Claim{Principal: &principal.Principal{ID: "alice"}, Token: sha256.Sum256([]byte(token)), Login: secret.New(token)}
	}
	var two []*session.Session
	for _, token := range []string{"one", "two"} {
		s, err := sessions.Begin("orders", session.Policy{TTL: time.Hour, Idle: time.Hour}, claim(token))
		if err != nil {
			t.Fatal(err)
		}
		two = append(two, s)
		if _, err := l.Get(context.WithValue(t.Context(), session.Key{}, s), "", driver.Name{}, false); err != nil {
			t.Fatal(err)
		}
	}
	users := func() int {
		g.mu.Lock()
		defer g.mu.Unlock()
		return len(g.users)
	}
	if users() != 1 {
		t.Fatalf("%d users of one principal", users())
	}
	for n, s := range two {
		if err := sessions.Close("orders", s.ID(), claim("one")); err != nil {
			t.Fatal(err)
		}
		if n == 0 && users() != 1 {
			t.Error("the user went with the first session")
		}
	}
	for limit := time.Now().Add(10 * time.Second); users() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("%d users are left", users())
		}
	}
}

// CR-15: more callers than connections take turns, and each keeps its credential meanwhile.
func TestMoreCallersThanConnections(t *testing.T) {
	g := newGuard(time.Hour)
	set, sessions := leasing(t, g, 4) // one of them is kept for replacing
	l, err := set.Lease(pool.Spec{Backend: "main", Type: "guarded", MaxConnections: 1}, lease)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Release()
	const callers = 8
	contexts := make([]context.Context, callers)
	for n := range contexts {
		contexts[n], _ = as(t, sessions, fmt.Sprint("caller", n))
	}
	for round := range 2 {
		var wg sync.WaitGroup
		for n, ctx := range contexts {
			wg.Go(func() {
				call, cancel := context.WithTimeout(ctx, 20*time.Second)
				defer cancel()
				if it, err := l.Get(call, "", driver.Name{}, false); err != nil || !strings.HasSuffix(string(it.Value), fmt.Sprint("caller", n)) {
					t.Errorf("round %d, caller %d: %v, %v", round, n, it, err)
				}
			})
		}
		wg.Wait()
	}
	if made := g.made.Load(); made != callers {
		t.Errorf("%d credentials of %d callers", made, callers)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.most > 4 {
		t.Errorf("%d connections", g.most)
	}
}

func TestACallOfNobodyGetsNoCredential(t *testing.T) {
	g := newGuard(time.Hour)
	set, _ := leasing(t, g, 0)
	l, err := set.Lease(pool.Spec{Backend: "main", Type: "guarded"}, lease)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Release()
	if _, err := l.Get(t.Context(), "", driver.Name{}, false); !fault.Is(err, fault.NoCredentials) {
		t.Errorf("%v", err)
	}
	if g.made.Load() != 0 {
		t.Error("a credential was made for nobody")
	}
}
