// Package root is the command tree of prismctl.
package root

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/audit"
	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/backend"
	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/fleet"
	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/kv"
	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/local"
	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/namespace"
	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/release"
	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/session"
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
	notLive   = 3 // what was asked about, or recorded, is not served by every owner
)

const exitCodes = `prismctl works with Prism, the data gateway.

It exits with
  0  when all of it was done: with --wait and release watch, also that every owner serves it
  1  when it was refused, or failed
  2  when the command line is wrong
  3  when the answer is there and what it is about is not live: namespace status of what some owner does not serve; a change that
     is recorded, but was taken back or not served in time (--wait, release watch)`

// Run runs one command line and returns the exit code, one of those that the help of prismctl lists. Errors go to term.Err, in one message,
// which is one line of JSON where results are.
func Run(ctx context.Context, term *terminal.Terminal, args []string) int {
	cmd := New(term)
	cmd.SetArgs(args)
	cmd.SetIn(term.In)
	cmd.SetOut(term.Out)
	cmd.SetErr(term.Err)
	ran, err := cmd.ExecuteContextC(ctx)
	if err == nil {
		return succeeded
	}
	code, help := failed, ""
	if _, found := errors.AsType[terminal.NotLive](err); found {
		code = notLive
	}
	if _, misuse := errors.AsType[terminal.Misuse](err); misuse || strings.HasPrefix(err.Error(), "unknown command") {
		code, help = misused, fmt.Sprintf("see: %s --help", ran.CommandPath())
	}
	term.Fail(err, code, help)
	return code
}

// New makes the command tree.
func New(term *terminal.Terminal) *cobra.Command {
	term.Format = terminal.Table
	t := target.New(term)
	cmd := &cobra.Command{
		Use:           "prismctl",
		Short:         "prismctl works with Prism, the data gateway",
		Long:          exitCodes,
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
		local.New(term), namespace.New(term, t), kv.New(term, t), snapshot.New(term, t), release.New(term, t), backend.New(term, t), fleet.New(term, t), session.New(term, t), audit.New(term),
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
	cmd.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		if typed := c.Flags().Args(); c.HasSubCommands() && len(typed) > 0 {
			return unknown(c, typed[0]) // the flag is the unknown command's
		}
		return terminal.Misuse{Err: err}
	})
	if cmd.Runnable() {
		// cobra would check these too, but return errors that nothing tells from others.
		cmd.PreRunE = func(c *cobra.Command, _ []string) error {
			if err := cmp.Or(c.ValidateRequiredFlags(), c.ValidateFlagGroups()); err != nil {
				return terminal.Misuse{Err: err}
			}
			return nil
		}
	}
	if check := cmd.Args; check != nil {
		cmd.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				return terminal.Misuse{Err: fmt.Errorf("%w; usage: %s", err, c.UseLine())}
			}
			return nil
		}
	}
	if cmd.HasSubCommands() && cmd.HasParent() {
		cmd.RunE = func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return c.Help()
			}
			return unknown(c, args[0])
		}
	}
	for _, sub := range cmd.Commands() {
		strict(sub)
	}
}

// unknown is the error of a group that has no command of that name.
func unknown(group *cobra.Command, typed string) error {
	group.SuggestionsMinimumDistance = 2
	guess := ""
	if near := group.SuggestionsFor(typed); len(near) > 0 {
		guess = fmt.Sprintf("; did you mean %q?", near[0])
	}
	return terminal.Misusef("unknown command %q for %q%s", typed, group.CommandPath(), guess)
}
