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
	"slices"
	"sync"
	"sync/atomic"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // the codec that codec builds on
	"google.golang.org/grpc/keepalive"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"

	"github.com/prism-gateway/prism/controlplane/release"
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
	// Released is what the fleet ought to have, nil until it is loaded and verified.
	Released() *release.State
	// Recorded is the record of the newest snapshot in Released, or of a newer one.
	Recorded() *recordv1.Snapshot
	// Revision is how far the store's changes have been followed.
	Revision() int64
	// Ready says what keeps the store's changes from being followed, nil when nothing does.
	Ready() error
	// Watch signals when Released has moved, until the function is called.
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

// Config is what a Server needs.
type Config struct {
	// Store and Fleet are required.
	Store store
	Fleet fleet
	// Tracker is told what every stream was sent and answered. Required.
	Tracker *Tracker
	// Refused, when set, is told what proxies refuse, in the order of each stream, by one goroutine of Run. A partition
	// is named with what was refused by name, which is Rejections of objects, or with why nothing of it is in effect.
	Refused func(node, build string, rejections []*configv1.Rejection, whole string, p ident.Partition)
	// Standard, when set, serves the streams of clients that are not Prism's; they are let in like those of proxies.
	Standard standard
	// StreamsPerSecond bounds how fast new streams are taken, after StreamBurst at once; 0 means 500 and 1,000.
	StreamsPerSecond float64
	StreamBurst      int
	// LagPatience is how long a stream of a proxy that has seen newer state than this replica waits; 0 means 5 s.
	LagPatience time.Duration
	// BlindPatience is for how long this replica may not follow the store before it sends its clients to others; 0 means
	// 10 s. It doubles each time, up to five minutes: when no replica follows the store, they come back.
	BlindPatience time.Duration
	// Registerer takes the metrics; nil keeps them unregistered.
	Registerer prometheus.Registerer
	// Logger is required.
	Logger *slog.Logger
}

// Server pushes configuration. Its methods may be called from any goroutine.
type Server struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer

	store      store
	fleet      fleet
	tracker    *Tracker
	admit      *rate.Limiter
	patience   time.Duration
	blind      time.Duration
	log        *slog.Logger
	metrics    *metrics
	diffs      *memo
	standard   standard // nil serves none
	refused    func(node, build string, rejections []*configv1.Rejection, whole string, p ident.Partition)
	objections chan objection // for refused

	connections *connections

	closing context.Context // ends all streams, with the reason as its cause
	close   context.CancelCauseFunc

	shown   atomic.Pointer[state] // nil until Run has something
	history *history

	mu         sync.Mutex            // guards the rest; held to look at who there is, never while somebody is told
	sessions   map[*session]struct{} // all of them
	partitions [][]*session          // who subscribes to what; nil before the first has
	present    context.Context       // ends the streams that there are, with the reason as its cause
	turn       context.CancelCauseFunc
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
		store:       cfg.Store,
		fleet:       cfg.Fleet,
		tracker:     cfg.Tracker,
		admit:       rate.NewLimiter(rate.Limit(cmp.Or(cfg.StreamsPerSecond, 500)), cmp.Or(cfg.StreamBurst, 1000)),
		patience:    cmp.Or(cfg.LagPatience, 5*time.Second),
		blind:       cmp.Or(cfg.BlindPatience, 10*time.Second),
		log:         cfg.Logger,
		metrics:     m,
		diffs:       newMemo(),
		standard:    cfg.Standard,
		refused:     cfg.Refused,
		objections:  make(chan objection, waitingObjections),
		connections: newConnections(),
		history:     newHistory(),
		sessions:    map[*session]struct{}{},
	}
	s.closing, s.close = context.WithCancelCause(context.Background())
	s.present, s.turn = context.WithCancelCause(s.closing)
	return s, nil
}

// Register adds the xDS services to a gRPC server that was made with ServerOptions.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(r, s)
}

// ServerOptions are for the gRPC server that streams come to: dead peers are found within 15 s, and connections end
// after about half an hour, so that streams spread over the replicas again. gRPC varies the age by a tenth.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ForceServerCodecV2(codec{encoding.GetCodecV2("proto")}),
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
	var tasks sync.WaitGroup
	defer tasks.Wait()
	tasks.Go(func() { s.tellObjections(ctx) })
	look := time.NewTicker(time.Second)
	defer look.Stop()
	blind := blindness{first: s.blind}
	for {
		s.publish()
		select {
		case <-moved:
		case <-assigned:
		case now := <-look.C:
			s.flagSlow(now)
			if blind.look(s.store.Ready(), now) {
				s.turnAway()
			}
		case <-ctx.Done():
			s.close(errStopping)
			s.cutOff()
			return nil
		}
	}
}

// publish shows what is newest to all streams that hold something that it changes. Whoever comes first does it, so that
// nobody waits for anybody.
func (s *Server) publish() {
	for {
		before := s.shown.Load()
		next := s.newest(before)
		if next == before {
			return
		}
		if s.shown.CompareAndSwap(before, next) {
			s.wake(before, next)
			return
		}
	}
}

// newest is what is to be shown now, which is shown itself when nothing has moved.
func (s *Server) newest(shown *state) *state {
	revision := s.store.Revision() // before Released, which is at least as new
	released := s.store.Released()
	if released == nil {
		return shown
	}
	before := cmp.Or(shown, &state{})
	next := &state{released: released, revision: revision, news: before.news, owners: s.newestOwners(before.owners)}
	if before.released == released && before.owners == next.owners {
		return shown
	}
	if before.released != released {
		next.news = newNews(s.store.Recorded(), next.partitions())
	}
	return next
}

// newestOwners returns those of the newest assignment; when it is none or another with the same contents, the former.
func (s *Server) newestOwners(former *owners) *owners {
	a := s.fleet.Assignment()
	if a == nil || former != nil && former.assignment == a {
		return former
	}
	next, err := newOwners(a)
	if err != nil {
		s.log.Error("the assignment cannot be encoded", "error", err)
		return former
	}
	if former != nil && former.resource.GetVersion() == next.resource.GetVersion() {
		return former
	}
	return next
}

// wake has the sessions look at what may have moved. Those that come meanwhile see the newest by themselves.
func (s *Server) wake(before, after *state) {
	if before == nil {
		return // no stream has been taken yet
	}
	owners := before.owners != after.owners
	// Without a release every rank sees the same.
	ranks := owners && len(before.released.Active())+len(after.released.Active()) > 0
	by := newShift(before.released, after.released)
	if owners || by.shared {
		for _, session := range s.everybody() {
			if owners {
				session.assignment.wakeAll()
			}
			if ranks || by.shared {
				session.namespaces.wakeAll()
			}
		}
	}
	if ranks || by.shared {
		return
	}
	for p := range ident.Partition(after.partitions()) {
		if by.may(p) {
			for _, session := range s.subscribers(p) {
				session.namespaces.wake(cell(p))
			}
		}
	}
}

// everybody returns all sessions, for use without the lock.
func (s *Server) everybody() []*session {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*session, 0, len(s.sessions))
	for session := range s.sessions {
		all = append(all, session)
	}
	return all
}

// subscribers returns those of a partition, for use without the lock.
func (s *Server) subscribers(p ident.Partition) []*session {
	s.mu.Lock()
	defer s.mu.Unlock()
	if int(p) >= len(s.partitions) {
		return nil
	}
	return slices.Clone(s.partitions[p])
}

// manifestOf finds the members that a collection had at a root: in memory, else in the store.
func (s *Server) manifestOf(ctx context.Context, now *snapshot.Collection, root ident.Hash) (*manifest.Manifest, bool) {
	if root == now.Root() {
		return now.Manifest(), true
	}
	if root.IsZero() {
		return manifest.Empty, true
	}
	if m := s.history.find(root); m != nil {
		return m, true
	}
	m, err := s.store.Manifest(ctx, root)
	return m, err == nil
}
