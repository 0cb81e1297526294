// Package snapshot has the commands of prismctl about snapshots.
package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/target"
	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/terminal"
	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"
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
		Use:     "snapshot",
		Short:   "Look at the numbered versions of the whole configuration, compare them, go back",
		Example: "  prismctl snapshot list\n  prismctl snapshot diff 41 42",
	}
	cmd.AddCommand(c.list(), c.show(), c.diff(), c.rollback())
	return cmd
}

// number reads a snapshot's version.
func number(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || n == 0 {
		return 0, terminal.Misusef("snapshot %q: want a number from 1", s)
	}
	return n, nil
}

func (c *Commands) list() *cobra.Command {
	limit := uint32(20)
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List snapshots, newest first",
		Example: "  prismctl snapshot list --limit 50",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return target.Ask(c.target, cmd, func(ctx context.Context, control *client.Control) (*adminv1.ListSnapshotsResponse, error) {
				return target.Pages(limit, func(token string, size uint32) (*adminv1.ListSnapshotsResponse, error) {
					return control.Admin.ListSnapshots(ctx, &adminv1.ListSnapshotsRequest{PageSize: size, PageToken: token})
				})
			}, func(w io.Writer, resp *adminv1.ListSnapshotsResponse) {
				g := terminal.NewGrid("SNAPSHOT", "TIME", "NAMESPACES", "AUTHOR", "CHANGES", "MESSAGE")
				for _, s := range resp.GetSnapshots() {
					author, message := "", ""
					if len(s.GetChanges()) > 0 {
						author, message = s.GetChanges()[0].GetAuthor(), s.GetChanges()[0].GetMessage()
					}
					g.Row(strconv.FormatUint(s.GetVersion(), 10), terminal.Time(s.GetRecordedAt()), strconv.FormatUint(s.GetNamespaces(), 10),
						author, changes(s.GetChanges()), message)
				}
				g.Write(w)
			})
		},
	}
	cmd.Flags().Uint32Var(&limit, "limit", limit, "the most snapshots to list; 0 for all")
	return cmd
}

// changes says in a few words what a snapshot did.
func changes(all []*adminv1.SnapshotChange) string {
	const most = 3
	var parts []string
	for i, ch := range all {
		if i == most {
			parts = append(parts, fmt.Sprintf("and %d more", len(all)-most))
			break
		}
		parts = append(parts, change(ch))
	}
	return strings.Join(parts, ", ")
}

func change(ch *adminv1.SnapshotChange) string {
	text := ch.GetKind()
	if ch.GetName() != "" {
		text += " " + ch.GetName()
	}
	if ch.GetToVersion() > 0 {
		text += " to " + strconv.FormatUint(ch.GetToVersion(), 10)
	}
	return text
}

func (c *Commands) show() *cobra.Command {
	return &cobra.Command{
		Use:     "show [VERSION]",
		Short:   "Show one snapshot; without a version the newest",
		Example: "  prismctl snapshot show 42",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &adminv1.GetSnapshotRequest{}
			if len(args) > 0 {
				var err error
				if req.Version, err = number(args[0]); err != nil {
					return err
				}
			}
			return target.Ask(c.target, cmd, func(ctx context.Context, control *client.Control) (*adminv1.Snapshot, error) {
				resp, err := control.Admin.GetSnapshot(ctx, req)
				return resp.GetSnapshot(), err
			}, describe)
		},
	}
}

func describe(w io.Writer, s *adminv1.Snapshot) {
	newest := ""
	if s.GetHead() {
		newest = "yes"
	}
	terminal.Fields(w,
		"snapshot", strconv.FormatUint(s.GetVersion(), 10),
		"newest", newest,
		"parent", strconv.FormatUint(s.GetParent(), 10),
		"root", s.GetRoot(),
		"recorded", terminal.Time(s.GetRecordedAt()),
		"namespaces", strconv.FormatUint(s.GetNamespaces(), 10),
	)
	fmt.Fprintln(w)
	g := terminal.NewGrid("CHANGE", "BEFORE", "AFTER", "AUTHOR", "REQUEST", "MESSAGE")
	for _, ch := range s.GetChanges() {
		g.Row(change(ch), terminal.Short(ch.GetBefore()), terminal.Short(ch.GetAfter()), ch.GetAuthor(), ch.GetRequestId(), ch.GetMessage())
	}
	g.Write(w)
}

func (c *Commands) diff() *cobra.Command {
	return &cobra.Command{
		Use:     "diff FROM [TO]",
		Short:   "Say what differs between two snapshots; without TO the newest is the second",
		Example: "  prismctl snapshot diff 41 42",
		Args:    cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			var versions [2]uint64
			for i, a := range args {
				var err error
				if versions[i], err = number(a); err != nil {
					return err
				}
			}
			return target.Ask(c.target, cmd, func(ctx context.Context, control *client.Control) (*adminv1.DiffSnapshotsResponse, error) {
				return target.Pages(0, func(token string, size uint32) (*adminv1.DiffSnapshotsResponse, error) {
					return control.Admin.DiffSnapshots(ctx, &adminv1.DiffSnapshotsRequest{FromVersion: versions[0], ToVersion: versions[1], PageSize: size, PageToken: token})
				})
			}, func(w io.Writer, all *adminv1.DiffSnapshotsResponse) { differences(w, all.GetDifferences()) })
		},
	}
}

func differences(w io.Writer, all []*adminv1.Difference) {
	if len(all) == 0 {
		fmt.Fprintln(w, "no difference")
	}
	for _, d := range all {
		mark := map[string]string{"create": "+", "delete": "-"}[d.GetKind()]
		if mark == "" {
			mark = "~"
		}
		fmt.Fprintf(w, "%s %s\n", mark, terminal.Clean(d.GetName()))
		for _, f := range d.GetFields() {
			fmt.Fprintf(w, "    %s\n", terminal.Clean(f))
		}
	}
}

func (c *Commands) rollback() *cobra.Command {
	var note terminal.Note
	var release terminal.Release
	cmd := &cobra.Command{
		Use:     "rollback VERSION",
		Short:   "Take everything back to what it was in a snapshot",
		Example: "  prismctl snapshot rollback 41 -m 'undo the migration'\n  prismctl snapshot rollback 41 -m 'undo the migration' --confirm-within 10m",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			to, err := number(args[0])
			if err = errors.Join(err, release.Check(cmd, note)); err != nil {
				return err
			}
			return target.Ask(c.target, cmd, func(ctx context.Context, control *client.Control) (*adminv1.RollbackSnapshotResponse, error) {
				return control.Admin.RollbackSnapshot(ctx, &adminv1.RollbackSnapshotRequest{ToVersion: to, AllowShrink: release.AllowShrink, Note: note.Proto(c.term), Release: release.Proto()})
			}, func(w io.Writer, resp *adminv1.RollbackSnapshotResponse) {
				if resp.GetChanged() == 0 {
					fmt.Fprintf(w, "everything is as it was in snapshot %d already\n", to)
					return
				}
				fmt.Fprintf(w, "everything is as it was in snapshot %d, by snapshot %d; namespaces and backends that changed: %d\n", to, resp.GetSnapshot().GetVersion(), resp.GetChanged())
				release.Tell(w, resp.GetRelease())
			})
		},
	}
	note.Register(cmd)
	release.Register(cmd)
	return cmd
}
