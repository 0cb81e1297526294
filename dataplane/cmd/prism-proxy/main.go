// Command prism-proxy is Prism's data plane: it serves the data services from the backends that the control plane bound
// the namespaces to.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/grpclog"

	"github.com/prism-gateway/prism/dataplane/driver/builtin"
	"github.com/prism-gateway/prism/dataplane/server"
	bootstrapv1 "github.com/prism-gateway/prism/protos/prism/bootstrap/v1"
	"github.com/prism-gateway/prism/shared/settings"
	"github.com/prism-gateway/prism/shared/telemetry"
	"github.com/prism-gateway/prism/shared/telemetry/trace"
)

// The exit codes.
const (
	exitFailed = 1 // it ran and failed
	exitUsage  = 2 // the command line or the configuration is wrong
)

// heapFloor is how much garbage may gather, in bytes, however little is kept.
const heapFloor = 32 << 20

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := program(ctx, os.Args[1:], os.LookupEnv, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// failure is an error after the configuration was accepted.
type failure struct{ error }

// misuse is a mistake on the command line itself.
type misuse struct{ error }

func program(ctx context.Context, args []string, env settings.Lookup, stdout, stderr io.Writer) int {
	cmd := command(env, stderr)
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	ran, err := cmd.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	_, _ = fmt.Fprintln(stderr, "prism-proxy:", err) // there is nowhere else to say it
	if _, failed := errors.AsType[failure](err); failed {
		return exitFailed
	}
	if _, misused := errors.AsType[misuse](err); misused {
		_, _ = fmt.Fprintf(stderr, "see: %s --help\n", ran.CommandPath())
	}
	return exitUsage
}

func command(env settings.Lookup, stderr io.Writer) *cobra.Command {
	var (
		file                              string
		id, listen, http, state, logLevel string
		endpoints                         []string
		insecure, validator, check        bool
	)
	cmd := &cobra.Command{
		Use:   "prism-proxy",
		Short: "Prism's data plane",
		Long: `prism-proxy serves the data API from the backends that the control plane bound the namespaces to. It is stateless: what
it keeps on disk is the last good configuration, so that it serves without a control plane too.

It listens on 127.0.0.1:8980 (gRPC: data services) and 127.0.0.1:9901 (HTTP: /metrics, /healthz, /readyz,
/config_dump), and subscribes at 127.0.0.1:18000. The file is YAML, as prism.bootstrap.v1.ProxyConfig says; environment
variables override it and flags override both.

Environment:
  PRISM_PROXY_ID          id
  PRISM_DATA_PORT         port of listen
  PRISM_PROXY_HTTP_PORT   port of http_listen
  PRISM_ADMIN_ENDPOINT    admin_endpoints, separated by commas
  PRISM_PROXY_VALIDATOR   validator: true or false
  PRISM_LOG_LEVEL         log_level
  OTEL_EXPORTER_OTLP_ENDPOINT and the like turn on spans of the changes that come into effect; off by default

Exit codes: 0 stopped as asked, 1 failed while running, 2 wrong flags or configuration.`,
		Example: `  prism-proxy
  prism-proxy --config /etc/prism/proxy.yaml
  prism-proxy --id proxy-1 --listen 127.0.0.1:8990 --http-listen 127.0.0.1:9902 --state-dir /var/lib/prism/proxy-1
  prism-proxy --config /etc/prism/proxy.yaml --check`,
		Args:          noArguments,
		Version:       telemetry.Build(),
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := settings.LoadProxy(file, env, func(c *bootstrapv1.ProxyConfig) {
				for name, into := range map[string]struct {
					from string
					to   *string
				}{
					"id": {id, &c.Id}, "listen": {listen, &c.Listen}, "http-listen": {http, &c.HttpListen},
					"state-dir": {state, &c.StateDir}, "log-level": {logLevel, &c.LogLevel},
				} {
					if cmd.Flags().Changed(name) {
						*into.to = into.from
					}
				}
				if len(endpoints) > 0 {
					c.AdminEndpoints = endpoints
				}
				c.InsecureListen = c.GetInsecureListen() || insecure
				c.Validator = c.GetValidator() || validator
			})
			if err != nil {
				return err
			}
			if check {
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "good: it would listen on %s (calls) and %s (HTTP), and subscribe at %s\n",
					config.GetListen(), config.GetHttpListen(), strings.Join(config.GetAdminEndpoints(), ", "))
				return err
			}
			return run(cmd.Context(), config, env, stderr)
		},
	}
	f := cmd.Flags()
	f.StringVar(&file, "config", "", "configuration file (YAML)")
	f.StringVar(&id, "id", "", "the proxy's id, unique in the fleet (default the host's name)")
	f.StringVar(&listen, "listen", "", "where applications call, host:port (default 127.0.0.1:8980)")
	f.StringVar(&http, "http-listen", "", "where metrics and readiness answer, host:port (default 127.0.0.1:9901)")
	f.StringSliceVar(&endpoints, "admin-endpoint", nil, "the control plane's fleet address, host:port; may be given several times (default 127.0.0.1:18000)")
	f.StringVar(&state, "state-dir", "", "where the last good configuration is kept (default prism-proxy.state)")
	f.StringVar(&logLevel, "log-level", "", strings.Join([]string{"debug", "info", "warn", "error"}, ", ")+" (default info)")
	f.BoolVar(&validator, "validator", false, "compile the configuration of every partition and take no calls: releases come here first")
	f.BoolVar(&insecure, "insecure-listen", false, "listen on addresses other than loopback although callers are not authenticated")
	f.BoolVar(&check, "check", false, "check the configuration and end")
	cmd.AddCommand(simulateCommand(stderr))
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return misuse{err} })
	return cmd
}

func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return misuse{fmt.Errorf("%q: %s takes no arguments", args[0], cmd.CommandPath())}
	}
	return nil
}

func run(ctx context.Context, config *bootstrapv1.ProxyConfig, env settings.Lookup, stderr io.Writer) error {
	log, err := telemetry.NewLogger(stderr, config.GetLogLevel())
	if err != nil {
		return err
	}
	grpclog.SetLoggerV2(telemetry.GRPCLog(log))
	// A proxy keeps little and allocates much, so the collector would run hundreds of times a second. Memory that is
	// never touched, and so takes none, makes it wait for as much garbage.
	ballast := make([]byte, heapFloor)
	defer runtime.KeepAlive(ballast)
	tracer, err := trace.New(trace.Config{
		Service: "prism-proxy", Instance: config.GetId(), Version: telemetry.Version, Env: env, Logger: log,
	})
	if err != nil {
		return err
	}
	defer tracer.Close()
	s, err := server.New(server.Config{Settings: config, Drivers: builtin.Drivers(), Tracer: tracer, Logger: log})
	if err != nil {
		return err
	}
	if err := s.Run(ctx); err != nil {
		return failure{err}
	}
	return nil
}
