package session_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prism-gateway/prism/dataplane/session"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/principal"
	"github.com/prism-gateway/prism/shared/secret"
)

var policy = session.Policy{TTL: time.Hour, Idle: 10 * time.Minute}

// bearer is what a user's call with a token shows.
func bearer(user, token string, life time.Duration) session.Claim {
	return session.Claim{
		Principal: &principal.Principal{Kind: principal.User, ID: "https://idp#" + user, Subject: user},
		Token:     sha256.Sum256([]byte(token)), Login: secret.New(token), Ends: time.Now().Add(life),
	}
}

func service(id string, certificate byte) session.Claim {
	return session.Claim{Principal: &principal.Principal{Kind: principal.Service, ID: id, SPIFFE: id, Certificate: [32]byte{certificate}}}
}

// manager runs one until the test ends.
func manager(t *testing.T, max int) *session.Manager {
	t.Helper()
	m, err := session.New(session.Config{Max: max})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return m
}

func begin(t *testing.T, m *session.Manager, c session.Claim) *session.Session {
	t.Helper()
	s, err := m.Begin("orders", policy, c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// over reports why a session has ended, or that it has not.
func over(s *session.Session) fault.Reason {
	select {
	case <-s.Done():
		return fault.From(s.Err()).Reason
	default:
		return "it goes on"
	}
}

func TestASessionBelongsToANamespaceAndToWhatItsCallerShows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := manager(t, 0)
		alice := begin(t, m, bearer("alice", "a1", time.Hour))
		for name, tc := range map[string]struct {
			namespace string
			claim     session.Claim
			same      bool
		}{
			"the same token":              {"orders", bearer("alice", "a1", time.Hour), true},
			"another token":               {"orders", bearer("alice", "a2", time.Hour), false},
			"another namespace":           {"people", bearer("alice", "a1", time.Hour), false},
			"another principal":           {"orders", bearer("bob", "b1", time.Hour), false},
			"a service by certificate":    {"orders", service("spiffe://x/svc", 1), false},
			"and with the one after that": {"orders", service("spiffe://x/svc", 2), false},
		} {
			s, err := m.Begin(tc.namespace, policy, tc.claim)
			if err != nil || (s == alice) != tc.same {
				t.Errorf("%s: the same session %t, want %t (%v)", name, s == alice, tc.same, err)
			}
		}
		if begin(t, m, service("spiffe://x/svc", 1)) != begin(t, m, service("spiffe://x/svc", 2)) {
			t.Error("a service whose certificate was renewed has another session")
		}
	})
}

func TestASessionEndsAtTheFirstOfItsLimits(t *testing.T) {
	for name, tc := range map[string]struct {
		claim  func() session.Claim
		policy session.Policy
		every  time.Duration // calls come so often; 0: none comes
		ends   time.Duration
	}{
		"token":    {func() session.Claim { return bearer("alice", "t", 3*time.Minute) }, policy, time.Minute, 3 * time.Minute},
		"idle":     {func() session.Claim { return bearer("alice", "t", time.Hour) }, policy, 0, 10 * time.Minute},
		"absolute": {func() session.Claim { return service("spiffe://x/svc", 1) }, policy, time.Minute, time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := manager(t, 0)
				claim := tc.claim()
				s, err := m.Begin("orders", tc.policy, claim)
				if err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				for time.Since(began) < tc.ends-time.Second {
					step := tc.ends - time.Second - time.Since(began)
					if tc.every > 0 {
						step = min(step, tc.every)
					}
					time.Sleep(step)
					if why := over(s); why != "it goes on" {
						t.Fatalf("it ended after %v: %s", time.Since(began), why)
					}
					if tc.every > 0 {
						begin(t, m, claim)
					}
				}
				time.Sleep(2 * time.Second)
				if why := over(s); why != fault.TokenExpired || m.Count() != 0 {
					t.Errorf("after %v: %s, and %d sessions are left", time.Since(began), why, m.Count())
				}
			})
		})
	}
}

func TestACallAtTheMomentOfTheEndIsRefusedThoughNobodyHasSweptYet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, err := session.New(session.Config{}) // it does not run
		if err != nil {
			t.Fatal(err)
		}
		claim := bearer("alice", "t", time.Minute)
		s := begin(t, m, claim)
		time.Sleep(time.Minute)
		if _, err := m.Begin("orders", policy, claim); !fault.Is(err, fault.TokenExpired) {
			t.Errorf("the call ended with %v", err)
		}
		if over(s) != fault.TokenExpired {
			t.Errorf("the session %s", over(s))
		}
	})
}

func TestARefreshProlongsASessionAndOnlyItsOwnersDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := manager(t, 0)
		old := bearer("alice", "a1", 10*time.Minute)
		s := begin(t, m, old)
		events, cancel := s.Watch()
		defer cancel()
		time.Sleep(7 * time.Minute)
		if e := <-events; e.Kind != session.Expiring || !e.Deadline.Equal(old.Ends) {
			t.Errorf("told %+v", e)
		}
		for name, claim := range map[string]session.Claim{"bob": bearer("bob", "b", time.Hour), "a service": service("spiffe://x/svc", 1)} {
			if _, err := m.Refresh("orders", s.ID(), claim); !fault.Is(err, fault.Session) {
				t.Errorf("%s refreshed it: %v", name, err)
			}
		}
		fresh := bearer("alice", "a2", 30*time.Minute)
		begin(t, m, fresh) // the call that refreshes has begun a session by itself
		if again, err := m.Refresh("orders", s.ID(), fresh); err != nil || again != s {
			t.Fatal(err)
		}
		if e := <-events; e.Kind != session.Refreshed {
			t.Errorf("told %+v", e)
		}
		if begin(t, m, fresh) != s || m.Count() != 1 || s.Login().Reveal() != "a2" {
			t.Errorf("%d sessions, and calls with the fresh token are not the session's", m.Count())
		}
		time.Sleep(5 * time.Minute)
		if over(s) != "it goes on" {
			t.Errorf("the session ended with its first token: %s", over(s))
		}
	})
}

func TestWhatWasOpenedForASessionIsLetGoOnceWithIt(t *testing.T) {
	m, err := session.New(session.Config{})
	if err != nil {
		t.Fatal(err)
	}
	claim := bearer("alice", "t", time.Hour)
	s := begin(t, m, claim)
	var opened, released atomic.Int32
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if _, err := s.Hold("storage", func() (session.Held, error) { opened.Add(1); return holding{released: &released}, nil }); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if _, err := s.Hold("cache", func() (session.Held, error) { return nil, errors.New("no") }); err == nil {
		t.Error("what could not be opened is held")
	}
	if err := m.Close("orders", s.ID(), claim); err != nil {
		t.Fatal(err)
	}
	if err := m.Close("orders", s.ID(), claim); !fault.Is(err, fault.Session) {
		t.Errorf("it was closed twice: %v", err)
	}
	if opened.Load() != 1 || released.Load() != 1 || s.Login().Reveal() != "" {
		t.Errorf("opened %d times, released %d times", opened.Load(), released.Load())
	}
	if _, err := s.Hold("late", func() (session.Held, error) { return holding{released: &released}, nil }); !fault.Is(err, fault.Revoked) {
		t.Errorf("a session that is over opens: %v", err)
	}
}

type holding struct {
	released *atomic.Int32
	ends     time.Time
}

func (h holding) Release() { h.released.Add(1) }

func (h holding) Ends() time.Time { return h.ends }

func TestASessionTellsTheFirstEndOfItsCredentials(t *testing.T) {
	m, err := session.New(session.Config{})
	if err != nil {
		t.Fatal(err)
	}
	s := begin(t, m, bearer("alice", "t", time.Hour))
	soon, later := time.Now().Add(time.Minute), time.Now().Add(time.Hour)
	for _, tc := range []struct {
		key        string
		ends, want time.Time
	}{{"one that does not end", time.Time{}, time.Time{}}, {"a late one", later, later}, {"an early one", soon, soon}, {"another late one", later, soon}} {
		if _, err := s.Hold(tc.key, func() (session.Held, error) { return holding{&atomic.Int32{}, tc.ends}, nil }); err != nil {
			t.Fatal(err)
		}
		if got := s.CredentialEnds(); !got.Equal(tc.want) {
			t.Errorf("with %s: %v, want %v", tc.key, got, tc.want)
		}
	}
}

// SE-09
func TestATokenIsOfNoUseFromAnotherCertificate(t *testing.T) {
	m, err := session.New(session.Config{})
	if err != nil {
		t.Fatal(err)
	}
	with := func(certificate byte) session.Claim {
		c := bearer("alice", "t", time.Hour)
		c.Principal.Certificate = [32]byte{certificate}
		return c
	}
	s := begin(t, m, with(1))
	for _, certificate := range []byte{0, 2} {
		if _, err := m.Begin("orders", policy, with(certificate)); !fault.Is(err, fault.CertInvalid) {
			t.Errorf("certificate %d: %v", certificate, err)
		}
		if err := m.Close("orders", s.ID(), with(certificate)); !fault.Is(err, fault.CertInvalid) {
			t.Errorf("certificate %d closed it: %v", certificate, err)
		}
	}
	if begin(t, m, with(1)) != s {
		t.Error("it lost its session")
	}
	// Two first calls at once: the session is of one of them.
	for n := range 200 {
		var mine [2]*session.Session
		var wg sync.WaitGroup
		for i := range mine {
			wg.Go(func() {
				c := bearer("alice", fmt.Sprint("race", n), time.Hour)
				c.Principal.Certificate = [32]byte{byte(i + 1)}
				mine[i], _ = m.Begin("orders", policy, c) // one of them is refused
			})
		}
		wg.Wait()
		if mine[0] != nil && mine[1] != nil {
			t.Fatal("two certificates share a session")
		}
	}
}

func TestSessionsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := manager(t, 150)
		first := begin(t, m, bearer("alice", "0", time.Hour))
		for n := range 149 {
			time.Sleep(10 * time.Millisecond)
			begin(t, m, bearer("alice", fmt.Sprint(n+1), time.Hour))
		}
		if m.Count() != 100 || over(first) != fault.Sessions {
			t.Errorf("alice has %d sessions, and her first %s", m.Count(), over(first))
		}
		for n := range 50 {
			begin(t, m, bearer(fmt.Sprint("user", n), fmt.Sprint("u", n), time.Hour))
		}
		_, err := m.Begin("orders", policy, bearer("late", "l", time.Hour))
		if f := fault.From(err); !fault.Is(err, fault.Sessions) || f.Code != fault.Exhausted || f.RetryAfter == 0 {
			t.Errorf("one more: %v", err)
		}
		m.EndAll(session.Revoked, func(s *session.Session) bool { return strings.HasSuffix(s.Principal().ID, "#alice") })
		if m.Count() != 50 {
			t.Errorf("%d are left", m.Count())
		}
	})
}

// BenchmarkBegin is what a call pays for its session.
func BenchmarkBegin(b *testing.B) {
	m, err := session.New(session.Config{})
	if err != nil {
		b.Fatal(err)
	}
	claim := bearer("alice", "t", time.Hour)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := m.Begin("orders", policy, claim); err != nil {
				b.Error(err)
			}
		}
	})
}
