// Package embedded runs an etcd of one member inside the program, on loopback, for an installation on one machine.
package embedded

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/url"
	"os"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"github.com/prism-gateway/prism/controlplane/store"
)

// Config configures a Server.
type Config struct {
	// Dir is where the data is kept, required. It must not be in use.
	Dir string
	// Quota is how large the database may become, in bytes; default 8 GiB.
	Quota int64
	// Volatile gives up durability for speed: nothing is synced to disk. It is for tests.
	Volatile bool
	// StartTimeout bounds the start; default 30 s, because a large database is read at first.
	StartTimeout time.Duration
	// Log takes etcd's warnings and errors; default slog.Default().
	Log *slog.Logger
}

// Server is a running etcd.
type Server struct {
	etcd   *embed.Etcd
	closed *atomic.Bool
	fresh  bool
}

// attempts is how often other ports are tried when a stranger took one between its choice and its use.
const attempts = 5

// Start starts an etcd and returns once it answers.
func Start(cfg Config) (*Server, error) {
	if cfg.Dir == "" {
		return nil, errors.New("embedded: Config.Dir is required")
	}
	cfg.Quota = cmp.Or(cfg.Quota, 8<<30)
	cfg.StartTimeout = cmp.Or(cfg.StartTimeout, 30*time.Second)
	cfg.Log = cmp.Or(cfg.Log, slog.Default())
	_, err := os.Stat(cfg.Dir)
	fresh := errors.Is(err, fs.ErrNotExist)
	for range attempts {
		var server *Server
		if server, err = start(cfg); err == nil {
			server.fresh = fresh
			return server, nil
		}
		var clash *net.OpError
		if !errors.As(err, &clash) || clash.Op != "listen" {
			break
		}
	}
	return nil, fmt.Errorf("embedded: etcd in %s: %w", cfg.Dir, err)
}

func start(cfg Config) (*Server, error) {
	urls, err := freeURLs(2)
	if err != nil {
		return nil, err
	}
	closed := &atomic.Bool{}
	c := embed.NewConfig()
	c.Dir = cfg.Dir
	c.Name = "prism"
	c.ListenClientUrls, c.AdvertiseClientUrls = urls[:1], urls[:1]
	c.ListenPeerUrls, c.AdvertisePeerUrls = urls[1:], urls[1:]
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	c.StrictReconfigCheck = false // the peer address, which nobody uses, is another at each start
	c.TickMs, c.ElectionMs = 50, 500
	c.QuotaBackendBytes = cfg.Quota
	c.UnsafeNoFsync = cfg.Volatile
	c.EnableGRPCGateway = false
	c.BootstrapDefragThresholdMegabytes = 256
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.New(newCore(cfg.Log, closed)))
	etcd, err := embed.StartEtcd(c)
	if err != nil {
		return nil, err
	}
	s := &Server{etcd: etcd, closed: closed}
	timeout := time.NewTimer(cfg.StartTimeout)
	defer timeout.Stop()
	select {
	case <-etcd.Server.ReadyNotify():
		return s, nil
	case err := <-etcd.Err():
		return nil, errors.Join(err, s.Close())
	case <-timeout.C:
		return nil, errors.Join(fmt.Errorf("not ready after %v", cfg.StartTimeout), s.Close())
	}
}

// freeURLs returns addresses on loopback that were free a moment ago: etcd must be told its ports.
func freeURLs(n int) ([]url.URL, error) {
	var urls []url.URL
	var held []io.Closer
	defer func() {
		for _, c := range held {
			c.Close()
		}
	}()
	for range n {
		l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		held = append(held, l)
		urls = append(urls, url.URL{Scheme: "http", Host: l.Addr().String()})
	}
	return urls, nil
}

// Fresh reports whether Config.Dir did not exist before: there was no data, so none was lost.
func (s *Server) Fresh() bool { return s.fresh }

// Endpoint is the host:port at which clients connect.
func (s *Server) Endpoint() string { return s.etcd.Clients[0].Addr().String() }

// Client returns a new client, which the caller closes before the server.
func (s *Server) Client() (*clientv3.Client, error) {
	return store.Dial(store.DialConfig{Endpoints: []string{s.Endpoint()}})
}

// Err delivers an error when etcd stops by itself.
func (s *Server) Err() <-chan error { return s.etcd.Err() }

// Close stops etcd and returns once it has. It may be called more than once.
func (s *Server) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	s.etcd.Close()
	return nil
}
