// Package push gives proxies their configuration: delta xDS over the snapshot tree.
//
// A proxy subscribes to collections: a partition each, and what all share. For each stream the server keeps which state
// of which collection it has, and a push is the difference between that and the state it ought to have. Differences are
// computed once for all streams and only when a stream is about to send, so that a stream always gets the newest state
// and a slow one costs nobody else anything.
package push

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/protobuf/types/known/timestamppb"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"

	"github.com/prism-gateway/prism/controlplane/snapshot"
	"github.com/prism-gateway/prism/shared/ident"
	"github.com/prism-gateway/prism/shared/manifest"
)

// The types pushed to proxies, in push order, and the type of the resource that ends each change of a collection.
const (
	AssignmentType = "type.googleapis.com/prism.config.v1.Assignment"
	SharedType     = "type.googleapis.com/prism.config.v1.Shared"
	NamespaceType  = "type.googleapis.com/prism.config.v1.NamespaceConfig"
	SentinelType   = "type.googleapis.com/prism.config.v1.Sentinel"

	fleetName  = "fleet"
	sharedName = "shared"
)

// store is the part of the snapshot store that is pushed from.
type store interface {
	// Head is the newest snapshot, nil until it is loaded and verified.
	Head() *snapshot.Tree
	// Recorded is the record of Head, or of a newer one.
	Recorded() *recordv1.Snapshot
	// Revision is how far the store's changes have been followed.
	Revision() int64
	// Watch signals when Head has moved, until the function is called.
	Watch() (<-chan struct{}, func())
	// Installation is what was fixed when the installation was created, nil until it is loaded.
	Installation() *recordv1.Installation
	// Manifest reads a manifest of the past by its root.
	Manifest(ctx context.Context, root ident.Hash) (*manifest.Manifest, error)
}

// fleet tells who owns what.
type fleet interface {
	// Assignment is the one in force, nil until there is one. It is not changed once returned.
	Assignment() *configv1.Assignment
	// WatchAssignment signals when Assignment has changed, until the function is called.
	WatchAssignment() (<-chan struct{}, func())
}

// View says which snapshot a proxy is to have of a partition; nil is none yet.
type View func(node string, p ident.Partition) *snapshot.Tree

// Config is what a Server needs.
type Config struct {
	// Store and Fleet are required.
	Store store
	Fleet fleet
	// Tracker is told what every stream was sent and answered. Required.
	Tracker *Tracker
	// StreamsPerSecond bounds how fast new streams are taken, after StreamBurst at once; 0 means 500 and 1,000.
	StreamsPerSecond float64
	StreamBurst      int
	// LagPatience is how long a stream of a proxy that has seen newer state than this replica waits; 0 means 5 s.
	LagPatience time.Duration
	// Registerer takes the metrics; nil keeps them unregistered.
	Registerer prometheus.Registerer
	// Logger is required.
	Logger *slog.Logger
}

// pageBytes bounds a response, but for one resource that is larger by itself.
const pageBytes = 1 << 20

// Server pushes configuration. Its methods may be called from any goroutine.
type Server struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer

	store    store
	fleet    fleet
	tracker  *Tracker
	admit    *rate.Limiter
	patience time.Duration
	log      *slog.Logger
	metrics  *metrics
	diffs    *memo
	view     View

	closing context.Context // ends all streams, with the reason as its cause
	close   context.CancelCauseFunc

	shown      atomic.Pointer[state] // what streams are shown; nil until Run has something
	assignment atomic.Pointer[discoveryv3.Resource]

	mu         sync.Mutex                                // guards the rest; never held while something is sent
	partitions map[ident.Partition]map[*session]struct{} // who subscribes to what
	shared     map[*session]struct{}
	assigned   map[*session]struct{}
	past       past
}

// state is a snapshot, the store's revision at which it was the newest, and when it was recorded; nil is not known.
type state struct {
	tree     *snapshot.Tree
	revision int64
	recorded *timestamppb.Timestamp
}

// New checks cfg. It does no I/O.
func New(cfg Config) (*Server, error) {
	switch {
	case cfg.Store == nil:
		return nil, errors.New("push: Config.Store is required")
	case cfg.Fleet == nil:
		return nil, errors.New("push: Config.Fleet is required")
	case cfg.Tracker == nil:
		return nil, errors.New("push: Config.Tracker is required")
	case cfg.Logger == nil:
		return nil, errors.New("push: Config.Logger is required")
	}
	m, err := newMetrics(cfg.Registerer)
	if err != nil {
		return nil, err
	}
	s := &Server{
		store:      cfg.Store,
		fleet:      cfg.Fleet,
		tracker:    cfg.Tracker,
		admit:      rate.NewLimiter(rate.Limit(cmp.Or(cfg.StreamsPerSecond, 500)), cmp.Or(cfg.StreamBurst, 1000)),
		patience:   cmp.Or(cfg.LagPatience, 5*time.Second),
		log:        cfg.Logger,
		metrics:    m,
		diffs:      newMemo(),
		partitions: map[ident.Partition]map[*session]struct{}{},
		shared:     map[*session]struct{}{},
		assigned:   map[*session]struct{}{},
	}
	s.view = s.head
	s.closing, s.close = context.WithCancelCause(context.Background())
	return s, nil
}

// head is the View of an installation in which everything shows the newest snapshot.
func (s *Server) head(string, ident.Partition) *snapshot.Tree {
	if shown := s.shown.Load(); shown != nil {
		return shown.tree
	}
	return nil
}

// Register adds the xDS services to a gRPC server that was made with ServerOptions.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(r, s)
}

// ServerOptions are for the gRPC server that streams come to: dead peers are found within 15 s, and connections end
// after about half an hour, so that streams spread over the replicas again. gRPC varies the age by a tenth.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.KeepaliveParams(keepalive.ServerParameters{
			Time: 10 * time.Second, Timeout: 5 * time.Second,
			MaxConnectionAge: 30 * time.Minute, MaxConnectionAgeGrace: 5 * time.Second,
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.MaxConcurrentStreams(64),
	}
}

// Run follows the store and the fleet until ctx ends, then ends all streams; the gRPC server waits for them. A Server runs
// once.
func (s *Server) Run(ctx context.Context) error {
	moved, stopStore := s.store.Watch()
	defer stopStore()
	assigned, stopFleet := s.fleet.WatchAssignment()
	defer stopFleet()
	for {
		s.publishAssignment()
		s.publish()
		select {
		case <-moved:
		case <-assigned:
		case <-ctx.Done():
			s.close(errStopping)
			return nil
		}
	}
}

// publish shows the newest snapshot to all streams that hold something that it changes.
func (s *Server) publish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	revision := s.store.Revision() // before Head: the head is at least as new
	tree := s.store.Head()
	if tree == nil {
		return
	}
	before := s.shown.Load()
	if before != nil && before.tree == tree {
		return
	}
	next := &state{tree: tree, revision: revision}
	if record := s.store.Recorded(); record.GetVersion() == tree.Version() {
		next.recorded = record.GetRecordedAt()
	}
	s.shown.Store(next)
	if before == nil {
		return // no stream has been taken yet
	}
	sharedMoved := before.tree.Shared().Root() != tree.Shared().Root()
	if sharedMoved {
		s.past.keep(before.tree.Shared().Manifest())
		for session := range s.shared {
			session.shared.wake(sharedName)
		}
	}
	for p, sessions := range s.partitions {
		was := before.tree.Collection(p)
		moved := was.Root() != tree.Collection(p).Root()
		if moved {
			s.past.keep(was.Manifest())
		}
		if moved || sharedMoved {
			for session := range sessions {
				session.namespaces.wake(p.String())
			}
		}
	}
}

// publishAssignment shows the newest assignment.
func (s *Server) publishAssignment() {
	a := s.fleet.Assignment()
	if a == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	resource, err := assignmentResource(a)
	if err != nil {
		s.log.Error("the assignment cannot be encoded", "error", err)
		return
	}
	if before := s.assignment.Load(); before != nil && before.GetVersion() == resource.GetVersion() {
		return
	}
	s.assignment.Store(resource)
	for session := range s.assigned {
		session.assignment.wake(fleetName)
	}
}

// past remembers the manifests that were replaced last, for proxies that reconnect after having missed little.
type past struct {
	byRoot map[ident.Hash]*manifest.Manifest
	order  []ident.Hash
}

const pastManifests = 256

func (p *past) keep(m *manifest.Manifest) {
	if p.byRoot == nil {
		p.byRoot = make(map[ident.Hash]*manifest.Manifest, pastManifests)
	}
	if _, known := p.byRoot[m.Root()]; known {
		return
	}
	if len(p.order) == pastManifests {
		delete(p.byRoot, p.order[0])
		p.order = p.order[1:]
	}
	p.byRoot[m.Root()] = m
	p.order = append(p.order, m.Root())
}

// manifestOf finds the members that a collection had at a root: in memory, else in the store.
func (s *Server) manifestOf(ctx context.Context, now *snapshot.Collection, root ident.Hash) (*manifest.Manifest, bool) {
	if root == now.Root() {
		return now.Manifest(), true
	}
	if root.IsZero() {
		return manifest.Empty, true
	}
	s.mu.Lock()
	m := s.past.byRoot[root]
	s.mu.Unlock()
	if m != nil {
		return m, true
	}
	m, err := s.store.Manifest(ctx, root)
	return m, err == nil
}
