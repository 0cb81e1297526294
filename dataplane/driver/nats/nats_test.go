package nats_test

import (
	"testing"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/dataplane/driver/conformance"
	"github.com/prism-gateway/prism/dataplane/driver/nats"
	"github.com/prism-gateway/prism/shared/testserver/natsserver"
)

// roomy is a server that takes the largest value of the suite, 1 MiB, with its headers.
var roomy = natsserver.Options{Config: "max_payload: 2MB"}

func backend(s *natsserver.Server) conformance.Backend {
	return conformance.Backend{
		Driver: nats.Driver(), Config: driver.Config{Name: "items", Endpoints: []string{s.Addr()}}, Shared: true,
		Stop: func(t *testing.T) { s.Stop(t) }, Start: func(t *testing.T) { s.Restart(t) },
	}
}

func TestConformance(t *testing.T) { conformance.Run(t, backend(natsserver.Start(t, roomy))) }

func Benchmark(b *testing.B) { conformance.Bench(b, backend(natsserver.Start(b, roomy))) }
