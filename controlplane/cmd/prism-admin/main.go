// Command prism-admin is Prism's control plane: it takes requests, records snapshots in etcd and pushes them to the
// proxies.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/grpclog"

	"github.com/prism-gateway/prism/controlplane/server"
	bootstrapv1 "github.com/prism-gateway/prism/protos/prism/bootstrap/v1"
	"github.com/prism-gateway/prism/shared/settings"
	"github.com/prism-gateway/prism/shared/telemetry"
	"github.com/prism-gateway/prism/shared/telemetry/trace"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := program(ctx, os.Args[1:], os.LookupEnv, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// The exit codes.
const (
	exitFailed = 1 // it ran and failed
	exitUsage  = 2 // the command line or the configuration is wrong
)

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
	_, _ = fmt.Fprintln(stderr, "prism-admin:", err) // there is nowhere else to say it
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
		file     string
		insecure bool
		check    bool
		create   bool
	)
	cmd := &cobra.Command{
		Use:   "prism-admin",
		Short: "Prism's control plane",
		Long: `prism-admin takes the requests of teams, records every version of the configuration as a snapshot in etcd, and
pushes to the proxies what changed. Without etcd endpoints it runs an etcd inside itself, for one machine.

With etcd endpoints, start one replica once with --create: a replica that finds no installation waits for one, since an etcd
without data may be one that has lost it. An etcd inside makes one unasked where its data directory did not exist before.

It listens on 127.0.0.1:8981 (gRPC: ControlPlane, AdminService), 127.0.0.1:18000 (gRPC: proxies) and 127.0.0.1:8095
(HTTP: /metrics, /healthz, /readyz). The file is YAML, as prism.bootstrap.v1.AdminConfig says; environment variables
override it.

Environment:
  PRISM_ADMIN_PORT        port of listen
  PRISM_FLEET_PORT        port of fleet_listen
  PRISM_ADMIN_HTTP_PORT   port of http_listen
  PRISM_ETCD_ENDPOINTS    etcd.endpoints, separated by commas
  PRISM_JOURNAL_DIR       journal.dir
  PRISM_LOG_LEVEL         log_level
  OTEL_EXPORTER_OTLP_ENDPOINT and the like turn on spans of the calls, which the proxies go on with; off by default

Exit codes: 0 stopped as asked, 1 failed while running, 2 wrong flags or configuration.`,
		Example: `  prism-admin
  prism-admin --config /etc/prism/admin.yaml --create
  prism-admin --config /etc/prism/admin.yaml
  prism-admin --config /etc/prism/admin.yaml --check`,
		Args:          noArguments,
		Version:       telemetry.Build(),
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := settings.LoadAdmin(file, env, func(c *bootstrapv1.AdminConfig) {
				c.InsecureListen = c.GetInsecureListen() || insecure
			})
			if err != nil {
				return err
			}
			if check {
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "good: it would listen on %s (calls), %s (proxies) and %s (HTTP)\n",
					config.GetListen(), config.GetFleetListen(), config.GetHttpListen())
				return err
			}
			return run(cmd.Context(), config, create, env, stderr)
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "configuration file (YAML)")
	cmd.Flags().BoolVar(&insecure, "insecure-listen", false, "listen on addresses other than loopback although callers are not authenticated")
	cmd.Flags().BoolVar(&check, "check", false, "check the configuration and end")
	cmd.Flags().BoolVar(&create, "create", false, "create the installation if etcd holds none; for the first start of all")
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return misuse{err} })
	return cmd
}

func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return misuse{fmt.Errorf("%q: %s takes no arguments", args[0], cmd.CommandPath())}
	}
	return nil
}

func run(ctx context.Context, config *bootstrapv1.AdminConfig, create bool, env settings.Lookup, stderr io.Writer) error {
	log, err := telemetry.NewLogger(stderr, config.GetLogLevel())
	if err != nil {
		return err
	}
	grpclog.SetLoggerV2(telemetry.GRPCLog(log))
	tracer, err := trace.New(trace.Config{
		Service: "prism-admin", Instance: config.GetReplicaId(), Version: telemetry.Version, Env: env, Logger: log,
	})
	if err != nil {
		return err
	}
	defer tracer.Close()
	s, err := server.New(server.Config{Settings: config, Tracer: tracer, Create: create, Logger: log})
	if err != nil {
		return err
	}
	if err := s.Run(ctx); err != nil {
		return failure{err}
	}
	return nil
}
