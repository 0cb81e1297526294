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
)

func TestCR02RenewsAtHalfWithJitter(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDouble(time.Hour, 24*time.Hour)
		s := start(t, d, nil)
		began := time.Now()
		var handles []*credential.Handle
		for i := range 200 {
			handles = append(handles, acquire(t, s, fmt.Sprint("caller-", i)))
		}
		h := handles[0]
		first := h.Current()
		time.Sleep(50 * time.Minute)
		synctest.Wait()
		at := d.times("renew")
		if len(at) < 200 {
			t.Fatalf("%d renewals of 200 leases", len(at))
		}
		perMinute := map[int]int{}
		for _, when := range at[:200] {
			after := when.Sub(began)
			if after < 24*time.Minute || after > 37*time.Minute {
				t.Fatalf("renewed after %v", after)
			}
			perMinute[int(after.Minutes())]++
		}
		for minute, n := range perMinute {
			if n > 40 { // even would be 17
				t.Errorf("%d renewals in minute %d", n, minute)
			}
		}
		now := h.Current()
		if now == nil || now.Generation != 1 || !now.ExpiresAt.After(first.ExpiresAt) || now.Username != first.Username {
			t.Errorf("after a renewal: %v", now)
		}
		if told(h) {
			t.Error("a renewal is told as a change")
		}
		if err := h.Err(); err != nil {
			t.Error(err)
		}
	})
}

// told reports whether a change is told.
func told(h *credential.Handle) bool {
	select {
	case <-h.Changed():
		return true
	default:
		return false
	}
}

func TestCR04ANewCredentialComesBeforeTheOldOnesLastEnd(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDouble(10*time.Minute, 1000*time.Hour)
		d.maxTTL = 35 * time.Minute
		s := start(t, d, nil)
		h := acquire(t, s, "ann")
		used, until := h.Current(), time.Now().Add(8*time.Hour)
		rotations := 0
		for time.Now().Before(until) {
			now := h.Current()
			if now == nil {
				t.Fatalf("no credential: %v", h.Err())
			}
			if now.Generation != used.Generation {
				rotations++
				h.Retire(used.Generation)
			}
			used = now
			time.Sleep(10 * time.Second)
		}
		// 8 h in pieces of at most 35 min are 14; each is given up some minutes before its end.
		if rotations < 13 || rotations > 25 {
			t.Errorf("%d rotations in 8 h of at most 35 min each", rotations)
		}
		synctest.Wait()
		if n := d.alive(false); n > 2 {
			t.Errorf("%d leases are alive", n)
		}
	})
}

func TestCR05ATruncatedRenewalMeansReplaceNow(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDouble(time.Hour, 1000*time.Hour)
		d.maxTTL = 61 * time.Minute // the first renewal gets about half an hour
		s := start(t, d, nil)
		h := acquire(t, s, "ann")
		h.Current()
		<-h.Changed()
		renewed := d.times("renew")
		if len(renewed) != 1 || time.Since(renewed[0]) > time.Second {
			t.Errorf("replaced %v after the renewal, of %d", time.Since(renewed[0]), len(renewed))
		}
		if c := h.Current(); c == nil || c.Generation != 2 {
			t.Errorf("now: %v", c)
		}
	})
}

func TestReplacedCredentialIsRevokedAfterItsLastUser(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDouble(time.Hour, 1000*time.Hour)
		s := start(t, d, func(c *credential.Config) { c.Policy.Linger = 3 * time.Second })
		one, two := acquire(t, s, "ann"), acquire(t, s, "ann")
		if len(d.times("fetch")) != 1 {
			t.Fatal("the same key was fetched twice")
		}
		one.Current()
		one.Retire(1) // the newest: nothing happens
		one.Refused(1)
		<-one.Changed()
		three := acquire(t, s, "ann") // never knew generation 1
		one.Retire(1)
		one.Retire(1)
		three.Retire(1)
		time.Sleep(time.Minute)
		if n := d.alive(false); n != 2 {
			t.Fatalf("%d leases while one user is left, want the old and the new", n)
		}
		two.Retire(1)
		time.Sleep(2 * time.Second)
		if n := d.alive(false); n != 2 {
			t.Fatal("revoked before it lingered")
		}
		time.Sleep(2 * time.Second)
		if n := d.alive(false); n != 1 {
			t.Fatalf("%d leases after the last user", n)
		}
		one.Refused(1) // an old one: nothing
		time.Sleep(time.Minute)
		if n := len(d.times("fetch")); n != 2 {
			t.Errorf("fetched %d times", n)
		}
	})
}

func TestCR06TokenLostMeansItsLeasesAreReplaced(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDouble(time.Hour, 2*time.Hour)
		s := start(t, d, nil)
		h := acquire(t, s, "ann")
		other, err := s.Acquire(t.Context(), credential.Key{Provider: "d", Path: "other", Owner: "ann"}, as("ann"))
		if err != nil {
			t.Fatal(err)
		}
		if n := len(d.times("login")); n != 1 {
			t.Fatalf("%d logins of one owner", n)
		}
		h.Current()
		other.Current()
		d.drop("accessor-1")
		<-h.Changed()
		<-other.Changed()
		if took := time.Since(d.times("login")[0]); took > 37*time.Minute {
			t.Errorf("replaced after %v", took)
		}
		if h.Current() == nil || other.Current() == nil {
			t.Error("there is no credential")
		}
		if n := len(d.times("login")); n != 2 {
			t.Errorf("%d logins", n)
		}
		if n := d.alive(false); n != 2 {
			t.Errorf("%d leases", n)
		}
	})
}

func TestTokenIsRenewedBeforeItsLeases(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDouble(time.Hour, time.Hour)
		s := start(t, d, nil)
		h := acquire(t, s, "ann")
		generation := h.Current().Generation
		for range 24 * 60 {
			time.Sleep(time.Minute)
			if c := h.Current(); c == nil || c.Generation != generation {
				t.Fatalf("after %v: %v", time.Since(d.times("login")[0]), c)
			}
		}
		if n := len(d.times("login")); n != 1 {
			t.Errorf("%d logins", n)
		}
	})
}

func TestTokenNearItsLastEndIsReplacedWithItsLeases(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDouble(time.Hour, 40*time.Minute)
		s := start(t, d, nil)
		h := acquire(t, s, "ann")
		// The token says that it may not be renewed for longer.
		d.failWith("renew-login", fmt.Errorf("no: %w", credential.ErrRefused))
		used := h.Current()
		<-h.Changed()
		now := h.Current()
		if now == nil || now.Generation != 2 {
			t.Fatalf("now %v", now)
		}
		h.Retire(used.Generation)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if n := d.alive(false); n != 1 { // the token may have been good still, so it was revoked with its lease
			t.Errorf("%d leases", n)
		}
	})
}

func TestCR07ProviderDown30sHasNoEffectWhenWarm(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDouble(15*time.Minute, time.Hour)
		s := start(t, d, nil)
		h := acquire(t, s, "ann")
		for range 100 {
			d.down()
			for range 30 {
				time.Sleep(time.Second)
				if h.Current() == nil {
					t.Fatalf("no credential: %v", h.Err())
				}
			}
			d.up()
			time.Sleep(2 * time.Minute)
		}
	})
}

func TestCR08DownLongerThanTheLeaseFailsClosedAfterGrace(t *testing.T) {
	for name, tc := range map[string]struct {
		margin, grace time.Duration
		until         time.Duration
	}{
		"the margin is given as grace": {5 * time.Minute, 0, time.Hour},
		"a shorter grace":              {5 * time.Minute, 2 * time.Minute, 57 * time.Minute},
		"no grace":                     {5 * time.Minute, -1, 55 * time.Minute},
		"a margin of a third at most":  {time.Hour, -1, 40 * time.Minute},
		"never beyond the lease":       {time.Minute, time.Hour, time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				d := newDouble(time.Hour, 1000*time.Hour)
				s := start(t, d, func(c *credential.Config) { c.Policy.Margin, c.Policy.Grace = tc.margin, tc.grace })
				h := acquire(t, s, "ann")
				h.Current()
				d.down()
				time.Sleep(tc.until - time.Second)
				if h.Current() == nil || told(h) {
					t.Fatal("there is no credential already")
				}
				time.Sleep(time.Second)
				synctest.Wait()
				if c := h.Current(); c != nil {
					t.Fatalf("there is %v still", c)
				}
				if !fault.Is(h.Err(), fault.CredentialsUnavailable) || fault.From(h.Err()).RetryAfter <= 0 {
					t.Errorf("why: %v", h.Err())
				}
				if _, err := s.Acquire(t.Context(), key("ann"), as("ann")); !fault.Is(err, fault.CredentialsUnavailable) {
					t.Errorf("another user is told %v", err)
				}
				d.up()
				<-h.Changed()
				if c := h.Current(); c == nil || c.Generation != 2 {
					t.Errorf("when the provider is back: %v", c)
				}
			})
		})
	}
}

func TestAChangeIsToldWhenThereIsNoCredentialAnyMore(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDouble(time.Hour, 1000*time.Hour)
		s := start(t, d, nil)
		h := acquire(t, s, "ann")
		h.Current()
		d.down()
		<-h.Changed()
		if h.Current() != nil || told(h) {
			t.Error("told without a reason")
		}
		d.up()
		<-h.Changed()
		if h.Current() == nil {
			t.Error("told without a reason")
		}
	})
}

func TestCR09SlowAndThrottledProvider(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDouble(time.Hour, 24*time.Hour)
		s := start(t, d, nil)
		d.failWith("fetch", fmt.Errorf("429: %w", credential.ErrThrottled))
		type result struct {
			h   *credential.Handle
			err error
		}
		got := make(chan result)
		go func() {
			h, err := s.Acquire(t.Context(), key("ann"), as("ann"))
			got <- result{h, err}
		}()
		time.Sleep(500 * time.Millisecond)
		d.failWith("fetch", nil)
		if r := <-got; r.err != nil {
			t.Errorf("who waits while the provider is asked too often: %v", r.err)
		}

		d.hang = make(chan struct{}) // it takes connections and does not answer
		began := time.Now()
		if _, err := s.Acquire(t.Context(), key("bob"), as("bob")); !fault.Is(err, fault.CredentialsUnavailable) {
			t.Errorf("a provider that does not answer: %v", err)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("told after %v", took)
		}
		began = time.Now()
		if _, err := s.Acquire(t.Context(), key("cid"), as("cid")); !fault.Is(err, fault.CredentialsUnavailable) {
			t.Errorf("a provider that does not answer: %v", err)
		}
		if took := time.Since(began); took > time.Millisecond {
			t.Errorf("the next is told after %v", took)
		}
		close(d.hang)
	})
}

func TestCR10ReleaseRevokesWithinASecond(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDouble(time.Hour, 24*time.Hour)
		s := start(t, d, nil)
		one, two := acquire(t, s, "ann"), acquire(t, s, "ann")
		one.Release()
		one.Release()
		time.Sleep(time.Minute)
		if d.alive(false) != 1 || two.Current() == nil {
			t.Fatal("revoked while somebody holds it")
		}
		two.Release()
		time.Sleep(time.Second)
		synctest.Wait()
		if d.alive(false) != 0 || d.alive(true) != 0 {
			t.Errorf("%d leases and %d logins a second later", d.alive(false), d.alive(true))
		}
		if n := len(d.times("revoke")); n != 1 {
			t.Errorf("%d calls to revoke a login with one lease", n)
		}
		if two.Current() != nil {
			t.Error("a released handle has a credential")
		}
	})
}

func TestRevocationIsTriedAgainUntilItsLeaseEnds(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDouble(time.Hour, time.Hour)
		s := start(t, d, nil)
		h := acquire(t, s, "ann")
		d.failWith("revoke", errDown)
		h.Release()
		time.Sleep(5 * time.Minute)
		if n := len(d.times("revoke")); n < 10 || n > 60 {
			t.Errorf("tried %d times in 5 min", n)
		}
		d.failWith("revoke", nil)
		time.Sleep(40 * time.Second)
		synctest.Wait()
		if d.alive(true) != 0 {
			t.Error("not revoked when the provider is back")
		}
	})
}

func TestOneOfTwoCredentialsOfAnOwnerIsRevokedAlone(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDouble(time.Hour, 24*time.Hour)
		s := start(t, d, nil)
		one := acquire(t, s, "ann")
		two, err := s.Acquire(t.Context(), credential.Key{Provider: "d", Path: "other", Owner: "ann"}, as("ann"))
		if err != nil {
			t.Fatal(err)
		}
		one.Release()
		time.Sleep(time.Second)
		synctest.Wait()
		if d.alive(false) != 1 || two.Current() == nil {
			t.Errorf("%d leases", d.alive(false))
		}
		two.Release()
		time.Sleep(time.Second)
		synctest.Wait()
		if n := d.alive(true); n != 1 { // the proxy's own, which revoked the lease
			t.Errorf("%d logins", n)
		}
	})
}

func TestWithoutALoginOfItsOwnTheOwnersTokenRevokes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDouble(time.Hour, 24*time.Hour)
		d.noOwn = true
		s := start(t, d, nil)
		h := acquire(t, s, "ann")
		h.Refused(1)
		<-h.Changed()
		h.Retire(1)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if n := d.alive(false); n != 1 {
			t.Errorf("%d leases", n)
		}
	})
}

func TestCR11DrainRevokesAll(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDouble(time.Hour, 24*time.Hour)
		d.latency = 10 * time.Millisecond
		s := start(t, d, func(c *credential.Config) { c.Policy.IssuesPerSecond = 10_000 })
		var handles []*credential.Handle
		for i := range 1000 {
			handles = append(handles, acquire(t, s, fmt.Sprint("caller-", i)))
		}
		own, err := s.Acquire(t.Context(), credential.Key{Provider: "d", Path: "p", Owner: "namespace"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		handles[0].Current()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := s.Drain(ctx); err != nil {
			t.Fatal(err)
		}
		if d.alive(false) != 0 || d.alive(true) != 0 {
			t.Errorf("%d leases and %d logins are left", d.alive(false), d.alive(true))
		}
		if !told(handles[0]) || own.Current() != nil || handles[0].Current() != nil {
			t.Error("a holder sees a credential still")
		}
		if _, err := s.Acquire(t.Context(), key("x"), as("x")); !fault.Is(err, fault.Draining) {
			t.Errorf("acquire while draining: %v", err)
		}
		handles[0].Release()
	})
}

func TestDrainEndsWithItsTime(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDouble(time.Hour, 24*time.Hour)
		s := start(t, d, nil)
		acquire(t, s, "ann")
		d.failWith("revoke", errDown)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := s.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("drain: %v", err)
		}
	})
}
