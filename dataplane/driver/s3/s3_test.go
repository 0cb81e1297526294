package s3_test

import (
	"testing"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/dataplane/driver/conformance"
	"github.com/prism-gateway/prism/dataplane/driver/s3"
	"github.com/prism-gateway/prism/shared/secret"
	"github.com/prism-gateway/prism/shared/testserver/s3server"
)

func config(s *s3server.Server, settings ...string) driver.Config {
	c := driver.Config{
		Name: "items", Endpoints: []string{s.Addr()}, Username: s3server.Key, Password: secret.New(s3server.Secret),
		Settings: map[string]string{"bucket": s3server.Bucket, "tls": "false"},
	}
	for n := 0; n < len(settings); n += 2 {
		c.Settings[settings[n]] = settings[n+1]
	}
	return c
}

func backend(s *s3server.Server) conformance.Backend {
	return conformance.Backend{
		Driver: s3.Driver(), Config: config(s), Shared: true,
		Stop: func(t *testing.T) { s.Stop(t) }, Start: func(t *testing.T) { s.Restart(t) },
	}
}

func TestConformance(t *testing.T) {
	conformance.Run(t, backend(s3server.Start(t, s3server.Options{})))
}

func Benchmark(b *testing.B) { conformance.Bench(b, backend(s3server.Start(b, s3server.Options{}))) }
