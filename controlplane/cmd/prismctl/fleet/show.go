package fleet

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/target"
	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/terminal"
	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"
	"github.com/prism-gateway/prism/shared/client"
	"github.com/prism-gateway/prism/shared/strictyaml"
)

func (c *Commands) show() *cobra.Command {
	var at, name string
	cmd := &cobra.Command{
		Use:   "show PROXY",
		Short: "Show one proxy with its partitions, now or as it was",
		Example: "  prismctl fleet show proxy-1\n  prismctl fleet show proxy-1 --namespace user-profiles\n  prismctl fleet show proxy-1 --at 2026-11-22T12:00:00Z\n" +
			"  prismctl fleet show proxy-1 --at 10m --namespace user-profiles",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.target.Complete(proxies),
		RunE: func(cmd *cobra.Command, args []string) error {
			request := &adminv1.GetProxyRequest{Id: args[0], Namespace: name}
			if at != "" {
				then, err := moment(at, time.Now())
				if err != nil {
					return terminal.Misusef("--at %w", err)
				}
				request.At = timestamppb.New(then)
			}
			return target.Ask(c.target, cmd, func(ctx context.Context, control *client.Control) (*adminv1.GetProxyResponse, error) {
				return control.Admin.GetProxy(ctx, request)
			}, func(w io.Writer, resp *adminv1.GetProxyResponse) {
				if request.GetAt() == nil {
					describe(w, resp)
				} else {
					then(w, request, resp)
				}
			})
		},
	}
	cmd.Flags().StringVar(&at, "at", "", "show what it served at this time: as in 2026-11-22T12:00:00Z, or how long ago, as in 10m")
	cmd.Flags().StringVarP(&name, "namespace", "n", "", "only the partition of this namespace, and with --at which version of it was served")
	return cmd
}

// moment reads a time, or how long ago it was.
func moment(s string, now time.Time) (time.Time, error) {
	if ago, ok := strictyaml.ParseDuration(s); ok && ago >= 0 {
		return now.Add(-ago), nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return t, fmt.Errorf("%q: want a time such as 2026-11-22T12:00:00Z, or how long ago, such as 10m", s)
	}
	return t, nil
}

func describe(w io.Writer, resp *adminv1.GetProxyResponse) {
	p := resp.GetProxy()
	carries := ""
	if l := p.GetLoad(); l != nil {
		carries = fmt.Sprintf("%.1f calls/s, %d under way, %d connections, %d sessions, %d MiB, %v of processor time",
			p.GetCallsPerSecond(), l.GetCallsInFlight(), l.GetConnections(), l.GetSessions(), l.GetMemoryBytes()>>20, l.GetCpu().AsDuration().Round(time.Second))
	}
	terminal.Fields(w,
		"proxy", p.GetMember().GetId(),
		"address", p.GetMember().GetAddress(),
		"state", state(p),
		"reasons", strings.Join(p.GetReasons(), "; "),
		"build", p.GetBuild(),
		"reports to", p.GetReplica(),
		"last seen", terminal.Time(p.GetLastSeen()),
		"carries", carries,
		"stale", stale(p),
		"drifted", strings.Join(p.GetDrifted(), ", "),
		"partitions", fmt.Sprintf("%d owned, %d of them current, %d loading", p.GetOwned(), p.GetCurrent(), p.GetLoading()),
	)
	fmt.Fprintln(w)
	empty := 0
	g := terminal.NewGrid("PARTITION", "RANK", "WANTED", "SNAPSHOT", "ACCEPTED", "SERVED", "REFUSED", "DRIFTED")
	for _, part := range resp.GetPartitions() {
		// An installation has many partitions: those that are as they ought to be and empty say nothing.
		if part.GetWantRoot() == "" && part.GetServingRoot() == "" && len(part.GetRejections()) == 0 && !part.GetLoading() {
			empty++
			continue
		}
		rank := count(part.GetRank())
		if part.GetLoading() {
			rank = "loading"
		} else if p.GetMember().GetValidator() {
			rank = "validator"
		}
		var refused []string
		for _, r := range part.GetRejections() {
			refused = append(refused, r.GetResource()+": "+r.GetReason())
		}
		g.Row(count(part.GetPartition()), rank, terminal.Short(part.GetWantRoot()), number(part.GetWantSnapshot()), terminal.Short(part.GetAcceptedRoot()),
			terminal.Short(part.GetServingRoot()), strings.Join(refused, "; "), strings.Join(part.GetDrifted(), ", "))
	}
	g.Write(w)
	if empty > 0 {
		fmt.Fprintf(w, "empty partitions, not listed: %d\n", empty)
	}
}

// number is empty for 0.
func number(n uint64) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}

// then writes what a proxy served at a time in the past.
func then(w io.Writer, request *adminv1.GetProxyRequest, resp *adminv1.GetProxyResponse) {
	fmt.Fprintf(w, "%s at %s\n", terminal.Clean(request.GetId()), terminal.Time(request.GetAt()))
	name := request.GetNamespace()
	if name == "" {
		g := terminal.NewGrid("PARTITION", "SERVED", "SHARED", "SNAPSHOT", "SINCE")
		for _, s := range resp.GetServed() {
			g.Row(count(s.GetPartition()), terminal.Short(s.GetRoot()), terminal.Short(s.GetSharedRoot()), number(s.GetSnapshotVersion()), terminal.Time(s.GetSince()))
		}
		g.Write(w)
		return
	}
	if len(resp.GetServed()) == 0 {
		fmt.Fprintf(w, "it served nothing of the partition of %s\n", terminal.Clean(name))
		return
	}
	for _, s := range resp.GetServed() {
		version := terminal.Short(s.GetNamespaceVersion())
		switch {
		case s.GetUnknown() != "":
			version = "not known: " + s.GetUnknown()
		case version == "":
			version = "not served"
		}
		terminal.Fields(w,
			"namespace", name,
			"version", version,
			"partition", fmt.Sprintf("%d, root %s", s.GetPartition(), terminal.Short(s.GetRoot())),
			"snapshot", number(s.GetSnapshotVersion()),
			"since", terminal.Time(s.GetSince()),
		)
	}
}
