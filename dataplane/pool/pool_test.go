package pool_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/dataplane/pool"
	"github.com/prism-gateway/prism/shared/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// switchable is a backend that a test turns off and on: what a real one does when its machine goes.
type switchable struct {
	down           atomic.Bool
	opened, closed atomic.Int64
	pings          atomic.Int64
}

// Type is its name.
func (s *switchable) Type() string { return "switchable" }

// Interfaces are none: nobody calls it.
func (s *switchable) Interfaces() []string { return nil }

// Open refuses a setting that it does not know.
func (s *switchable) Open(cfg driver.Config) (driver.Instance, error) {
	if len(cfg.Settings) > 0 {
		return nil, errors.New("unknown setting")
	}
	s.opened.Add(1)
	return instance{s}, nil
}

type instance struct{ *switchable }

// Ping answers while the backend is on.
func (i instance) Ping(context.Context) error {
	i.pings.Add(1)
	if i.down.Load() {
		return fault.Wrap(errors.New("dial 10.0.0.7"), fault.Unavailable, fault.BackendDown, "the backend does not answer")
	}
	return nil
}

// Close counts.
func (i instance) Close() error { i.closed.Add(1); return nil }

func start(t *testing.T, d driver.Driver) *pool.Set {
	t.Helper()
	s, err := pool.New(pool.Config{Drivers: []driver.Driver{d}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var spec = pool.Spec{Backend: "main", Type: "switchable", Endpoints: []string{"a:1"}}

func TestHealthIsSeenAndRecoversByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &switchable{}
		d.down.Store(true)
		s := start(t, d)
		p, err := s.Acquire(spec)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := p.Status(); got.State != pool.Down || got.Reason != "backend main: the backend does not answer" {
			t.Errorf("without a backend %+v", got)
		}
		time.Sleep(time.Minute)
		if n := d.pings.Load(); n < 10 || n > 30 {
			t.Errorf("%d questions in a minute to a backend that is down, want 10 to 30", n)
		}
		d.down.Store(false)
		time.Sleep(5 * time.Second) // the longest wait between two questions
		synctest.Wait()
		if got := p.Status(); got.State != pool.Ready || p.Unready() != "" {
			t.Errorf("after the backend came %+v", got)
		}
		d.down.Store(true)
		time.Sleep(6 * time.Second)
		synctest.Wait()
		if got := p.Status().State; got != pool.Down {
			t.Errorf("after the backend went %v", got)
		}
		s.Close()
	})
}

func TestAPoolIsSharedAndClosedAfterItsLastUser(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &switchable{}
		s := start(t, d)
		defer s.Close()
		a, errA := s.Acquire(spec)
		b, errB := s.Acquire(pool.Spec{Backend: "main", Type: "switchable", Endpoints: []string{"a:1"}})
		if errA != nil || errB != nil || a != b || d.opened.Load() != 1 {
			t.Fatalf("equal specs are %d pools (%v, %v)", d.opened.Load(), errA, errB)
		}
		a.Release()
		synctest.Wait()
		if d.closed.Load() != 0 {
			t.Error("closed under its second user")
		}
		b.Release()
		synctest.Wait()
		if d.closed.Load() != 1 || len(s.Snapshot()) != 0 {
			t.Errorf("closed %d times, %v left", d.closed.Load(), s.Snapshot())
		}
		again, err := s.Acquire(spec)
		if err != nil || d.opened.Load() != 2 {
			t.Errorf("after that: %v, opened %d times, want 2", err, d.opened.Load())
		}
		again.Release()
	})
}

func TestWhatOpensABackendTellsPoolsApart(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*pool.Spec)
	}{
		{"another endpoint", func(s *pool.Spec) { s.Endpoints = []string{"b:1"} }},
		{"one more endpoint", func(s *pool.Spec) { s.Endpoints = append(s.Endpoints, "b:1") }},
		{"another name", func(s *pool.Spec) { s.Backend = "other" }},
		{"another credential", func(s *pool.Spec) { s.CredentialPath = "vault://x" }},
		{"another user", func(s *pool.Spec) { s.Username = "x" }},
		{"another bound", func(s *pool.Spec) { s.MaxConnections = 7 }},
		{"another time to dial", func(s *pool.Spec) { s.DialTimeout = time.Second }},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := &switchable{}
			s := start(t, d)
			defer s.Close()
			changed := pool.Spec{Backend: spec.Backend, Type: spec.Type, Endpoints: []string{"a:1"}}
			c.change(&changed)
			a, errA := s.Acquire(spec)
			b, errB := s.Acquire(changed)
			if errA != nil || errB != nil || a == b {
				t.Errorf("one pool for both (%v, %v)", errA, errB)
			}
		})
	}
}

func TestWhatCannotBeOpenedIsSaid(t *testing.T) {
	s := start(t, &switchable{})
	if _, err := s.Acquire(pool.Spec{Backend: "main", Type: "kafka"}); err == nil || err.Error() != "no driver for kafka in this build" {
		t.Errorf("unknown type: %v", err)
	}
	if _, err := s.Acquire(pool.Spec{Backend: "main", Type: "switchable", Settings: map[string]string{"x": "y"}}); err == nil {
		t.Error("a bad setting: no error")
	}
	s.Close()
	if _, err := s.Acquire(spec); err == nil {
		t.Error("after Close: no error")
	}
	if _, err := pool.New(pool.Config{Drivers: []driver.Driver{&switchable{}, &switchable{}}}); err == nil {
		t.Error("two drivers of one type: no error")
	}
}
