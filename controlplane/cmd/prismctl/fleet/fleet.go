// Package fleet has the commands of prismctl about the proxies.
package fleet

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/namespace"
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
		Use:     "fleet",
		Short:   "Look at the proxies and at who owns what",
		Example: "  prismctl fleet list\n  prismctl fleet owners user-profiles",
	}
	cmd.AddCommand(c.list(), c.show(), c.owners(), c.simulate())
	return cmd
}

// all lists every proxy.
func all(ctx context.Context, control *client.Control) (*adminv1.ListProxiesResponse, error) {
	return target.Pages(0, func(token string, size uint32) (*adminv1.ListProxiesResponse, error) {
		return control.Admin.ListProxies(ctx, &adminv1.ListProxiesRequest{PageSize: size, PageToken: token})
	})
}

func (c *Commands) list() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the proxies with what they own and how current they are",
		Example: "  prismctl fleet list",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return target.Ask(c.target, cmd, all, func(w io.Writer, list *adminv1.ListProxiesResponse) {
				g := terminal.NewGrid("PROXY", "ADDRESS", "STATE", "OWNED", "CURRENT", "LOADING", "REFUSED", "DRIFTED", "STALE", "CALLS/S", "CONNS", "SESSIONS", "BUILD", "REASONS")
				for _, p := range list.GetProxies() {
					g.Row(p.GetMember().GetId(), p.GetMember().GetAddress(), state(p), count(p.GetOwned()), count(p.GetCurrent()), count(p.GetLoading()),
						count(p.GetRejected()), strconv.Itoa(len(p.GetDrifted())), stale(p), strconv.FormatFloat(p.GetCallsPerSecond(), 'f', 1, 64),
						count(p.GetLoad().GetConnections()), count(p.GetLoad().GetSessions()), version(p.GetBuild()), strings.Join(p.GetReasons(), "; "))
				}
				g.Write(w)
				moving := ""
				if list.GetMoving() {
					moving = ", partitions are moving"
				}
				fmt.Fprintf(w, "%d proxies, assignment %d%s\n", list.GetTotalCount(), list.GetEpoch(), moving)
			})
		},
	}
}

func count(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

// version is the first word of a build.
func version(build string) string {
	word, _, _ := strings.Cut(build, " ")
	return word
}

func state(p *adminv1.Proxy) string {
	switch {
	case p.GetMember().GetDraining():
		return "draining"
	case p.GetMember().GetValidator():
		return "validator" // it takes no calls, so that it is never ready for them
	case !p.GetReady():
		return "not ready"
	}
	return "ready"
}

// stale is how old the configuration is that a proxy serves by, empty while it is connected.
func stale(p *adminv1.Proxy) string {
	if p.GetStale() == nil {
		return ""
	}
	return p.GetStale().AsDuration().Round(time.Second).String()
}

func (c *Commands) owners() *cobra.Command {
	return &cobra.Command{
		Use:               "owners NAMESPACE",
		Short:             "Show which proxies own a namespace, or would own one of that name",
		Example:           "  prismctl fleet owners user-profiles",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.target.Complete(namespace.Names),
		RunE: func(cmd *cobra.Command, args []string) error {
			return target.Ask(c.target, cmd, func(ctx context.Context, control *client.Control) (*adminv1.GetOwnersResponse, error) {
				return control.Admin.GetOwners(ctx, &adminv1.GetOwnersRequest{Namespace: args[0]})
			}, func(w io.Writer, resp *adminv1.GetOwnersResponse) {
				fmt.Fprintf(w, "%s is in partition %d, assignment %d\n", terminal.Clean(args[0]), resp.GetPartition(), resp.GetEpoch())
				g := terminal.NewGrid("OWNER", "RANK", "ADDRESS")
				for rank, m := range resp.GetOwners() {
					g.Row(m.GetId(), strconv.Itoa(rank), m.GetAddress())
				}
				for _, m := range resp.GetLoading() {
					g.Row(m.GetId(), "loading", m.GetAddress())
				}
				g.Write(w)
			})
		},
	}
}

// proxies are the ids of the proxies.
func proxies(ctx context.Context, control *client.Control, _ string) (ids []string, _ error) {
	list, err := all(ctx, control)
	for _, p := range list.GetProxies() {
		ids = append(ids, p.GetMember().GetId())
	}
	return ids, err
}
