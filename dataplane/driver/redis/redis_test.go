package redis_test

import (
	"testing"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/dataplane/driver/conformance"
	"github.com/prism-gateway/prism/dataplane/driver/redis"
	"github.com/prism-gateway/prism/shared/testserver/redisserver"
)

func backend(s *redisserver.Server) conformance.Backend {
	return conformance.Backend{
		Driver: redis.Driver(), Config: driver.Config{Name: "cache", Endpoints: []string{s.Addr()}}, Shared: true,
		Stop: func(t *testing.T) { s.Stop(t) }, Start: func(t *testing.T) { s.Restart(t) },
	}
}

func TestConformance(t *testing.T) {
	conformance.Run(t, backend(redisserver.Start(t, redisserver.Options{Keep: true})))
}

func Benchmark(b *testing.B) {
	conformance.Bench(b, backend(redisserver.Start(b, redisserver.Options{})))
}

func BenchmarkBatchGet(b *testing.B) {
	s := redisserver.Start(b, redisserver.Options{})
	conformance.BenchBatch(b, conformance.Backend{Driver: redis.Driver(), Config: driver.Config{Name: "bench", Endpoints: []string{s.Addr()}}})
}
