package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/grpclog"

	"github.com/prism-gateway/prism/dataplane/simulate"
	"github.com/prism-gateway/prism/shared/settings"
	"github.com/prism-gateway/prism/shared/telemetry"
)

// simulation is what the flags of a simulation say.
type simulation struct {
	config     simulate.Config
	refuse     string
	duration   time.Duration
	output     string
	partitions bool
	logLevel   string
}

func simulateCommand(stderr io.Writer) *cobra.Command {
	o := &simulation{}
	cmd := &cobra.Command{
		Use:   "simulate",
		Short: "Many proxies without a data port, to try a control plane",
		Long: `simulate runs the control plane's end of many proxies in one process: each subscribes, verifies what it is sent,
acknowledges and reports, and serves nothing. They are members of the fleet and own partitions, so this is for an installation
on which nobody depends.

On a terminal it prints how things stand each second, and a summary at the end; with -o json one object each second and one
for the summary. Times are from the commit of a snapshot, by the control plane's clock, until it was in effect, by this
machine's: where these are two, their difference counts too.`,
		Example: `  prism-proxy simulate --proxies 1000
  prism-proxy simulate --admin-endpoint 10.0.0.1:18000 --proxies 1000 --jitter 10s --duration 5m -o json
  prism-proxy simulate --proxies 100 --nack '^bad-' --stall 1 --reconnect 30s`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := o.prepare(stderr)
			if err != nil {
				return err
			}
			return o.run(cmd.Context(), s, cmd.OutOrStdout())
		},
	}
	c, f := &o.config, cmd.Flags()
	f.StringSliceVar(&c.Endpoints, "admin-endpoint", []string{"127.0.0.1:18000"}, "the control plane's fleet address, host:port; may be given several times")
	f.IntVar(&c.Proxies, "proxies", 100, "how many proxies")
	f.IntVar(&c.Validators, "validators", 0, "how many validators besides, which have every partition and own none")
	f.StringVar(&c.Prefix, "id-prefix", "sim-", "what the proxies' ids begin with")
	f.StringVar(&c.StateDir, "state-dir", "", "keep each proxy's last good state below this directory, and start from it (default nothing is kept)")
	f.DurationVar(&c.Delay, "ack-delay", 0, "how long a proxy takes to put a change into effect and acknowledge it")
	f.StringVar(&o.refuse, "nack", "", "every proxy refuses namespaces whose names match this regular expression")
	f.Float64Var(&c.RefuseShare, "nack-rate", 0, "the share of changed namespaces that a proxy refuses, from 0 to 1")
	f.IntVar(&c.Stalled, "stall", 0, "how many proxies stop reading at the first change after they are settled")
	f.DurationVar(&c.StallTime, "stall-for", 0, "how long they do not read, again and again (default for good)")
	f.DurationVar(&c.Reconnect, "reconnect", 0, "after about what time each proxy opens a new stream (default never)")
	f.DurationVar(&c.Jitter, "jitter", 0, "the time over which the proxies start")
	f.Float64Var(&c.Drop, "drop", 0, "the share of responses at which the stream breaks off instead, from 0 to 1")
	f.DurationVar(&o.duration, "duration", 0, "how long (default until it is interrupted)")
	f.BoolVar(&o.partitions, "partitions-view", false, "tell in the summary how each partition stands")
	f.StringVarP(&o.output, "output", "o", "table", "how results are written: table or json")
	f.StringVar(&o.logLevel, "log-level", "", "log what the proxies log: debug, info, warn, error (default nothing)")
	return cmd
}

// prepare makes the simulation that the flags ask for.
func (o *simulation) prepare(stderr io.Writer) (*simulate.Simulation, error) {
	c := &o.config
	for _, e := range c.Endpoints {
		if err := settings.CheckEndpoint(e); err != nil {
			return nil, fmt.Errorf("--admin-endpoint: %w", err)
		}
	}
	for _, limit := range []struct {
		ok   bool
		text string
	}{
		{c.Proxies >= 1 && c.Proxies <= 100_000, fmt.Sprintf("--proxies %d: want 1 to 100000", c.Proxies)},
		{c.Validators >= 0 && c.Validators <= 100, fmt.Sprintf("--validators %d: want 0 to 100", c.Validators)},
		{c.Stalled >= 0 && c.Stalled <= c.Proxies, fmt.Sprintf("--stall %d: want 0 to the number of proxies", c.Stalled)},
		{c.RefuseShare >= 0 && c.RefuseShare <= 1, fmt.Sprintf("--nack-rate %v: want 0 to 1", c.RefuseShare)},
		{c.Drop >= 0 && c.Drop <= 1, fmt.Sprintf("--drop %v: want 0 to 1", c.Drop)},
		{min(c.Delay, c.StallTime, c.Reconnect, c.Jitter, o.duration) >= 0, "a time is negative"},
		{o.output == "table" || o.output == "json", fmt.Sprintf("--output %q: want table or json", o.output)},
	} {
		if !limit.ok {
			return nil, errors.New(limit.text)
		}
	}
	if o.refuse != "" {
		var err error
		if c.Refuse, err = regexp.Compile(o.refuse); err != nil {
			return nil, fmt.Errorf("--nack: %w", err)
		}
	}
	c.Logger = slog.New(slog.DiscardHandler)
	if o.logLevel != "" {
		var err error
		if c.Logger, err = telemetry.NewLogger(stderr, o.logLevel); err != nil {
			return nil, fmt.Errorf("--log-level: %w", err)
		}
	}
	grpclog.SetLoggerV2(telemetry.GRPCLog(c.Logger))
	return simulate.New(*c)
}

// run runs the simulation until ctx ends or its time is over, and tells how it goes.
func (o *simulation) run(ctx context.Context, s *simulate.Simulation, stdout io.Writer) error {
	out := printer(o.output, stdout, o.config.Proxies+o.config.Validators)
	running, stop := context.WithCancel(context.WithoutCancel(ctx)) // they leave after the summary was taken
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- s.Run(running) }()
	var over <-chan time.Time
	if o.duration > 0 {
		over = time.After(o.duration)
	}
	second := time.NewTicker(time.Second)
	defer second.Stop()
	for {
		select {
		case now := <-second.C:
			if err := out.step(s.Next(now)); err != nil {
				return failure{err}
			}
			continue
		case err := <-ended: // only when it failed
			return failure{err}
		case <-over:
		case <-ctx.Done():
		}
		summary := s.Summary(time.Now(), o.partitions)
		stop()
		err := cmp.Or(<-ended, out.summary(summary))
		if err == nil && summary.Received == 0 {
			err = fmt.Errorf("nothing came from a control plane at %s: is that its fleet_listen? --log-level warn tells more", strings.Join(o.config.Endpoints, ", "))
		}
		return orFailure(err)
	}
}

func orFailure(err error) error {
	if err != nil {
		return failure{err}
	}
	return nil
}

// watched is whether a person looks at what is written.
func watched(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
