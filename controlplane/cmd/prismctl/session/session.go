// Package session has the commands of prismctl about the caller's sessions with namespaces.
package session

import (
	"context"
	"io"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/namespace"
	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/target"
	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/terminal"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/client"
)

// New makes the group of commands.
func New(term *terminal.Terminal, t *target.Flags) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "session",
		Short: "See and end your own sessions with a namespace, through a proxy",
		Long: `See and end your own sessions with a namespace, through a proxy. A session begins with the first call of a caller to a namespace that
asks who calls, and has what belongs to the caller, such as its user in the store.`,
		Example: "  prismctl session list orders\n  prismctl session close orders",
	}
	cmd.AddCommand(list(t), end(term, t))
	for _, sub := range cmd.Commands() {
		sub.ValidArgsFunction = t.Complete(namespace.Names)
	}
	return cmd
}

func list(t *target.Flags) *cobra.Command {
	return &cobra.Command{
		Use:     "list NAMESPACE",
		Short:   "List your sessions",
		Example: "  prismctl session list orders -o json",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return target.AskData(t, cmd, func(ctx context.Context, data *client.Client) (*datav1.ListSessionsResponse, error) {
				return data.Sessions.ListSessions(ctx, &datav1.ListSessionsRequest{Namespace: args[0]})
			}, func(w io.Writer, answer *datav1.ListSessionsResponse) {
				g := terminal.NewGrid("ID", "PRINCIPAL", "BEGAN", "USED", "ENDS", "CREDENTIAL ENDS")
				for _, s := range answer.GetSessions() {
					g.Row(s.GetId(), s.GetPrincipal(), at(s.GetCreatedAt()), at(s.GetUsedAt()), at(s.GetExpireAt()), at(s.GetCredentialExpireAt()))
				}
				g.Write(w)
			})
		},
	}
}

func at(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().Format(time.RFC3339)
}

func end(term *terminal.Terminal, t *target.Flags) *cobra.Command {
	return &cobra.Command{
		Use:     "close NAMESPACE [ID]",
		Short:   "End one of your sessions, or the one that this call would be in",
		Example: "  prismctl session close orders",
		Args:    cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			request := &datav1.CloseSessionRequest{Namespace: args[0]}
			if len(args) > 1 {
				request.Id = args[1]
			}
			return t.WithData(cmd.Context(), func(ctx context.Context, data *client.Client) error {
				if _, err := data.Sessions.CloseSession(ctx, request); err != nil {
					return err
				}
				term.Note("the session with %s is over, and what belonged to it is given back", args[0])
				return nil
			})
		},
	}
}
