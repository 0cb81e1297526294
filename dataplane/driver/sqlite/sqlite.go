// Package sqlite keeps items in one SQLite file, which the proxies of one machine may share.
//
// SQLite has one writer at a time, so one goroutine of an instance writes: what waits for it shares a transaction, and so
// the cost of making it durable. Readers have connections of their own and wait for nobody.
package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	_ "modernc.org/sqlite" // the driver named sqlite of database/sql

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/shared/fault"
)

// Driver returns the driver.
func Driver() driver.Driver { return sqliteDriver{} }

type sqliteDriver struct{}

func (sqliteDriver) Type() string { return "sqlite" }

func (sqliteDriver) Interfaces() []string {
	return []string{
		"keyvalue", "keyvalue.counter", "keyvalue.idempotency", "keyvalue.large", "keyvalue.list", "keyvalue.scan",
		"keyvalue.transact", "keyvalue.ttl", "keyvalue.version",
	}
}

// Open needs one endpoint, the path of the file, whose directory must exist when the first call comes. Settings:
// synchronous, full (default: a write that was answered survives a loss of power) or normal (it survives the end of the
// process); sweep, how often expired items are removed (default 30s).
func (sqliteDriver) Open(cfg driver.Config) (driver.Instance, error) {
	if len(cfg.Endpoints) != 1 || cfg.Endpoints[0] == "" {
		return nil, fmt.Errorf("backend %s: sqlite takes one endpoint, the path of a file", cfg.Name)
	}
	if cfg.Username != "" || !cfg.Password.IsZero() {
		return nil, fmt.Errorf("backend %s: sqlite takes no credential", cfg.Name)
	}
	synchronous, sweep := "full", 30*time.Second
	for name, value := range cfg.Settings {
		switch name {
		case "synchronous":
			if value != "full" && value != "normal" {
				return nil, fmt.Errorf("backend %s: setting synchronous %q: want full or normal", cfg.Name, value)
			}
			synchronous = value
		case "sweep":
			var err error
			if sweep, err = time.ParseDuration(value); err != nil || sweep <= 0 {
				return nil, fmt.Errorf("backend %s: setting sweep %q: want a positive duration such as 30s", cfg.Name, value)
			}
		default:
			return nil, fmt.Errorf("backend %s: unknown setting %q", cfg.Name, name)
		}
	}
	readers := cfg.MaxConnections
	if readers <= 0 {
		readers = 8
	}
	i := &Instance{
		path: cfg.Endpoints[0], now: cfg.Now, versions: driver.NewVersions(), setup: make(chan struct{}, 1),
		waiting: make(chan *request, maxQueued), stop: make(chan struct{}), stopped: make(chan struct{}),
	}
	if i.now == nil {
		i.now = time.Now
	}
	var err error
	if i.read, err = pool(i.path, synchronous, readers, true); err != nil {
		return nil, fmt.Errorf("backend %s: %w", cfg.Name, err)
	}
	if i.write, err = pool(i.path, synchronous, 1, false); err != nil {
		return nil, fmt.Errorf("backend %s: %w", cfg.Name, err)
	}
	i.running.Go(i.writer)
	sweeping, cancel := context.WithCancel(context.Background())
	i.cancel = cancel
	i.running.Go(func() { i.sweeper(sweeping, sweep) })
	return i, nil
}

// pool makes connections to a file when they are needed.
func pool(path, synchronous string, size int, readOnly bool) (*sql.DB, error) {
	q := url.Values{"_pragma": {"busy_timeout(5000)", "synchronous(" + synchronous + ")"}}
	if readOnly {
		q.Add("_pragma", "query_only(1)")
	}
	db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: path}).EscapedPath()+"?"+q.Encode())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(size)
	db.SetMaxIdleConns(size)
	return db, nil
}

// Instance is one open file.
type Instance struct {
	path     string
	now      func() time.Time
	versions *driver.Versions
	read     *sql.DB
	write    *sql.DB // one connection, the writer's

	setup chan struct{}              // held by who prepares
	ready atomic.Pointer[statements] // nil until the schema is there

	waiting chan *request
	running sync.WaitGroup
	closing sync.Once
	stop    chan struct{}      // closed when Close begins
	cancel  context.CancelFunc // of the sweeper
	stopped chan struct{}      // closed when nothing runs any more
}

// statements are the reads, prepared. Close of the pool closes them.
type statements struct {
	get, head, ids, part                     *sql.Stmt
	scan, scanBack, scanHeads, scanHeadsBack *sql.Stmt
}

// Ping reads from the file.
func (i *Instance) Ping(ctx context.Context) error {
	_, err := i.Get(ctx, "", driver.Name{}, true)
	return err
}

// Close ends the writer after the writes that it has begun.
func (i *Instance) Close() error {
	var err error
	i.closing.Do(func() {
		close(i.stop)
		i.cancel()
		i.running.Wait()
		close(i.stopped)
		err = errors.Join(i.read.Close(), i.write.Close())
	})
	<-i.stopped
	return err
}

// migrations make the schema, each from the one before; the file's user_version is how many were done.
var migrations = []string{
	// The items of an id are side by side in byte order of their keys, and what has expired is found by an index.
	`
CREATE TABLE item (
	space BLOB NOT NULL, id BLOB NOT NULL, key BLOB NOT NULL,
	version BLOB NOT NULL,
	expire INTEGER NOT NULL,   -- milliseconds since 1970; 0: never
	modified INTEGER NOT NULL, -- microseconds since 1970
	type TEXT NOT NULL, metadata BLOB NOT NULL,
	value BLOB NOT NULL,
	PRIMARY KEY (space, id, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX item_expire ON item (expire) WHERE expire > 0;
`,
	// A value that was written in parts has them in part, under a name that the item has in large. They go with it.
	`
ALTER TABLE item ADD COLUMN large BLOB;
ALTER TABLE item ADD COLUMN size INTEGER NOT NULL DEFAULT 0; -- of a large value
CREATE TABLE part (
	large BLOB NOT NULL, number INTEGER NOT NULL,
	sum INTEGER NOT NULL, -- xxHash64 of data
	data BLOB NOT NULL,
	PRIMARY KEY (large, number)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER item_replaced AFTER UPDATE OF large ON item WHEN OLD.large IS NOT NULL AND OLD.large IS NOT NEW.large
	BEGIN DELETE FROM part WHERE large = OLD.large; END;
CREATE TRIGGER item_removed AFTER DELETE ON item WHEN OLD.large IS NOT NULL
	BEGIN DELETE FROM part WHERE large = OLD.large; END;
-- Large values that are being written; what is old here was never finished.
CREATE TABLE unfinished (large BLOB NOT NULL PRIMARY KEY, touched INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE token (
	space BLOB NOT NULL, id BLOB NOT NULL, nonce BLOB NOT NULL,
	request BLOB NOT NULL,
	until INTEGER NOT NULL, -- milliseconds since 1970
	result BLOB NOT NULL,
	PRIMARY KEY (space, id, nonce)
) STRICT, WITHOUT ROWID;
CREATE INDEX token_until ON token (until);
`,
}

// prepared returns the statements; the first call makes the schema. A call that fails leaves it to the next.
func (i *Instance) prepared(ctx context.Context) (*statements, error) {
	select {
	case <-i.stop:
		return nil, closedFault()
	default:
	}
	if ctx.Err() != nil {
		return nil, unsent(ctx.Err())
	}
	if s := i.ready.Load(); s != nil {
		return s, nil
	}
	select {
	case i.setup <- struct{}{}:
		defer func() { <-i.setup }()
	case <-ctx.Done():
		return nil, unsent(ctx.Err())
	case <-i.stop:
		return nil, closedFault()
	}
	if s := i.ready.Load(); s != nil {
		return s, nil
	}
	if err := i.makeSchema(ctx); err != nil {
		return nil, schemaFault(ctx, err)
	}
	s := &statements{}
	var made []*sql.Stmt
	const head = "SELECT key, version, expire, modified, type, metadata, large, " + sizeColumn
	const run = " FROM item WHERE space = ? AND id = ? AND key >= ? AND (? IS NULL OR key < ?) AND (expire = 0 OR expire > ?) ORDER BY key"
	for _, p := range []struct {
		to   **sql.Stmt
		text string
	}{
		{&s.get, head + ", value FROM item WHERE space = ? AND id = ? AND key = ?"},
		{&s.head, head + ", x'' FROM item WHERE space = ? AND id = ? AND key = ?"},
		{&s.scan, head + ", value" + run},
		{&s.scanBack, head + ", value" + run + " DESC"},
		{&s.scanHeads, head + ", x''" + run},
		{&s.scanHeadsBack, head + ", x''" + run + " DESC"},
		{&s.part, "SELECT sum, data FROM part WHERE large = ? AND number = ?"},
		{&s.ids, "SELECT id FROM item WHERE space = ? AND id > ? AND (expire = 0 OR expire > ?) ORDER BY id LIMIT 1"},
	} {
		stmt, err := i.read.PrepareContext(ctx, p.text)
		if err != nil {
			for _, m := range made {
				m.Close() // the next call makes them anew
			}
			return nil, schemaFault(ctx, err)
		}
		*p.to, made = stmt, append(made, stmt)
	}
	i.ready.Store(s)
	return s, nil
}

// makeSchema makes the file, for this user only, and the schema, unless they are there. Other processes may do the same.
func (i *Instance) makeSchema(ctx context.Context) error {
	f, err := os.OpenFile(i.path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	f.Close()
	db, err := pool(i.path, "full", 1, false)
	if err != nil {
		return err
	}
	defer db.Close()
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	version := 0
	if err := conn.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err == nil && version == len(migrations) {
		return nil
	}
	if err := insist(ctx, func() error { return exec(ctx, conn, "PRAGMA journal_mode = WAL") }); err != nil {
		return err
	}
	if err := insist(ctx, func() error { return exec(ctx, conn, "BEGIN IMMEDIATE") }); err != nil {
		return err
	}
	err = conn.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version)
	switch {
	case err != nil:
	case version > len(migrations):
		err = fault.Newf(fault.FailedPrecondition, fault.Backend, "the backend's data has format %d, this proxy knows %d", version, len(migrations))
	default:
		err = exec(ctx, conn, strings.Join(migrations[version:], "")+fmt.Sprintf("PRAGMA user_version = %d", len(migrations)))
	}
	if err != nil {
		return errors.Join(err, exec(context.WithoutCancel(ctx), conn, "ROLLBACK"))
	}
	return exec(ctx, conn, "COMMIT")
}

// insist repeats what another process keeps from happening: changing the journal mode does not wait for locks.
func insist(ctx context.Context, f func() error) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		err := f()
		if !isBusy(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wait):
		}
	}
}

func exec(ctx context.Context, conn *sql.Conn, text string) error {
	_, err := conn.ExecContext(ctx, text)
	return err
}
