package audit

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/terminal"
	"github.com/prism-gateway/prism/shared/auditchain"
)

// source is where the records are: in the files of a directory, or in the table of a database.
type source struct{ postgres string }

func (s *source) flag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&s.postgres, "postgres", "", "the database with the records, such as postgres://auditor@db.example.org/prism; its password is best in PGPASSWORD or .pgpass")
}

// read reads all chains, and gives their records to each.
func (s *source) read(ctx context.Context, args []string, each func(*auditchain.Record)) ([]chain, error) {
	if err := s.check(args); err != nil {
		return nil, err
	}
	if s.postgres == "" {
		return readFiles(args[0], each)
	}
	conn, err := s.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return readTable(ctx, conn, each)
}

func (s *source) check(args []string) error {
	if (s.postgres == "") == (len(args) == 0) {
		return terminal.Misusef("name the directory that audit.files.dir of the proxies names, or the database with --postgres")
	}
	return nil
}

func (s *source) connect(ctx context.Context) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(s.postgres)
	if err != nil {
		return nil, terminal.Misusef("--postgres is no URL of a database, such as postgres://auditor@db.example.org/prism") // without it: it may hold a password
	}
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return conn, nil
}

// readTable is readFiles of a table.
func readTable(ctx context.Context, conn *pgx.Conn, each func(*auditchain.Record)) ([]chain, error) {
	rows, err := conn.Query(ctx, "SELECT chain, line FROM prism_access_line ORDER BY chain, number")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []chain
	var at *auditchain.Verifier
	for rows.Next() {
		var name, line string
		if err := rows.Scan(&name, &line); err != nil {
			return nil, err
		}
		if n := len(out); n == 0 || out[n-1].Chain != name {
			out, at = append(out, chain{Chain: name}), &auditchain.Verifier{}
		}
		one := &out[len(out)-1]
		if one.Damage != "" {
			continue // what follows what is broken proves nothing
		}
		r, err := at.Line([]byte(line))
		switch {
		case err != nil:
			one.Damage = err.Error()
			continue
		case r.Chain != name:
			one.Damage = fmt.Sprintf("record %d is of the chain %q", r.Number, r.Chain)
			continue
		}
		number, _ := at.State()
		one.Records, one.First, one.Last, one.From = at.Count, at.First, at.Last, number+1-at.Count
		if each != nil {
			each(r)
		}
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("the table prism_access_line is empty: no proxy has recorded an access there")
	}
	return out, nil
}
