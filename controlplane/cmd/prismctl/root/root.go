// Package root is the command tree of prismctl.
package root

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/backend"
	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/fleet"
	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/kv"
	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/local"
	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/namespace"
	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/snapshot"
	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/target"
	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/terminal"
	"github.com/prism-gateway/prism/shared/telemetry"
)

// Exit codes.
const (
	succeeded = 0
	failed    = 1
	misused   = 2 // the command line itself is wrong
)

// usageError is a mistake on the command line.
type usageError struct {
	error
	command string
}

// Unwrap returns the mistake.
func (e usageError) Unwrap() error { return e.error }

// Run runs one command line and returns the exit code: 0 only on success. Errors go to term.Err, in one message.
func Run(ctx context.Context, term *terminal.Terminal, args []string) int {
	cmd := New(term)
	cmd.SetArgs(args)
	cmd.SetIn(term.In)
	cmd.SetOut(term.Out)
	cmd.SetErr(term.Err)
	err := cmd.ExecuteContext(ctx)
	if err == nil {
		return succeeded
	}
	fmt.Fprintf(term.Err, "prismctl: %s\n", terminal.Explain(err))
	usage, misuse := errors.AsType[usageError](err)
	if misuse {
		fmt.Fprintf(term.Err, "see: %s --help\n", usage.command)
		return misused
	}
	if strings.HasPrefix(err.Error(), "unknown command") {
		return misused
	}
	return failed
}

// New makes the command tree.
func New(term *terminal.Terminal) *cobra.Command {
	term.Format = terminal.Table
	t := target.New(term)
	cmd := &cobra.Command{
		Use:           "prismctl",
		Short:         "prismctl works with Prism, the data gateway",
		Example:       "  prismctl local up\n  prismctl namespace apply -f user-profiles.yaml --wait\n  prismctl kv put user-profiles alice name Alice",
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       telemetry.Build(),
	}
	cmd.SetVersionTemplate("prismctl {{.Version}}\n")
	t.Register(cmd)
	cmd.PersistentFlags().VarP(&term.Format, "output", "o", "how results are written: table, json or yaml")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp)) // fails only for an unknown flag
	cmd.AddCommand(
		local.New(term), namespace.New(term, t), kv.New(term, t), snapshot.New(term, t), backend.New(term, t), fleet.New(term, t),
		version(term),
	)
	strict(cmd)
	return cmd
}

// version says which build this is.
func version(term *terminal.Terminal) *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Show which build of prismctl this is",
		Example: "  prismctl version",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			build := struct {
				Version string `json:"version"`
				Build   string `json:"build"`
			}{telemetry.Version, telemetry.Build()}
			return term.PrintValue(build, func(w io.Writer) { fmt.Fprintln(w, "prismctl", build.Build) })
		},
	}
}

// strict makes mistakes on the command line errors of their own kind, in every command, and a group without a known
// command below it an error.
func strict(cmd *cobra.Command) {
	cmd.SetFlagErrorFunc(func(c *cobra.Command, err error) error { return usageError{err, c.CommandPath()} })
	if check := cmd.Args; check != nil {
		cmd.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				return usageError{fmt.Errorf("%w; usage: %s", err, c.UseLine()), c.CommandPath()}
			}
			return nil
		}
	}
	if cmd.HasSubCommands() && cmd.HasParent() {
		cmd.RunE = func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return c.Help()
			}
			return usageError{fmt.Errorf("unknown command %q for %q", args[0], c.CommandPath()), c.CommandPath()}
		}
	}
	for _, sub := range cmd.Commands() {
		strict(sub)
	}
}
