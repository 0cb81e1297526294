package dataapi_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/prism-gateway/prism/dataplane/assembly"
	"github.com/prism-gateway/prism/dataplane/assembly/statetest"
	callers "github.com/prism-gateway/prism/dataplane/caller"
	"github.com/prism-gateway/prism/dataplane/dataapi"
	"github.com/prism-gateway/prism/dataplane/driver/builtin"
	"github.com/prism-gateway/prism/dataplane/forward"
	"github.com/prism-gateway/prism/dataplane/frame"
	"github.com/prism-gateway/prism/dataplane/pool"
	"github.com/prism-gateway/prism/dataplane/routing"
	"github.com/prism-gateway/prism/dataplane/session"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/fault/faultgrpc"
	"github.com/prism-gateway/prism/shared/testserver/natsserver"
	"github.com/prism-gateway/prism/shared/testserver/postgresserver"
	"github.com/prism-gateway/prism/shared/testserver/redisserver"
	"github.com/prism-gateway/prism/shared/testserver/s3server"
)

// proxy is a data plane without a subscription: the test gives it states.
type proxy struct {
	*assembly.Assembler
	routes  *routing.Routes
	pools   *pool.Set
	forward *forward.Forwarder
	api     *dataapi.Server
	address string
	conn    *grpc.ClientConn
	client  datav1.KeyValueClient
	server  *grpc.Server
	log     *bytes.Buffer
}

// clock is a proxy's clock that a test can move.
type clock struct {
	mu    sync.Mutex // guards shift
	shift time.Duration
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.shift)
}

func (c *clock) move(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.shift += d
}

// startProxy serves on loopback until the test ends.
func startProxy(t testing.TB, id string, c *clock, alter ...func(*dataapi.Config)) *proxy {
	t.Helper()
	if c == nil {
		c = &clock{}
	}
	p := &proxy{routes: routing.New(nil), forward: forward.New(forward.Config{}), log: &bytes.Buffer{}}
	log := slog.New(slog.NewJSONHandler(p.log, nil))
	var err error
	if p.pools, err = pool.New(pool.Config{Drivers: builtin.Drivers(), Now: c.now}); err != nil {
		t.Fatal(err)
	}
	if p.Assembler, err = assembly.New(assembly.Config{
		Self: id, Routes: p.routes, Pools: p.pools, Logger: log, Now: c.now, Published: func(table *routing.Table) { p.forward.Keep(table.Fleet()) },
	}); err != nil {
		t.Fatal(err)
	}
	metrics, err := dataapi.NewMetrics(prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	sessions, err := session.New(session.Config{})
	if err != nil {
		t.Fatal(err)
	}
	api := dataapi.Config{Routes: p.routes, Forward: p.forward, Callers: callers.New(callers.Config{Self: id}), Sessions: sessions, Metrics: metrics}
	for _, change := range alter {
		change(&api)
	}
	p.api, err = dataapi.New(api)
	if err != nil {
		t.Fatal(err)
	}
	p.server = grpc.NewServer(grpc.ForceServerCodecV2(frame.NewCodec()), grpc.MaxRecvMsgSize(dataapi.MaxFrameBytes), grpc.UnknownServiceHandler(p.api.Unknown),
		grpc.UnaryInterceptor(faultgrpc.Unary(log)), grpc.StreamInterceptor(faultgrpc.Stream(log)))
	p.api.Register(p.server)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.address = listener.Addr().String()
	done := make(chan error, 1)
	go func() { done <- p.server.Serve(listener) }()
	if p.conn, err = grpc.NewClient("passthrough:///"+p.address, grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		t.Fatal(err)
	}
	p.client = datav1.NewKeyValueClient(p.conn)
	t.Cleanup(func() {
		_ = p.conn.Close()
		p.server.Stop()
		if err := <-done; err != nil && !errors.Is(err, grpc.ErrServerStopped) { // a short test ends before it serves
			t.Errorf("serve: %v", err)
		}
		p.forward.Close()
		p.pools.Close()
	})
	return p
}

func (p *proxy) member(id string) *configv1.Member {
	return &configv1.Member{Id: id, Address: p.address}
}

// apply puts a state into effect, of which nothing may be refused.
func (p *proxy) apply(t testing.TB, s *statetest.Builder) {
	t.Helper()
	if refused := p.Apply(t.Context(), s.State()); len(refused) != 0 {
		t.Fatalf("refused: %v", refused)
	}
}

// store is one of the backends that every case runs against.
type store struct {
	name    string
	backend *configv1.Backend
	redis   *redisserver.Server // nil for others
}

func stores(t testing.TB) []store {
	t.Helper()
	r := redisserver.Start(t, redisserver.Options{})
	n := natsserver.Start(t, natsserver.Options{})
	p := postgresserver.Start(t, postgresserver.Options{Trust: "prism"})
	o := s3server.Start(t, s3server.Options{Public: true})
	return []store{
		{name: "memory", backend: &configv1.Backend{Name: "memory-main", Type: "memory"}},
		{name: "sqlite", backend: &configv1.Backend{Name: "sqlite-main", Type: "sqlite", Endpoints: []string{filepath.Join(t.TempDir(), "data.db")}}},
		{name: "redis", backend: &configv1.Backend{Name: "redis-main", Type: "redis", Endpoints: []string{r.Addr()}}, redis: r},
		{name: "nats", backend: &configv1.Backend{Name: "nats-main", Type: "nats", Endpoints: []string{n.Addr()}}},
		{name: "postgres", backend: &configv1.Backend{
			Name: "postgres-main", Type: "postgres", Endpoints: []string{p.Addr()}, Config: map[string]string{"database": "postgres", "sslmode": "disable"},
		}},
		{name: "s3", backend: &configv1.Backend{
			Name: "s3-main", Type: "s3", Endpoints: []string{o.Addr()}, Config: map[string]string{"bucket": s3server.Bucket, "tls": "false"},
		}},
	}
}

// fails checks an error's code, reason and outcome, which are empty where they do not matter.
func fails(t testing.TB, err error, code fault.Code, reason fault.Reason, outcome fault.Outcome) *fault.Fault {
	t.Helper()
	if err == nil {
		t.Fatalf("no error; want %s", reason)
	}
	f := faultgrpc.FromStatus(err)
	if f.Code != code || f.Reason != reason || f.Outcome != outcome {
		t.Fatalf("code %d, reason %q, outcome %q (%v); want %d, %q, %q", f.Code, f.Reason, f.Outcome, err, code, reason, outcome)
	}
	return f
}

func must[T any](t testing.TB) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// caller calls one namespace.
type caller struct {
	t         testing.TB
	ctx       context.Context
	client    datav1.KeyValueClient
	namespace string
}

func (c caller) put(id, key, value string) *datav1.PutResponse {
	c.t.Helper()
	return must[*datav1.PutResponse](c.t)(c.client.Put(c.ctx, &datav1.PutRequest{Namespace: c.namespace, Id: []byte(id), Key: []byte(key), Value: []byte(value)}))
}

func (c caller) get(id, key string) *datav1.Item {
	c.t.Helper()
	return must[*datav1.GetResponse](c.t)(c.client.Get(c.ctx, &datav1.GetRequest{Namespace: c.namespace, Id: []byte(id), Key: []byte(key)})).GetItem()
}

func (c caller) has(id, key, value string) {
	c.t.Helper()
	if got := c.get(id, key); got == nil || string(got.GetValue()) != value {
		c.t.Fatalf("%q/%q is %v, want %q", id, key, got, value)
	}
}

// errorOf is the error that a status in an answer stands for.
func errorOf(st *spb.Status) error { return status.ErrorProto(st) }
