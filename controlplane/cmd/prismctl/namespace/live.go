package namespace

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/target"
	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/terminal"
	"github.com/prism-gateway/prism/controlplane/release"
	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	"github.com/prism-gateway/prism/shared/client"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/fault/faultgrpc"
)

func (c *Commands) status() *cobra.Command {
	var watch bool
	var wait waitLimit
	cmd := &cobra.Command{
		Use:   "status NAME",
		Short: "Show how far a namespace is live on each owner",
		Long: `Show how far a namespace is live on each owner.

The exit code is 0 when it is live, which is when every owner serves it, and 3 when it is not. With --wait it is 3 only when
it was not live within --wait-for.`,
		Example:           "  prismctl namespace status user-profiles\n  prismctl namespace status user-profiles --wait --wait-for 5m\n  prismctl namespace status user-profiles --watch",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.target.Complete(Names),
		RunE: func(cmd *cobra.Command, args []string) error {
			if wait.on {
				if err := c.awaitLive(cmd.Context(), wait.duration, args[0]); err != nil {
					return err
				}
			}
			if watch {
				return c.target.WithoutLimit(cmd.Context(), func(ctx context.Context, control *client.Control) error {
					return c.follow(ctx, control, c.term.Progress(), args[0], 0)
				})
			}
			var status *configv1.NamespaceStatus
			var draining bool
			err := target.Ask(c.target, cmd, func(ctx context.Context, control *client.Control) (*configv1.NamespaceStatus, error) {
				resp, err := control.Namespaces.GetNamespace(ctx, &controlv1.GetNamespaceRequest{Namespace: args[0], WithStatus: true})
				status, draining = resp.GetNamespace().GetStatus(), resp.GetNamespace().GetDraining()
				return status, err
			}, func(w io.Writer, s *configv1.NamespaceStatus) { owners(w, s, draining) })
			if err == nil && (draining || !status.GetLive()) {
				return terminal.NotLivef("%s is %s", args[0], liveness(status, draining))
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&watch, "watch", false, "go on showing changes until interrupted")
	cmd.Flags().BoolVar(&wait.on, "wait", false, "wait until it is live")
	terminal.DurationVar(cmd.Flags(), &wait.duration, "wait-for", 2*time.Minute, "how long to wait at most")
	cmd.MarkFlagsMutuallyExclusive("watch", "wait")
	return cmd
}

// awaitLive shows how far a namespace is until it is live, or the time is over; its status is the last word about that.
func (c *Commands) awaitLive(ctx context.Context, limit time.Duration, name string) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	progress := c.term.Progress()
	return c.target.WithoutLimit(ctx, func(ctx context.Context, control *client.Control) error {
		err := target.Follow(ctx, func(ctx context.Context) (grpc.ServerStreamingClient[controlv1.WatchNamespaceStatusResponse], error) {
			return control.Namespaces.WatchNamespaceStatus(ctx, &controlv1.WatchNamespaceStatusRequest{Namespace: name})
		}, func(resp *controlv1.WatchNamespaceStatusResponse) (bool, error) {
			if !resp.GetStatus().GetLive() {
				progress.Show(name, summary(resp.GetStatus()))
			}
			return resp.GetStatus().GetLive(), nil
		})
		if ctx.Err() != nil {
			return nil
		}
		return err
	})
}

func (c *Commands) history() *cobra.Command {
	limit := uint32(20)
	cmd := &cobra.Command{
		Use:               "history NAME",
		Short:             "List the snapshots in which a namespace changed, newest first",
		Example:           "  prismctl namespace history user-profiles",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.target.Complete(Names),
		RunE: func(cmd *cobra.Command, args []string) error {
			return target.Ask(c.target, cmd, func(ctx context.Context, control *client.Control) (*adminv1.NamespaceHistoryResponse, error) {
				all, err := target.Pages(limit, func(token string, size uint32) (*adminv1.NamespaceHistoryResponse, error) {
					return control.Admin.NamespaceHistory(ctx, &adminv1.NamespaceHistoryRequest{Namespace: args[0], PageSize: size, PageToken: token})
				})
				if err == nil && len(all.GetSnapshots()) == 0 { // it has no history any more, or there never was one of that name
					_, err = control.Namespaces.GetNamespace(ctx, &controlv1.GetNamespaceRequest{Namespace: args[0]})
				}
				return all, err
			}, func(w io.Writer, resp *adminv1.NamespaceHistoryResponse) {
				g := terminal.NewGrid("SNAPSHOT", "TIME", "KIND", "AUTHOR", "VERSION", "MESSAGE")
				for _, s := range resp.GetSnapshots() {
					for _, ch := range s.GetChanges() {
						kind := ch.GetKind()
						if ch.GetToVersion() > 0 {
							kind += " to " + strconv.FormatUint(ch.GetToVersion(), 10)
						}
						g.Row(strconv.FormatUint(s.GetVersion(), 10), terminal.Time(s.GetRecordedAt()), kind, ch.GetAuthor(), terminal.Short(ch.GetAfter()), ch.GetMessage())
					}
				}
				g.Write(w)
			})
		},
	}
	cmd.Flags().Uint32Var(&limit, "limit", limit, "the most snapshots to list; 0 for all")
	return cmd
}

func (c *Commands) rollback() *cobra.Command {
	var to uint64
	var note terminal.Note
	var options terminal.Release
	var wait waitLimit
	cmd := &cobra.Command{
		Use:               "rollback NAME --to VERSION",
		Short:             "Take one namespace back to what it was in a snapshot",
		Example:           "  prismctl namespace history user-profiles\n  prismctl namespace rollback user-profiles --to 17 --wait",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.target.Complete(Names),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := options.Check(cmd, note); err != nil {
				return err
			}
			var resp *adminv1.RollbackSnapshotResponse
			err := target.Ask(c.target, cmd, func(ctx context.Context, control *client.Control) (_ *adminv1.RollbackSnapshotResponse, err error) {
				resp, err = control.Admin.RollbackSnapshot(ctx, &adminv1.RollbackSnapshotRequest{ToVersion: to, Namespace: args[0], Note: note.Proto(c.term), Release: options.Proto()})
				return resp, err
			}, func(w io.Writer, resp *adminv1.RollbackSnapshotResponse) {
				if resp.GetChanged() == 0 {
					fmt.Fprintf(w, "%s is as it was in snapshot %d already\n", args[0], to)
					return
				}
				fmt.Fprintf(w, "%s is as it was in snapshot %d, by snapshot %d\n", args[0], to, resp.GetSnapshot().GetVersion())
				options.Tell(w, resp.GetRelease())
			})
			if err != nil || !wait.on || resp.GetChanged() == 0 {
				return err
			}
			return c.waitLive(cmd.Context(), wait.of(cmd), resp.GetSnapshot().GetVersion(), true, args[0])
		},
	}
	cmd.Flags().Uint64Var(&to, "to", 0, "the snapshot to go back to")
	_ = cmd.MarkFlagRequired("to") // fails only for an unknown flag
	wait.register(cmd, untilLive)
	note.Register(cmd)
	options.Register(cmd)
	return cmd
}

// waitLive shows how far a change is: its release, if it has one, until that has ended, then each namespace until every
// owner serves it.
func (c *Commands) waitLive(ctx context.Context, limit waitLimit, snapshot uint64, changed bool, names ...string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	patience := time.AfterFunc(limit.duration, func() { cancel(errTooLong) })
	defer patience.Stop()
	progress := c.term.Progress()
	waiting := strings.Join(names, ", ")
	err := c.target.WithoutLimit(ctx, func(ctx context.Context, control *client.Control) error {
		if changed {
			err := c.released(ctx, control, progress, snapshot, names, func() {
				if !limit.given {
					patience.Stop() // its policy says how long it takes
				}
			})
			if err != nil {
				return err
			}
			patience.Reset(limit.duration)
		}
		for _, name := range names {
			waiting = name
			if err := c.follow(ctx, control, progress, name, snapshot); err != nil {
				return err
			}
		}
		return nil
	})
	if context.Cause(ctx) == errTooLong {
		return terminal.NotLivef("the change is recorded, but not every owner of %s served it within %v (--wait-for)\n  see what is in the way with: prismctl namespace status %s", waiting, limit.duration, names[0])
	}
	if f, ok := errors.AsType[*fault.Fault](err); ok && f.Code == fault.Unavailable {
		return terminal.NotLivef("the change is recorded, and nobody tells how far it is: %w", err)
	}
	if err == nil && ctx.Err() != nil {
		return terminal.NotLivef("the change is recorded; it was not waited until every owner of %s served it", waiting)
	}
	return err
}

// waitRemoved shows the release that drains a namespace until that has ended, and waits until the namespace is gone.
func (c *Commands) waitRemoved(ctx context.Context, limit waitLimit, snapshot uint64, name string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	patience := time.AfterFunc(limit.duration, func() { cancel(errTooLong) })
	defer patience.Stop()
	progress := c.term.Progress()
	removed := false
	err := c.target.WithoutLimit(ctx, func(ctx context.Context, control *client.Control) error {
		err := c.released(ctx, control, progress, snapshot, []string{name}, func() {
			if !limit.given {
				patience.Stop() // its policy says how long it takes
			}
		})
		if err != nil {
			return err
		}
		patience.Reset(limit.duration)
		err = c.follow(ctx, control, progress, name, 0)
		if f := faultgrpc.FromStatus(err); f != nil && f.Reason == fault.Namespace {
			removed = true
			return nil
		}
		return err
	})
	if err == nil && !removed || context.Cause(ctx) == errTooLong {
		return terminal.NotLivef("%s drains in release %d and was not seen to be removed\n  see how far it is with: prismctl release status %d", name, snapshot, snapshot)
	}
	return err
}

// errTooLong ends a wait.
var errTooLong = errors.New("waited too long")

// released waits until a snapshot's release has ended, or has come to every owner and waits to be confirmed. It returns
// an error when something of the namespaces was taken back. seen is called when there is a release.
func (c *Commands) released(ctx context.Context, control *client.Control, progress *terminal.Progress, snapshot uint64, names []string, seen func()) error {
	err := target.Follow(ctx, func(ctx context.Context) (grpc.ServerStreamingClient[adminv1.WatchReleaseResponse], error) {
		return control.Admin.WatchRelease(ctx, &adminv1.WatchReleaseRequest{Snapshot: snapshot})
	}, func(resp *adminv1.WatchReleaseResponse) (bool, error) {
		seen()
		r := resp.GetRelease()
		progress.Show(fmt.Sprintf("release %d", snapshot), terminal.ReleaseLine(r))
		for _, t := range r.GetTakenBack() {
			if name, ok := strings.CutPrefix(t.GetName(), "ns/"); ok && slices.Contains(names, name) {
				return true, takenBack("namespace "+name, t.GetWhy())
			}
		}
		switch r.GetState() {
		case configv1.ReleaseState_RELEASE_STATE_ROLLED_BACK, configv1.ReleaseState_RELEASE_STATE_ABORTED:
			return true, takenBack(fmt.Sprintf("release %d", snapshot), &configv1.TakenBack{Snapshot: snapshot, Reason: r.GetReason()})
		}
		if r.GetConfirmBy() != nil && r.GetEndedAt() == nil && int(r.GetWave()) == release.WaveAll {
			c.term.Note("confirm it by %s with: prismctl release confirm %d", terminal.Time(r.GetConfirmBy()), snapshot)
			return true, nil
		}
		return false, nil
	})
	if _, told := errors.AsType[terminal.NotLive](err); told || err == nil {
		return err
	}
	if f := faultgrpc.FromStatus(err); f.Code == fault.NotFound || f.Code == fault.Unimplemented || ctx.Err() != nil {
		return nil // it went to all owners at once, or the person ended it
	}
	return err
}

// takenBack is the error of a change that its release took back.
func takenBack(what string, t *configv1.TakenBack) error {
	text := fmt.Sprintf("%s was taken back: ", what)
	switch r := t.GetRejection(); {
	case r == nil:
		text += t.GetReason()
	case r.GetField() != "":
		text += fmt.Sprintf("%s refused %s: %s: %s", t.GetProxy(), r.GetResource(), r.GetField(), r.GetReason())
	default:
		text += fmt.Sprintf("%s refused %s: %s", t.GetProxy(), r.GetResource(), r.GetReason())
	}
	if t.GetBuild() != "" {
		text += " (build " + t.GetBuild() + ")"
	}
	return terminal.NotLivef("%s\n  see all of it with: prismctl release status %d", terminal.Clean(text), t.GetSnapshot())
}

// follow shows a namespace's status until the server ends the stream: when the snapshot is served by every owner.
func (c *Commands) follow(ctx context.Context, control *client.Control, progress *terminal.Progress, name string, until uint64) error {
	err := target.Follow(ctx, func(ctx context.Context) (grpc.ServerStreamingClient[controlv1.WatchNamespaceStatusResponse], error) {
		return control.Namespaces.WatchNamespaceStatus(ctx, &controlv1.WatchNamespaceStatusRequest{Namespace: name, UntilSnapshot: until})
	}, func(resp *controlv1.WatchNamespaceStatusResponse) (bool, error) {
		status := resp.GetStatus()
		progress.Show(name, summary(status))
		if t := status.GetTakenBack(); until > 0 && t.GetSnapshot() >= until {
			return true, takenBack("namespace "+name, t)
		}
		return false, nil
	})
	if _, told := errors.AsType[terminal.NotLive](err); !told && ctx.Err() != nil {
		return nil // the person ended it
	}
	return err
}

// summary says in one line how far a namespace is live.
func summary(s *configv1.NamespaceStatus) string {
	serving := 0
	var waiting []string
	for _, o := range s.GetOwners() {
		if o.GetStage() == configv1.Stage_STAGE_SERVING {
			serving++
			continue
		}
		text := o.GetProxy() + " " + stage(o.GetStage())
		if reason := reason(o); reason != "" {
			text += " (" + reason + ")"
		}
		waiting = append(waiting, text)
	}
	text := fmt.Sprintf("snapshot %d served by %d of %d owners", s.GetSnapshotVersion(), serving, len(s.GetOwners()))
	if r := s.GetRelease(); r != nil {
		text = fmt.Sprintf("release %d served by %d of %d owners", r.GetSnapshot(), serving, len(s.GetOwners()))
		if r.GetState() == configv1.ReleaseState_RELEASE_STATE_PAUSED {
			text += "; paused"
		}
		if r.GetWaitsFor() != "" {
			return text + "; " + terminal.Waits(r.GetWaitsFor())
		}
	}
	if len(waiting) > 0 {
		text += "; " + strings.Join(waiting, ", ")
	} else if !s.GetLive() && s.GetSummary() != "" {
		text += "; " + s.GetSummary()
	}
	return text
}

// reason says why an owner does not serve, without its name, which stands beside it.
func reason(o *configv1.OwnerStatus) string {
	if r := o.GetRejection(); r != nil {
		return strings.TrimPrefix(r.GetField()+": "+r.GetReason(), ": ")
	}
	return strings.TrimPrefix(o.GetReason(), o.GetProxy()+" ")
}

func stage(s configv1.Stage) string {
	switch s {
	case configv1.Stage_STAGE_PENDING:
		return "pending"
	case configv1.Stage_STAGE_SENT:
		return "sent"
	case configv1.Stage_STAGE_REJECTED:
		return "rejected"
	case configv1.Stage_STAGE_ACCEPTED:
		return "accepted"
	case configv1.Stage_STAGE_SERVING:
		return "serving"
	}
	return "unknown"
}

// liveness says in a few words whether a namespace is live, and else why not.
func liveness(s *configv1.NamespaceStatus, draining bool) string {
	switch {
	case draining:
		return "being deleted: its owners refuse calls"
	case s.GetLive():
		return "live"
	}
	return terminal.Clean(strings.TrimSuffix("not live: "+s.GetSummary(), ": "))
}

func owners(w io.Writer, s *configv1.NamespaceStatus, draining bool) {
	fmt.Fprintf(w, "%s, snapshot %d: %s\n", terminal.Clean(s.GetNamespace()), s.GetSnapshotVersion(), liveness(s, draining))
	if r := s.GetRelease(); r != nil {
		fmt.Fprintf(w, "release %d: %s; %s\n", r.GetSnapshot(), terminal.State(r.GetState()), terminal.Clean(terminal.Waits(r.GetWaitsFor())))
	}
	if t := s.GetTakenBack(); t != nil {
		fmt.Fprintf(w, "taken back: what snapshot %d changed, by snapshot %d: %s\n", t.GetSnapshot(), t.GetBySnapshot(), terminal.Clean(t.GetReason()))
	}
	g := terminal.NewGrid("OWNER", "RANK", "STAGE", "ADDRESS", "LAST SEEN", "REASON")
	for _, o := range s.GetOwners() {
		g.Row(o.GetProxy(), strconv.Itoa(int(o.GetRank())), stage(o.GetStage()), o.GetAddress(), terminal.Time(o.GetLastSeen()), reason(o))
	}
	g.Write(w)
}
