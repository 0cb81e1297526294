package audit

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/prism-gateway/prism/dataplane/credential"
	"github.com/prism-gateway/prism/shared/auditchain"
)

const (
	connectFor = 5 * time.Second
	// writeFor bounds one try to write a batch. What was not answered is asked for again: see Write.
	writeFor = 20 * time.Second
	// migrating is the advisory lock of those who make the table.
	migrating = 0x70_72_69_73_6d_61_75_64
)

// migration makes the table, which takes new records only, and a view with their fields. A record stands there as in a file,
// byte by byte, for its hash is over those bytes.
const migration = `
CREATE TABLE prism_access_line (
	chain  text   NOT NULL,
	number bigint NOT NULL,
	line   text   NOT NULL,
	PRIMARY KEY (chain, number)
);
CREATE FUNCTION prism_access_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	RAISE EXCEPTION 'records of access are neither changed nor removed' USING ERRCODE = 'insufficient_privilege';
END $$;
CREATE TRIGGER prism_access_kept BEFORE UPDATE OR DELETE ON prism_access_line FOR EACH ROW EXECUTE FUNCTION prism_access_refuse();
CREATE TRIGGER prism_access_all_kept BEFORE TRUNCATE ON prism_access_line FOR EACH STATEMENT EXECUTE FUNCTION prism_access_refuse();
CREATE VIEW prism_access AS
	SELECT chain AS proxy, number, (r->>'time')::timestamptz AS time, r->>'principal' AS principal, r->>'kind' AS kind, r->>'session' AS session,
		r->>'namespace' AS namespace, r->>'operation' AS operation, r->>'backend' AS backend, r->>'result' AS result, r->>'reason' AS reason,
		(r->>'latency_us')::bigint AS latency_us, r->>'request_id' AS request_id, r->>'config_version' AS config_version
	FROM (SELECT chain, number, line::jsonb->'record' AS r FROM prism_access_line) AS records;
`

// PostgresConfig makes a Postgres. Endpoint and Proxy are required.
type PostgresConfig struct {
	// Endpoint is host:port, Database its database; empty means prism.
	Endpoint, Database string
	// CAFile has the authorities of the server's certificate, PEM; empty means without TLS.
	CAFile string
	// Proxy is the proxy's id, which names the chain.
	Proxy string
	// Credential opens the database; nil: the role prism without a password. It is asked until it answers, once.
	Credential func(ctx context.Context) (*credential.Handle, error)
}

// Postgres keeps records in a table of PostgreSQL, which it makes where there is none.
type Postgres struct {
	cfg        PostgresConfig
	host       string
	port       uint16
	handle     *credential.Handle
	generation uint64    // of the credential that conn was opened with
	conn       *pgx.Conn // nil: none
	next       uint64    // the number of the record that comes next
}

// NewPostgres makes the sink. It does no I/O.
func NewPostgres(cfg PostgresConfig) (*Postgres, error) {
	host, text, err := net.SplitHostPort(cfg.Endpoint)
	port, portErr := strconv.ParseUint(text, 10, 16)
	if err != nil || portErr != nil || host == "" {
		return nil, fmt.Errorf("audit: endpoint %q: want host:port", cfg.Endpoint)
	}
	if cfg.CAFile == "" && host != "localhost" && !net.ParseIP(host).IsLoopback() {
		return nil, fmt.Errorf("audit: %s is on another machine: set ca_file, the authorities of its certificate", cfg.Endpoint)
	}
	cfg.Database = cmp.Or(cfg.Database, "prism")
	return &Postgres{cfg: cfg, host: host, port: uint16(port)}, nil
}

// Open makes the table and finds the newest record.
func (p *Postgres) Open(ctx context.Context) (number uint64, hash string, err error) {
	ctx, cancel := context.WithTimeout(ctx, writeFor)
	defer cancel()
	conn, err := p.connect(ctx)
	if err != nil {
		return 0, "", err
	}
	if err := migrate(ctx, conn); err != nil {
		return 0, "", fmt.Errorf("the table of the records cannot be made: %w", err)
	}
	var line string
	err = conn.QueryRow(ctx, "SELECT line FROM prism_access_line WHERE chain = $1 ORDER BY number DESC LIMIT 1", p.cfg.Proxy).Scan(&line)
	if err == nil {
		var v auditchain.Verifier
		if _, err = v.Line([]byte(line)); err != nil {
			return 0, "", fmt.Errorf("the newest record of %s: %w; look into it", p.cfg.Proxy, err)
		}
		number, hash = v.State()
	}
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return 0, "", err
	}
	p.next = number + 1
	return number, hash, nil
}

func migrate(ctx context.Context, conn *pgx.Conn) error {
	there := func(from interface {
		QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	}) (is bool, err error) {
		return is, from.QueryRow(ctx, "SELECT to_regclass('prism_access_line') IS NOT NULL").Scan(&is)
	}
	if is, err := there(conn); is || err != nil {
		return err
	}
	tx, err := conn.Begin(ctx)
	if err != nil {
		return err
	}
	defer tx.Rollback(context.WithoutCancel(ctx)) // after a commit it does nothing
	if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1)", int64(migrating)); err != nil {
		return err
	}
	if is, err := there(tx); is || err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, migration); err != nil {
		return err
	}
	return tx.Commit(ctx)
}

// Write adds lines in one statement. What was there already, from a former try whose answer got lost, stays; if it is not the
// same somebody else writes the proxy's chain, and nothing is written any more.
func (p *Postgres) Write(ctx context.Context, lines [][]byte) error {
	ctx, cancel := context.WithTimeout(ctx, writeFor)
	defer cancel()
	conn, err := p.connect(ctx)
	if err != nil {
		return err
	}
	texts := make([]string, len(lines))
	for n, line := range lines {
		texts[n] = string(bytes.TrimSuffix(line, []byte("\n")))
	}
	done, err := conn.Exec(ctx, `INSERT INTO prism_access_line (chain, number, line)
		SELECT $1, $2 + n - 1, line FROM unnest($3::text[]) WITH ORDINALITY AS l(line, n) ON CONFLICT DO NOTHING`, p.cfg.Proxy, int64(p.next), texts)
	if err != nil {
		p.broken(err)
		return err
	}
	if int(done.RowsAffected()) < len(lines) {
		var same int
		if err := conn.QueryRow(ctx, `SELECT count(*) FROM prism_access_line JOIN unnest($3::text[]) WITH ORDINALITY AS l(line, n)
			ON chain = $1 AND number = $2 + n - 1 AND prism_access_line.line = l.line`, p.cfg.Proxy, int64(p.next), texts).Scan(&same); err != nil {
			p.broken(err)
			return err
		}
		if same < len(lines) {
			return fmt.Errorf("the chain of %s has other records from number %d on: another proxy of this id writes there", p.cfg.Proxy, p.next)
		}
	}
	p.next += uint64(len(lines))
	return nil
}

// broken lets a connection go that cannot be used any more.
func (p *Postgres) broken(err error) {
	if _, told := errors.AsType[*pgconn.PgError](err); !told || p.conn.IsClosed() {
		_ = p.Close()
	}
}

// Close closes the connection.
func (p *Postgres) Close() error {
	if p.conn == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	err := p.conn.Close(ctx)
	p.conn = nil
	return err
}

// connect returns the connection, of the newest credential.
func (p *Postgres) connect(ctx context.Context) (*pgx.Conn, error) {
	var c credential.Credential
	if p.cfg.Credential != nil {
		if p.handle == nil {
			handle, err := p.cfg.Credential(ctx)
			if err != nil {
				return nil, err
			}
			p.handle = handle
		}
		current := p.handle.Current()
		if current == nil {
			return nil, p.handle.Err()
		}
		c = *current
	}
	if p.conn != nil && !p.conn.IsClosed() && c.Generation == p.generation {
		return p.conn, nil
	}
	_ = p.Close()
	if p.handle != nil && c.Generation > 1 {
		p.handle.Retire(c.Generation - 1)
	}
	ctx, cancel := context.WithTimeout(ctx, connectFor)
	defer cancel()
	cfg, err := p.config(c)
	if err != nil {
		return nil, err
	}
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		if e, ok := errors.AsType[*pgconn.PgError](err); ok && p.handle != nil && e.Code[:2] == "28" {
			p.handle.Refused(c.Generation)
		}
		return nil, withoutUser(err)
	}
	p.conn, p.generation = conn, c.Generation
	return conn, nil
}

// withoutUser is an error that does not name the user: logs do not.
func withoutUser(err error) error {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return fmt.Errorf("PostgreSQL refuses the connection: SQLSTATE %s", e.Code)
	}
	if inner := errors.Unwrap(err); inner != nil {
		return fmt.Errorf("connecting to PostgreSQL: %w", inner)
	}
	return err
}

func (p *Postgres) config(c credential.Credential) (*pgx.ConnConfig, error) {
	cfg, err := pgx.ParseConfig("host=localhost user=prism sslmode=disable")
	if err != nil {
		return nil, errors.New("the environment has settings of PostgreSQL that cannot be read")
	}
	cfg.Host, cfg.Port, cfg.Fallbacks, cfg.Database = p.host, p.port, nil, p.cfg.Database
	cfg.User, cfg.Password = cmp.Or(c.Username, "prism"), c.Password.Reveal()
	// What is acknowledged is on the disk, whatever the database's own setting.
	cfg.RuntimeParams = map[string]string{"application_name": "prism-audit", "synchronous_commit": "on"}
	cfg.ConnectTimeout, cfg.DialFunc = connectFor, (&net.Dialer{KeepAlive: 30 * time.Second}).DialContext
	if p.cfg.CAFile == "" {
		return cfg, nil
	}
	pem, err := os.ReadFile(p.cfg.CAFile)
	if err != nil {
		return nil, err
	}
	cfg.TLSConfig = &tls.Config{ServerName: p.host, MinVersion: tls.VersionTLS12, RootCAs: x509.NewCertPool()}
	if !cfg.TLSConfig.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate", p.cfg.CAFile)
	}
	return cfg, nil
}
