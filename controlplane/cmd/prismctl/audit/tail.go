package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/terminal"
	"github.com/prism-gateway/prism/shared/auditchain"
)

// lookEvery is how often new records are looked for.
const lookEvery = 500 * time.Millisecond

func (c *Commands) tail() *cobra.Command {
	var from source
	var only filter
	cmd := &cobra.Command{
		Use:   "tail DIRECTORY|--postgres URL",
		Short: "Show records as they are written, until Ctrl-C",
		Long: `Show records as they are written, until Ctrl-C, beginning with those that are written after the start. With -o json each is a line.
A record that does not follow from the one before it ends it with an error.`,
		Example: "  prismctl audit tail /var/lib/prism/audit --denied\n  prismctl audit tail --postgres postgres://auditor@db.example.org/prism -o json",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := from.check(args); err != nil {
				return err
			}
			f := follower{verifiers: map[string]*auditchain.Verifier{}}
			look := func(each func(*auditchain.Record)) error { return f.files(args[0], each) }
			if from.postgres != "" {
				conn, err := from.connect(cmd.Context())
				if err != nil {
					return err
				}
				defer conn.Close(context.WithoutCancel(cmd.Context()))
				look = func(each func(*auditchain.Record)) error { return f.table(cmd.Context(), conn, each) }
			}
			err := look(func(*auditchain.Record) {}) // what is there already
			tick := time.NewTicker(lookEvery)
			defer tick.Stop()
			for err == nil {
				select {
				case <-cmd.Context().Done():
					return nil
				case <-tick.C:
				}
				var failed error
				err = errors.Join(look(func(r *auditchain.Record) {
					if failed == nil && only.takes(r) {
						failed = c.show(r)
					}
				}), failed)
			}
			if cmd.Context().Err() != nil {
				return nil
			}
			return err
		},
	}
	from.flag(cmd)
	only.flags(cmd)
	return cmd
}

// show prints one record.
func (c *Commands) show(r *auditchain.Record) error {
	if c.term.Format == terminal.JSON {
		return json.NewEncoder(c.term.Out).Encode(r)
	}
	_, err := fmt.Fprintln(c.term.Out, row(r))
	return err
}

// follower reads what has been added since it looked last.
type follower struct {
	verifiers map[string]*auditchain.Verifier // by chain
	read      map[string]int64                // bytes of each file
}

func (f *follower) of(chain string) *auditchain.Verifier {
	v := f.verifiers[chain]
	if v == nil {
		v = &auditchain.Verifier{}
		f.verifiers[chain] = v
	}
	return v
}

func (f *follower) files(dir string, each func(*auditchain.Record)) error {
	names, err := auditchain.Files(dir, "")
	if err != nil {
		return err
	}
	if f.read == nil {
		f.read = map[string]int64{}
	}
	for _, name := range names {
		if err := f.file(name, each); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func (f *follower) file(name string, each func(*auditchain.Record)) error {
	info, err := os.Stat(name)
	if err != nil || info.Size() <= f.read[name] {
		return err
	}
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := file.Seek(f.read[name], io.SeekStart); err != nil {
		return err
	}
	whole, err := f.of(auditchain.ChainOf(name)).Read(file, each)
	f.read[name] += whole
	if errors.Is(err, auditchain.ErrTorn) {
		return nil // it is being written
	}
	return err
}

// chains names the chains of the table without reading it all.
const chains = `WITH RECURSIVE c(chain) AS (
	(SELECT chain FROM prism_access_line ORDER BY chain LIMIT 1)
	UNION ALL SELECT (SELECT l.chain FROM prism_access_line l WHERE l.chain > c.chain ORDER BY l.chain LIMIT 1) FROM c WHERE c.chain IS NOT NULL
) SELECT chain FROM c WHERE chain IS NOT NULL`

func (f *follower) table(ctx context.Context, conn *pgx.Conn, each func(*auditchain.Record)) error {
	rows, err := conn.Query(ctx, chains)
	if err != nil {
		return err
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, name := range names {
		v := f.of(name)
		after, _ := v.State()
		query := "SELECT line FROM prism_access_line WHERE chain = $1 AND number > $2 ORDER BY number"
		if f.read == nil && v.Count == 0 { // at the start only the newest counts
			query = "SELECT line FROM prism_access_line WHERE chain = $1 AND number > $2 ORDER BY number DESC LIMIT 1"
		}
		rows, err := conn.Query(ctx, query, name, int64(after))
		if err != nil {
			return err
		}
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return err
		}
		for _, line := range lines {
			r, err := v.Line([]byte(line))
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			each(r)
		}
	}
	f.read = map[string]int64{} // not the start any more
	return nil
}
