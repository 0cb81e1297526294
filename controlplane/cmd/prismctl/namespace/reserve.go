package namespace

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/prism-gateway/prism/controlplane/admission"
	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/target"
	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/terminal"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	"github.com/prism-gateway/prism/shared/client"
)

// tokenVariable keeps a token out of the list of processes and the shell's history.
const tokenVariable = "PRISM_RESERVATION_TOKEN"

func (c *Commands) reserve() *cobra.Command {
	var team string
	var lease time.Duration
	var note terminal.Note
	cmd := &cobra.Command{
		Use:   "reserve NAME --team TEAM",
		Short: "Keep a name until its namespace is created, or until the lease runs out",
		Long: `Keep a name until its namespace is created, or until the lease runs out.

The answer holds a token, which is told this once and is kept nowhere: who has it may renew the reservation, give it up,
and create the namespace. Renew it at half of the lease. When the lease has run out the holder has ten minutes more.`,
		Example: "  prismctl namespace reserve user-profiles --team accounts -m 'for the move in May'",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return target.Ask(c.target, cmd, func(ctx context.Context, control *client.Control) (*controlv1.ReserveNameResponse, error) {
				req := &controlv1.ReserveNameRequest{Namespace: args[0], Team: team, Note: note.Proto(c.term)}
				if lease != 0 {
					req.Lease = durationpb.New(lease)
				}
				return control.Namespaces.ReserveName(ctx, req)
			}, func(w io.Writer, resp *controlv1.ReserveNameResponse) {
				r := resp.GetReservation()
				terminal.Fields(w, "reserved", r.GetNamespace(), "team", r.GetTeam(), "until", terminal.Time(r.GetExpiresAt()),
					"renew at", terminal.Time(r.GetRenewAt()), "token", resp.GetToken())
				fmt.Fprintf(w, "\nkeep the token: it is not told again\n")
			})
		},
	}
	cmd.Flags().StringVar(&team, "team", "", "the team that the namespace will belong to")
	_ = cmd.MarkFlagRequired("team") // fails only for an unknown flag
	terminal.DurationVar(cmd.Flags(), &lease, "lease", 0, "how long it holds without being renewed, from 1m to 30d; default 24h")
	note.Register(cmd)
	cmd.Flags().Lookup("message").Usage = "why; kept with the reservation"
	return cmd
}

func (c *Commands) renew() *cobra.Command {
	var token string
	cmd := &cobra.Command{
		Use:     "renew NAME",
		Short:   "Prolong the reservation of a name by its lease",
		Example: "  " + tokenVariable + "=... prismctl namespace renew user-profiles",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if token = c.token(token); token == "" {
				return terminal.Misusef("give the reservation's token as --token or in %s", tokenVariable)
			}
			return target.Ask(c.target, cmd, func(ctx context.Context, control *client.Control) (*controlv1.RenewNameResponse, error) {
				return control.Namespaces.RenewName(ctx, &controlv1.RenewNameRequest{Namespace: args[0], Token: token})
			}, func(w io.Writer, resp *controlv1.RenewNameResponse) {
				r := resp.GetReservation()
				terminal.Fields(w, "reserved", r.GetNamespace(), "until", terminal.Time(r.GetExpiresAt()), "renew at", terminal.Time(r.GetRenewAt()))
			})
		},
	}
	tokenFlag(cmd, &token)
	return cmd
}

func (c *Commands) unreserve() *cobra.Command {
	var token string
	var takeAway bool
	var note terminal.Note
	cmd := &cobra.Command{
		Use:   "unreserve NAME",
		Short: "Give a reserved name up; operators may take it away",
		Example: "  " + tokenVariable + "=... prismctl namespace unreserve user-profiles\n" +
			"  prismctl namespace unreserve user-profiles --take-away -m 'accounts does not need it any more'",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case takeAway && token != "":
				return terminal.Misusef("--take-away is for those who have no token")
			case takeAway && note.Message == "":
				return terminal.Misusef("say why with --message: the name is taken away from whoever reserved it")
			case takeAway:
			default:
				if token = c.token(token); token == "" {
					return terminal.Misusef("give the reservation's token as --token or in %s, or take the name away with --take-away", tokenVariable)
				}
			}
			return target.Ask(c.target, cmd, func(ctx context.Context, control *client.Control) (*controlv1.ReleaseNameResponse, error) {
				return control.Namespaces.ReleaseName(ctx, &controlv1.ReleaseNameRequest{Namespace: args[0], Token: token, Note: note.Proto(c.term)})
			}, func(w io.Writer, _ *controlv1.ReleaseNameResponse) {
				fmt.Fprintf(w, "%s is free\n", terminal.Clean(args[0]))
			})
		},
	}
	tokenFlag(cmd, &token)
	cmd.Flags().BoolVar(&takeAway, "take-away", false, "without the token, as an operator")
	note.Register(cmd)
	return cmd
}

func (c *Commands) reserved() *cobra.Command {
	return &cobra.Command{
		Use:     "reserved",
		Short:   "List the reserved names",
		Example: "  prismctl namespace reserved",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return target.Ask(c.target, cmd, func(ctx context.Context, control *client.Control) (*controlv1.ListReservedNamesResponse, error) {
				return target.Pages(0, func(token string, size uint32) (*controlv1.ListReservedNamesResponse, error) {
					return control.Namespaces.ListReservedNames(ctx, &controlv1.ListReservedNamesRequest{PageSize: size, PageToken: token})
				})
			}, func(w io.Writer, all *controlv1.ListReservedNamesResponse) {
				g := terminal.NewGrid("NAMESPACE", "TEAM", "RESERVED", "UNTIL", "AUTHOR", "MESSAGE")
				for _, r := range all.GetReservations() {
					g.Row(r.GetNamespace(), r.GetTeam(), terminal.Time(r.GetReservedAt()), terminal.Time(r.GetExpiresAt()), r.GetAuthor(), r.GetMessage())
				}
				g.Write(w)
			})
		},
	}
}

func tokenFlag(cmd *cobra.Command, token *string) {
	cmd.Flags().StringVar(token, "token", "", "the token that reserve told; better in "+tokenVariable+", which no list of processes shows")
}

func (c *Commands) token(flag string) string {
	if flag != "" {
		return flag
	}
	return c.term.Getenv(tokenVariable)
}

// tokens reads what --reservation-token was given, or the variable, as tokens by the namespaces of a file.
func (c *Commands) tokens(given []string, docs []admission.Document) (map[string]string, error) {
	if v := c.term.Getenv(tokenVariable); len(given) == 0 && v != "" && len(docs) == 1 {
		given = []string{v}
	}
	tokens := map[string]string{}
	for _, one := range given {
		name, token, named := strings.Cut(one, "=")
		switch {
		case !named && len(docs) == 1:
			name, token = docs[0].Request.GetNamespace(), one
		case !named:
			return nil, terminal.Misusef("the file holds %d namespaces: give --reservation-token as NAME=TOKEN", len(docs))
		}
		if !slices.ContainsFunc(docs, func(d admission.Document) bool { return d.Request.GetNamespace() == name }) {
			return nil, terminal.Misusef("--reservation-token is of %s, and the file has no such namespace", name)
		}
		tokens[name] = token
	}
	return tokens, nil
}
