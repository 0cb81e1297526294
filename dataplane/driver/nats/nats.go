// Package nats keeps items in a JetStream stream of NATS 2.11 or newer.
//
// An item is the last message of a subject of its own, <stream>.<space>.<id>.<key>, and the stream keeps one message for
// each subject. A write is read and compare-and-set: the server stores a message only if the subject's last one is still
// the one that was read, so a write knows what it replaces, and what two proxies do at once is put in order by the server.
// A removed item leaves a small message for a while, for those who watch.
//
// An item's message says until when it is visible, by the proxy's clock. The server removes it by its own clock, a grace
// later, so that clocks that differ by less hide nothing too early.
package nats

import (
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
	"time"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/shared/fault"
)

// Driver returns the driver.
func Driver() driver.Driver { return natsDriver{} }

type natsDriver struct{}

func (natsDriver) Type() string { return "nats" }

func (natsDriver) Interfaces() []string {
	return []string{
		"keyvalue", "keyvalue.counter", "keyvalue.large", "keyvalue.list", "keyvalue.scan", "keyvalue.ttl", "keyvalue.version",
		"keyvalue.watch",
	}
}

var streamName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,32}$`)

// Open needs one endpoint or more, host:port, all of one cluster. Settings: stream, the name of the stream (default
// prism-kv), which is made when it is missing; replicas, on how many servers a stream that is made is kept (default 1);
// tls, true or false (default false; true with ca_file); ca_file, a file with the certificates that the servers' are verified
// by, instead of the system's.
func (natsDriver) Open(cfg driver.Config) (driver.Instance, error) {
	if len(cfg.Endpoints) == 0 {
		return nil, fmt.Errorf("backend %s: nats takes one endpoint or more", cfg.Name)
	}
	for _, endpoint := range cfg.Endpoints {
		if _, _, err := net.SplitHostPort(endpoint); err != nil {
			return nil, fmt.Errorf("backend %s: an endpoint is not host:port", cfg.Name) // without it: the text reaches teams
		}
	}
	i := &Instance{
		config: cfg, stream: "prism-kv", replicas: 1, now: cfg.Now, stop: make(chan struct{}), stopped: make(chan struct{}),
	}
	if i.now == nil {
		i.now = time.Now
	}
	if i.config.DialTimeout <= 0 {
		i.config.DialTimeout = 5 * time.Second
	}
	for name, value := range cfg.Settings {
		var err error
		switch name {
		case "stream":
			if i.stream = value; !streamName.MatchString(value) {
				err = errors.New("want 1 to 32 of A-Z, a-z, 0-9, '-', '_'")
			}
		case "replicas":
			if i.replicas, err = strconv.Atoi(value); err != nil || (value != "1" && value != "3" && value != "5") {
				err = errors.New("want 1, 3 or 5")
			}
		case "tls":
			if i.secure = value == "true"; value != "true" && value != "false" {
				err = errors.New("want true or false")
			}
		case "ca_file":
			i.caFile = value
		default:
			return nil, fmt.Errorf("backend %s: unknown setting %q", cfg.Name, name)
		}
		if err != nil {
			return nil, fmt.Errorf("backend %s: setting %s %q: %w", cfg.Name, name, value, err)
		}
	}
	if i.caFile != "" {
		if cfg.Settings["tls"] == "false" {
			return nil, fmt.Errorf("backend %s: setting ca_file asks for TLS, which setting tls forbids", cfg.Name)
		}
		i.secure = true
	}
	i.living, i.cancel = context.WithCancel(context.Background())
	i.running.Go(i.sweeper)
	return i, nil
}

// tls is how the servers are verified. The file is read anew for each connection, so that it can be replaced.
func (i *Instance) tls() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	var err error
	if c.Certificates, err = i.config.ClientCertificates(); err != nil {
		return nil, err
	}
	if i.caFile == "" {
		return c, nil
	}
	pem, err := os.ReadFile(i.caFile)
	if err != nil {
		return nil, err
	}
	if c.RootCAs = x509.NewCertPool(); !c.RootCAs.AppendCertsFromPEM(pem) {
		return nil, errors.New("the file holds no certificate")
	}
	return c, nil
}

// Instance is one open stream.
type Instance struct {
	config   driver.Config
	stream   string
	replicas int
	secure   bool
	caFile   string
	now      func() time.Time

	mu      sync.Mutex // guards line and dialing
	line    *line      // the newest connection; nil before the first
	dialing *dial      // nil when nobody dials

	living  context.Context // ends when Close begins
	cancel  context.CancelFunc
	running sync.WaitGroup
	closing sync.Once
	stop    chan struct{} // closed when Close begins
	stopped chan struct{} // closed when nothing runs any more
}

// Ping asks for the stream, which the first call makes.
func (i *Instance) Ping(ctx context.Context) error {
	l, _, f := i.ready(ctx)
	if f == nil {
		_, f = l.describe(ctx, i.stream)
	}
	if f != nil {
		return f.WithOutcome("")
	}
	return nil
}

// Close breaks the connection. Calls under way fail.
func (i *Instance) Close() error {
	i.closing.Do(func() {
		close(i.stop)
		i.cancel()
		i.mu.Lock()
		l := i.line
		i.mu.Unlock()
		if l != nil {
			l.close()
		}
		i.running.Wait()
		close(i.stopped)
	})
	<-i.stopped
	return nil
}

// ready is the connection with its stream prepared.
func (i *Instance) ready(ctx context.Context) (*line, *target, *fault.Fault) {
	l, f := i.connected(ctx)
	if f != nil {
		return nil, nil, f
	}
	t := l.target.Load()
	if t == nil {
		t, f = l.prepared(ctx, &l.target, i.itemsConfig())
	}
	return l, t, f
}
