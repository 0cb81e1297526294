// Package server puts prism-admin together: what it consists of, in which order the parts start and stop, and where
// they listen.
package server

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"

	"github.com/prism-gateway/prism/controlplane/adminapi"
	"github.com/prism-gateway/prism/controlplane/controller"
	"github.com/prism-gateway/prism/controlplane/fleet"
	"github.com/prism-gateway/prism/controlplane/fleet/journal"
	"github.com/prism-gateway/prism/controlplane/push"
	"github.com/prism-gateway/prism/controlplane/push/standard"
	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/store"
	"github.com/prism-gateway/prism/controlplane/store/embedded"
	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"
	bootstrapv1 "github.com/prism-gateway/prism/protos/prism/bootstrap/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/fault/faultgrpc"
	"github.com/prism-gateway/prism/shared/ident"
	"github.com/prism-gateway/prism/shared/lifecycle"
	"github.com/prism-gateway/prism/shared/telemetry"
	"github.com/prism-gateway/prism/shared/telemetry/trace"
)

// The conditions of readiness.
const (
	conditionStore    = "store"
	conditionInsecure = "insecure_listen"
)

// maxRequest bounds a request: a file of 10,000 namespaces is one.
const maxRequest = 32 << 20

// Config makes a Server.
type Config struct {
	// Settings are complete, as settings.LoadAdmin returns them. Required.
	Settings *bootstrapv1.AdminConfig
	// Tracer makes spans of calls; nil makes none.
	Tracer *trace.Tracer
	// Create says to create the installation where etcd has none; with an etcd inside the program whose data directory was
	// not there before, one is created unasked.
	Create bool
	// Logger is required.
	Logger *slog.Logger
}

// Server is one replica of the control plane.
type Server struct {
	c        *bootstrapv1.AdminConfig
	create   bool
	log      *slog.Logger
	tracer   *trace.Tracer
	id       string
	registry *prometheus.Registry
	ready    *lifecycle.Readiness
	health   *health.Server
	identity identity // made by Run
}

// New checks cfg. It does no I/O.
func New(cfg Config) (*Server, error) {
	if cfg.Settings == nil || cfg.Logger == nil {
		return nil, errors.New("server: Settings and Logger are required")
	}
	id := cfg.Settings.GetReplicaId()
	if id == "" {
		host, err := os.Hostname()
		if err != nil {
			return nil, fmt.Errorf("replica_id is not set and the host has no name: %w", err)
		}
		id = host + "-" + strings.ToLower(rand.Text()[:8])
	}
	return &Server{
		c: cfg.Settings, create: cfg.Create, log: cfg.Logger.With(telemetry.KeyReplica, id), tracer: cfg.Tracer, id: id,
		registry: telemetry.NewRegistry(), ready: lifecycle.NewReadiness(conditionStore), health: health.NewServer(),
	}, nil
}

// Run serves until ctx ends, then lets calls under way finish and stops everything.
func (s *Server) Run(ctx context.Context) error {
	var err error
	if s.identity, err = s.newIdentity(); err == nil {
		err = s.identity.load(ctx)
	}
	if err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	ports, err := listen(s.c.GetListen(), s.c.GetFleetListen(), s.c.GetHttpListen())
	if err != nil {
		return err
	}
	endpoints, create := s.c.GetEtcd().GetEndpoints(), s.create
	parts := s.identity.parts()
	if len(endpoints) == 0 {
		etcd, err := embedded.Start(embedded.Config{Dir: s.c.GetEtcd().GetDataDir(), Log: s.log})
		if err != nil {
			return errors.Join(err, closeAll(ports))
		}
		defer func() {
			if err := etcd.Close(); err != nil {
				s.log.Warn("the embedded etcd did not close well", telemetry.Error(err))
			}
		}()
		endpoints, create = []string{etcd.Endpoint()}, create || etcd.Fresh()
		parts = append(parts, lifecycle.Part{Name: "etcd", Run: func(ctx context.Context) error {
			select {
			case err := <-etcd.Err():
				return err
			case <-ctx.Done():
				return nil
			}
		}})
	}
	client, err := store.Dial(store.DialConfig{Endpoints: endpoints})
	if err != nil {
		return errors.Join(err, closeAll(ports))
	}
	defer client.Close()
	kept, err := store.New(store.Config{
		Client: client, Prefix: s.c.GetEtcd().GetPrefix(), Existing: !create, Partitions: s.c.GetPartitions(), Name: s.id,
		Timeout: s.c.GetEtcd().GetRequestTimeout().AsDuration(),
		History: int(s.c.GetHistory().GetSnapshots()), HistoryAge: s.c.GetHistory().GetAge().AsDuration(),
		SweepEvery: s.c.GetHistory().GetSweepInterval().AsDuration(), Log: s.log,
		Policies: s.policies(),
	})
	if err != nil {
		return errors.Join(err, closeAll(ports))
	}
	more, err := s.compose(kept, ports)
	if err != nil {
		return errors.Join(err, closeAll(ports))
	}
	group, err := lifecycle.New(lifecycle.Config{Log: s.log, StopTimeout: s.c.GetShutdownTimeout().AsDuration()}, append(parts, more...)...)
	if err != nil {
		return errors.Join(err, closeAll(ports))
	}
	s.log.Info("prism-admin starts", telemetry.KeyVersion, telemetry.Build(), telemetry.KeyAddress, ports[0].Addr().String(),
		"fleet_address", ports[1].Addr().String(), "http_address", ports[2].Addr().String(), "etcd", endpoints)
	if s.c.GetInsecureListen() {
		s.ready.Ready(conditionInsecure)
		s.log.Warn("insecure_listen is set: whoever reaches the addresses can change everything", telemetry.KeyAddress, ports[0].Addr().String())
	}
	return group.Run(ctx)
}

// policies say how changes go to the fleet.
func (s *Server) policies() release.Policies {
	c := s.c.GetRelease()
	return release.Policies{Additive: c.GetAdditive(), Scoped: c.GetScoped(), Shared: c.GetShared(), Rollback: c.GetRollback()}
}

// journal is where what proxies serve is noted, nil when no directory is given.
func (s *Server) journal() (*journal.Journal, error) {
	c := s.c.GetJournal()
	if c.GetDir() == "" {
		return nil, nil
	}
	return journal.New(journal.Config{Dir: c.GetDir(), MaxBytes: int64(min(c.GetMaxBytes(), math.MaxInt64)), Logger: s.log})
}

// compose makes the parts, in the order in which they start. ports are those of people, of proxies, and of HTTP.
func (s *Server) compose(kept *store.Store, ports []net.Listener) ([]lifecycle.Part, error) {
	tracker := push.NewTracker()
	served, err := s.journal()
	if err != nil {
		return nil, err
	}
	var pusher *push.Server
	proxies, err := fleet.New(fleet.Config{
		Store: kept, Tracker: tracker, Owners: int(s.c.GetOwners()),
		Replica: &recordv1.Replica{
			Id: s.id, FleetAddress: cmp.Or(s.c.GetFleetAdvertise(), ports[1].Addr().String()), Build: telemetry.Build(),
		},
		Lease: s.c.GetMemberLease().AsDuration(), Debounce: s.c.GetPlacementDebounce().AsDuration(),
		MoveDeadline: s.c.GetMoveDeadline().AsDuration(), Journal: served, Registerer: s.registry, Logger: s.log,
		DialOptions: s.identity.dial(),
		Resync:      func(proxy string, p ident.Partition) bool { return pusher.Resync(proxy, p) },
	})
	if err != nil {
		return nil, err
	}
	releases := controller.Config{
		Store: kept, Fleet: proxies, Observe: func(p ...ident.Partition) controller.Observation { return proxies.Observe(p...) },
		Lease: s.c.GetMemberLease().AsDuration(), Registerer: s.registry, Logger: s.log,
	}
	brake, err := controller.NewBrake(releases)
	if err != nil {
		return nil, err
	}
	control, err := controller.New(releases)
	if err != nil {
		return nil, err
	}
	others, err := standard.New(standard.Config{Fleet: proxies, Registerer: s.registry, Logger: s.log})
	if err != nil {
		return nil, err
	}
	pusher, err = push.New(push.Config{
		Store: kept, Fleet: proxies, Tracker: tracker, Standard: others, Refused: brake.Refused, Registerer: s.registry, Logger: s.log,
	})
	if err != nil {
		return nil, err
	}
	api, err := adminapi.New(adminapi.Config{
		Store: kept, Fleet: proxies, Observe: func(p ...ident.Partition) adminapi.Observation { return proxies.Observe(p...) },
		Policies: s.policies(), InitialBackends: s.c.GetInitialBackends(), Quotas: quotasOf(s.c.GetQuotas()), Log: s.log,
	})
	if err != nil {
		return nil, err
	}
	if err := observe(s.registry, kept); err != nil {
		return nil, err
	}
	counted, err := requests(s.registry)
	if err != nil {
		return nil, err
	}
	outside := []grpc.UnaryServerInterceptor{counted}
	if s.tracer != nil {
		outside = append(outside, s.tracer.Unary())
	}
	people := grpc.NewServer(s.options(secured(s.identity.people, s.c.GetTls()), grpc.MaxRecvMsgSize(maxRequest), grpc.ChainUnaryInterceptor(outside...))...)
	controlv1.RegisterControlPlaneServer(people, api)
	adminv1.RegisterAdminServiceServer(people, api)
	healthv1.RegisterHealthServer(people, s.health)
	reflection.Register(people)
	fleetServer := grpc.NewServer(append(s.options(append(push.ServerOptions(), secured(s.identity.fleet, s.c.GetFleetTls()))...), s.identity.named()...)...)
	pusher.Register(fleetServer)
	proxies.Register(fleetServer)

	mux := telemetry.NewMux(s.registry, s.ready)
	if s.c.GetPprof() {
		telemetry.Profile(mux)
	}
	s.ready.Follow(func() lifecycle.Following { return following(kept) })

	return []lifecycle.Part{
		// Whoever asks is told why nothing is ready yet.
		lifecycle.HTTP("http", mux, ports[2]),
		{Name: "store", Run: kept.Run},
		// Before push and fleet, so that it stops after them: they end the streams that it waits for.
		lifecycle.GRPC("fleet api", fleetServer, pusher.Listener(ports[1])),
		{Name: "leadership", Run: func(ctx context.Context) error {
			return kept.Lead(ctx, func(ctx context.Context) error {
				work, ctx := errgroup.WithContext(ctx)
				work.Go(func() error { return proxies.Place(ctx) })
				work.Go(func() error { return control.Run(ctx) })
				work.Go(func() error { return kept.Maintain(ctx) })
				return work.Wait()
			})
		}},
		{Name: "fleet", Run: proxies.Run},
		{Name: "releases", Run: brake.Run}, // before push, which tells it what proxies refuse
		{Name: "standard clients", Run: others.Run},
		{Name: "push", Run: pusher.Run},
		{Name: "quotas", Run: api.Run},
		lifecycle.GRPC("api", people, ports[0]),
		{Name: "readiness", Run: func(ctx context.Context) error { return s.watch(ctx, kept, api) }},
	}, nil
}

func (s *Server) options(more ...grpc.ServerOption) []grpc.ServerOption {
	return append(more,
		grpc.ChainUnaryInterceptor(faultgrpc.Unary(s.log)),
		grpc.ChainStreamInterceptor(faultgrpc.Stream(s.log)),
		grpc.WaitForHandlers(true),
	)
}

// watch registers the initial backends once the store is loaded, and says from then on whether this replica is ready.
func (s *Server) watch(ctx context.Context, kept *store.Store, api *adminapi.Server) error {
	moved, stop := kept.Watch()
	defer stop()
	again := time.NewTicker(time.Second) // what is in the way makes no signal
	defer again.Stop()
	for {
		err := kept.Ready()
		if kept.Head() != nil {
			if err = api.Seed(ctx); err == nil {
				break
			}
			if fault.From(err).Code != fault.Unavailable && ctx.Err() == nil {
				return fmt.Errorf("initial backends: %w", err)
			}
		}
		s.notReady(err)
		select {
		case <-moved:
		case <-again.C:
		case <-ctx.Done():
			return nil
		}
	}
	s.ready.Ready(conditionStore)
	s.health.SetServingStatus("", healthv1.HealthCheckResponse_SERVING)
	<-ctx.Done()
	s.notReady(errors.New("stopping"))
	return nil
}

func (s *Server) notReady(err error) {
	reason := "the configuration is being loaded"
	if err != nil {
		reason = err.Error()
	}
	s.ready.NotReady(conditionStore, reason)
	s.health.SetServingStatus("", healthv1.HealthCheckResponse_NOT_SERVING)
}

// listen listens on all addresses or on none.
func listen(addresses ...string) (all []net.Listener, err error) {
	for _, address := range addresses {
		l, err := net.Listen("tcp", address)
		if err != nil {
			return nil, errors.Join(err, closeAll(all))
		}
		all = append(all, l)
	}
	return all, nil
}

func closeAll(listeners []net.Listener) error {
	var errs []error
	for _, l := range listeners {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}
