// Package release has the commands of prismctl about releases.
package release

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/target"
	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/terminal"
	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
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
		Use:     "release",
		Short:   "Watch how changes go to the fleet in waves; hold them, hurry them, take them back",
		Example: "  prismctl release status\n  prismctl release abort 42 --reason 'the dashboards are red'",
	}
	cmd.AddCommand(c.list(), c.status(), c.watch(),
		c.control("pause", "Hold a release at the wave that it has reached", adminv1.ReleaseAction_RELEASE_ACTION_PAUSE),
		c.control("resume", "Let a release that is held go on", adminv1.ReleaseAction_RELEASE_ACTION_RESUME),
		c.control("abort", "Take everything back that a release holds", adminv1.ReleaseAction_RELEASE_ACTION_ABORT),
		c.control("push", "Give a release to every owner now, whatever its gates say", adminv1.ReleaseAction_RELEASE_ACTION_PUSH),
		c.control("confirm", "Say that a release is good, so that it is not taken back at its deadline", adminv1.ReleaseAction_RELEASE_ACTION_CONFIRM),
	)
	return cmd
}

// number reads the snapshot that names a release; 0 when none is given.
func number(args []string) (uint64, error) {
	if len(args) == 0 {
		return 0, nil
	}
	n, err := strconv.ParseUint(args[0], 10, 64)
	if err != nil || n == 0 {
		return 0, terminal.Misusef("release %q: want the number of its snapshot, from 1", args[0])
	}
	return n, nil
}

func (c *Commands) list() *cobra.Command {
	limit := uint32(20)
	var active bool
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the releases under way, then those that have ended, newest first",
		Example: "  prismctl release list --active",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return target.Ask(c.target, cmd, func(ctx context.Context, control *client.Control) (*adminv1.ListReleasesResponse, error) {
				return target.Pages(limit, func(token string, size uint32) (*adminv1.ListReleasesResponse, error) {
					return control.Admin.ListReleases(ctx, &adminv1.ListReleasesRequest{PageSize: size, PageToken: token, Active: active})
				})
			}, func(w io.Writer, resp *adminv1.ListReleasesResponse) {
				g := terminal.NewGrid("SNAPSHOT", "STATE", "CLASS", "WAVE", "PENDING", "TAKEN BACK", "STARTED", "AUTHOR", "NOW")
				for _, r := range resp.GetReleases() {
					g.Row(strconv.FormatUint(r.GetSnapshot(), 10), terminal.State(r.GetState()), terminal.Class(r.GetClass()), terminal.Wave(r),
						fmt.Sprintf("%d of %d", r.GetPending(), r.GetObjects()), strconv.Itoa(len(r.GetTakenBack())),
						terminal.Time(r.GetStartedAt()), r.GetAuthor(), terminal.Now(r))
				}
				g.Write(w)
			})
		},
	}
	cmd.Flags().Uint32Var(&limit, "limit", limit, "the most releases to list; 0 for all")
	cmd.Flags().BoolVar(&active, "active", false, "only those under way")
	return cmd
}

func (c *Commands) status() *cobra.Command {
	return &cobra.Command{
		Use:               "status [SNAPSHOT]",
		Short:             "Show a release with its waves; without a snapshot the newest",
		Example:           "  prismctl release status\n  prismctl release status 42",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: c.target.Complete(active),
		RunE: func(cmd *cobra.Command, args []string) error {
			snapshot, err := number(args)
			if err != nil {
				return err
			}
			return target.Ask(c.target, cmd, func(ctx context.Context, control *client.Control) (*adminv1.Release, error) {
				resp, err := control.Admin.GetRelease(ctx, &adminv1.GetReleaseRequest{Snapshot: snapshot})
				return resp.GetRelease(), err
			}, describe)
		},
	}
}

// describe writes a release for people.
func describe(w io.Writer, r *adminv1.Release) {
	terminal.Fields(w,
		"release", strconv.FormatUint(r.GetSnapshot(), 10),
		"state", terminal.State(r.GetState()),
		"class", terminal.Class(r.GetClass()),
		"policy", terminal.Policy(r.GetPolicy()),
		"wave", terminal.Wave(r),
		"waits for", r.GetWaitsFor(),
		"reason", r.GetReason(),
		"author", r.GetAuthor(),
		"started", terminal.Time(r.GetStartedAt()),
		"ended", terminal.Time(r.GetEndedAt()),
		"confirm by", terminal.Time(r.GetConfirmBy()),
		"pending", fmt.Sprintf("%d of %d objects", r.GetPending(), r.GetObjects()),
	)
	if len(r.GetWaves()) > 0 {
		fmt.Fprintln(w)
		g := terminal.NewGrid("WAVE", "CELLS", "SENT", "ACCEPTED", "SERVING", "REFUSED", "REACHED")
		for _, v := range r.GetWaves() {
			reached := "no"
			if v.GetReached() {
				reached = "yes"
			}
			g.Row(fmt.Sprintf("%d (%s)", v.GetWave(), v.GetName()), count(v.GetCells()), count(v.GetSent()), count(v.GetAccepted()),
				count(v.GetServing()), count(v.GetRefused()), reached)
		}
		g.Write(w)
	}
	if len(r.GetTakenBack()) > 0 {
		fmt.Fprintln(w)
		g := terminal.NewGrid("TAKEN BACK", "BY SNAPSHOT", "PROXY", "BUILD", "WHY")
		for _, t := range r.GetTakenBack() {
			why := t.GetWhy()
			g.Row(t.GetName(), strconv.FormatUint(why.GetBySnapshot(), 10), why.GetProxy(), why.GetBuild(), reason(why))
		}
		g.Write(w)
	}
	fmt.Fprintln(w)
	g := terminal.NewGrid("TIME", "EVENT", "WAVE", "AUTHOR", "REASON")
	for _, e := range r.GetEvents() {
		g.Row(terminal.Time(e.GetAt()), e.GetWhat(), count(e.GetWave()), e.GetAuthor(), e.GetReason())
	}
	g.Write(w)
}

func count(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

// reason says in one line why an object was taken back: what was refused, or what else failed.
func reason(t *configv1.TakenBack) string {
	r := t.GetRejection()
	if r == nil {
		return t.GetReason()
	}
	text := r.GetReason()
	if r.GetField() != "" {
		text = r.GetField() + ": " + text
	}
	return text
}

func (c *Commands) watch() *cobra.Command {
	return &cobra.Command{
		Use:   "watch [SNAPSHOT]",
		Short: "Show a release at each change until it has ended; without a snapshot the newest",
		Long: `Show a release at each change until it has ended; without a snapshot the newest.

The exit code is 0 only when every owner was given all of it, and 3 when the release ended otherwise or was not watched to its end.`,
		Example:           "  prismctl release watch 42",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: c.target.Complete(active),
		RunE: func(cmd *cobra.Command, args []string) error {
			snapshot, err := number(args)
			if err != nil {
				return err
			}
			return c.target.WithoutLimit(cmd.Context(), func(ctx context.Context, control *client.Control) error {
				return c.follow(ctx, control, snapshot)
			})
		},
	}
}

// follow shows a release until it has ended, and returns an error when it has not come to every owner.
func (c *Commands) follow(ctx context.Context, control *client.Control, snapshot uint64) error {
	progress := c.term.Progress()
	var last *adminv1.Release
	err := target.Follow(ctx, func(ctx context.Context) (grpc.ServerStreamingClient[adminv1.WatchReleaseResponse], error) {
		return control.Admin.WatchRelease(ctx, &adminv1.WatchReleaseRequest{Snapshot: cmp.Or(last.GetSnapshot(), snapshot)})
	}, func(resp *adminv1.WatchReleaseResponse) (bool, error) {
		last = resp.GetRelease()
		progress.Show(fmt.Sprintf("release %d", last.GetSnapshot()), terminal.ReleaseLine(last))
		return false, nil
	})
	switch {
	case err == nil:
		return c.end(last)
	case ctx.Err() != nil:
		return terminal.NotLivef("release %d was not watched to its end", last.GetSnapshot())
	}
	return err
}

// end prints a release that has ended.
func (c *Commands) end(r *adminv1.Release) error {
	if r == nil {
		return nil // the person ended it before the first answer
	}
	if err := c.term.Print(r, func(w io.Writer) { describe(w, r) }); err != nil {
		return err
	}
	switch back := len(r.GetTakenBack()); {
	case r.GetState() != configv1.ReleaseState_RELEASE_STATE_DONE:
	case back == 0:
		return nil
	default:
		return terminal.NotLivef("release %d came to every owner, but not all of it: %d taken back", r.GetSnapshot(), back)
	}
	return terminal.NotLivef("release %d did not come to every owner: %s", r.GetSnapshot(), strings.TrimSuffix(terminal.State(r.GetState())+": "+r.GetReason(), ": "))
}

// control makes a command that does something to a release.
func (c *Commands) control(name, short string, action adminv1.ReleaseAction) *cobra.Command {
	var note terminal.Note
	push := action == adminv1.ReleaseAction_RELEASE_ACTION_PUSH
	example := "  prismctl release " + name + " 42"
	if push || action == adminv1.ReleaseAction_RELEASE_ACTION_ABORT {
		example += " --reason 'the incident of this morning'"
	}
	cmd := &cobra.Command{
		Use:               name + " [SNAPSHOT]",
		Short:             short,
		Long:              short + ".\n\nThe snapshot may be left out while only one release is under way.",
		Example:           example,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: c.target.Complete(active),
		RunE: func(cmd *cobra.Command, args []string) error {
			snapshot, err := number(args)
			if err != nil {
				return err
			}
			return target.Ask(c.target, cmd, func(ctx context.Context, control *client.Control) (*adminv1.Release, error) {
				resp, err := control.Admin.ControlRelease(ctx, &adminv1.ControlReleaseRequest{Snapshot: snapshot, Action: action, Note: note.Proto(c.term)})
				return resp.GetRelease(), err
			}, func(w io.Writer, r *adminv1.Release) {
				line := terminal.ReleaseLine(r)
				if n := len(r.GetEvents()); action == adminv1.ReleaseAction_RELEASE_ACTION_CONFIRM && n > 0 && r.GetEvents()[n-1].GetWhat() == "confirmed" {
					line = "confirmed; " + line // its state is what it was
				}
				fmt.Fprintf(w, "release %d: %s\n", r.GetSnapshot(), terminal.Clean(line))
			})
		},
	}
	cmd.Flags().StringVar(&note.Message, "reason", "", "why; kept with the release")
	cmd.Flags().StringVar(&note.Author, "author", "", "who; default the user of this machine (environment: PRISM_AUTHOR)")
	if push {
		_ = cmd.MarkFlagRequired("reason") // fails only for an unknown flag
	}
	return cmd
}

// active are the numbers of the releases under way.
func active(ctx context.Context, control *client.Control, _ string) (found []string, _ error) {
	resp, err := control.Admin.ListReleases(ctx, &adminv1.ListReleasesRequest{Active: true})
	for _, r := range resp.GetReleases() {
		found = append(found, strconv.FormatUint(r.GetSnapshot(), 10))
	}
	return found, err
}
