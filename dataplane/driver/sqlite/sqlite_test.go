package sqlite_test

import (
	"path/filepath"
	"testing"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/dataplane/driver/conformance"
	"github.com/prism-gateway/prism/dataplane/driver/sqlite"
)

func backend(t testing.TB, settings map[string]string) conformance.Backend {
	return conformance.Backend{
		Driver: sqlite.Driver(), Shared: true, Sweeps: true,
		Config: driver.Config{Name: "local", Endpoints: []string{filepath.Join(t.TempDir(), "a b%20?#.db")}, Settings: settings},
	}
}

func TestConformance(t *testing.T) { conformance.Run(t, backend(t, nil)) }

func Benchmark(b *testing.B) {
	for _, synchronous := range []string{"full", "normal"} {
		b.Run(synchronous, func(b *testing.B) {
			conformance.Bench(b, backend(b, map[string]string{"synchronous": synchronous}))
		})
	}
}
