// Package audit has the commands of prismctl about records of access to data, in the files or the table that proxies write.
package audit

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/terminal"
	"github.com/prism-gateway/prism/shared/auditchain"
)

// Commands are the commands and what they share.
type Commands struct{ term *terminal.Terminal }

// New makes the group of commands.
func New(term *terminal.Terminal) *cobra.Command {
	c := &Commands{term: term}
	cmd := &cobra.Command{
		Use:     "audit",
		Short:   "Look into the records of access to data, in the files or the table that proxies write",
		Example: "  prismctl audit verify /var/lib/prism/audit\n  prismctl audit list /var/lib/prism/audit --namespace orders\n  prismctl audit tail --postgres postgres://auditor@db.example.org/prism",
	}
	cmd.AddCommand(c.verify(), c.list(), c.tail())
	return cmd
}

// chain is what verifying one proxy's files has found.
type chain struct {
	Chain   string    `json:"chain"`
	Files   int       `json:"files"`
	Records uint64    `json:"records"`
	From    uint64    `json:"from_record"`
	First   time.Time `json:"first"`
	Last    time.Time `json:"last"`
	Note    string    `json:"note,omitempty"`
	Damage  string    `json:"damage,omitempty"`
}

func (c *Commands) verify() *cobra.Command {
	var from source
	cmd := &cobra.Command{
		Use:   "verify DIRECTORY|--postgres URL",
		Short: "Say whether the records are whole: none removed, changed or moved",
		Long: `Say whether the records are whole: none removed, changed or moved. Each chain is that of one proxy, over its files in the order
of their numbers; files that were archived from its beginning may be missing. Exits with 0 only when every chain is whole.`,
		Example: "  prismctl audit verify /var/lib/prism/audit\n  prismctl audit verify /var/lib/prism/audit -o json",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			chains, err := from.read(cmd.Context(), args, nil)
			if err != nil {
				return err
			}
			broken := 0
			for _, one := range chains {
				if one.Damage != "" {
					broken++
				}
			}
			err = c.term.PrintValue(map[string]any{"chains": chains}, aligned(func(w io.Writer) {
				fmt.Fprintln(w, "CHAIN\tFILES\tRECORDS\tFROM\tNEWEST\tSTATE")
				for _, one := range chains {
					state := "whole"
					if one.Note != "" {
						state += "; " + one.Note
					}
					if one.Damage != "" {
						state = one.Damage
					}
					fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%s\t%s\n", one.Chain, one.Files, one.Records, one.From, one.Last.Format(time.RFC3339), state)
				}
			}))
			if err == nil && broken > 0 {
				err = fmt.Errorf("%d of %d chains are not whole", broken, len(chains))
			}
			return err
		},
	}
	from.flag(cmd)
	return cmd
}

func (c *Commands) list() *cobra.Command {
	var from source
	var only filter
	limit := 100
	cmd := &cobra.Command{
		Use:     "list DIRECTORY|--postgres URL",
		Short:   "List the newest records",
		Example: "  prismctl audit list /var/lib/prism/audit --namespace orders --denied\n  prismctl audit list /var/lib/prism/audit --principal spiffe://example.org/ns/prod/sa/api -o json",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if limit <= 0 {
				return terminal.Misusef("--limit %d: want at least 1", limit)
			}
			newest := []*auditchain.Record{}
			chains, err := from.read(cmd.Context(), args, func(r *auditchain.Record) {
				if !only.takes(r) {
					return
				}
				newest = append(newest, r)
				if len(newest) > 2*limit {
					newest = append(newest[:0], newest[len(newest)-limit:]...)
				}
			})
			if err != nil {
				return err
			}
			newest = newest[max(0, len(newest)-limit):]
			if err := c.term.PrintValue(map[string]any{"records": newest}, aligned(func(w io.Writer) {
				fmt.Fprintln(w, "TIME\tPROXY\tPRINCIPAL\tNAMESPACE\tOPERATION\tRESULT\tREASON\tLATENCY")
				for _, r := range newest {
					fmt.Fprintln(w, row(r))
				}
			})); err != nil {
				return err
			}
			for _, one := range chains {
				if one.Damage != "" {
					return fmt.Errorf("%s: %s; nothing after that was read", one.Chain, one.Damage)
				}
			}
			return nil
		},
	}
	from.flag(cmd)
	only.flags(cmd)
	cmd.Flags().IntVar(&limit, "limit", limit, "at most so many")
	return cmd
}

// row is a record as a line of a table.
func row(r *auditchain.Record) string {
	return strings.Join([]string{
		r.Time.Format(time.RFC3339Nano), r.Chain, r.Principal, r.Namespace, r.Operation, r.Result, r.Reason, (time.Duration(r.Micros) * time.Microsecond).String(),
	}, "\t")
}

// filter says which records are shown.
type filter struct {
	namespace, principal string
	denied               bool
}

func (f *filter) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.namespace, "namespace", "", "only those of a namespace")
	cmd.Flags().StringVar(&f.principal, "principal", "", "only those of a principal, as records name it")
	cmd.Flags().BoolVar(&f.denied, "denied", false, "only those that were refused for who called")
}

func (f *filter) takes(r *auditchain.Record) bool {
	return (f.namespace == "" || r.Namespace == f.namespace) && (f.principal == "" || r.Principal == f.principal) &&
		(!f.denied || r.Result == "PERMISSION_DENIED" || r.Result == "UNAUTHENTICATED")
}

// aligned prints a table whose cells are separated by tabs.
func aligned(rows func(w io.Writer)) func(io.Writer) {
	return func(w io.Writer) {
		out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		rows(out)
		_ = out.Flush() // w keeps what it got in memory
	}
}
