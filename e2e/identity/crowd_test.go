package identity_test

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/prism-gateway/prism/e2e/harness"
	bootstrapv1 "github.com/prism-gateway/prism/protos/prism/bootstrap/v1"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/testserver/postgresserver"
)

// CR-13, CR-14, CR-15: each of many callers has a user of its own in PostgreSQL and one credential for as long as its session
// lasts; the provider is asked no faster than the limiter lets, and there are never more connections than the budget.
func TestManySessions(t *testing.T) {
	const budget, perSecond, atOnce = 30, 50, 48
	callers := int(number(t, "PRISM_SESSIONS", 200))
	w := start(t, 1, func(c *bootstrapv1.ProxyConfig) {
		c.Credentials = &bootstrapv1.CredentialPolicy{
			MaxConnectionsPerBackend: budget, IssuesPerSecond: perSecond, IdleTimeout: durationpb.New(time.Hour),
		}
	})
	w.Apply(t.Context(), request("orders", "pg-main", "vault://database/creds/orders", configv1.CredentialScope_CREDENTIAL_SCOPE_PRINCIPAL))
	p := w.Proxies[0]
	before := w.memory(t)
	most, stop := w.watchConnections(t)
	tokens := make([]string, callers)
	for n := range tokens {
		tokens[n] = w.writer(t, fmt.Sprint("c", n))
	}

	// everyone does something for every caller, many at a time, and returns how long each took.
	everyone := func(what string, do func(ctx context.Context, n int) error) {
		t.Helper()
		took := make([]time.Duration, callers)
		var next, failed atomic.Int64
		var first sync.Once
		var wg sync.WaitGroup
		began := time.Now()
		for range atOnce {
			wg.Go(func() {
				for n := int(next.Add(1)) - 1; n < callers; n = int(next.Add(1)) - 1 {
					ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+tokens[n]), 30*time.Second)
					asked := time.Now()
					err := do(ctx, n)
					took[n] = time.Since(asked)
					cancel()
					if err != nil {
						failed.Add(1)
						first.Do(func() { t.Errorf("%s, caller %d: %s: %v", what, n, reason(err), err) })
					}
				}
			})
		}
		wg.Wait()
		t.Logf("%s: %d callers in %v, %d failed; p50 %v, p99 %v", what, callers, time.Since(began).Round(time.Millisecond), failed.Load(), quantile(took, 0.5), quantile(took, 0.99))
	}
	everyone("the first call", func(ctx context.Context, n int) error { return put(ctx, p, "orders", strconv.Itoa(n)) })
	for range 2 {
		everyone("another call", func(ctx context.Context, n int) error {
			_, err := p.KeyValue.Get(ctx, &datav1.GetRequest{Namespace: "orders", Id: []byte(strconv.Itoa(n))})
			return err
		})
	}
	t.Logf("memory: %d bytes a session", (w.memory(t)-before)/int64(callers))
	if issued := w.vault.RequestTimes(t, "database/creds/orders"); len(issued) != callers || peak(issued) > 2*perSecond { // a bucket holds a second's worth
		t.Errorf("%d credentials were issued, at most %d in a second", len(issued), peak(issued))
	} else {
		t.Logf("at most %d credentials were issued in a second", peak(issued))
	}
	if users := len(w.users(t)); users != callers {
		t.Errorf("PostgreSQL has %d users", users)
	}

	for name, least := range map[string]int{
		"prism_session_open": callers, "prism_session_middleware_created_total": callers, "prism_session_middleware_creation_duration_count": callers,
		"prism_session_middleware_cache_attempts_total": 3 * callers, "prism_session_middleware_cache_hits_total": 2 * callers,
		"prism_proxy_pool_connections": 1, "prism_proxy_pool_connections_limit": budget, "prism_credential_held": callers,
	} {
		if got := w.metric(t, name); int(got) < least {
			t.Errorf("%s is %v, want at least %d", name, got, least)
		}
	}

	sessions := datav1.NewSessionManagerClient(w.Dial(p.Address))
	everyone("closing the session", func(ctx context.Context, _ int) error {
		_, err := sessions.CloseSession(ctx, &datav1.CloseSessionRequest{Namespace: "orders"})
		return err
	})
	closed := time.Now()
	harness.Eventually(t, 10*time.Minute, "every user goes", func() error {
		if left := len(w.users(t)); left > 0 {
			return fmt.Errorf("%d are left", left)
		}
		return nil
	})
	t.Logf("no user was left %v after the last session was closed", time.Since(closed).Round(time.Millisecond))
	stop()
	if *most > budget+budget/10 || *most == 0 { // PostgreSQL takes a moment to see that one was closed
		t.Errorf("at most %d connections, of %d", *most, budget)
	}
	t.Logf("at most %d connections", *most)
}

// watchConnections counts the dynamic users' connections again and again until it is stopped.
func (w *world) watchConnections(t *testing.T) (most *int, stop func()) {
	t.Helper()
	conn := w.connect(t, postgresserver.User, postgresserver.Password)
	ctx, cancel := context.WithCancel(t.Context())
	most = new(int)
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			var n int
			err := conn.QueryRow(ctx, "SELECT count(*), pg_sleep(0.02) FROM pg_stat_activity WHERE usename LIKE 'v-%'").Scan(&n, nil)
			if err == nil {
				*most = max(*most, n)
			} else if ctx.Err() == nil {
				t.Errorf("connections: %v", err)
				return
			}
		}
	})
	return most, func() { cancel(); wg.Wait() }
}

// metric is what the first proxy says of one, without its labels.
func (w *world) metric(t *testing.T, name string) float64 {
	t.Helper()
	found := regexp.MustCompile(`(?m)^` + name + `(?:\{[^}]*\})? (\S+)$`).FindStringSubmatch(w.Get(w.Proxies[0].HTTPAddress, "/metrics"))
	if found == nil {
		t.Fatalf("the proxy does not tell %s", name)
	}
	value, err := strconv.ParseFloat(found[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return value
}

// memory is what the first proxy's heap takes, in bytes.
func (w *world) memory(t *testing.T) int64 {
	t.Helper()
	return int64(w.metric(t, "go_memstats_heap_inuse_bytes"))
}

// peak is the most of the times that are within one second.
func peak(times []time.Time) (most int) {
	for first, last := 0, 0; last < len(times); last++ {
		for times[last].Sub(times[first]) >= time.Second {
			first++
		}
		most = max(most, last-first+1)
	}
	return most
}
