// Package simulate runs the control plane's end of many proxies in one process: each subscribes, verifies what it is sent,
// acknowledges and reports as a real proxy does, and serves nothing. It shows what a control plane carries before a fleet
// is there to show it.
package simulate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"regexp"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/prism-gateway/prism/dataplane/subscribe"
)

const (
	// Label marks simulated proxies in the fleet; its value is "true".
	Label = "simulated"
	// address is where simulated proxies take calls: nowhere, so that who calls them learns it at once.
	address = "simulated.invalid:1"
	// bufferBytes is small, because there are many connections on which little happens.
	bufferBytes = 4 << 10
)

// Config says how many proxies there are and how they behave.
type Config struct {
	// Endpoints are the replicas' fleet addresses, host:port. Required.
	Endpoints []string
	// Proxies is how many there are, at least 1. They are called <Prefix>00001 and so on.
	Proxies int
	// Validators is how many more there are that have every partition and own none; they are called <Prefix>validator-00001.
	Validators int
	// Prefix is what their ids begin with; empty is "sim-".
	Prefix string
	// StateDir is where each keeps its last good state, in a directory of its own; empty keeps none.
	StateDir string
	// Delay is how long a proxy takes to put a change into effect, and so to acknowledge it.
	Delay time.Duration
	// Refuse matches the namespaces that every proxy refuses; nil refuses none.
	Refuse *regexp.Regexp
	// RefuseShare is how many of the changed namespaces a proxy refuses, from 0 to 1, by chance.
	RefuseShare float64
	// Stalled is how many proxies stop reading at the first change after they have held their partitions for a while: for
	// StallTime, again and again, or for good when that is 0.
	Stalled   int
	StallTime time.Duration
	// Reconnect is after about what time a proxy gives up its stream and opens another; 0 is never.
	Reconnect time.Duration
	// Jitter is the time over which the proxies start, by chance.
	Jitter time.Duration
	// Drop is the share of responses, from 0 to 1, at which the stream breaks off instead, by chance.
	Drop float64
	// DialOptions are added to the clients' own; without credentials among them the connections are plaintext.
	DialOptions []grpc.DialOption
	// Logger is told what the proxies log. Required.
	Logger *slog.Logger
}

func (c *Config) check() error {
	share := func(name string, v float64) error {
		if v >= 0 && v <= 1 {
			return nil
		}
		return fmt.Errorf("simulate: Config.%s is %v, want 0 to 1", name, v)
	}
	switch {
	case len(c.Endpoints) == 0:
		return errors.New("simulate: Config.Endpoints is required")
	case c.Proxies < 1:
		return fmt.Errorf("simulate: Config.Proxies is %d, want at least 1", c.Proxies)
	case c.Validators < 0:
		return fmt.Errorf("simulate: Config.Validators is %d", c.Validators)
	case c.Stalled < 0 || c.Stalled > c.Proxies:
		return fmt.Errorf("simulate: Config.Stalled is %d of %d proxies", c.Stalled, c.Proxies)
	case c.Delay < 0 || c.StallTime < 0 || c.Reconnect < 0 || c.Jitter < 0:
		return errors.New("simulate: a time in Config is negative")
	case c.Logger == nil:
		return errors.New("simulate: Config.Logger is required")
	}
	return cmp.Or(share("RefuseShare", c.RefuseShare), share("Drop", c.Drop))
}

// Simulation is a fleet of simulated proxies. Its methods may be called from any goroutine.
type Simulation struct {
	cfg     Config
	proxies []*proxy
	counts  *counts
	ending  atomic.Bool // they leave the fleet
}

// New checks cfg. It does no I/O.
func New(cfg Config) (*Simulation, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	cfg.Prefix = cmp.Or(cfg.Prefix, "sim-")
	s := &Simulation{cfg: cfg, counts: newCounts(time.Now())}
	commons := subscribe.NewCommons()
	for i := range cfg.Proxies + cfg.Validators {
		p := &proxy{sim: s, id: fmt.Sprintf("%s%05d", cfg.Prefix, i+1), stalls: i < cfg.Stalled}
		if i >= cfg.Proxies {
			p.validator, p.id = true, fmt.Sprintf("%svalidator-%05d", cfg.Prefix, i-cfg.Proxies+1)
		}
		client, err := subscribe.New(s.client(p, commons))
		if err != nil {
			return nil, err
		}
		p.client = client
		s.proxies = append(s.proxies, p)
	}
	return s, nil
}

// client is what a proxy subscribes with.
func (s *Simulation) client(p *proxy, commons *subscribe.Commons) subscribe.Config {
	c := subscribe.Config{
		Endpoints: s.cfg.Endpoints,
		Node: subscribe.Node{
			ID: p.id, Address: address, Labels: map[string]string{Label: "true"}, Build: "simulated", Validator: p.validator,
		},
		Apply: p.apply, Facts: p, Commons: commons, Logger: s.cfg.Logger,
		DialOptions: append([]grpc.DialOption{
			grpc.WithChainStreamInterceptor(p.watch), grpc.WithStatsHandler(wire{s.counts}),
			grpc.WithReadBufferSize(bufferBytes), grpc.WithWriteBufferSize(bufferBytes),
		}, s.cfg.DialOptions...),
	}
	if s.cfg.StateDir != "" {
		c.StateDir = filepath.Join(s.cfg.StateDir, p.id)
	}
	return c
}

// Run keeps all proxies in the fleet until ctx ends, then has them leave it in good order. It returns an error only when a
// state directory cannot be had.
func (s *Simulation) Run(ctx context.Context) error {
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	defer context.AfterFunc(ctx, func() {
		s.ending.Store(true) // before anything ends, so that the last reports say it
		stop()
	})()
	var all sync.WaitGroup
	failed := make(chan error, len(s.proxies))
	for _, p := range s.proxies {
		all.Go(func() {
			if s.cfg.Jitter > 0 && !wait(running, rand.N(s.cfg.Jitter)) {
				return
			}
			if err := p.client.Run(running); err != nil {
				failed <- fmt.Errorf("%s: %w", p.id, err)
				stop()
			}
		})
	}
	all.Wait()
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}

// wait reports whether the time passed before ctx ended.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
