// Package server composes prism-proxy: what it is made of, in which order it starts, and in which order it stops.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"

	"github.com/prism-gateway/prism/dataplane/assembly"
	"github.com/prism-gateway/prism/dataplane/audit"
	"github.com/prism-gateway/prism/dataplane/caller"
	"github.com/prism-gateway/prism/dataplane/dataapi"
	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/dataplane/forward"
	"github.com/prism-gateway/prism/dataplane/frame"
	"github.com/prism-gateway/prism/dataplane/pool"
	"github.com/prism-gateway/prism/dataplane/routing"
	"github.com/prism-gateway/prism/dataplane/session"
	"github.com/prism-gateway/prism/dataplane/subscribe"
	bootstrapv1 "github.com/prism-gateway/prism/protos/prism/bootstrap/v1"
	"github.com/prism-gateway/prism/shared/fault/faultgrpc"
	"github.com/prism-gateway/prism/shared/ident"
	"github.com/prism-gateway/prism/shared/lifecycle"
	"github.com/prism-gateway/prism/shared/settings"
	"github.com/prism-gateway/prism/shared/telemetry"
	"github.com/prism-gateway/prism/shared/telemetry/trace"
)

const (
	// closing is what stopping may take after calls under way are finished or cut off.
	closing = 4 * time.Second
	// maxStreams bounds the calls under way on one connection; other proxies forward all theirs on one.
	maxStreams = 10000
)

// The conditions of readiness.
const (
	conditionAssignment = "assignment"
	conditionPartitions = "partitions"
	conditionServing    = "serving"
	conditionInsecure   = "insecure_listen"
	conditionValidator  = "validator"
	conditionForeign    = "installation"
)

// Config makes a Server.
type Config struct {
	// Settings are complete, as settings.LoadProxy returns them. Required.
	Settings *bootstrapv1.ProxyConfig
	// Drivers are all drivers of the build. Required.
	Drivers []driver.Driver
	// Tracer makes a span of each change that came into effect; nil makes none.
	Tracer *trace.Tracer
	// Logger is required.
	Logger *slog.Logger
}

// Server is one proxy.
type Server struct {
	cfg      Config
	started  chan struct{}
	address  string
	http     string
	draining atomic.Bool
	ready    *lifecycle.Readiness
	routes   *routing.Routes
	pools    *pool.Set
	metrics  *dataapi.Metrics
	assembly *assembly.Assembler
	forward  *forward.Forwarder
	health   *health.Server
	client   *subscribe.Client // set by Run before anything runs
	registry *prometheus.Registry
	rate     rate
	since    time.Time // when the proxy was made, from which on calls are counted

	connections *connections
	identity    identity
	abilities   *capabilities // nil: no provider can be asked
	audit       *audit.Log    // nil: accesses are not recorded
	callers     *caller.Finder
	sessions    *session.Manager
}

// New puts the proxy together. It does no I/O.
func New(cfg Config) (*Server, error) {
	if cfg.Settings == nil || len(cfg.Drivers) == 0 || cfg.Logger == nil {
		return nil, errors.New("server: Settings, Drivers and Logger are required")
	}
	if err := errors.Join(
		settings.CheckLoopback(cfg.Settings.GetListen(), settings.Exposed(cfg.Settings)), settings.CheckLoopback(cfg.Settings.GetHttpListen(), cfg.Settings.GetInsecureListen()),
	); err != nil {
		return nil, err
	}
	s := &Server{
		cfg: cfg, started: make(chan struct{}), routes: routing.New(nil),
		ready: lifecycle.NewReadiness(conditionAssignment, conditionPartitions, conditionServing), health: health.NewServer(),
		registry: telemetry.NewRegistry(), since: time.Now(),
	}
	s.ready.NotReady(conditionAssignment, "no control plane has answered yet, and no state is on disk")
	s.health.SetServingStatus("", healthv1.HealthCheckResponse_NOT_SERVING)
	if err := s.newIdentity(); err != nil {
		return nil, err
	}
	if err := s.newAudit(); err != nil {
		return nil, err
	}
	s.connections = &connections{TransportCredentials: s.identity.serve(cfg.Settings.GetTls())}
	who := caller.Config{Self: cfg.Settings.GetId(), Own: s.identity.caller(cfg.Settings.GetId())}
	if s.identity.own != nil {
		who.Believe = s.identity.own.Verify
	}
	if s.identity.tokens != nil {
		who.Tokens = s.identity.tokens
	}
	s.callers = caller.New(who)
	s.forward = forward.New(forward.Config{Callers: s.callers, DialOptions: s.identity.dial()})
	var err error
	if s.sessions, err = session.New(session.Config{Max: int(cfg.Settings.GetAuthentication().GetMaxSessions()), Registerer: s.registry}); err != nil {
		return nil, err
	}
	opened := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "prism_session_middleware_creation_duration", Help: "Seconds until a caller's credential and its first connection pool were there.",
		Buckets: prometheus.ExponentialBuckets(0.001, 2, 16),
	})
	if err := s.registry.Register(opened); err != nil {
		return nil, err
	}
	pools := pool.Config{
		Opened: opened, Drivers: cfg.Drivers, Changed: func() { s.client.Notify() },
		MaxPerBackend: int(cfg.Settings.GetCredentials().GetMaxConnectionsPerBackend()), IdleTimeout: cfg.Settings.GetCredentials().GetIdleTimeout().AsDuration(),
	}
	if s.identity.source != nil {
		pools.Source = s.identity.source
	}
	if s.pools, err = pool.New(pools); err != nil {
		return nil, err
	}
	if s.assembly, err = assembly.New(assembly.Config{
		Self: cfg.Settings.GetId(), Routes: s.routes, Pools: s.pools, Issuers: s.identity.knows, Providers: s.identity.addresses,
		Audits:    cfg.Settings.GetAudit() != nil,
		Published: s.published, Logger: cfg.Logger,
	}); err != nil {
		return nil, err
	}
	if s.metrics, err = dataapi.NewMetrics(s.registry); err != nil {
		return nil, err
	}
	if s.abilities, err = s.newCapabilities(); err != nil {
		return nil, err
	}
	return s, s.registry.Register(&collector{server: s})
}

// Started is closed when the addresses are known and calls are accepted.
func (s *Server) Started() <-chan struct{} { return s.started }

// Address is host:port of the data services, after Started.
func (s *Server) Address() string { return s.address }

// HTTPAddress is host:port of metrics and readiness, after Started.
func (s *Server) HTTPAddress() string { return s.http }

// Run serves until ctx is done, then reports that it is leaving, lets calls under way finish, and closes what is open.
func (s *Server) Run(ctx context.Context) error {
	c := s.cfg.Settings
	if err := s.identity.load(ctx, c.GetId()); err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	listener, err := net.Listen("tcp", c.GetListen())
	if err != nil {
		return fmt.Errorf("data services: %w", err)
	}
	httpListener, err := net.Listen("tcp", c.GetHttpListen())
	if err != nil {
		_ = listener.Close() // nothing was accepted yet
		return fmt.Errorf("http: %w", err)
	}
	s.address, s.http = listener.Addr().String(), httpListener.Addr().String()
	group, err := s.compose(listener, httpListener)
	if err != nil {
		_, _ = listener.Close(), httpListener.Close() // the error of composing is the one that matters
		return err
	}
	if c.GetInsecureListen() {
		s.ready.Ready(conditionInsecure)
		s.cfg.Logger.Warn("insecure_listen is set: whoever reaches the addresses can read and write all data", telemetry.KeyAddress, s.address)
	}
	s.cfg.Logger.Info("the proxy starts", telemetry.KeyProxy, c.GetId(), telemetry.KeyAddress, s.address, "admin_endpoints", c.GetAdminEndpoints(), telemetry.KeyVersion, telemetry.Version)
	close(s.started)
	err = group.Run(ctx)
	s.cfg.Logger.Info("the proxy has stopped", telemetry.KeyProxy, c.GetId())
	return err
}

// compose makes the parts, which start in this order and stop in reverse: the last to start is the data services, so
// they are the first to drain, while everything that calls under way need is still there.
func (s *Server) compose(listener, httpListener net.Listener) (*lifecycle.Group, error) {
	c := s.cfg.Settings
	if c.GetValidator() {
		s.ready.NotReady(conditionValidator, "the proxy is a validator: it compiles what it is sent and takes no calls")
	}
	advertise := c.GetAdvertise()
	if advertise == "" {
		advertise = s.address
	}
	var err error
	if s.client, err = subscribe.New(subscribe.Config{
		Endpoints: c.GetAdminEndpoints(),
		Node:      subscribe.Node{ID: c.GetId(), Address: advertise, Labels: c.GetLabels(), Build: telemetry.Version, Validator: c.GetValidator()},
		StateDir:  c.GetStateDir(), ReleaseDelay: c.GetReleaseDelay().AsDuration(),
		Apply: s.assembly.Apply, Check: s.assembly.Check, Foreign: s.foreign, Facts: facts{s}, Registerer: s.registry, Tracer: s.cfg.Tracer, Logger: s.cfg.Logger,
		DialOptions: s.identity.admin(),
	}); err != nil {
		return nil, err
	}
	api, err := dataapi.New(dataapi.Config{
		Routes: s.routes, Forward: s.forward, Callers: s.callers, Sessions: s.sessions, Required: c.GetAuthentication().GetRequired(),
		Audit: s.recorder(), Metrics: s.metrics, Validator: c.GetValidator(),
	})
	if err != nil {
		return nil, err
	}
	data := lifecycle.GRPC("data services", s.grpcServer(api), listener)
	drain := data.Drain
	data.Drain = func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, c.GetDrainTimeout().AsDuration())
		defer cancel()
		s.leave()
		api.Drain()
		return drain(ctx)
	}
	mux := telemetry.NewMux(s.registry, s.ready)
	mux.HandleFunc("GET /config_dump", s.configDump)
	if c.GetPprof() {
		telemetry.Profile(mux)
	}
	s.ready.Follow(s.following)
	s.ready.Ready(conditionServing)
	return lifecycle.New(lifecycle.Config{Log: s.cfg.Logger, StopTimeout: c.GetDrainTimeout().AsDuration() + closing}, append(append(s.identityParts(), s.auditParts()...), // what is left to record is recorded before its credential goes
		lifecycle.Part{Name: "backends", Run: func(ctx context.Context) error {
			<-ctx.Done()
			s.pools.Close()
			return nil
		}},
		lifecycle.Part{Name: "sessions", Run: s.sessions.Run},
		lifecycle.Part{Name: "connections to proxies", Run: func(ctx context.Context) error {
			<-ctx.Done()
			s.forward.Close()
			return nil
		}},
		lifecycle.HTTP("http", mux, httpListener),
		lifecycle.Part{Name: "subscription", Run: s.client.Run},
		data,
	)...)
}

func (s *Server) grpcServer(api *dataapi.Server) *grpc.Server {
	g := grpc.NewServer(
		grpc.ForceServerCodecV2(frame.NewCodec()),
		grpc.UnaryInterceptor(faultgrpc.Unary(s.cfg.Logger)),
		grpc.StreamInterceptor(faultgrpc.Stream(s.cfg.Logger)),
		grpc.UnknownServiceHandler(api.Unknown),
		grpc.MaxRecvMsgSize(dataapi.MaxFrameBytes),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.Creds(s.connections),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: time.Minute, Timeout: 10 * time.Second}),
	)
	api.Register(g)
	healthv1.RegisterHealthServer(g, s.health)
	return g
}

// leave tells everyone that the proxy takes no new work.
func (s *Server) leave() {
	s.draining.Store(true)
	s.ready.NotReady(conditionServing, "the proxy is draining")
	s.health.Shutdown()
	s.client.Notify()
}

// foreign tells of control planes of another installation. What is here is served all the same.
func (s *Server) foreign(reason string) { s.ready.Note(conditionForeign, reason) }

// published looks at a table that came into effect.
func (s *Server) published(t *routing.Table) {
	s.forward.Keep(t.Fleet())
	if state, _ := s.ready.State(); s.draining.Load() || state.Ready {
		return // what is assigned later is served by forwarding until it is there
	}
	s.ready.Ready(conditionAssignment)
	owned, held := 0, 0
	for n := range t.Count() {
		if p := ident.Partition(n); t.Fleet().Rank(p) >= 0 {
			owned++
			if t.Partition(p) != nil {
				held++
			}
		}
	}
	if held < owned {
		s.ready.NotReady(conditionPartitions, fmt.Sprintf("%d of %d assigned partitions are here", held, owned))
		return
	}
	s.ready.Ready(conditionPartitions)
	if s.cfg.Settings.GetValidator() {
		return
	}
	s.health.SetServingStatus("", healthv1.HealthCheckResponse_SERVING)
	s.client.Notify()
}
