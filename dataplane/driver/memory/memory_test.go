package memory_test

import (
	"testing"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/dataplane/driver/conformance"
	"github.com/prism-gateway/prism/dataplane/driver/memory"
)

var backend = conformance.Backend{Driver: memory.Driver(), Config: driver.Config{Name: "memory"}, Sweeps: true}

func TestConformance(t *testing.T) { conformance.Run(t, backend) }

func Benchmark(b *testing.B) { conformance.Bench(b, backend) }
