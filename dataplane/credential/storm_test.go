package credential_test

import (
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prism-gateway/prism/dataplane/credential"
	"github.com/prism-gateway/prism/shared/fault"
)

// most returns how many of these are within the window that has most of them.
func most(at []time.Time, window time.Duration) int {
	slices.SortFunc(at, time.Time.Compare)
	most, first := 0, 0
	for i := range at {
		for at[i].Sub(at[first]) >= window {
			first++
		}
		most = max(most, i-first+1)
	}
	return most
}

func TestCR13TenThousandOwnersStayUnderTheLimit(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const owners = 10_000
		d := newDouble(time.Hour, 2*time.Hour)
		d.latency = 5 * time.Millisecond
		s := start(t, d, func(c *credential.Config) { c.Policy.IssuesPerSecond, c.Policy.RenewalsPerSecond = 50, 200 })
		began := time.Now()
		var wg sync.WaitGroup
		handles := make([]*credential.Handle, owners)
		for i := range owners {
			wg.Go(func() {
				for {
					h, err := s.Acquire(t.Context(), key(fmt.Sprint("owner-", i)), as(fmt.Sprint("owner-", i)))
					if err == nil {
						handles[i] = h
						return
					}
					if !fault.Is(err, fault.CredentialsUnavailable) || fault.From(err).RetryAfter <= 0 {
						t.Errorf("told %v", err)
						return
					}
					time.Sleep(fault.From(err).RetryAfter)
				}
			})
		}
		wg.Wait()
		took := time.Since(began)
		issues := append(d.times("login"), d.times("fetch")...)
		if len(issues) != 2*owners {
			t.Errorf("%d logins and fetches", len(issues))
		}
		if peak := most(issues, time.Second); peak > 50+5+1 {
			t.Errorf("%d logins and fetches in one second", peak)
		}
		if took > 2*owners/50*time.Second*11/10 {
			t.Errorf("it took %v", took)
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		renewals := append(d.times("renew"), d.times("renew-login")...)
		if peak := most(renewals, time.Second); peak > 200+20+1 {
			t.Errorf("%d renewals in one second", peak)
		}
		// In any ten seconds at most twice the mean, once all are there.
		until := time.Now()
		renewals = slices.DeleteFunc(renewals, func(at time.Time) bool { return at.Before(began.Add(took)) })
		mean := float64(len(renewals)) / until.Sub(began.Add(took)).Seconds() * 10
		if peak := most(renewals, 10*time.Second); float64(peak) > 2*mean {
			t.Errorf("%d renewals in ten seconds, the mean is %.0f", peak, mean)
		}
		t.Logf("%d logins and fetches in %v, at most %d a second; renewals at most %d in ten seconds, %.0f in the mean",
			len(issues), took, most(issues, time.Second), most(renewals, 10*time.Second), mean)
		for i, h := range handles {
			if h.Current() == nil {
				t.Fatalf("owner %d has no credential", i)
			}
		}
		for _, h := range handles {
			h.Release()
		}
		began = time.Now()
		for d.alive(false) > 0 {
			time.Sleep(time.Second)
			if time.Since(began) > 55*time.Second {
				t.Fatalf("%d leases %v after all were released", d.alive(false), time.Since(began))
			}
		}
	})
}

func TestCR14StartStormIsOneFetch(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDouble(time.Hour, 2*time.Hour)
		d.latency = time.Second / 2
		s := start(t, d, nil)
		var wg sync.WaitGroup
		for range 10_000 {
			wg.Go(func() {
				if _, err := s.Acquire(t.Context(), key("ann"), as("ann")); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if len(d.times("login")) != 1 || len(d.times("fetch")) != 1 {
			t.Errorf("%d logins, %d fetches", len(d.times("login")), len(d.times("fetch")))
		}
	})
}

func TestRenewalsComeBeforeNewCredentials(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDouble(time.Minute, time.Hour)
		d.latency = 100 * time.Millisecond
		s := start(t, d, func(c *credential.Config) { c.Policy.IssuesPerSecond = 500 })
		var warm []*credential.Handle
		for i := range 100 {
			warm = append(warm, acquire(t, s, fmt.Sprint("warm-", i)))
		}
		for i := range 5000 { // more than 24 at once can give in many minutes
			go s.Acquire(t.Context(), key(fmt.Sprint("new-", i)), as(fmt.Sprint("new-", i)))
		}
		for range 300 {
			time.Sleep(time.Second)
			for _, h := range warm {
				if h.Current() == nil {
					t.Fatal("a credential ended while new ones were made")
				}
			}
		}
	})
}

func TestThrottledProviderIsAskedLessOften(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDouble(time.Hour, 2*time.Hour)
		s := start(t, d, nil)
		d.failWith("login", fmt.Errorf("429: %w", credential.ErrThrottled))
		for i := range 500 {
			go func() {
				for range 20 {
					s.Acquire(t.Context(), key(fmt.Sprint("owner-", i)), as(fmt.Sprint("owner-", i)))
				}
			}()
		}
		time.Sleep(30 * time.Second)
		first := len(d.times("login"))
		time.Sleep(30 * time.Second)
		if n := len(d.times("login")) - first; n > 300 { // 1,500 at the full rate
			t.Errorf("asked %d times in 30 s", n)
		}
		d.failWith("login", nil)
		time.Sleep(90 * time.Second)
		before := len(d.times("login"))
		for i := range 500 {
			go s.Acquire(t.Context(), key(fmt.Sprint("later-", i)), as(fmt.Sprint("later-", i)))
		}
		time.Sleep(5 * time.Second)
		if n := len(d.times("login")) - before; n < 80 { // logins and fetches share 250
			t.Errorf("asked %d times in 5 s, long after it was too often", n)
		}
	})
}

func TestALeaseCostsNoGoroutineAndLittleMemory(t *testing.T) {
	const leases = 10_000
	bubble(t, func(t *testing.T) {
		d := newDouble(time.Hour, 2*time.Hour)
		s := start(t, d, func(c *credential.Config) { c.Policy.IssuesPerSecond = 100_000 })
		acquire(t, s, "first").Current()
		synctest.Wait()
		goroutines, before := runtime.NumGoroutine(), heap()
		handles := make([]*credential.Handle, leases)
		for i := range leases { // two per owner, of which one is a login: 10,000 credentials and 5,000 logins
			owner := fmt.Sprint("owner-", i/2)
			h, err := s.Acquire(t.Context(), credential.Key{Provider: "d", Path: []string{"database/creds/orders", "database/creds/users"}[i%2], Owner: owner}, as(owner))
			if err != nil {
				t.Fatal(err)
			}
			handles[i] = h
		}
		synctest.Wait()
		if n := runtime.NumGoroutine(); n > goroutines+10 { // the runtime has some that come and go
			t.Errorf("%d goroutines, %d before", n, goroutines)
		}
		d.forget() // what the double keeps is not the source's
		per := (heap() - before) / (leases + leases/2)
		t.Logf("%d bytes per lease", per)
		if per > 1024 {
			t.Errorf("%d bytes per lease", per)
		}
		runtime.KeepAlive(handles)
	})
}

func heap() int {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

func BenchmarkCurrent(b *testing.B) {
	s := start(b, newDouble(time.Hour, time.Hour), nil)
	h, err := s.Acquire(b.Context(), key("ann"), as("ann"))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if h.Current() == nil {
				b.Error("no credential")
			}
		}
	})
}
