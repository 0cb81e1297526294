// Package standard serves clients that are not Prism's: gRPC's own resolver and Envoy, by the standard types of xDS.
//
// Each partition has a listener, a route, a cluster and the addresses of its owners, all under one name that never
// changes, such as prism.p.0123. Owners move by their addresses alone, so that no client ever looks for a cluster that
// it does not have.
package standard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/config"
	"github.com/envoyproxy/go-control-plane/pkg/server/delta/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/sotw/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"

	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
)

// fleet tells who owns what.
type fleet interface {
	// Assignment is the one in force, nil until there is one. It is not changed once returned.
	Assignment() *configv1.Assignment
	// WatchAssignment signals when Assignment has changed, until the function is called.
	WatchAssignment() (<-chan struct{}, func())
}

// Config is what a Server needs.
type Config struct {
	// Fleet is required.
	Fleet fleet
	// MaxStreams bounds how many streams there are at once; 0 means 4,096. A gRPC client has one for each partition that
	// it calls.
	MaxStreams int
	// Registerer takes the metrics; nil keeps them unregistered.
	Registerer prometheus.Registerer
	// Logger is required.
	Logger *slog.Logger
}

// Server holds what standard clients are shown. Its methods may be called from any goroutine.
type Server struct {
	fleet   fleet
	log     *slog.Logger
	most    int64
	open    atomic.Int64
	streams *prometheus.GaugeVec // by variant

	caches map[string]*cache.LinearCache // by type; what is in them does not change, but for owners
	owners map[string]*endpointv3.ClusterLoadAssignment
}

// New checks cfg. It does no I/O.
func New(cfg Config) (*Server, error) {
	if cfg.Fleet == nil || cfg.Logger == nil {
		return nil, errors.New("standard: Config.Fleet and Logger are required")
	}
	s := &Server{
		fleet: cfg.Fleet, log: cfg.Logger, most: int64(cmp.Or(cfg.MaxStreams, 4096)),
		streams: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "prism_push_standard_streams", Help: "Streams of clients that are not Prism's, by variant of xDS.",
		}, []string{"variant"}),
		caches: map[string]*cache.LinearCache{},
		owners: map[string]*endpointv3.ClusterLoadAssignment{},
	}
	for _, typeURL := range []string{resource.ListenerType, resource.RouteType, resource.ClusterType, resource.EndpointType} {
		s.caches[typeURL] = cache.NewLinearCache(typeURL)
	}
	if cfg.Registerer != nil {
		if err := cfg.Registerer.Register(s.streams); err != nil {
			return nil, fmt.Errorf("standard: metrics: %w", err)
		}
	}
	return s, nil
}

// Run follows the fleet until ctx ends, which is no error. A Server runs once.
func (s *Server) Run(ctx context.Context) error {
	moved, stop := s.fleet.WatchAssignment()
	defer stop()
	for {
		if a := s.fleet.Assignment(); a != nil {
			if err := s.show(a); err != nil {
				s.log.Error("owners are not shown to standard clients", "error", err)
			}
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return nil
		}
	}
}

// show brings what clients see to an assignment. Only partitions whose owners have moved are touched.
func (s *Server) show(a *configv1.Assignment) error {
	changed, listeners, routes, clusters := map[string]types.Resource{}, map[string]types.Resource{}, map[string]types.Resource{}, map[string]types.Resource{}
	for i := range a.GetPartitions() {
		p := ident.Partition(i)
		name := Name(p)
		next, err := endpoints(name, a, p)
		if err != nil {
			return err
		}
		before := s.owners[name]
		if before == nil {
			l, err := listener(name)
			if err != nil {
				return err
			}
			c, err := cluster(name)
			if err != nil {
				return err
			}
			listeners[name], routes[name], clusters[name] = l, route(name), c
		}
		if before == nil || !proto.Equal(before, next) {
			s.owners[name], changed[name] = next, next
		}
	}
	// A client that is told of a cluster finds its owners, and one that is told of a listener its cluster.
	for _, step := range []struct {
		typeURL   string
		resources map[string]types.Resource
	}{{resource.EndpointType, changed}, {resource.ClusterType, clusters}, {resource.RouteType, routes}, {resource.ListenerType, listeners}} {
		if len(step.resources) == 0 {
			continue
		}
		if err := s.caches[step.typeURL].UpdateResources(step.resources, nil); err != nil {
			return err
		}
	}
	return nil
}

// wildcards says which types may be asked for whole, by an empty request: Envoy asks so for clusters. A gRPC client that
// asks for nothing wants nothing.
func wildcards() config.XDSOption {
	return config.DeactivateLegacyWildcardForTypes([]string{resource.ListenerType, resource.RouteType, resource.EndpointType})
}

// State serves a stream of the state of the world, until ctx or the stream ends.
func (s *Server) State(ctx context.Context, stream discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	leave, err := s.enter("state")
	if err != nil {
		return err
	}
	defer leave()
	known := &telling{AggregatedDiscoveryService_StreamAggregatedResourcesServer: stream, server: s, asked: map[string][]string{}}
	return sotw.NewServer(ctx, watcher{s}, known, wildcards()).StreamHandler(known, resource.AnyType)
}

// Delta serves an incremental stream, until ctx or the stream ends.
func (s *Server) Delta(ctx context.Context, stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	leave, err := s.enter("delta")
	if err != nil {
		return err
	}
	defer leave()
	return delta.NewServer(ctx, watcher{s}, nil, wildcards()).DeltaStreamHandler(stream, resource.AnyType)
}

func (s *Server) enter(variant string) (leave func(), err error) {
	if s.open.Add(1) > s.most {
		s.open.Add(-1)
		return nil, fault.Newf(fault.Exhausted, fault.Rate, "there are %d streams of standard clients already", s.most)
	}
	s.streams.WithLabelValues(variant).Inc()
	return func() {
		s.open.Add(-1)
		s.streams.WithLabelValues(variant).Dec()
	}, nil
}

// watcher sends requests to the cache of their type.
type watcher struct{ *Server }

// CreateWatch takes a request of the state of the world.
func (w watcher) CreateWatch(r *cache.Request, sub cache.Subscription, responses chan cache.Response) (func(), error) {
	if c, ok := w.caches[r.GetTypeUrl()]; ok {
		return c.CreateWatch(r, sub, responses)
	}
	if r.GetResponseNonce() == "" {
		responses <- &cache.RawResponse{Request: r, Version: "0"}
	}
	return func() {}, nil
}

// CreateDeltaWatch takes an incremental request.
func (w watcher) CreateDeltaWatch(r *cache.DeltaRequest, sub cache.Subscription, responses chan cache.DeltaResponse) (func(), error) {
	if c, ok := w.caches[r.GetTypeUrl()]; ok {
		return c.CreateDeltaWatch(r, sub, responses)
	}
	return func() {}, nil
}
