package namespace

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/prism-gateway/prism/controlplane/admission"
	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/target"
	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/terminal"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	"github.com/prism-gateway/prism/shared/client"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/fault/faultgrpc"
)

func (c *Commands) plan() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "plan -f FILE",
		Short: "Say what would be chosen, where and why, and what would change; record nothing",
		Long: `Say what would be chosen, where and why, and what would change; record nothing.

It fails where apply would be refused as things stand: by a quota, by a size, because nothing fits.`,
		Example: "  prismctl namespace plan -f user-profiles.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			docs, err := c.read(file)
			if err != nil {
				return err
			}
			refusal := ""
			err = target.Ask(c.target, cmd, func(ctx context.Context, control *client.Control) (*controlv1.PlanNamespacesResponse, error) {
				req := &controlv1.PlanNamespacesRequest{}
				for _, d := range docs {
					req.Requests = append(req.Requests, d.Request)
				}
				resp, err := control.Namespaces.PlanNamespaces(ctx, req)
				refusal = resp.GetRefusal()
				return resp, locate(docs, err)
			}, writePlans)
			if err == nil && refusal != "" {
				return fmt.Errorf("apply would be refused: %s", terminal.Clean(refusal))
			}
			return err
		},
	}
	fileFlag(cmd, &file)
	return cmd
}

func (c *Commands) apply() *cobra.Command {
	var file, version string
	var note terminal.Note
	var release terminal.Release
	var tokens []string
	var wait waitLimit
	cmd := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Create or change the namespaces of a file as one change: all or none",
		Long: `Create or change the namespaces of a file as one change: all or none.

Whoever applies last wins. To change only what you have read, give --version as "namespace get" showed it: apply then
refuses when somebody else changed the namespace since.

How the change goes to the fleet is decided by what it can hurt (prismctl namespace plan says it), unless --at-once or
--confirm-within says otherwise. With --wait the waves are shown; a change that is taken back is an error.`,
		Example: "  prismctl namespace apply -f user-profiles.yaml --wait -m 'keep profiles a day'",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := errors.Join(terminal.CheckVersion(version, "prismctl namespace get"), release.Check(cmd, note)); err != nil {
				return err
			}
			docs, err := c.read(file)
			if err != nil {
				return err
			}
			if version != "" && len(docs) != 1 {
				return terminal.Misusef("--version is of one namespace, and %s holds %d", file, len(docs))
			}
			held, err := c.tokens(tokens, docs)
			if err != nil {
				return err
			}
			var resp *controlv1.ApplyNamespacesResponse
			err = target.Ask(c.target, cmd, func(ctx context.Context, control *client.Control) (*controlv1.ApplyNamespacesResponse, error) {
				req := &controlv1.ApplyNamespacesRequest{Note: note.Proto(c.term), Release: release.Proto(), ReservationTokens: held}
				for _, d := range docs {
					req.Changes = append(req.Changes, &controlv1.NamespaceChange{Request: d.Request, Version: version})
				}
				resp, err = control.Namespaces.ApplyNamespaces(ctx, req)
				return resp, locate(docs, err)
			}, func(w io.Writer, resp *controlv1.ApplyNamespacesResponse) {
				writeApplied(w, resp)
				release.Tell(w, resp.GetRelease())
			}) // before waiting: the change is recorded also when that fails
			if err != nil || !wait.on {
				return err
			}
			return c.waitLive(cmd.Context(), wait.of(cmd), resp.GetSnapshotVersion(), changes(resp.GetResults()), names(resp.GetResults())...)
		},
	}
	fileFlag(cmd, &file)
	cmd.Flags().StringVar(&version, "version", "", "apply only if the namespace still has this version (as namespace get shows it)")
	wait.register(cmd, untilLive)
	cmd.Flags().StringArrayVar(&tokens, "reservation-token", nil,
		"the token of a reserved name, or NAME=TOKEN for each when the file holds several (environment: "+tokenVariable+")")
	note.Register(cmd)
	release.Register(cmd)
	return cmd
}

func fileFlag(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVarP(file, "filename", "f", "", "file with requests in YAML or JSON; - for standard input")
	_ = cmd.MarkFlagRequired("filename")                        // fails only for an unknown flag
	_ = cmd.MarkFlagFilename("filename", "yaml", "yml", "json") // likewise
}

// waitLimit are the flags about waiting until a change is live.
type waitLimit struct {
	on       bool
	duration time.Duration
	given    bool // on the command line
}

// untilLive is what is waited for by what changes something.
const untilLive = "wait until every owner serves the change and its release has ended"

func (w *waitLimit) register(cmd *cobra.Command, until string) {
	cmd.Flags().BoolVar(&w.on, "wait", false, until)
	terminal.DurationVar(cmd.Flags(), &w.duration, "wait-for", 2*time.Minute, "how long to wait at most; unless it is given, a release in waves is waited for as long as it takes")
}

func (w *waitLimit) of(cmd *cobra.Command) waitLimit {
	w.given = cmd.Flags().Changed("wait-for")
	return *w
}

// read parses a file and checks it before anything is sent, so that errors name lines also when nobody answers.
func (c *Commands) read(file string) ([]admission.Document, error) {
	data, shown, err := c.term.ReadFile(file)
	if err != nil {
		return nil, err
	}
	docs, err := admission.ParseYAML(shown, data)
	if err != nil {
		if _, other := admission.ParseBackendsYAML(shown, data); other == nil {
			return nil, fmt.Errorf("%s holds backends; they go to: prismctl backend apply", shown)
		}
		return nil, err
	}
	var problems admission.Problems
	for _, d := range docs {
		problems = append(problems, d.Problems(admission.Validate(d.Request))...)
	}
	if len(problems) > 0 {
		return nil, problems
	}
	return docs, nil
}

// element is the path of one request in a call.
var element = regexp.MustCompile(`^(?:changes|requests)\[(\d+)\]\.?(?:request\.?)?`)

// locate gives the violations of an answer their places in the file. Other errors stay as they are.
func locate(docs []admission.Document, err error) error {
	if err == nil {
		return nil
	}
	f := faultgrpc.FromStatus(err)
	if len(f.Violations) == 0 {
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

// changes reports whether something was not so already.
func changes(plans []*controlv1.NamespacePlan) bool {
	return slices.ContainsFunc(plans, func(p *controlv1.NamespacePlan) bool { return p.GetAction() != controlv1.PlanAction_PLAN_ACTION_NONE })
}

func names(plans []*controlv1.NamespacePlan) []string {
	var all []string
	for _, p := range plans {
		all = append(all, p.GetNamespace().GetNamespace())
	}
	return all
}

func writePlans(w io.Writer, resp *controlv1.PlanNamespacesResponse) {
	for i, p := range resp.GetPlans() {
		if i > 0 {
			io.WriteString(w, "\n")
		}
		writePlan(w, p)
	}
	writeRelease(w, resp)
}

func writePlan(w io.Writer, p *controlv1.NamespacePlan) {
	n := p.GetNamespace()
	fmt.Fprintf(w, "%s: %s\n", terminal.Clean(n.GetNamespace()), map[controlv1.PlanAction]string{
		controlv1.PlanAction_PLAN_ACTION_CREATE: "would be created",
		controlv1.PlanAction_PLAN_ACTION_UPDATE: "would change",
		controlv1.PlanAction_PLAN_ACTION_NONE:   "is so already",
	}[p.GetAction()])
	for _, d := range p.GetDifferences() {
		fmt.Fprintf(w, "  %s\n", terminal.Clean(d))
	}
	fmt.Fprintln(w)
	writeBindings(w, n)
	decisions(w, n.GetDecisions())
}

// writeRelease says how the change would go to the fleet, and what bounds it comes near.
func writeRelease(w io.Writer, resp *controlv1.PlanNamespacesResponse) {
	if class := resp.GetClass(); class != configv1.ReleaseClass_RELEASE_CLASS_UNSPECIFIED {
		fmt.Fprintf(w, "\nrelease: %s, %s\n", terminal.Class(class), terminal.Policy(resp.GetPolicy()))
	}
	for _, line := range resp.GetHeadroom() {
		fmt.Fprintf(w, "%s\n", terminal.Clean(line))
	}
}

func writeBindings(w io.Writer, n *configv1.NamespaceResponse) {
	g := terminal.NewGrid("PATTERN", "TYPE", "VERSION", "SLOT", "BACKEND", "PARTITION")
	for _, p := range n.GetPatterns() {
		for _, b := range p.GetBindings() {
			g.Row(p.GetName(), p.GetType(), p.GetVersion(), b.GetSlot(), b.GetBackend(), strconv.Itoa(int(n.GetPartition())))
		}
	}
	g.Write(w)
}

func writeApplied(w io.Writer, resp *controlv1.ApplyNamespacesResponse) {
	g := terminal.NewGrid("NAMESPACE", "RESULT", "BACKENDS", "PARTITION", "VERSION")
	for _, p := range resp.GetResults() {
		var backends []string
		for _, pattern := range p.GetNamespace().GetPatterns() {
			for _, b := range pattern.GetBindings() {
				backends = append(backends, b.GetBackend())
			}
		}
		n := p.GetNamespace()
		g.Row(n.GetNamespace(), map[controlv1.PlanAction]string{
			controlv1.PlanAction_PLAN_ACTION_CREATE: "created",
			controlv1.PlanAction_PLAN_ACTION_UPDATE: "changed",
			controlv1.PlanAction_PLAN_ACTION_NONE:   "unchanged",
		}[p.GetAction()], strings.Join(backends, ","), strconv.Itoa(int(n.GetPartition())), terminal.Short(n.GetVersion()))
	}
	g.Write(w)
	fmt.Fprintf(w, "snapshot %d\n", resp.GetSnapshotVersion())
}
