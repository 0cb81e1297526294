package simulate_test

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prism-gateway/prism/dataplane/simulate"
)

func TestWhatMakesNoSenseIsRefused(t *testing.T) {
	for _, c := range []struct {
		name    string
		change  func(*simulate.Config)
		problem string
	}{
		{"a good one", func(*simulate.Config) {}, ""},
		{"no control plane", func(c *simulate.Config) { c.Endpoints = nil }, "Endpoints"},
		{"no proxies", func(c *simulate.Config) { c.Proxies = 0 }, "Proxies"},
		{"less than no validators", func(c *simulate.Config) { c.Validators = -1 }, "Validators"},
		{"more stalled than there are", func(c *simulate.Config) { c.Stalled = 4 }, "Stalled"},
		{"more than all refused", func(c *simulate.Config) { c.RefuseShare = 1.5 }, "RefuseShare"},
		{"less than none dropped", func(c *simulate.Config) { c.Drop = -0.1 }, "Drop"},
		{"a time that is negative", func(c *simulate.Config) { c.Jitter = -time.Second }, "negative"},
		{"no logger", func(c *simulate.Config) { c.Logger = nil }, "Logger"},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := simulate.Config{Endpoints: []string{"127.0.0.1:1"}, Proxies: 3, Logger: slog.New(slog.DiscardHandler)}
			c.change(&config)
			_, err := simulate.New(config)
			if c.problem == "" && err != nil || c.problem != "" && (err == nil || !strings.Contains(err.Error(), c.problem)) {
				t.Errorf("%v, want one about %q", err, c.problem)
			}
		})
	}
}
