// Command prism-admin is Prism's control plane: it takes requests, records snapshots in etcd and pushes them to the
// proxies.
package main

import (
	"context"
	"fmt"
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
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "prism-admin:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	var (
		file     string
		insecure bool
		check    bool
	)
	cmd := &cobra.Command{
		Use:   "prism-admin",
		Short: "Prism's control plane",
		Long: `prism-admin takes the requests of teams, records every version of the configuration as a snapshot in etcd, and
pushes to the proxies what changed. Without etcd endpoints it runs an etcd inside itself, for one machine.

It listens on 127.0.0.1:8981 (gRPC: ControlPlane, AdminService), 127.0.0.1:18000 (gRPC: proxies) and 127.0.0.1:8095
(HTTP: /metrics, /healthz, /readyz). The file is YAML, as prism.bootstrap.v1.AdminConfig says.

Environment: PRISM_ADMIN_PORT replaces the port of listen. OTEL_EXPORTER_OTLP_ENDPOINT and the like turn on spans of the
calls, which the proxies go on with; off by default.`,
		Example: `  prism-admin
  prism-admin --config /etc/prism/admin.yaml
  prism-admin --config /etc/prism/admin.yaml --check`,
		Args:          cobra.NoArgs,
		Version:       telemetry.Build(),
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := settings.LoadAdmin(file, os.LookupEnv, func(c *bootstrapv1.AdminConfig) {
				c.InsecureListen = c.GetInsecureListen() || insecure
			})
			if err != nil || check {
				return err
			}
			return run(cmd.Context(), config)
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "configuration file (YAML)")
	cmd.Flags().BoolVar(&insecure, "insecure-listen", false, "listen on addresses other than loopback although callers are not authenticated")
	cmd.Flags().BoolVar(&check, "check", false, "check the configuration and end")
	return cmd
}

func run(ctx context.Context, config *bootstrapv1.AdminConfig) error {
	log, err := telemetry.NewLogger(os.Stderr, config.GetLogLevel())
	if err != nil {
		return err
	}
	grpclog.SetLoggerV2(telemetry.GRPCLog(log))
	tracer, err := trace.New(trace.Config{
		Service: "prism-admin", Instance: config.GetReplicaId(), Version: telemetry.Version, Env: os.LookupEnv, Logger: log,
	})
	if err != nil {
		return err
	}
	defer tracer.Close()
	s, err := server.New(server.Config{Settings: config, Tracer: tracer, Logger: log})
	if err != nil {
		return err
	}
	return s.Run(ctx)
}
