package server_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prism-gateway/prism/controlplane/server"
	bootstrapv1 "github.com/prism-gateway/prism/protos/prism/bootstrap/v1"
	"github.com/prism-gateway/prism/shared/settings"
)

// addresses takes from the log where the server listens.
type addresses struct {
	slog.Handler
	http chan string
}

func (a addresses) WithAttrs([]slog.Attr) slog.Handler { return a }

func (a addresses) Enabled(context.Context, slog.Level) bool { return true }

func (a addresses) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(attr slog.Attr) bool {
		if attr.Key == "http_address" {
			a.http <- attr.Value.String()
		}
		return true
	})
	return nil
}

// TestNotReadyTellsWhatIsInTheWay starts a replica whose etcd is not there.
func TestNotReadyTellsWhatIsInTheWay(t *testing.T) {
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody.Close()
	config, err := settings.LoadAdmin("", func(string) (string, bool) { return "", false }, func(c *bootstrapv1.AdminConfig) {
		c.Listen, c.FleetListen, c.HttpListen = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
		c.Etcd.Endpoints = []string{nobody.Addr().String()}
		c.Journal.Dir = t.TempDir()
		c.Pprof = true
	})
	if err != nil {
		t.Fatal(err)
	}
	log := addresses{slog.DiscardHandler, make(chan string, 1)}
	s, err := server.New(server.Config{Settings: config, Logger: slog.New(log)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	address := <-log.http

	ask, cancelAsk := context.WithTimeout(ctx, 30*time.Second)
	defer cancelAsk()
	for {
		request, err := http.NewRequestWithContext(ask, http.MethodGet, "http://"+address+"/readyz", nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		if response.StatusCode == http.StatusOK {
			t.Fatalf("ready: %s", body)
		}
		if !strings.Contains(string(body), `"following":{"snapshot":0,"revision":0}`) {
			t.Fatalf("it follows nobody: %s", body)
		}
		if strings.Contains(string(body), "does not answer") {
			break
		}
	}
	response, err := http.Get("http://" + address + "/debug/pprof/")
	if err != nil {
		t.Fatal(err)
	}
	if response.Body.Close(); response.StatusCode != http.StatusOK {
		t.Errorf("/debug/pprof/ %s", response.Status)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
