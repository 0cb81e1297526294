package credential_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prism-gateway/prism/dataplane/credential"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/secret"
)

func TestCR17ScopePrincipalSharesOneLease(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDouble(time.Hour, 24*time.Hour)
		d.latency = 100 * time.Millisecond
		s := start(t, d, nil)
		handles := make(chan *credential.Handle)
		for range 500 {
			go func() {
				h, err := s.Acquire(t.Context(), key("ann"), as("ann"))
				if err != nil {
					t.Error(err)
				}
				handles <- h
			}()
		}
		for range 500 {
			if c := (<-handles).Current(); c.Username != "ann-database/creds/orders-2" {
				t.Errorf("user %q", c.Username)
			}
		}
		if d.alive(false) != 1 || d.alive(true) != 1 || len(d.times("fetch")) != 1 || len(d.times("login")) != 1 {
			t.Errorf("%d fetches, %d logins", len(d.times("fetch")), len(d.times("login")))
		}
		bob := acquire(t, s, "bob")
		if c := bob.Current(); c.Username != "bob-database/creds/orders-4" {
			t.Errorf("another principal has user %q", c.Username)
		}
	})
}

func TestCR18RevokedElsewhereIsReplacedOnceWithoutALoop(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDouble(time.Hour, 1000*time.Hour)
		s := start(t, d, nil)
		h := acquire(t, s, "ann")
		h.Current()
		d.drop("canary-lease-2")
		<-h.Changed()
		if n := len(d.times("fetch")); n != 2 {
			t.Errorf("fetched %d times", n)
		}
		if h.Current() == nil {
			t.Fatal("no credential")
		}
		// The role is gone too: what is asked for again and again is refused.
		h.Retire(1)
		before := len(d.times("fetch"))
		d.failWith("renew", fmt.Errorf("no: %w", credential.ErrRefused))
		d.failWith("fetch", fmt.Errorf("no: %w", credential.ErrRefused))
		time.Sleep(2 * time.Hour)
		if n := len(d.times("fetch")) - before; n > 500 {
			t.Errorf("fetched %d times in 2 h", n)
		}
		if h.Current() != nil {
			t.Error("a lease that was refused is used beyond its margin")
		}
		if !errors.Is(h.Err(), credential.ErrRefused) {
			t.Errorf("why: %v", h.Err())
		}
	})
}

func TestCR19RefusedByTheStoreIsReplacedMoreAndMoreSeldom(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDouble(time.Hour, 1000*time.Hour)
		s := start(t, d, nil)
		h := acquire(t, s, "ann")
		began := time.Now()
		refuse := func() {
			c := h.Current()
			h.Refused(c.Generation)
			h.Refused(c.Generation)
			<-h.Changed()
			h.Retire(c.Generation)
		}
		refuse()
		if took := time.Since(began); took > 100*time.Millisecond {
			t.Errorf("replaced after %v", took)
		}
		for time.Since(began) < 30*time.Minute {
			refuse()
		}
		if n := len(d.times("fetch")); n > 100 {
			t.Errorf("fetched %d times in 30 min", n)
		}
		time.Sleep(5 * time.Second)
		if n := d.alive(false); n != 1 {
			t.Errorf("%d leases", n)
		}
	})
}

func TestLoginRefusedIsToldAsThat(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDouble(time.Hour, time.Hour)
		s := start(t, d, nil)
		d.failWith("login", fmt.Errorf("the token has expired: %w", credential.ErrRefused))
		for range 1000 {
			_, err := s.Acquire(t.Context(), key("ann"), as("ann"))
			if !errors.Is(err, credential.ErrLogin) || !fault.Is(err, fault.CredentialsUnavailable) || fault.From(err).RetryAfter <= 0 {
				t.Fatalf("told %v", err)
			}
			time.Sleep(10 * time.Millisecond)
		}
		if n := len(d.times("login")); n > 10 {
			t.Errorf("logged in %d times in 10 s", n)
		}
		d.failWith("login", nil)
		time.Sleep(62 * time.Second)
		acquire(t, s, "ann")
	})
}

func TestLoginUsesATokenThatIsGoodNow(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDouble(time.Hour, time.Hour)
		s := start(t, d, nil)
		token := "first"
		h, err := s.Acquire(t.Context(), key("ann"), func() *credential.Login { return &credential.Login{Token: secret.New(token)} })
		if err != nil {
			t.Fatal(err)
		}
		h.Current()
		token = "refreshed"
		d.drop("accessor-1")
		<-h.Changed()
		if c := h.Current(); c == nil || c.Username[:9] != "refreshed" {
			t.Errorf("logged in with the former token: %v", c)
		}
	})
}

func TestWhoGaveUpFindsItsCredentialWhenItComesAgain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDouble(time.Hour, time.Hour)
		d.latency = 300 * time.Millisecond
		s := start(t, d, nil)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if _, err := s.Acquire(ctx, key("ann"), as("ann")); err == nil {
			t.Fatal("had at once what takes longer")
		}
		time.Sleep(time.Second)
		began := time.Now()
		acquire(t, s, "ann")
		if time.Since(began) > 0 || len(d.times("fetch")) != 1 {
			t.Errorf("had after %v and %d fetches", time.Since(began), len(d.times("fetch")))
		}
		ctx, cancel = context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		s.Acquire(ctx, key("bob"), as("bob")) // and never again
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := d.alive(false); n != 1 {
			t.Errorf("%d leases: what nobody came for is kept", n)
		}
	})
}

func TestUnknownProviderIsTold(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := start(t, newDouble(time.Hour, time.Hour), nil)
		if _, err := s.Acquire(t.Context(), credential.Key{Provider: "x", Path: "p"}, nil); !fault.Is(err, fault.CredentialsUnavailable) {
			t.Error(err)
		}
	})
}

func TestStaticSecretIsReadAgain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDouble(0, 0)
		d.dynamic = false
		d.static = credential.Credential{Username: "u", Password: secret.New("one")}
		s := start(t, d, func(c *credential.Config) {
			c.CacheTTL = map[string]time.Duration{"d": time.Hour}
			c.Policy.Grace = 10 * time.Minute
		})
		h := acquire(t, s, "")
		if c := h.Current(); c.Generation != 1 || !c.ExpiresAt.IsZero() {
			t.Errorf("%v until %v", c, c.ExpiresAt)
		}
		time.Sleep(3 * time.Hour)
		if c := h.Current(); c == nil || c.Generation != 1 || told(h) {
			t.Errorf("the same secret is %v", c)
		}
		d.mu.Lock()
		d.static.Password = secret.New("two")
		d.mu.Unlock()
		began := time.Now()
		<-h.Changed()
		if took := time.Since(began); took > time.Hour {
			t.Errorf("seen after %v", took)
		}
		if c := h.Current(); c.Generation != 2 || c.Password.Reveal() != "two" {
			t.Errorf("now %v", c)
		}
		began = time.Now()
		d.down()
		<-h.Changed()
		if took := time.Since(began); h.Current() != nil || took < 40*time.Minute || took > 70*time.Minute {
			t.Errorf("without its provider it ends after %v", took)
		}
		d.up()
		<-h.Changed()
		d.mu.Lock()
		d.static.Password = secret.New("three")
		d.mu.Unlock()
		c := h.Current()
		h.Refused(c.Generation) // the store knows before the cache
		began = time.Now()
		<-h.Changed()
		if took := time.Since(began); took > time.Second {
			t.Errorf("read again after %v", took)
		}
	})
}

func TestStaticSecretThatEndsIsReadBefore(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDouble(0, 0)
		d.dynamic = false
		d.static = credential.Credential{Password: secret.New("one"), ExpiresAt: time.Now().Add(time.Hour)}
		s := start(t, d, nil)
		h := acquire(t, s, "")
		h.Current()
		time.Sleep(61 * time.Minute)
		synctest.Wait()
		if h.Current() != nil {
			t.Error("used beyond its end")
		}
		if !errors.Is(h.Err(), credential.ErrRefused) {
			t.Errorf("why: %v", h.Err())
		}
	})
}
