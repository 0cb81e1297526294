package vault_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/prism-gateway/prism/dataplane/credential"
	"github.com/prism-gateway/prism/dataplane/credential/vault"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/secret"
)

// witness is a provider that takes note of what is secret of all that passes.
type witness struct {
	credential.Provider

	mu      sync.Mutex
	secrets []string
}

func (w *witness) saw(texts ...secret.Text) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, text := range texts {
		if !text.IsZero() {
			w.secrets = append(w.secrets, text.Reveal())
		}
	}
}

// Login is the provider's.
func (w *witness) Login(ctx context.Context, who *credential.Login) (credential.Lease, error) {
	if who != nil {
		w.saw(who.Token)
	}
	l, err := w.Provider.Login(ctx, who)
	w.saw(l.ID, l.Token)
	return l, err
}

// Fetch is the provider's.
func (w *witness) Fetch(ctx context.Context, r credential.Request) (credential.Issued, error) {
	issued, err := w.Provider.Fetch(ctx, r)
	w.saw(issued.Lease.ID, issued.Credential.Password, secret.New(issued.Credential.Username))
	return issued, err
}

// output is a log that can be read while it is written.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
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

// run has a source work until the test ends, and then looks for secrets in all that it said.
func run(t *testing.T, p credential.Provider, change func(*credential.Config)) (s *credential.Source, stop func()) {
	t.Helper()
	seen, log, registry := &witness{Provider: p}, &output{}, prometheus.NewRegistry()
	cfg := credential.Config{
		Providers: map[string]credential.Provider{"vault": seen}, Registerer: registry,
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
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		families, err := registry.Gather()
		if err != nil {
			t.Error(err)
		}
		said := log.String() + fmt.Sprint(families) + fmt.Sprint(s.Providers())
		for _, text := range seen.secrets {
			if len(text) > 3 && strings.Contains(said, text) {
				t.Error("a log or a metric holds a secret")
			}
		}
		if t.Failed() {
			t.Log(log.String())
		}
	})
	t.Cleanup(stop)
	return s, stop
}

func (w *world) acquire(t *testing.T, s *credential.Source, owner string) *credential.Handle {
	t.Helper()
	h, err := w.tryAcquire(t, s, owner)
	if err != nil {
		t.Fatal(err, errors.Unwrap(err))
	}
	return h
}

func (w *world) tryAcquire(t *testing.T, s *credential.Source, owner string) (*credential.Handle, error) {
	t.Helper()
	return s.Acquire(t.Context(), credential.Key{Provider: "vault", Path: "database/creds/orders", Owner: owner}, func() *credential.Login { return w.login(t, owner) })
}

// users counts the store's users that were made.
func (w *world) users(t *testing.T) int {
	t.Helper()
	var n int
	if err := w.admin.QueryRow(t.Context(), "SELECT count(*) FROM pg_roles WHERE rolname LIKE 'v-%'").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// until waits for something, at most so long.
func until(t *testing.T, most time.Duration, what string, is func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		if time.Since(began) > most {
			t.Fatalf("not in %v: %s", most, what)
		}
		<-tick.C
	}
	return time.Since(began)
}

// role changes how long the store's users live.
func (w *world) role(t *testing.T, ttl, maxTTL string) {
	t.Helper()
	w.vault.PostgreSQLRole(t, "orders", "pg", "ns_rw", ttl, maxTTL)
}

func TestCR03RotatesUnderLoadWithoutAnError(t *testing.T) {
	w := newWorld(t)
	w.role(t, "3s", "4s")
	s, _ := run(t, w.provider(t, nil), nil)
	h := w.acquire(t, s, "ann")
	type pool struct {
		generation uint64
		users      sync.WaitGroup
		conns      chan *pgx.Conn
	}
	open := func() *pool {
		c := h.Current()
		if c == nil {
			t.Fatal(h.Err())
		}
		p := &pool{generation: c.Generation, conns: make(chan *pgx.Conn, 2)}
		for range cap(p.conns) {
			p.conns <- w.connect(t, c.Username, c.Password.Reveal())
		}
		return p
	}
	var now atomic.Pointer[pool]
	var mu sync.RWMutex // a pool takes no new work when it is replaced
	now.Store(open())
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var calls, failed atomic.Int64
	var load sync.WaitGroup
	for range 2 {
		load.Go(func() {
			for ctx.Err() == nil {
				mu.RLock()
				p := now.Load()
				p.users.Add(1)
				mu.RUnlock()
				conn := <-p.conns
				var one int
				if err := conn.QueryRow(context.Background(), "SELECT 1").Scan(&one); err != nil {
					failed.Add(1)
				}
				calls.Add(1)
				p.conns <- conn
				p.users.Done()
			}
		})
	}
	rotations := 0
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-h.Changed():
			next := open()
			mu.Lock()
			was := now.Swap(next)
			mu.Unlock()
			was.users.Wait()
			h.Retire(was.generation)
			rotations++
		}
	}
	load.Wait()
	if failed.Load() != 0 || rotations < 3 || calls.Load() < 1000 {
		t.Errorf("%d of %d calls failed over %d rotations", failed.Load(), calls.Load(), rotations)
	}
	t.Logf("%d calls, %d rotations", calls.Load(), rotations)
	if n := w.users(t); n > 3 {
		t.Errorf("%d users are left", n)
	}
}

func TestCR06TokenLostMeansItsLeasesAreReplaced(t *testing.T) {
	t.Parallel() // it mostly waits
	w := newWorld(t)
	w.role(t, "4s", "1h")
	s, _ := run(t, w.provider(t, nil), nil)
	h := w.acquire(t, s, "ann")
	was := *h.Current()
	for _, accessor := range w.vault.Do(t, "LIST", "auth/token/accessors", nil)["data"].(map[string]any)["keys"].([]any) {
		about := w.vault.Do(t, http.MethodPost, "auth/token/lookup-accessor", map[string]any{"accessor": accessor})["data"].(map[string]any)
		if about["path"] == "auth/jwt/login" {
			w.vault.Do(t, http.MethodPost, "auth/token/revoke-accessor", map[string]any{"accessor": accessor})
		}
	}
	select {
	case <-h.Changed():
	case <-time.After(5 * time.Second):
		t.Fatal("it is not replaced")
	}
	if c := h.Current(); c == nil || c.Username == was.Username || !w.opens(t, *c) {
		t.Errorf("now: %v, %v", c, h.Err())
	}
}

func TestCR07And08AndCR09TheServerIsAway(t *testing.T) {
	t.Parallel() // it mostly waits
	w := newWorld(t)
	w.role(t, "9s", "1h")
	s, _ := run(t, w.provider(t, nil), nil)
	h := w.acquire(t, s, "ann")
	was := h.Current().Generation
	refused := func(owner string, most time.Duration) {
		t.Helper()
		began := time.Now()
		if _, err := w.tryAcquire(t, s, owner); !fault.Is(err, fault.CredentialsUnavailable) || errors.Is(err, credential.ErrRefused) {
			t.Errorf("a new owner is told %v", err)
		}
		if took := time.Since(began); took > most {
			t.Errorf("told after %v", took)
		}
	}
	t.Log("killed")
	w.vault.Kill()
	refused("bob", time.Second) // C12
	w.vault.Restart(t)
	if c := h.Current(); c == nil || c.Generation != was || !w.opens(t, *c) {
		t.Fatalf("the server was away for a moment: %v, %v", c, h.Err())
	}
	until(t, 6*time.Second, "a new owner has a credential when the server is back", func() bool {
		got, err := w.tryAcquire(t, s, "bob")
		if err == nil {
			got.Release()
		}
		return err == nil
	})

	t.Log("sealed")
	w.vault.Seal(t)
	refused("cid", time.Second)
	w.vault.Unseal(t)

	t.Log("paused")
	until(t, 6*time.Second, "a new owner has a credential when the server is back", func() bool {
		_, err := w.tryAcquire(t, s, "dan")
		return err == nil
	})
	w.vault.Pause(t)
	refused("eve", 6*time.Second)
	refused("fay", time.Second)
	// Beyond its lease a credential is not used.
	until(t, 10*time.Second, "it fails closed", func() bool { return h.Current() == nil })
	if !fault.Is(h.Err(), fault.CredentialsUnavailable) {
		t.Errorf("why: %v", h.Err())
	}
	w.vault.Resume(t)
	until(t, 40*time.Second, "there is a credential when the server is back", func() bool { return h.Current() != nil })
	if c := h.Current(); !w.opens(t, *c) {
		t.Error("it does not open the store")
	}
}

func TestCR09ThrottledServer(t *testing.T) {
	t.Parallel() // it mostly waits
	w := newWorld(t)
	w.vault.Do(t, http.MethodPost, "sys/quotas/rate-limit/all", map[string]any{"rate": 1, "interval": "2s", "path": "auth/jwt/"})
	p := w.provider(t, nil)
	throttled := 0
	for range 10 {
		if _, err := p.Login(t.Context(), w.login(t, "ann")); errors.Is(err, credential.ErrThrottled) {
			throttled++
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if throttled == 0 {
		t.Error("the quota was not told")
	}
}

func TestCR10ReleaseRemovesTheUserWithinASecond(t *testing.T) {
	w := newWorld(t)
	s, _ := run(t, w.provider(t, nil), nil)
	ann, bob := w.acquire(t, s, "ann"), w.acquire(t, s, "bob")
	if n := w.users(t); n != 2 || ann.Current().Username == bob.Current().Username {
		t.Fatalf("%d users of two callers", n)
	}
	ann.Release()
	took := until(t, time.Second, "the user is gone", func() bool { return w.users(t) == 1 })
	t.Logf("gone after %v", took)
	if !w.opens(t, *bob.Current()) {
		t.Error("another's user is gone")
	}
}

func TestCR11DrainRevokesAll(t *testing.T) {
	w := newWorld(t)
	s, _ := run(t, w.provider(t, nil), nil)
	for i := range 20 {
		w.acquire(t, s, fmt.Sprint("caller-", i))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := s.Drain(ctx); err != nil {
		t.Fatal(err)
	}
	until(t, 5*time.Second, "the users are gone", func() bool { return w.users(t) == 0 })
	until(t, 5*time.Second, "the leases are gone", func() bool { return len(w.vault.Leases(t, "database/creds/orders/")) == 0 })
}

// A process of its own that holds leases until it is killed.
const crashVariable = "PRISM_TEST_CREDENTIAL_CRASH"

func TestMain(m *testing.M) {
	if config := os.Getenv(crashVariable); config != "" {
		hold(strings.Split(config, "|"))
	}
	os.Exit(m.Run())
}

// hold has 20 credentials of callers and 5 of its own, says so, and waits for its end.
func hold(config []string) {
	address, ca, journal, roleID, secretFile, tokens := config[0], config[1], config[2], config[3], config[4], config[5]
	fail := func(err error) {
		if err != nil {
			fmt.Println("failed:", err, errors.Unwrap(err))
			os.Exit(1)
		}
	}
	p, err := vault.New(vault.Config{Address: address, CAFile: ca, Identity: vault.AppRole{RoleID: roleID, SecretIDFile: secretFile}})
	fail(err)
	s, err := credential.New(credential.Config{Providers: map[string]credential.Provider{"vault": p}, JournalDir: journal, Logger: slog.New(slog.DiscardHandler)})
	fail(err)
	go s.Run(context.Background())
	for i, token := range strings.Split(tokens, ",") {
		_, err := s.Acquire(context.Background(), credential.Key{Provider: "vault", Path: "database/creds/orders", Owner: fmt.Sprint("caller-", i)},
			func() *credential.Login { return &credential.Login{Role: "orders", Token: secret.New(token)} })
		fail(err)
	}
	for i := range 5 {
		_, err := s.Acquire(context.Background(), credential.Key{Provider: "vault", Path: "database/creds/orders", Owner: fmt.Sprint("namespace-", i)}, nil)
		fail(err)
	}
	fmt.Println("holding")
	select {}
}

func TestCR12Kill9LeavesNoOrphanAfterARestart(t *testing.T) {
	w := newWorld(t)
	journal := t.TempDir()
	roleID, secretID := w.vault.EnableAppRole(t, "proxy", "1h", "leasing")
	secretFile := write(t, "secret-id", secretID)
	var tokens []string
	for i := range 20 {
		tokens = append(tokens, w.token(t, fmt.Sprint("caller-", i)).Reveal())
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), crashVariable+"="+strings.Join([]string{w.vault.Address(), w.vault.CAFile(), journal, roleID, secretFile, strings.Join(tokens, ",")}, "|"))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if said, err := bufio.NewReader(out).ReadString('\n'); said != "holding\n" {
		t.Fatal(said, err)
	}
	if n := w.users(t); n != 25 {
		t.Errorf("%d users before the crash, want 25", n)
	}
	cmd.Process.Kill()
	cmd.Wait()
	if n := w.users(t); n != 25 {
		t.Errorf("%d users after the crash, want 25", n)
	}
	own := func(c *vault.Config) { c.Identity = vault.AppRole{RoleID: roleID, SecretIDFile: secretFile} }
	s, _ := run(t, w.provider(t, own), func(c *credential.Config) { c.JournalDir = journal })
	took := until(t, 30*time.Second, "the former run's users are gone", func() bool { return w.users(t) == 0 })
	t.Logf("gone %v after the restart", took)
	w.acquire(t, s, "ann")
	if left := w.vault.Leases(t, "database/creds/orders/"); len(left) != 1 {
		t.Errorf("%d leases", len(left))
	}
}

func TestCR18RevokedElsewhereIsReplacedOnce(t *testing.T) {
	t.Parallel() // it mostly waits
	w := newWorld(t)
	w.role(t, "4s", "1h")
	s, _ := run(t, w.provider(t, nil), nil)
	h := w.acquire(t, s, "ann")
	h.Current()
	w.vault.Do(t, http.MethodPost, "sys/leases/revoke-prefix/database/creds/orders", nil)
	before := w.vault.Requests(t, "database/creds/")
	select {
	case <-h.Changed():
	case <-time.After(5 * time.Second):
		t.Fatal("it is not replaced")
	}
	if c := h.Current(); c == nil || !w.opens(t, *c) {
		t.Errorf("now: %v, %v", c, h.Err())
	}
	if n := w.vault.Requests(t, "database/creds/") - before; n != 1 {
		t.Errorf("fetched %d times", n)
	}
}

// A batch token has no accessor: it cannot be renewed or revoked, and what it fetched is revoked one by one.
func TestBatchTokensAreReplacedAndTheirLeasesRevoked(t *testing.T) {
	t.Parallel() // it mostly waits
	w := newWorld(t)
	w.vault.Do(t, http.MethodPost, "auth/jwt/role/orders", map[string]any{
		"role_type": "jwt", "bound_audiences": []string{"vault"}, "user_claim": "sub", "token_policies": []string{"leasing"}, "token_ttl": "4s", "token_type": "batch",
	})
	roleID, secretID := w.vault.EnableAppRole(t, "proxy", "1h", "leasing")
	own := func(c *vault.Config) {
		c.Identity = vault.AppRole{RoleID: roleID, SecretIDFile: write(t, "secret-id", secretID)}
	}
	s, _ := run(t, w.provider(t, own), nil)
	h := w.acquire(t, s, "ann")
	was := *h.Current()
	select {
	case <-h.Changed():
	case <-time.After(4 * time.Second):
		t.Fatal("it is not replaced before its token ends")
	}
	if c := h.Current(); c == nil || !w.opens(t, *c) || !w.opens(t, was) {
		t.Fatalf("now: %v, %v; or the former is gone already", c, h.Err())
	}
	h.Retire(was.Generation)
	h.Release()
	until(t, 3*time.Second, "the users are gone", func() bool { return w.users(t) == 0 })
}

func TestCR19RoleDroppedByHandIsReplaced(t *testing.T) {
	w := newWorld(t)
	s, _ := run(t, w.provider(t, nil), nil)
	h := w.acquire(t, s, "ann")
	was := h.Current()
	if _, err := w.admin.Exec(t.Context(), `DROP ROLE "`+was.Username+`"`); err != nil {
		t.Fatal(err)
	}
	if w.opens(t, *was) {
		t.Fatal("the user is there")
	}
	h.Refused(was.Generation)
	<-h.Changed()
	h.Retire(was.Generation)
	if c := h.Current(); c == nil || !w.opens(t, *c) {
		t.Errorf("now: %v, %v", c, h.Err())
	}
}
