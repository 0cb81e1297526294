// Package postgres keeps items in PostgreSQL 13 or newer.
//
// Concurrent calls share round trips: reads and writes each have a queue, whose lines send what waits as one pipeline.
// A write is one call of a function in the database, which holds the advisory lock of its id while it looks at conditions
// and tokens. All reads come from the primary.
package postgres

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/prism-gateway/prism/dataplane/driver"
)

// Driver returns the driver.
func Driver() driver.Driver { return postgresDriver{} }

type postgresDriver struct{}

func (postgresDriver) Type() string { return "postgres" }

func (postgresDriver) Interfaces() []string {
	return []string{
		"keyvalue", "keyvalue.counter", "keyvalue.idempotency", "keyvalue.large", "keyvalue.list", "keyvalue.scan",
		"keyvalue.transact", "keyvalue.ttl", "keyvalue.version",
	}
}

// settings are what Open takes beside the endpoints.
type settings struct {
	database, schema, sslmode, caFile string
	certificates                      []tls.Certificate // to show
	statementCache                    bool
	sweep                             time.Duration
}

var schemaName = regexp.MustCompile(`^[a-z_][a-z0-9_]{0,62}$`)

func parse(cfg driver.Config) (settings, error) {
	s := settings{database: "prism", schema: "prism", sslmode: "verify-full", statementCache: true, sweep: 30 * time.Second}
	for name, value := range cfg.Settings {
		var err error
		switch name {
		case "database":
			if s.database = value; value == "" {
				return s, fmt.Errorf("backend %s: setting database is empty", cfg.Name)
			}
		case "schema":
			if s.schema = value; !schemaName.MatchString(value) {
				return s, fmt.Errorf("backend %s: setting schema %q: want a-z, 0-9 and _, at most 63", cfg.Name, value)
			}
		case "sslmode":
			if s.sslmode = value; value != "disable" && value != "require" && value != "verify-full" {
				return s, fmt.Errorf("backend %s: setting sslmode %q: want disable, require or verify-full", cfg.Name, value)
			}
		case "ca_file":
			s.caFile = value
		case "statement_cache":
			if value != "true" && value != "false" {
				return s, fmt.Errorf("backend %s: setting statement_cache %q: want true or false", cfg.Name, value)
			}
			s.statementCache = value == "true"
		case "sweep":
			if s.sweep, err = time.ParseDuration(value); err != nil || s.sweep <= 0 {
				return s, fmt.Errorf("backend %s: setting sweep %q: want a positive duration such as 30s", cfg.Name, value)
			}
		default:
			return s, fmt.Errorf("backend %s: unknown setting %q", cfg.Name, name)
		}
	}
	var err error
	s.certificates, err = cfg.ClientCertificates()
	return s, err
}

// Open needs endpoints, each host:port, of one cluster: the one that takes writes is used. Settings: database and schema
// (default prism); sslmode, verify-full (default), require or disable; ca_file, the PEM file of who signs the server's
// certificate (default: the system's); statement_cache, false behind a pooler that gives a connection for a transaction;
// sweep, how often expired items are removed (default 30s). Without a username the role is prism. The schema is made when the first call comes.
func (postgresDriver) Open(cfg driver.Config) (driver.Instance, error) {
	s, err := parse(cfg)
	if err != nil {
		return nil, err
	}
	pool, err := poolConfig(cfg, s)
	if err != nil {
		return nil, err
	}
	broke := &moment{}
	pool.ShouldPing = func(_ context.Context, c pgxpool.ShouldPingParams) bool {
		return c.IdleDuration > time.Second || broke.after(c.IdleDuration)
	}
	i := &Instance{
		schema: s.schema, now: cfg.Now, versions: driver.NewVersions(), texts: newTexts(s.schema), setup: make(chan struct{}, 1),
	}
	if i.now == nil {
		i.now = time.Now
	}
	var ctx context.Context
	ctx, i.cancel = context.WithCancel(context.Background())
	i.stop = ctx.Done()
	if i.pool, err = pgxpool.NewWithConfig(ctx, pool); err != nil {
		i.cancel()
		return nil, fmt.Errorf("backend %s: %w", cfg.Name, err)
	}
	lines := max(1, int(pool.MaxConns)*3/8)
	i.reads, i.writes = newQueue(ctx, i.pool, broke, lines, maxBatch, true), newQueue(ctx, i.pool, broke, lines, maxBatch, false)
	// What may be long goes beside them, so that short answers do not wait behind it.
	i.long = newQueue(ctx, i.pool, broke, max(1, int(pool.MaxConns)-2*lines), 1, true)
	i.running.Go(func() { i.sweeper(ctx, s.sweep) })
	return i, nil
}

// poolConfig is the SDK's configuration, of which nothing comes from the environment.
func poolConfig(cfg driver.Config, s settings) (*pgxpool.Config, error) {
	if len(cfg.Endpoints) == 0 {
		return nil, fmt.Errorf("backend %s: postgres takes one endpoint or more", cfg.Name)
	}
	pool, err := pgxpool.ParseConfig("host=localhost user=prism sslmode=disable")
	if err != nil {
		return nil, fmt.Errorf("backend %s: the environment has settings of PostgreSQL that cannot be read", cfg.Name)
	}
	c := pool.ConnConfig
	c.Fallbacks, c.RuntimeParams = nil, map[string]string{"application_name": "prism"}
	for n, endpoint := range cfg.Endpoints {
		host, text, err := net.SplitHostPort(endpoint)
		port, portErr := strconv.ParseUint(text, 10, 16)
		if err != nil || portErr != nil || host == "" {
			return nil, fmt.Errorf("backend %s: an endpoint is not host:port", cfg.Name) // without it: the text reaches teams
		}
		if n == 0 {
			c.Host, c.Port, c.TLSConfig = host, uint16(port), nil
		} else {
			c.Fallbacks = append(c.Fallbacks, &pgconn.FallbackConfig{Host: host, Port: uint16(port)})
		}
	}
	c.Database, c.User, c.Password = s.database, cmp.Or(cfg.Username, defaultRole), cfg.Password.Reveal()
	dialer := net.Dialer{Timeout: cfg.DialTimeout, KeepAlive: 30 * time.Second}
	if dialer.Timeout <= 0 {
		dialer.Timeout = 5 * time.Second
	}
	c.ConnectTimeout, c.DialFunc = dialer.Timeout, dialer.DialContext
	c.ValidateConnect = writable
	c.BuildContextWatcherHandler = func(conn *pgconn.PgConn) ctxwatch.Handler {
		return &pgconn.CancelRequestContextWatcherHandler{Conn: conn, DeadlineDelay: time.Second}
	}
	c.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
	if s.statementCache {
		c.DefaultQueryExecMode = pgx.QueryExecModeCacheStatement
		// Planning anew for each call costs more than the best plan of one partition saves.
		c.RuntimeParams["plan_cache_mode"] = "force_generic_plan"
		c.RuntimeParams["default_transaction_isolation"] = "read committed"
	}
	// The file of authorities is read for each connection: it may come or change later.
	pool.BeforeConnect = func(_ context.Context, c *pgx.ConnConfig) (err error) {
		if c.TLSConfig, err = tlsConfig(s, c.Host); err != nil {
			return err
		}
		for _, f := range c.Fallbacks {
			if f.TLSConfig, err = tlsConfig(s, f.Host); err != nil {
				return err
			}
		}
		return nil
	}
	pool.MaxConns = defaultConnections
	if cfg.MaxConnections > 0 {
		pool.MaxConns = int32(min(cfg.MaxConnections, 1000))
	}
	return pool, nil
}

// defaultRole is the role of a backend without a credential, which the server has to trust.
const defaultRole = "prism"

// defaultConnections are enough for three lines of reads, three of writes, and scans.
const defaultConnections = 8

func tlsConfig(s settings, host string) (*tls.Config, error) {
	switch s.sslmode {
	case "disable":
		return nil, nil
	case "require":
		return &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12, Certificates: s.certificates}, nil
	}
	secure := &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12, Certificates: s.certificates}
	if s.caFile != "" {
		pem, err := os.ReadFile(s.caFile)
		if err != nil {
			return nil, errors.New("the file of setting ca_file cannot be read")
		}
		if secure.RootCAs = x509.NewCertPool(); !secure.RootCAs.AppendCertsFromPEM(pem) {
			return nil, errors.New("the file of setting ca_file holds no certificate")
		}
	}
	return secure, nil
}

// writable refuses a server that is a standby or set to read-only.
func writable(ctx context.Context, conn *pgconn.PgConn) error {
	results, err := conn.Exec(ctx, "SHOW transaction_read_only").ReadAll()
	if err != nil {
		return err
	}
	if len(results) != 1 || len(results[0].Rows) != 1 || string(results[0].Rows[0][0]) != "off" {
		return errReadOnly
	}
	return nil
}

// Instance is one open database.
type Instance struct {
	schema   string
	now      func() time.Time
	versions *driver.Versions
	texts    *texts
	pool     *pgxpool.Pool
	reads    *queue
	writes   *queue
	long     *queue // of scans, lists and parts

	setup chan struct{} // held by who prepares
	ready atomic.Bool   // the schema is there

	running sync.WaitGroup
	closing sync.Once
	cancel  context.CancelFunc
	stop    <-chan struct{} // closed when Close begins
}

// Ping reads from the database.
func (i *Instance) Ping(ctx context.Context) error {
	_, err := i.Get(ctx, "", driver.Name{}, true)
	return err
}

// Close breaks off what is under way and closes the connections.
func (i *Instance) Close() error {
	i.closing.Do(func() {
		i.cancel()
		<-i.reads.stopped
		<-i.writes.stopped
		<-i.long.stopped
		i.running.Wait()
		i.pool.Close()
	})
	return nil
}
