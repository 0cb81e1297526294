// Package backend has the commands of prismctl about backends.
package backend

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/prism-gateway/prism/controlplane/admission"
	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/target"
	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/terminal"
	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"
	"github.com/prism-gateway/prism/shared/client"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/fault/faultgrpc"
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
		Use:     "backend",
		Short:   "Register stores, look at them, remove them",
		Example: "  prismctl backend apply -f redis-main.yaml\n  prismctl backend status redis-main",
	}
	cmd.AddCommand(c.list(), c.get(), c.apply(), c.delete(), c.status())
	return cmd
}

// all lists every backend.
func all(ctx context.Context, control *client.Control) (*adminv1.ListBackendsResponse, error) {
	return target.Pages(0, func(token string, size uint32) (*adminv1.ListBackendsResponse, error) {
		return control.Admin.ListBackends(ctx, &adminv1.ListBackendsRequest{PageSize: size, PageToken: token})
	})
}

func (c *Commands) list() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the registered backends",
		Example: "  prismctl backend list",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return target.Ask(c.target, cmd, all, func(w io.Writer, list *adminv1.ListBackendsResponse) {
				g := terminal.NewGrid("BACKEND", "TYPE", "ENDPOINTS", "NAMESPACES", "VERSION", "STATE")
				for _, b := range list.GetBackends() {
					g.Row(b.GetBackend().GetName(), b.GetBackend().GetType(), strings.Join(b.GetBackend().GetEndpoints(), ","),
						strconv.FormatUint(b.GetNamespaces(), 10), terminal.Short(b.GetVersion()), state(b))
				}
				g.Write(w)
			})
		},
	}
}

func state(b *adminv1.BackendView) string {
	switch {
	case len(b.GetInterfaces()) == 0:
		return "no driver in this build"
	case b.GetBackend().GetMaintenance():
		return "maintenance"
	}
	return "active"
}

// one makes a command that gets a backend and writes it.
func (c *Commands) one(use, short, example string, write func(io.Writer, *adminv1.BackendView)) *cobra.Command {
	return &cobra.Command{
		Use:               use,
		Short:             short,
		Example:           example,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.target.Complete(names),
		RunE: func(cmd *cobra.Command, args []string) error {
			return target.Ask(c.target, cmd, func(ctx context.Context, control *client.Control) (*adminv1.BackendView, error) {
				resp, err := control.Admin.GetBackend(ctx, &adminv1.GetBackendRequest{Name: args[0]})
				return resp.GetBackend(), err
			}, write)
		},
	}
}

func (c *Commands) get() *cobra.Command {
	return c.one("get NAME", "Show how a backend is registered", "  prismctl backend get redis-main", describe)
}

func (c *Commands) status() *cobra.Command {
	return c.one("status NAME", "Show what is reserved on a backend and what it has left", "  prismctl backend status redis-main", usage)
}

func describe(w io.Writer, v *adminv1.BackendView) {
	b := v.GetBackend()
	pairs := []string{
		"backend", b.GetName(), "type", b.GetType(), "state", state(v), "endpoints", strings.Join(b.GetEndpoints(), ", "),
		"labels", settings(b.GetLabels()), "settings", settings(b.GetConfig()), "credential", b.GetCredentialPath(),
		"interfaces", strings.Join(v.GetInterfaces(), ", "), "version", v.GetVersion(), "namespaces", strconv.FormatUint(v.GetNamespaces(), 10),
	}
	if p := b.GetPool(); p.GetMaxConnections() > 0 {
		pairs = append(pairs, "connections", strconv.Itoa(int(p.GetMaxConnections()))+" per proxy at most")
	}
	if p := b.GetPool(); p.GetDialTimeout() != nil {
		pairs = append(pairs, "dial timeout", p.GetDialTimeout().AsDuration().Round(time.Millisecond).String())
	}
	terminal.Fields(w, pairs...)
	if t := v.GetTakenBack(); t != nil {
		fmt.Fprintf(w, "taken back: what snapshot %d changed, by snapshot %d: %s\n", t.GetSnapshot(), t.GetBySnapshot(), terminal.Clean(t.GetReason()))
	}
}

func settings(m map[string]string) string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		parts = append(parts, k+"="+m[k])
	}
	return strings.Join(parts, ", ")
}

func usage(w io.Writer, v *adminv1.BackendView) {
	capacity, reserved := v.GetBackend().GetCapacity(), v.GetReserved()
	fmt.Fprintf(w, "%s: %s, namespaces: %d\n", terminal.Clean(v.GetBackend().GetName()), state(v), v.GetNamespaces())
	g := terminal.NewGrid("", "RESERVED", "CAPACITY")
	g.Row("reads/s", strconv.Itoa(int(reserved.GetReadRps())), bound(capacity.GetReadRps()))
	g.Row("writes/s", strconv.Itoa(int(reserved.GetWriteRps())), bound(capacity.GetWriteRps()))
	size := capacity.GetDataSize()
	if size == "" {
		size = "unbounded"
	}
	g.Row("data", bytes(reserved.GetDataBytes()), size)
	g.Write(w)
}

func bound(n uint32) string {
	if n == 0 {
		return "unbounded"
	}
	return strconv.FormatUint(uint64(n), 10)
}

// bytes writes a size in the largest unit that keeps it whole.
func bytes(n uint64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	i := 0
	for n >= 1024 && n%1024 == 0 && i < len(units)-1 {
		n /= 1024
		i++
	}
	return strconv.FormatUint(n, 10) + units[i]
}

func (c *Commands) apply() *cobra.Command {
	var file string
	var note terminal.Note
	var release terminal.Release
	cmd := &cobra.Command{
		Use:     "apply -f FILE",
		Short:   "Register or change the backends of a file as one change: all or none",
		Example: "  prismctl backend apply -f redis-main.yaml -m 'a second Redis'",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := release.Check(cmd, note); err != nil {
				return err
			}
			docs, err := c.read(file)
			if err != nil {
				return err
			}
			return target.Ask(c.target, cmd, func(ctx context.Context, control *client.Control) (*adminv1.ApplyBackendsResponse, error) {
				req := &adminv1.ApplyBackendsRequest{Note: note.Proto(c.term), Release: release.Proto()}
				for _, d := range docs {
					req.Changes = append(req.Changes, &adminv1.BackendChange{Backend: d.Backend})
				}
				resp, err := control.Admin.ApplyBackends(ctx, req)
				return resp, locate(docs, err)
			}, func(w io.Writer, resp *adminv1.ApplyBackendsResponse) {
				g := terminal.NewGrid("BACKEND", "TYPE", "VERSION", "NAMESPACES")
				for _, b := range resp.GetBackends() {
					g.Row(b.GetBackend().GetName(), b.GetBackend().GetType(), terminal.Short(b.GetVersion()), strconv.FormatUint(b.GetNamespaces(), 10))
				}
				g.Write(w)
				fmt.Fprintf(w, "snapshot %d\n", resp.GetSnapshotVersion())
				release.Tell(w, resp.GetRelease())
			})
		},
	}
	cmd.Flags().StringVarP(&file, "filename", "f", "", "file with backends in YAML or JSON; - for standard input")
	_ = cmd.MarkFlagRequired("filename")                        // fails only for an unknown flag
	_ = cmd.MarkFlagFilename("filename", "yaml", "yml", "json") // likewise
	note.Register(cmd)
	release.Register(cmd)
	return cmd
}

func (c *Commands) read(file string) ([]admission.BackendDocument, error) {
	data, shown, err := c.term.ReadFile(file)
	if err != nil {
		return nil, err
	}
	docs, err := admission.ParseBackendsYAML(shown, data)
	if err != nil {
		if _, other := admission.ParseYAML(shown, data); other == nil {
			return nil, fmt.Errorf("%s holds requests for namespaces; they go to: prismctl namespace apply", shown)
		}
		return nil, err
	}
	var problems admission.Problems
	for _, d := range docs {
		problems = append(problems, d.Problems(admission.ValidateBackend(d.Backend))...)
	}
	if len(problems) > 0 {
		return nil, problems
	}
	return docs, nil
}

var element = regexp.MustCompile(`^changes\[(\d+)\]\.?(?:backend\.?)?`)

// locate gives the violations of an answer their places in the file. Other errors stay as they are.
func locate(docs []admission.BackendDocument, err error) error {
	f := faultgrpc.FromStatus(err)
	if f == nil || len(f.Violations) == 0 {
		return err
	}
	var problems admission.Problems
	for _, v := range f.Violations {
		m := element.FindStringSubmatch(v.Field)
		if m == nil {
			return err
		}
		i, convErr := strconv.Atoi(m[1])
		if convErr != nil || i >= len(docs) {
			return err
		}
		problems = append(problems, docs[i].Problems([]fault.Violation{{Field: v.Field[len(m[0]):], Rule: v.Rule, Text: v.Text}})...)
	}
	return problems
}

func (c *Commands) delete() *cobra.Command {
	var note terminal.Note
	var release terminal.Release
	var version string
	cmd := &cobra.Command{
		Use:               "delete NAME",
		Short:             "Remove a backend that no namespace is bound to",
		Example:           "  prismctl backend delete redis-old",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.target.Complete(names),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := errors.Join(terminal.CheckVersion(version, "prismctl backend get"), release.Check(cmd, note)); err != nil {
				return err
			}
			return target.Ask(c.target, cmd, func(ctx context.Context, control *client.Control) (*adminv1.DeleteBackendResponse, error) {
				return control.Admin.DeleteBackend(ctx, &adminv1.DeleteBackendRequest{Name: args[0], Version: version, Note: note.Proto(c.term), Release: release.Proto()})
			}, func(w io.Writer, resp *adminv1.DeleteBackendResponse) {
				terminal.Fields(w, "deleted", args[0], "snapshot", strconv.FormatUint(resp.GetSnapshotVersion(), 10))
				release.Tell(w, resp.GetRelease())
			})
		},
	}
	cmd.Flags().StringVar(&version, "version", "", "delete only if the backend still has this version (as backend get shows it)")
	note.Register(cmd)
	release.Register(cmd)
	return cmd
}

// names are those of the backends.
func names(ctx context.Context, control *client.Control, _ string) (found []string, _ error) {
	list, err := all(ctx, control)
	for _, b := range list.GetBackends() {
		found = append(found, b.GetBackend().GetName())
	}
	return found, err
}
