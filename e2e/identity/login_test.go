package identity_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/prism-gateway/prism/e2e/harness"
	bootstrapv1 "github.com/prism-gateway/prism/protos/prism/bootstrap/v1"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/client"
	"github.com/prism-gateway/prism/shared/secret"
	"github.com/prism-gateway/prism/shared/servicetoken"
)

// fresh is a source that has another token, of a short life, each time it is asked.
type fresh struct {
	next  func() string
	asked atomic.Int64
}

func (f *fresh) Token(context.Context) (servicetoken.Token, error) {
	f.asked.Add(1)
	return servicetoken.Token{Text: secret.New(f.next())}, nil
}

// strict has proxies believe that a token is over when it says so, and not 10 s later.
func strict(c *bootstrapv1.ProxyConfig) {
	c.Authentication.Issuers[0].Leeway = durationpb.New(time.Second)
}

// loggedIn dials the proxies as alice, whose tokens live as long as given.
func (w *world) loggedIn(t *testing.T, life time.Duration) (*client.Client, *fresh) {
	t.Helper()
	source := &fresh{next: func() string {
		return w.issuer.Token(t, "alice", life, map[string]any{"groups": []string{"writers"}})
	}}
	cfg := client.Config{Token: source, NoTokens: true}
	for _, p := range w.Proxies {
		cfg.Endpoints = append(cfg.Endpoints, p.Address)
	}
	c, err := client.Dial(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c, source
}

// TestASessionLivesLongerThanItsTokens: calls and a stream go on, with one session and one user in the store, while tokens of
// 4 s come and go.
func TestASessionLivesLongerThanItsTokens(t *testing.T) {
	const tokens = 6
	w := start(t, 2, strict)
	w.Apply(t.Context(), request("orders", "pg-main", "vault://database/creds/orders", configv1.CredentialScope_CREDENTIAL_SCOPE_SESSION))
	c, source := w.loggedIn(t, 4*time.Second)
	kept := make(chan client.Refreshed, 10*tokens)
	l, err := c.Login(t.Context(), "orders", func(r client.Refreshed) { kept <- r })
	if err != nil {
		t.Fatal(err)
	}
	first := l.State()
	if ends := first.GetCredentialExpireAt().AsTime(); !ends.After(time.Now().Add(30*time.Minute)) || ends.After(time.Now().Add(2*time.Hour)) {
		t.Errorf("the credential, of a lease of an hour, ends at %v", ends)
	}
	end := make(chan struct{})
	var calls, failed atomic.Int64
	var callers sync.WaitGroup
	for i := range 4 {
		callers.Go(func() {
			id := fmt.Appendf(nil, "id-%d", i)
			for n := 0; ; n++ {
				select {
				case <-end:
					return
				default:
				}
				calls.Add(1)
				var err error
				if n%2 == 0 {
					_, err = l.KeyValue.Put(t.Context(), &datav1.PutRequest{Namespace: "orders", Id: id, Value: []byte("v")})
				} else {
					_, err = l.KeyValue.Get(t.Context(), &datav1.GetRequest{Namespace: "orders", Id: id})
				}
				if err != nil {
					failed.Add(1)
					t.Errorf("call %d: %v", n, err)
					return
				}
			}
		})
	}
	news := request("news", "redis", "", 0)
	news.Auth.Vault, news.Patterns[0].Slots = nil, nil // one that has its store of the proxies, which any of them serves
	news.Patterns[0].Needs = &configv1.Needs{Durability: configv1.Durability_DURABILITY_NONE, Interfaces: []string{"keyvalue.watch"}}
	w.Apply(t.Context(), news)
	other, _ := w.loggedIn(t, 4*time.Second)
	reader, err := other.Login(t.Context(), "news", nil)
	if err != nil {
		t.Fatal(err)
	}
	changes := make(chan string, 1000)
	go func() {
		defer close(changes)
		for event, err := range reader.Watch(t.Context(), &datav1.WatchRequest{Namespace: "news", Id: []byte("a")}) {
			if err != nil {
				changes <- err.Error()
				return
			}
			changes <- string(event.GetItem().GetValue())
		}
	}()
	published := func(value string) {
		t.Helper()
		harness.Eventually(t, 20*time.Second, value+" is seen", func() error {
			if _, err := reader.KeyValue.Put(t.Context(), &datav1.PutRequest{Namespace: "news", Id: []byte("a"), Value: []byte(value)}); err != nil {
				return err
			}
			for {
				select {
				case got, ok := <-changes:
					switch {
					case got == value:
						return nil
					case !ok:
						return errors.New("the watch is over")
					case got != "" && got != "before":
						t.Errorf("the watch ended: %s", got)
					}
				case <-time.After(100 * time.Millisecond):
					return errors.New("not yet")
				}
			}
		})
	}
	published("before")
	began := time.Now()
	for range tokens {
		if r := <-kept; r.Err != nil || r.Session.GetId() != first.GetId() {
			t.Errorf("refreshed: session %s, error %v; want session %s", r.Session.GetId(), r.Err, first.GetId())
		}
	}
	published("after")
	close(end)
	callers.Wait()
	t.Logf("%d calls in %v, %d failed; %d tokens", calls.Load(), time.Since(began), failed.Load(), source.asked.Load())
	if source.asked.Load() != tokens+1 { // calls are no reason to show another
		t.Errorf("the source was asked for %d tokens", source.asked.Load())
	}
	if users := w.users(t); len(named(users, "alice")) != 1 {
		t.Errorf("users %v, want the one of the session", users)
	}
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 10*time.Second, "the session's user goes", func() error {
		if users := w.users(t); len(users) > 0 {
			return fmt.Errorf("users %v", users)
		}
		return nil
	})
	if _, err := l.KeyValue.Get(t.Context(), &datav1.GetRequest{Namespace: "orders", Id: []byte("a")}); status.Code(err) != codes.Canceled {
		t.Errorf("a call after the login was closed: %v", err)
	}
}

// TestAStreamIsServedByAnotherWhenItsPreferredProxyIsAway: some callers' sessions are preferably at a proxy that was killed.
func TestAStreamIsServedByAnotherWhenItsPreferredProxyIsAway(t *testing.T) {
	w := start(t, 2, nil)
	w.Apply(t.Context(), request("orders", "pg-main", "vault://database/creds/orders", configv1.CredentialScope_CREDENTIAL_SCOPE_PRINCIPAL))
	here, away := w.Proxies[0], w.Proxies[1]
	sessions := datav1.NewSessionManagerClient(w.Dial(here.Address))
	var callers []context.Context
	for i := range 12 {
		ctx := w.forever(t, w.writer(t, fmt.Sprint("caller-", i)))
		callers = append(callers, ctx)
		if _, err := sessions.CreateSession(ctx, &datav1.CreateSessionRequest{Namespace: "orders"}); err != nil {
			t.Fatal(err)
		}
	}
	if body := w.Get(away.HTTPAddress, "/metrics"); strings.Contains(body, "prism_session_open 0") {
		t.Fatal("no session is at the other proxy")
	}
	away.Kill()
	for i, ctx := range callers {
		made, err := sessions.CreateSession(ctx, &datav1.CreateSessionRequest{Namespace: "orders"})
		if err != nil {
			t.Fatalf("caller %d: %v", i, err)
		}
		stream, err := sessions.WatchSession(ctx, &datav1.WatchSessionRequest{Namespace: "orders", Id: made.GetSession().GetId()})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Header(); err != nil { // the watch is in place
			t.Fatalf("caller %d: %v", i, err)
		}
		if _, err := sessions.CloseSession(ctx, &datav1.CloseSessionRequest{Namespace: "orders", Id: made.GetSession().GetId()}); err != nil {
			t.Fatal(err)
		}
		if out, err := stream.Recv(); err != nil || out.GetEvent() != datav1.SessionEvent_SESSION_EVENT_ENDED {
			t.Errorf("caller %d: %v, %v", i, out, err)
		}
	}
}

// TestALostSessionIsMadeAgain: the proxies that had it are killed and begin anew. That they have as many sessions as they may is
// no reason not to refresh one.
func TestALostSessionIsMadeAgain(t *testing.T) {
	w := start(t, 2, func(c *bootstrapv1.ProxyConfig) {
		strict(c)
		c.Authentication.MaxSessions = 1
	})
	w.Apply(t.Context(), request("orders", "pg-main", "vault://database/creds/orders", configv1.CredentialScope_CREDENTIAL_SCOPE_PRINCIPAL))
	c, _ := w.loggedIn(t, 4*time.Second)
	kept := make(chan client.Refreshed, 100)
	l, err := c.Login(t.Context(), "orders", func(r client.Refreshed) { kept <- r })
	if err != nil {
		t.Fatal(err)
	}
	first := l.State()
	if r := <-kept; r.Err != nil || r.Session.GetId() != first.GetId() {
		t.Errorf("refreshed: session %s, error %v", r.Session.GetId(), r.Err)
	}
	for _, p := range w.Proxies {
		p.Kill()
	}
	if r := <-kept; status.Code(r.Err) != codes.Unavailable {
		t.Errorf("without proxies: session %s, error %v", r.Session.GetId(), r.Err)
	}
	for _, p := range w.Proxies {
		p.Start()
	}
	r := <-kept
	for r.Err != nil {
		r = <-kept
	}
	if r.Session.GetId() == first.GetId() || r.Session.GetPrincipal() != first.GetPrincipal() {
		t.Errorf("session %v after %v", r.Session, first)
	}
	if _, err := l.KeyValue.Put(t.Context(), &datav1.PutRequest{Namespace: "orders", Id: []byte("a"), Value: []byte("v")}); err != nil {
		t.Error(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := c.Login(t.Context(), "orders", nil); status.Code(err) != codes.Canceled {
		t.Errorf("a login of a closed client: %v", err)
	}
}
