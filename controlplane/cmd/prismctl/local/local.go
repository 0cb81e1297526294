// Package local runs a whole Prism on this machine as real processes: prism-admin with its embedded etcd, proxies, a
// NATS server inside prismctl, and SQLite and memory as stores.
package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/terminal"
	"github.com/prism-gateway/prism/shared/settings"
)

// New makes the group of commands.
func New(term *terminal.Terminal) *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:     "local",
		Short:   "Run a whole Prism on this machine",
		Example: "  prismctl local up\n  prismctl local status",
	}
	cmd.PersistentFlags().StringVar(&dir, "dir", ".prism", "where it keeps everything")
	cmd.AddCommand(upCommand(term, &dir), loginCommand(term, &dir), statusCommand(term, &dir), downCommand(term, &dir))
	return cmd
}

func upCommand(term *terminal.Terminal, dir *string) *cobra.Command {
	proxies := 3
	var redis string
	var waves time.Duration
	var auth bool
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Start a Prism and keep it running until Ctrl-C",
		Long: `Start a Prism and keep it running until Ctrl-C: a control plane, proxies, a NATS server, SQLite and memory as stores,
and a namespace to try. A program that dies is started again. Data stays in the directory and is there again next time.

With --auth all connections are TLS, with certificates of an authority that is made for it, and there is an issuer of tokens (Dex), a
provider of credentials (OpenBao), a Redis whose users it makes, and a namespace whose callers log in: prismctl local login ann.

On Linux the programs end with prismctl however it ends; elsewhere they outlive a prismctl that is killed with SIGKILL.`,
		Example: "  prismctl local up\n  prismctl local up --proxies 5 --redis 127.0.0.1:6379\n  prismctl local up --waves 5s\n  prismctl local up --auth",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if proxies < 1 || proxies > 20 {
				return terminal.Misusef("--proxies %d: want 1 to 20", proxies)
			}
			if cmd.Flags().Changed("waves") && (waves < time.Millisecond || waves > 24*time.Hour) {
				return terminal.Misusef("--waves %v: want 1ms to 24h", waves)
			}
			if redis != "" {
				if err := settings.CheckEndpoint(redis); err != nil {
					return terminal.Misusef("--redis: %w", err)
				}
			}
			admin, proxy, err := binaries()
			if err != nil {
				return err
			}
			d, err := openDirectory(*dir)
			if err != nil {
				return err
			}
			if err := os.MkdirAll(string(d), 0o700); err != nil {
				return err
			}
			release, err := d.lock()
			if err != nil {
				return fmt.Errorf("%s: %w", *dir, err)
			}
			defer release()
			p, err := makePlan(d, proxies, redis, waves, auth)
			if err != nil {
				return err
			}
			if err := p.write(); err != nil {
				return err
			}
			return up(cmd.Context(), term, p, admin, proxy)
		},
	}
	cmd.Flags().IntVar(&proxies, "proxies", proxies, "how many proxies")
	cmd.Flags().StringVar(&redis, "redis", "", "host:port of a Redis to register as a backend as well")
	cmd.Flags().BoolVar(&auth, "auth", false, "callers say who they are, and have users of their own in a store; needs dex, bao and redis-server")
	terminal.DurationVar(cmd.Flags(), &waves, "waves", 0, "changes of what is in use go in waves, and each is held so long (default all owners at once)")
	return cmd
}

func statusCommand(term *terminal.Terminal, dir *string) *cobra.Command {
	return &cobra.Command{
		Use:     "status",
		Short:   "Show the programs of the local Prism",
		Example: "  prismctl local status -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, err := openDirectory(*dir)
			if err != nil {
				return err
			}
			pid, err := d.running()
			if err != nil {
				return err
			}
			if pid == 0 {
				return fmt.Errorf("no local Prism runs in %s; start one with: prismctl local up", *dir)
			}
			s, err := d.loadState()
			if err != nil {
				return err
			}
			for i := range s.Programs {
				p := &s.Programs[i]
				p.State = "ready"
				if p.HTTP != "" {
					if reason := readiness(cmd.Context(), p.HTTP); reason != "" {
						p.State = reason
					}
				}
			}
			return term.PrintValue(s, func(w io.Writer) { writeStatus(w, s) })
		},
	}
}

func writeStatus(w io.Writer, s State) {
	fmt.Fprintf(w, "prismctl local up runs as process %d since %s\n", s.Pid, s.Started.UTC().Format(time.RFC3339))
	g := terminal.NewGrid("PROGRAM", "PROCESS", "ADDRESS", "HTTP", "RESTARTS", "STATE", "LOG")
	for _, p := range s.Programs {
		g.Row(p.Name, strconv.Itoa(p.Pid), p.Address, p.HTTP, strconv.Itoa(p.Restarts), p.State, p.Log)
	}
	g.Write(w)
}

func downCommand(term *terminal.Terminal, dir *string) *cobra.Command {
	var wipe bool
	cmd := &cobra.Command{
		Use:     "down",
		Short:   "Stop the local Prism",
		Example: "  prismctl local down\n  prismctl local down --wipe",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, err := openDirectory(*dir)
			if err != nil {
				return err
			}
			if err := stop(cmd.Context(), term, d); err != nil {
				return err
			}
			if !wipe {
				return nil
			}
			if err := d.wipe(); err != nil {
				return err
			}
			term.Note("removed what it kept in %s", *dir)
			return nil
		},
	}
	cmd.Flags().BoolVar(&wipe, "wipe", false, "remove its data as well")
	return cmd
}

// stop ends the supervisor of a directory and waits until everything has ended. It is no error when none runs.
func stop(ctx context.Context, term *terminal.Terminal, d directory) error {
	pid, err := d.running()
	if err != nil {
		return err
	}
	if pid == 0 {
		term.Note("no local Prism runs in %s", d)
		return nil
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("stopping process %d: %w", pid, err)
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	ticker := time.NewTicker(50 * time.Millisecond) // another process: there is no channel to wait on
	defer ticker.Stop()
	for {
		now, err := d.running()
		if err != nil {
			return err
		}
		if now == 0 {
			term.Note("stopped")
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("process %d has not stopped: %w", pid, ctx.Err())
		case <-ticker.C:
		}
	}
}
