// Package audit has the commands of prismctl about records of access to data, in the files that proxies write.
package audit

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
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
		Short:   "Look into the records of access to data, in the files that proxies write",
		Example: "  prismctl audit verify /var/lib/prism/audit\n  prismctl audit list /var/lib/prism/audit --namespace orders",
	}
	cmd.AddCommand(c.verify(), c.list())
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
	return &cobra.Command{
		Use:   "verify DIRECTORY",
		Short: "Say whether the records are whole: none removed, changed or moved",
		Long: `Say whether the records are whole: none removed, changed or moved. Each chain is that of one proxy, over its files in the order
of their numbers; files that were archived from its beginning may be missing. Exits with 0 only when every chain is whole.`,
		Example: "  prismctl audit verify /var/lib/prism/audit\n  prismctl audit verify /var/lib/prism/audit -o json",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			chains, err := read(args[0], nil)
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
}

func (c *Commands) list() *cobra.Command {
	var namespace, principal string
	var denied bool
	limit := 100
	cmd := &cobra.Command{
		Use:     "list DIRECTORY",
		Short:   "List the newest records",
		Example: "  prismctl audit list /var/lib/prism/audit --namespace orders --denied\n  prismctl audit list /var/lib/prism/audit --principal spiffe://example.org/ns/prod/sa/api -o json",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if limit <= 0 {
				return terminal.Misusef("--limit %d: want at least 1", limit)
			}
			newest := []*auditchain.Record{}
			chains, err := read(args[0], func(r *auditchain.Record) {
				if namespace != "" && r.Namespace != namespace || principal != "" && r.Principal != principal || denied && r.Result != "PERMISSION_DENIED" && r.Result != "UNAUTHENTICATED" {
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
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%v\n", r.Time.Format(time.RFC3339Nano), r.Chain, r.Principal, r.Namespace, r.Operation, r.Result, r.Reason, time.Duration(r.Micros)*time.Microsecond)
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
	cmd.Flags().StringVar(&namespace, "namespace", "", "only those of a namespace")
	cmd.Flags().StringVar(&principal, "principal", "", "only those of a principal, as records name it")
	cmd.Flags().BoolVar(&denied, "denied", false, "only those that were refused for who called")
	cmd.Flags().IntVar(&limit, "limit", limit, "at most so many")
	return cmd
}

// aligned prints a table whose cells are separated by tabs.
func aligned(rows func(w io.Writer)) func(io.Writer) {
	return func(w io.Writer) {
		out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		rows(out)
		_ = out.Flush() // w keeps what it got in memory
	}
}

// read reads all chains of a directory, and gives their records to each.
func read(dir string, each func(*auditchain.Record)) ([]chain, error) {
	files, err := auditchain.Files(dir, "")
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("there are no records in %s: want the directory that audit.files.dir of a proxy names", dir)
	}
	var out []chain
	var at *auditchain.Verifier
	for _, name := range files {
		if n := len(out); n == 0 || out[n-1].Chain != auditchain.ChainOf(name) {
			out, at = append(out, chain{Chain: auditchain.ChainOf(name)}), &auditchain.Verifier{}
		}
		one := &out[len(out)-1]
		if one.Damage != "" {
			continue // what follows what is broken proves nothing
		}
		if one.Note != "" {
			one.Damage, one.Note = "a file ends in the middle of a record, and another follows it", ""
			continue
		}
		one.Files++
		if err := one.file(name, at, each); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (c *chain) file(name string, v *auditchain.Verifier, each func(*auditchain.Record)) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = v.Read(f, each)
	number, _ := v.State()
	c.Records, c.First, c.Last, c.From = v.Count, v.First, v.Last, number+1-v.Count
	damage, broken := errors.AsType[*auditchain.Damage](err)
	switch {
	case errors.Is(err, auditchain.ErrTorn):
		c.Note = "the last record is being written, or its writer was stopped"
	case broken:
		c.Damage = filepath.Base(name) + ": " + damage.Error()
	case err != nil:
		return err
	case v.Count > 0 && v.Chain != c.Chain:
		c.Damage = fmt.Sprintf("%s: holds the chain %q", filepath.Base(name), v.Chain)
	}
	return nil
}
