// Package fleet knows the proxies: who is alive, who owns what, how far each is with the configuration.
//
// What must outlive a replica is in the store: members under leases, and the placement, which the elected replica
// writes. What proxies report stays with the replica they report to; replicas ask each other for it.
package fleet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"

	"github.com/prism-gateway/prism/controlplane/fleet/journal"
	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
	"github.com/prism-gateway/prism/shared/manifest"
	"github.com/prism-gateway/prism/shared/placement"
)

// store is the part of the snapshot store that the fleet is kept in.
type store interface {
	Head() *snapshot.Tree
	Released() *release.State
	Ended() []*recordv1.Release
	Snapshots(ctx context.Context, before uint64, limit int) ([]*recordv1.Snapshot, error)
	Watch() (<-chan struct{}, func())
	Manifest(ctx context.Context, root ident.Hash) (*manifest.Manifest, error)

	Members() []*recordv1.MemberLease
	Member(id string) *recordv1.MemberLease
	Replicas() []*recordv1.Replica
	Placement() *recordv1.Placement
	WatchFleet() (<-chan struct{}, func())
	PutMember(ctx context.Context, m *recordv1.MemberLease, ttl time.Duration) (keep, release func(context.Context) error, err error)
	PutReplica(ctx context.Context, r *recordv1.Replica, ttl time.Duration) (keep, release func(context.Context) error, err error)
	PutPlacement(ctx context.Context, p *recordv1.Placement) error
	Installation() *recordv1.Installation
}

// tracker knows what proxies were pushed by this replica and what they answered.
type tracker interface {
	Cells(p ident.Partition) []*controlv1.CellState
	Rejections(proxy string) []*configv1.Rejection
	// Listen has changed called after something about a partition has changed; it returns at once.
	Listen(changed func(ident.Partition))
}

// Config is what a Fleet needs.
type Config struct {
	// Store and Tracker are required.
	Store   store
	Tracker tracker
	// Replica is this replica; its id is required, and the address at which others reach its FleetService.
	Replica *recordv1.Replica
	// Owners is how many owners a partition is to have; 0 means 3.
	Owners int
	// Lease is after what silence a proxy counts as gone; 0 means 10 s. Whole seconds.
	Lease time.Duration
	// Debounce is how long a change of the fleet must last before partitions move; 0 means at once.
	Debounce time.Duration
	// MoveDeadline is how long new owners may take to load before the old ones let go anyway; 0 means 60 s.
	MoveDeadline time.Duration
	// Journal notes what proxies serve when; nil notes nothing. Run runs it.
	Journal *journal.Journal
	// Resync has a partition sent in full to a proxy whose stream is at this replica; it reports whether one is. nil repairs
	// nothing.
	Resync func(proxy string, p ident.Partition) bool
	// Registerer takes the metrics; nil keeps them unregistered.
	Registerer prometheus.Registerer
	// DialOptions are for connections to other replicas; without any they are plaintext.
	DialOptions []grpc.DialOption
	// Logger is required.
	Logger *slog.Logger
}

// Fleet is one replica's knowledge of the proxies, and its FleetService. Its methods may be called from any goroutine.
type Fleet struct {
	controlv1.UnimplementedFleetServiceServer

	cfg     Config
	store   store
	tracker tracker
	log     *slog.Logger
	metrics *metrics
	reports reports
	peers   peers
	drift   drift
	past    past

	here     changes // of what this replica knows
	anywhere changes // of what any replica knows

	closing context.Context // ends all streams
	close   func()

	assigned atomic.Pointer[assigned]

	mu       sync.Mutex // guards watchers
	watchers map[chan struct{}]bool
}

// assigned is a placement and what follows from it.
type assigned struct {
	placement  *recordv1.Placement
	assignment *configv1.Assignment
	index      map[string]uint32 // of members in assignment, by proxy
	places     map[string]place  // by proxy
}

// ranks says what a proxy's place in each partition is.
func (a *assigned) ranks(m *configv1.Member) func(ident.Partition) release.Rank {
	if m.GetValidator() {
		return func(ident.Partition) release.Rank { return release.Validator }
	}
	var index uint32
	placed := false
	if a != nil {
		index, placed = a.index[m.GetId()]
	}
	return func(p ident.Partition) release.Rank {
		if placed && int(p) < len(a.assignment.GetPartitions()) {
			if rank := slices.Index(a.assignment.GetPartitions()[p].GetOwners(), index); rank >= 0 {
				return release.Rank(rank)
			}
		}
		return release.Other
	}
}

// New checks cfg. It does no I/O.
func New(cfg Config) (*Fleet, error) {
	switch {
	case cfg.Store == nil:
		return nil, errors.New("fleet: Config.Store is required")
	case cfg.Tracker == nil:
		return nil, errors.New("fleet: Config.Tracker is required")
	case cfg.Replica.GetId() == "":
		return nil, errors.New("fleet: Config.Replica.Id is required")
	case cfg.Logger == nil:
		return nil, errors.New("fleet: Config.Logger is required")
	}
	cfg.Owners = cmp.Or(cfg.Owners, 3)
	cfg.Lease = cmp.Or(cfg.Lease, 10*time.Second)
	cfg.MoveDeadline = cmp.Or(cfg.MoveDeadline, time.Minute)
	if len(cfg.DialOptions) == 0 {
		cfg.DialOptions = []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}
	}
	f := &Fleet{
		cfg:      cfg,
		store:    cfg.Store,
		tracker:  cfg.Tracker,
		log:      cfg.Logger,
		here:     newChanges(),
		anywhere: newChanges(),
		watchers: map[chan struct{}]bool{},
	}
	f.reports = newReports(cfg.Lease, f.changed, f.note)
	f.drift.suspects = map[cellKey]*suspect{}
	f.past.byRoot = map[ident.Hash]*manifest.Manifest{}
	var err error
	if f.metrics, err = newMetrics(f, cfg.Registerer); err != nil {
		return nil, err
	}
	f.peers = peers{fleet: f, wanted: map[ident.Partition]int{}, known: map[string]*peer{}}
	f.tracker.Listen(f.changed)
	f.closing, f.close = context.WithCancel(context.Background())
	return f, nil
}

// Register adds the FleetService to a gRPC server.
func (f *Fleet) Register(r grpc.ServiceRegistrar) { controlv1.RegisterFleetServiceServer(r, f) }

// Run keeps this replica known to the others and follows the placement, until ctx ends, which is no error and ends all
// streams. A Fleet runs once.
func (f *Fleet) Run(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	defer f.peers.running.Wait()
	defer f.close()
	running.Go(func() { f.keepReplica(ctx) })
	running.Go(func() { f.repair(ctx) })
	if f.cfg.Journal != nil {
		running.Go(func() {
			if err := f.cfg.Journal.Run(ctx); err != nil {
				f.log.Error("what proxies serve is not noted: nobody will know it later", "error", err)
			}
		})
	}

	fleet, stopFleet := f.store.WatchFleet()
	defer stopFleet()
	head, stopHead := f.store.Watch() // without a head the number of partitions is not known
	defer stopHead()
	for {
		f.follow()
		f.peers.follow(ctx)
		select {
		case <-fleet:
		case <-head:
		case <-ctx.Done():
			return nil
		}
	}
}

// follow works out the assignment of a placement that is new, and forgets proxies that are gone.
func (f *Fleet) follow() {
	f.reports.prune(f.store.Members)
	p, tree := f.store.Placement(), f.store.Head()
	if p == nil || tree == nil {
		return
	}
	if now := f.assigned.Load(); now != nil && proto.Equal(now.placement, p) {
		return
	}
	next := &assigned{placement: p, assignment: placement.Assign(p, tree.Partitions()), index: map[string]uint32{}}
	next.places = count(next.assignment)
	for i, m := range next.assignment.GetMembers() {
		next.index[m.GetId()] = uint32(i)
	}
	f.assigned.Store(next)
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.watchers {
		signal(c)
	}
}

// Assignment is the one in force, nil until there is one. It must not be changed.
func (f *Fleet) Assignment() *configv1.Assignment {
	if a := f.assigned.Load(); a != nil {
		return a.assignment
	}
	return nil
}

// WatchAssignment returns a channel that is sent to after Assignment has changed; signals that nobody took are one. The
// function ends it.
func (f *Fleet) WatchAssignment() (<-chan struct{}, func()) {
	c := make(chan struct{}, 1)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.watchers[c] = true
	return c, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.watchers, c)
	}
}

// Owners returns the owners of a partition by rank, those that are loading it, and the epoch that says so.
func (f *Fleet) Owners(p ident.Partition) (owners, loading []*configv1.Member, epoch uint64) {
	a := f.Assignment()
	if int(p) >= len(a.GetPartitions()) {
		return nil, nil, a.GetEpoch()
	}
	entry := a.GetPartitions()[p]
	return pick(a, entry.GetOwners()), pick(a, entry.GetLoading()), a.GetEpoch()
}

func pick(a *configv1.Assignment, indices []uint32) []*configv1.Member {
	members := make([]*configv1.Member, 0, len(indices))
	for _, i := range indices {
		members = append(members, a.GetMembers()[i])
	}
	return members
}

// keepReplica keeps this replica's entry in the store alive once a head is known, and takes it away at the end.
func (f *Fleet) keepReplica(ctx context.Context) {
	moved, stop := f.store.Watch()
	defer stop()
	for f.store.Head() == nil { // nothing is written into an etcd that may have lost its data
		select {
		case <-moved:
		case <-ctx.Done():
			return
		}
	}
	var keep, release func(context.Context) error
	every := time.NewTicker(f.cfg.Lease / 3)
	defer every.Stop()
	second := false // another replica has this id, which was said
	for {
		var err error
		var known *recordv1.Replica
		if all := f.store.Replicas(); keep != nil {
			if i := slices.IndexFunc(all, func(r *recordv1.Replica) bool { return r.GetId() == f.cfg.Replica.GetId() }); i >= 0 {
				known = all[i]
			}
		}
		switch {
		case known == nil: // not there yet, or no more: one of the same id has left
			keep, release, err = f.store.PutReplica(ctx, f.cfg.Replica, f.cfg.Lease)
		case known.GetFleetAddress() != f.cfg.Replica.GetFleetAddress():
			if !second {
				f.log.Error("two replicas have one id, and the one that came later takes its place: give each its own",
					"address", f.cfg.Replica.GetFleetAddress(), "other", known.GetFleetAddress())
			}
			second = true
		default:
			second = false
			if err = keep(ctx); err != nil {
				keep = nil // whatever became of it, it is put anew
			}
		}
		if err != nil && ctx.Err() == nil {
			f.log.Warn("the replica's lease was not prolonged", "error", err)
		}
		select {
		case <-every.C:
		case <-ctx.Done():
			if release != nil {
				ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
				defer cancel()
				if err := release(ending); err != nil {
					f.log.Warn("the replica's lease was left to run out", "error", err)
				}
			}
			return
		}
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // a signal waits already
	}
}

// partitions is the number of partitions of the installation, 0 until it is known.
func (f *Fleet) partitions() uint32 {
	if tree := f.store.Head(); tree != nil {
		return tree.Partitions()
	}
	return 0
}

// invalid is the error of a field of a call that no proxy and no replica makes.
func invalid(field string, err error) error {
	return fault.Newf(fault.Invalid, fault.Field, "%s: %v", field, err)
}

func (f *Fleet) checkPartition(p uint32) error {
	if n := f.partitions(); p >= n {
		return fmt.Errorf("partition %d: there are %d", p, n)
	}
	return nil
}
