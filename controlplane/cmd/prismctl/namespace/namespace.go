// Package namespace has the commands of prismctl about namespaces.
package namespace

import (
	"context"
	"errors"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/prism-gateway/prism/controlplane/admission"
	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/target"
	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/terminal"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	"github.com/prism-gateway/prism/shared/client"
)

// Commands are the commands and what they share.
type Commands struct {
	term   *terminal.Terminal
	target *target.Flags
}

// New makes the group of commands.
func New(term *terminal.Terminal, t *target.Flags) *cobra.Command {
	c := &Commands{term: term, target: t}
	cmd := &cobra.Command{
		Use:     "namespace",
		Aliases: []string{"ns"},
		Short:   "Ask for namespaces, look at them, change them",
		Example: "  prismctl namespace plan -f user-profiles.yaml\n  prismctl namespace apply -f user-profiles.yaml --wait",
	}
	cmd.AddCommand(c.plan(), c.apply(), c.list(), c.get(), c.status(), c.export(), c.history(), c.rollback(), c.delete(),
		c.reserve(), c.renew(), c.unreserve(), c.reserved())
	return cmd
}

func (c *Commands) list() *cobra.Command {
	var prefix, team string
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the namespaces",
		Example: "  prismctl namespace list --team accounts",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return target.Ask(c.target, cmd, func(ctx context.Context, control *client.Control) (*controlv1.ListNamespacesResponse, error) {
				return target.Pages(0, func(token string, size uint32) (*controlv1.ListNamespacesResponse, error) {
					return control.Namespaces.ListNamespaces(ctx, &controlv1.ListNamespacesRequest{Prefix: prefix, Team: team, PageSize: size, PageToken: token})
				})
			}, func(w io.Writer, all *controlv1.ListNamespacesResponse) {
				g := terminal.NewGrid("NAMESPACE", "TEAM", "PATTERNS", "BACKENDS", "PARTITION", "VERSION", "STATE")
				for _, n := range all.GetNamespaces() {
					g.Row(n.GetNamespace(), n.GetTeam(), strings.Join(n.GetPatterns(), ","), strings.Join(n.GetBackends(), ","),
						strconv.Itoa(int(n.GetPartition())), terminal.Short(n.GetVersion()), state(n.GetDraining()))
				}
				g.Write(w)
			})
		},
	}
	cmd.Flags().StringVar(&prefix, "prefix", "", "only names that begin so")
	cmd.Flags().StringVar(&team, "team", "", "only namespaces of this team")
	return cmd
}

func state(draining bool) string {
	if draining {
		return "draining"
	}
	return "active"
}

func (c *Commands) get() *cobra.Command {
	var snapshot uint64
	cmd := &cobra.Command{
		Use:               "get NAME",
		Short:             "Show what was assigned to a namespace, why, and how far it is live",
		Example:           "  prismctl namespace get user-profiles",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.target.Complete(Names),
		RunE: func(cmd *cobra.Command, args []string) error {
			return target.Ask(c.target, cmd, func(ctx context.Context, control *client.Control) (*configv1.NamespaceResponse, error) {
				resp, err := control.Namespaces.GetNamespace(ctx, &controlv1.GetNamespaceRequest{
					Namespace: args[0], SnapshotVersion: snapshot, WithStatus: snapshot == 0})
				return resp.GetNamespace(), err
			}, describe)
		},
	}
	cmd.Flags().Uint64Var(&snapshot, "snapshot", 0, "as it was in this snapshot")
	return cmd
}

func (c *Commands) export() *cobra.Command {
	var snapshot uint64
	cmd := &cobra.Command{
		Use:               "export NAME",
		Short:             "Write a namespace's request as a file that apply takes",
		Example:           "  prismctl namespace export user-profiles > user-profiles.yaml",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.target.Complete(Names),
		RunE: func(cmd *cobra.Command, args []string) error {
			var text []byte
			return target.Ask(c.target, cmd, func(ctx context.Context, control *client.Control) (*configv1.NamespaceRequest, error) {
				resp, err := control.Namespaces.GetNamespace(ctx, &controlv1.GetNamespaceRequest{Namespace: args[0], SnapshotVersion: snapshot})
				if err != nil {
					return nil, err
				}
				text, err = admission.FormatYAML(resp.GetNamespace().GetRequest())
				return resp.GetNamespace().GetRequest(), err
			}, func(w io.Writer, _ *configv1.NamespaceRequest) { _, _ = w.Write(text) }) // w is memory
		},
	}
	cmd.Flags().Uint64Var(&snapshot, "snapshot", 0, "as it was in this snapshot")
	return cmd
}

func (c *Commands) delete() *cobra.Command {
	var note terminal.Note
	var release terminal.Release
	var version string
	var wait waitLimit
	cmd := &cobra.Command{
		Use:   "delete NAME",
		Short: "Drain a namespace and remove it; its data stays where it is",
		Long: `Drain a namespace and remove it; its data stays where it is.

Where that goes in waves, they drain it, and it is removed when they are done. Until then "prismctl release abort" brings
it back. With --wait the waves are shown, and the command ends when it is removed.`,
		Example:           "  prismctl namespace delete user-profiles -m 'moved to accounts'",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.target.Complete(Names),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := errors.Join(terminal.CheckVersion(version, "prismctl namespace get"), release.Check(cmd, note)); err != nil {
				return err
			}
			var resp *controlv1.DeleteNamespaceResponse
			err := target.Ask(c.target, cmd, func(ctx context.Context, control *client.Control) (_ *controlv1.DeleteNamespaceResponse, err error) {
				resp, err = control.Namespaces.DeleteNamespace(ctx, &controlv1.DeleteNamespaceRequest{
					Namespace: args[0], Version: version, Note: note.Proto(c.term), Release: release.Proto()})
				return resp, err
			}, func(w io.Writer, resp *controlv1.DeleteNamespaceResponse) {
				if resp.GetRelease() != 0 {
					terminal.Fields(w, "draining", args[0], "snapshot", strconv.FormatUint(resp.GetSnapshotVersion(), 10),
						"removed after release", strconv.FormatUint(resp.GetRelease(), 10), "data remains on", strings.Join(resp.GetDataRemainsOn(), ", "))
					return
				}
				terminal.Fields(w, "deleted", args[0], "snapshot", strconv.FormatUint(resp.GetSnapshotVersion(), 10),
					"drained first", yesNo(resp.GetDrained()), "data remains on", strings.Join(resp.GetDataRemainsOn(), ", "))
			})
			if err != nil || !wait.on || resp.GetRelease() == 0 {
				return err
			}
			return c.waitRemoved(cmd.Context(), wait.of(cmd), resp.GetRelease(), args[0])
		},
	}
	wait.register(cmd, "wait until it is removed")
	cmd.Flags().StringVar(&version, "version", "", "delete only if the namespace still has this version (as namespace get shows it)")
	note.Register(cmd)
	release.Register(cmd)
	return cmd
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// Names are namespaces whose names begin with what was typed, for target.Flags.Complete.
func Names(ctx context.Context, control *client.Control, typed string) (found []string, _ error) {
	resp, err := control.Namespaces.ListNamespaces(ctx, &controlv1.ListNamespacesRequest{Prefix: typed})
	for _, n := range resp.GetNamespaces() {
		found = append(found, n.GetNamespace())
	}
	return found, err
}

// describe writes a namespace for people.
func describe(w io.Writer, n *configv1.NamespaceResponse) {
	terminal.Fields(w,
		"namespace", n.GetNamespace(),
		"team", n.GetRequest().GetTeam(),
		"description", n.GetRequest().GetDescription(),
		"state", state(n.GetDraining()),
		"partition", strconv.Itoa(int(n.GetPartition())),
		"version", n.GetVersion(),
		"snapshot", strconv.FormatUint(n.GetSnapshotVersion(), 10),
		"created", terminal.Time(n.GetCreatedAt()),
		"updated", terminal.Time(n.GetUpdatedAt()),
	)
	io.WriteString(w, "\n")
	patterns := terminal.NewGrid("PATTERN", "TYPE", "VERSION", "SLOT", "BACKEND", "INTERFACES")
	for _, p := range n.GetPatterns() {
		var slots, backends []string
		for _, b := range p.GetBindings() {
			slots, backends = append(slots, b.GetSlot()), append(backends, b.GetBackend())
		}
		patterns.Row(p.GetName(), p.GetType(), p.GetVersion(), strings.Join(slots, ","), strings.Join(backends, ","), strings.Join(p.GetInterfaces(), ","))
	}
	patterns.Write(w)
	decisions(w, n.GetDecisions())
	if s := n.GetStatus(); s != nil {
		io.WriteString(w, "\n")
		owners(w, s, n.GetDraining())
	}
}

// decisions writes why each choice was made.
func decisions(w io.Writer, all []*configv1.Decision) {
	if len(all) == 0 {
		return
	}
	io.WriteString(w, "\nwhy:\n")
	for _, d := range all {
		io.WriteString(w, terminal.Clean("  "+d.GetStage()+" "+d.GetSubject()+": "+d.GetChoice()))
		if d.GetReason() != "" {
			io.WriteString(w, terminal.Clean(", because "+d.GetReason()))
		}
		if d.GetRule() != "" {
			io.WriteString(w, terminal.Clean(" ("+d.GetRule()+")"))
		}
		io.WriteString(w, "\n")
		for _, r := range d.GetRefusals() {
			io.WriteString(w, terminal.Clean("    not "+r.GetName()+": "+r.GetReason())+"\n")
		}
	}
}
