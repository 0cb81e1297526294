package server

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/prism-gateway/prism/dataplane/credential"
	"github.com/prism-gateway/prism/shared/telemetry"
)

// conditionCapabilities tells what the proxy's own logins at its providers may not do.
const conditionCapabilities = "credential_capabilities"

const (
	checkLook  = time.Second      // how soon it is seen that other credentials are asked for
	checkFor   = 10 * time.Second // what one question may take
	checkAgain = time.Minute      // after what time a provider is asked again where not all was well
)

// checker is a provider that can be asked what the proxy may do there.
type checker interface {
	// Check fails when the proxy may not read these paths, or not give back what a former process left.
	Check(ctx context.Context, paths ...string) error
}

// checked is what a provider answered last.
type checked struct {
	paths []string // that were asked about
	err   error
	at    time.Time
}

// capabilities asks the providers what the proxy's own logins may do, at the start and when other credentials are asked for
// by them, so that what is missing is known before it is needed.
type capabilities struct {
	server    *Server
	providers map[string]checker
	answers   map[string]checked
	gauge     *prometheus.GaugeVec
}

// newCapabilities returns nil when no provider can be asked.
func (s *Server) newCapabilities() (*capabilities, error) {
	c := &capabilities{server: s, providers: map[string]checker{}, answers: map[string]checked{}, gauge: prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "prism_credential_capable", Help: "Whether the proxy's own login at a provider may do what it has to; 0 when it lacks something.",
	}, []string{"provider"})}
	for _, p := range s.cfg.Settings.GetCredentialProviders() {
		if made, ok := s.identity.providers[p.GetName()].(checker); ok && p.GetVault().GetLogin() != nil {
			c.providers[p.GetName()] = made
		}
	}
	if len(c.providers) == 0 {
		return nil, nil
	}
	return c, s.registry.Register(c.gauge)
}

// run asks until ctx is done.
func (c *capabilities) run(ctx context.Context) error {
	tick := time.NewTicker(checkLook)
	defer tick.Stop()
	for {
		for _, name := range slices.Sorted(maps.Keys(c.providers)) {
			c.look(ctx, name)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// look asks one provider if there is a reason to.
func (c *capabilities) look(ctx context.Context, name string) {
	paths := c.server.pools.OwnPaths(name)
	last, asked := c.answers[name]
	if asked && slices.Equal(last.paths, paths) && (last.err == nil || time.Since(last.at) < checkAgain) {
		return
	}
	within, cancel := context.WithTimeout(ctx, checkFor)
	defer cancel()
	err := c.providers[name].Check(within, paths...)
	if ctx.Err() != nil {
		return
	}
	c.answers[name] = checked{paths: paths, err: err, at: time.Now()}
	switch {
	case err == nil:
		c.gauge.WithLabelValues(name).Set(1)
	case errors.Is(err, credential.ErrRefused):
		c.gauge.WithLabelValues(name).Set(0)
	} // else it is not known: the provider does not answer
	if err != nil && (last.err == nil || last.err.Error() != err.Error()) {
		c.server.cfg.Logger.Warn("the proxy's own login at a credential provider may not do all that it has to", telemetry.KeyName, name, telemetry.KeyError, err)
	}
	c.tell()
}

// tell says it in /readyz. A proxy serves what does not need it all the same.
func (c *capabilities) tell() {
	var missing []string
	for _, name := range slices.Sorted(maps.Keys(c.answers)) {
		if err := c.answers[name].err; err != nil {
			missing = append(missing, fmt.Sprintf("%s: %v", name, err))
		}
	}
	c.server.ready.Note(conditionCapabilities, strings.Join(missing, "; "))
}
