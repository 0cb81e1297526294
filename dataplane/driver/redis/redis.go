// Package redis keeps items in Redis 6.2 or newer.
//
// An item is one string key that holds a header and the value, so that a Get is one GET. All keys of an id share a hash
// tag, so they are in one slot, and one sorted set per id holds its keys in byte order for Scan. Writes are one script
// each: it checks the condition and writes item and index together.
//
// An item's header says until when it is visible, by the proxy's clock. Redis removes it by its own clock, a grace
// later, so that clocks that differ by less hide nothing too early.
package redis

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/prism-gateway/prism/dataplane/driver"
)

// Driver returns the driver.
func Driver() driver.Driver { return redisDriver{} }

type redisDriver struct{}

func (redisDriver) Type() string { return "redis" }

func (redisDriver) Interfaces() []string {
	return []string{
		"keyvalue", "keyvalue.counter", "keyvalue.idempotency", "keyvalue.list", "keyvalue.scan", "keyvalue.transact",
		"keyvalue.ttl", "keyvalue.version",
	}
}

// Open needs one endpoint, host:port. Settings: database, the number of the logical database (default 0).
func (redisDriver) Open(cfg driver.Config) (driver.Instance, error) {
	if len(cfg.Endpoints) != 1 {
		return nil, fmt.Errorf("backend %s: redis takes one endpoint, got %d", cfg.Name, len(cfg.Endpoints))
	}
	if _, _, err := net.SplitHostPort(cfg.Endpoints[0]); err != nil {
		return nil, fmt.Errorf("backend %s: the endpoint is not host:port", cfg.Name) // without it: the text reaches teams
	}
	database := 0
	for name, value := range cfg.Settings {
		if name != "database" {
			return nil, fmt.Errorf("backend %s: unknown setting %q", cfg.Name, name)
		}
		var err error
		if database, err = strconv.Atoi(value); err != nil || database < 0 {
			return nil, fmt.Errorf("backend %s: setting database %q: want a number from 0", cfg.Name, value)
		}
	}
	lines := cfg.MaxConnections
	if lines <= 0 {
		lines = defaultLines
	}
	dialer := net.Dialer{Timeout: cfg.DialTimeout, KeepAlive: 30 * time.Second}
	if dialer.Timeout <= 0 {
		dialer.Timeout = 5 * time.Second
	}
	quiet()
	client := redis.NewClient(&redis.Options{
		Addr: cfg.Endpoints[0], DB: database, Username: cfg.Username, Password: cfg.Password.Reveal(),
		Dialer: func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, network, addr)
			if err != nil {
				return nil, dialError{err}
			}
			return conn, nil
		},
		DialTimeout: dialer.Timeout, DialerRetries: 1, MaxRetries: -1,
		ReadTimeout: maxWait, WriteTimeout: maxWait, ContextTimeoutEnabled: true,
		// A line uses one connection at a time, so there are never more than lines. The pool's own limit is higher
		// because after as many failed dials it tries only once a second.
		PoolSize: max(lines, 64), PipelinePoolSize: -1, ReadBufferSize: 64 << 10, WriteBufferSize: 64 << 10,
		Protocol: 2, DisableIdentity: true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
	i := &Instance{now: cfg.Now, client: client, versions: driver.NewVersions(), queue: newQueue(client, lines)}
	if i.now == nil {
		i.now = time.Now
	}
	return i, nil
}

// maxWait bounds a command that has no deadline.
const maxWait = 5 * time.Second

// quiet keeps the SDK from writing to standard error what the faults tell.
var quiet = sync.OnceFunc(func() { redis.SetLogger(silent{}) })

type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}

// Instance is one open Redis.
type Instance struct {
	now      func() time.Time
	client   *redis.Client
	versions *driver.Versions
	queue    *queue
	closing  sync.Once
}

// Ping asks for a sign of life.
func (i *Instance) Ping(ctx context.Context) error {
	return i.read(ctx, redis.NewStatusCmd(ctx, "ping"))
}

// Close breaks the connections. Calls under way fail.
func (i *Instance) Close() error {
	i.closing.Do(func() { i.queue.close() })
	return nil
}

// read performs a command that changes nothing.
func (i *Instance) read(ctx context.Context, cmd redis.Cmder) error {
	if f := i.queue.do(ctx, cmd); f != nil {
		return f.WithOutcome("")
	}
	return nil
}
