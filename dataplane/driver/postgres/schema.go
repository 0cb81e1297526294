package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/prism-gateway/prism/shared/fault"
)

// partitions is how many tables the items lie in. A statement locks them all, and the server has a fast path for sixteen
// locks.
const partitions = 8

// migrations make the schema, each from the one before; the table format says how many were done. "{s}" stands for the
// schema.
func migrations(schema string) []string {
	var parts strings.Builder
	for n := range partitions {
		fmt.Fprintf(&parts, "CREATE TABLE {s}.item_%d PARTITION OF {s}.item FOR VALUES WITH (MODULUS %d, REMAINDER %d) WITH (fillfactor = 85);\n", n, partitions, n)
	}
	first := strings.Replace(tables, "{partitions}", parts.String(), 1) + functions
	return []string{strings.ReplaceAll(first, "{s}", pgx.Identifier{schema}.Sanitize())}
}

// setupLock is the advisory lock of who makes the schema.
const setupLock = 0x505249534d

// prepared makes the schema when it is first called. A call that fails leaves it to the next.
func (i *Instance) prepared(ctx context.Context) error {
	select {
	case <-i.stop:
		return closedFault()
	default:
	}
	if ctx.Err() != nil {
		return unsent(ctx.Err())
	}
	if i.ready.Load() {
		return nil
	}
	select {
	case i.setup <- struct{}{}:
		defer func() { <-i.setup }()
	case <-ctx.Done():
		return unsent(ctx.Err())
	case <-i.stop:
		return closedFault()
	}
	if i.ready.Load() {
		return nil
	}
	conn, err := i.pool.Acquire(ctx)
	if err != nil {
		return connectFault(err)
	}
	defer conn.Release()
	if err := i.makeSchema(ctx, conn.Conn()); err != nil {
		return storeFault(err).WithOutcome(fault.NotApplied)
	}
	i.ready.Store(true)
	return nil
}

// makeSchema makes the schema unless it is there. Other proxies may do the same.
func (i *Instance) makeSchema(ctx context.Context, conn *pgx.Conn) error {
	steps := migrations(i.schema)
	if version, err := i.format(ctx, conn); err != nil || version == len(steps) {
		return err
	}
	tx, err := conn.Begin(ctx)
	if err != nil {
		return err
	}
	defer tx.Rollback(context.WithoutCancel(ctx))
	if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1)", int64(setupLock)); err != nil {
		return err
	}
	version, err := i.format(ctx, conn)
	if err != nil || version == len(steps) {
		return err
	}
	name := pgx.Identifier{i.schema}.Sanitize()
	var there bool
	if err := tx.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)", i.schema).Scan(&there); err != nil {
		return err
	}
	if !there { // CREATE SCHEMA IF NOT EXISTS needs the right to make it also when it exists
		if _, err := tx.Exec(ctx, "CREATE SCHEMA "+name); err != nil {
			return denied(err, "CREATE on the database")
		}
	}
	text := strings.Join(steps[version:], "") + fmt.Sprintf("DELETE FROM %s.format; INSERT INTO %s.format VALUES (%d);", name, name, len(steps))
	if _, err := conn.PgConn().Exec(ctx, text).ReadAll(); err != nil {
		return denied(err, "USAGE and CREATE on the schema")
	}
	return tx.Commit(ctx)
}

// format is how many migrations the schema has had.
func (i *Instance) format(ctx context.Context, conn *pgx.Conn) (int, error) {
	table := pgx.Identifier{i.schema, "format"}.Sanitize()
	var there bool
	// Not to_regclass: what it did not find it may remember, past the lock that another proxy held meanwhile.
	const look = "SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = 'format')"
	if err := conn.QueryRow(ctx, look, i.schema).Scan(&there); err != nil || !there {
		return 0, err
	}
	var version int
	err := conn.QueryRow(ctx, "SELECT version FROM "+table).Scan(&version)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, nil
	}
	if known := len(migrations(i.schema)); err == nil && version > known {
		return 0, fault.Newf(fault.FailedPrecondition, fault.Backend, "the backend's data has format %d, this proxy knows %d", version, known)
	}
	return version, err
}
