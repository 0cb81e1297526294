package fleet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/terminal"
	"github.com/prism-gateway/prism/shared/client"
)

const (
	fleetPort      = "18000"          // of a control plane that was not told otherwise
	simulatedLabel = "simulated"      // what simulated proxies are marked with
	leaveTime      = 15 * time.Second // for simulated proxies to leave the fleet
)

// simulation is what the flags of fleet simulate say that prism-proxy is not told.
type simulation struct {
	program string
	fleet   []string
	join    bool
}

func (c *Commands) simulate() *cobra.Command {
	s := &simulation{}
	cmd := &cobra.Command{
		Use:   "simulate",
		Short: "Run many proxies without a data port, to see what a control plane carries",
		Long: `Run many simulated proxies until Ctrl-C: each subscribes, verifies what it is sent, acknowledges and reports as a real one does,
and serves nothing. They are members of the fleet and own partitions; where real proxies serve, they would take partitions from
them, so that needs --join.

On a terminal it prints how things stand each second, and a summary at the end; with -o json one object each second and one
for the summary. It runs the program prism-proxy that lies beside prismctl.`,
		Example: `  prismctl fleet simulate --proxies 1000
  prismctl fleet simulate --admin 10.0.0.1:8981 --fleet 10.0.0.1:18000 --proxies 1000 --duration 5m -o json
  prismctl fleet simulate --proxies 100 --nack '^bad-' --stall 1 --reconnect 30s`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.runSimulation(cmd.Context(), s, passed(cmd)) },
	}
	f := cmd.Flags()
	f.StringVar(&s.program, "proxy-program", "", "the program prism-proxy (default the one beside prismctl)")
	f.StringSliceVar(&s.fleet, "fleet", nil, "host:port at which proxies reach the control plane, several separated by commas (default port "+fleetPort+" of its hosts)")
	f.BoolVar(&s.join, "join", false, "do so although real proxies are in the fleet, which lose partitions to simulated ones")
	// What follows is prism-proxy's to check.
	f.Int("proxies", 100, "how many proxies")
	f.Int("validators", 0, "how many validators besides, which have every partition and own none")
	f.String("id-prefix", "sim-", "what the proxies' ids begin with")
	f.String("state-dir", "", "keep each proxy's last good state below this directory, and start from it (default nothing is kept)")
	f.Duration("ack-delay", 0, "how long a proxy takes to put a change into effect and acknowledge it")
	f.String("nack", "", "every proxy refuses namespaces whose names match this regular expression")
	f.Float64("nack-rate", 0, "the share of changed namespaces that a proxy refuses, from 0 to 1")
	f.Int("stall", 0, "how many proxies stop reading at the first change after they are settled")
	f.Duration("stall-for", 0, "how long they do not read, again and again (default for good)")
	f.Duration("reconnect", 0, "after about what time each proxy opens a new stream (default never)")
	f.Duration("jitter", 0, "the time over which the proxies start")
	f.Float64("drop", 0, "the share of responses at which the stream breaks off instead, from 0 to 1")
	f.Duration("duration", 0, "how long (default until it is interrupted)")
	f.Bool("partitions-view", false, "tell in the summary how each partition stands")
	f.String("log-level", "", "log what the proxies log: debug, info, warn, error (default nothing)")
	return cmd
}

// ours are the flags that prism-proxy does not have.
var ours = []string{"proxy-program", "fleet", "join", "help"}

// passed are the flags that were given and that prism-proxy has too.
func passed(cmd *cobra.Command) (args []string) {
	local := cmd.LocalNonPersistentFlags()
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if local.Lookup(f.Name) != nil && !slices.Contains(ours, f.Name) {
			args = append(args, "--"+f.Name+"="+f.Value.String())
		}
	})
	return args
}

func (c *Commands) runSimulation(ctx context.Context, s *simulation, flags []string) error {
	if c.term.Format == terminal.YAML {
		return terminal.Misusef("--output yaml: want table or json")
	}
	program, err := s.find()
	if err != nil {
		return err
	}
	if len(s.fleet) == 0 {
		admins, err := c.target.Admins()
		if err != nil {
			return err
		}
		if s.fleet, err = fleetAddresses(admins); err != nil {
			return err
		}
	}
	if !s.join {
		if err := c.refuseRealFleet(ctx); err != nil {
			return err
		}
	}
	args := []string{"simulate", "--output=" + c.term.Format.String()}
	for _, address := range s.fleet {
		args = append(args, "--admin-endpoint="+address)
	}
	cmd := exec.CommandContext(ctx, program, append(args, flags...)...)
	cmd.Stdout, cmd.Stderr = c.term.Out, c.term.Err
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = leaveTime
	err = cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == 2 {
		return terminal.Misusef("prism-proxy does not take this")
	}
	if ctx.Err() != nil && cmd.ProcessState.Success() {
		return nil // it was asked to end, and did
	}
	return err
}

// find returns the program that simulates.
func (s *simulation) find() (string, error) {
	if s.program != "" {
		if _, err := os.Stat(s.program); err != nil {
			return "", terminal.Misusef("--proxy-program: %w", err)
		}
		return s.program, nil
	}
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	if self, err = filepath.EvalSymlinks(self); err != nil {
		return "", err
	}
	program := filepath.Join(filepath.Dir(self), "prism-proxy")
	if _, err := os.Stat(program); err != nil {
		return "", fmt.Errorf("prism-proxy is not beside prismctl in %s: build it with make build, or name it with --proxy-program", filepath.Dir(self))
	}
	return program, nil
}

// fleetAddresses are the usual ones on the hosts of the control plane.
func fleetAddresses(admins []string) (addresses []string, err error) {
	for _, admin := range admins {
		host, _, err := net.SplitHostPort(admin)
		if err != nil {
			return nil, fmt.Errorf("%s: %w; name the fleet address with --fleet", admin, err)
		}
		addresses = append(addresses, net.JoinHostPort(host, fleetPort))
	}
	return addresses, nil
}

// refuseRealFleet fails where proxies serve that are not simulated.
func (c *Commands) refuseRealFleet(ctx context.Context) error {
	return c.target.WithControl(ctx, func(ctx context.Context, control *client.Control) error {
		list, err := all(ctx, control)
		if err != nil {
			return err
		}
		var real []string
		for _, p := range list.GetProxies() {
			if simulated, _ := strconv.ParseBool(p.GetMember().GetLabels()[simulatedLabel]); !simulated {
				real = append(real, p.GetMember().GetId())
			}
		}
		if len(real) == 0 {
			return nil
		}
		named := strings.Join(real[:min(len(real), 3)], ", ")
		if len(real) > 3 {
			named += ", ..."
		}
		return fmt.Errorf("real proxies are in the fleet, %d of them (%s): simulated ones would take partitions from them; --join does so all the same",
			len(real), named)
	})
}
