package memory_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/dataplane/driver/conformance"
	"github.com/prism-gateway/prism/dataplane/driver/memory"
)

var backend = conformance.Backend{Driver: memory.Driver(), Config: driver.Config{Name: "memory"}, Sweeps: true}

func TestConformance(t *testing.T) { conformance.Run(t, backend) }

func Benchmark(b *testing.B) { conformance.Bench(b, backend) }

// TestSweeperRuns leaves nothing for a sweep after the sweeper has been round.
func TestSweeperRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := memory.Driver().Open(driver.Config{Settings: map[string]string{"sweep": "1s"}})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		for n := range 100 {
			w := driver.Write{Name: driver.Name{ID: []byte{byte(n)}}}
			if n%2 == 0 {
				w.ExpireAt = time.Now().Add(time.Second)
			}
			if _, err := s.(driver.KeyValue).Write(t.Context(), "s.1", w); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(3 * time.Second)
		if n, err := s.(*memory.Instance).Sweep(t.Context()); n != 0 || err != nil {
			t.Errorf("%d expired items were left, %v", n, err)
		}
		ids, _, err := s.(driver.Lister).ListIDs(t.Context(), "s.1", nil, 1000)
		if len(ids) != 50 || err != nil {
			t.Errorf("%d ids are left, %v; want 50", len(ids), err)
		}
	})
}

// TestInstancesAreApart opens one name twice: each has data of its own.
func TestInstancesAreApart(t *testing.T) {
	open := func() driver.KeyValue {
		s, err := memory.Driver().Open(backend.Config)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s.(driver.KeyValue)
	}
	one, other := open(), open()
	name := driver.Name{ID: []byte("a")}
	if _, err := one.Write(t.Context(), "s.1", driver.Write{Name: name}); err != nil {
		t.Fatal(err)
	}
	if it, err := other.Get(t.Context(), "s.1", name, false); it != nil || err != nil {
		t.Errorf("the other instance has %v, %v", it, err)
	}
}

func TestOpenRefuses(t *testing.T) {
	for name, cfg := range map[string]driver.Config{
		"an endpoint":     {Endpoints: []string{"localhost:1"}},
		"unknown setting": {Settings: map[string]string{"size": "1"}},
		"odd sweep":       {Settings: map[string]string{"sweep": "soon"}},
		"sweep of 0":      {Settings: map[string]string{"sweep": "0s"}},
	} {
		t.Run(name, func(t *testing.T) {
			if s, err := memory.Driver().Open(cfg); err == nil {
				s.Close()
				t.Error("opened")
			}
		})
	}
}
