// Package store keeps the configuration in etcd: immutable objects under their hashes, one record for each snapshot,
// and `head`, which is moved by compare-and-swap and names the newest.
//
// A Store follows head by one watch and holds the whole tree in memory, verified by its hashes. What it cannot verify
// it never shows.
package store

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/fault"
)

// Config configures a Store.
type Config struct {
	// Client is the connection to etcd, required. It stays the caller's, who closes it after Run has returned.
	Client *clientv3.Client
	// Prefix is what all keys begin with; default /prism.
	Prefix string
	// Existing says that the installation must be there already: without it Run waits for it. Otherwise one is created
	// where there is none, which is wrong for an etcd that lost its data.
	Existing bool
	// Partitions is for the creation of an installation; default 1,024. When it is set and the installation has
	// another number, Run fails.
	Partitions uint32
	// Timeout bounds one small write; default 1.5 s. A commit that etcd does not answer fails within a third more.
	// Requests that read or write much are given five times as long.
	Timeout time.Duration
	// Name tells replicas apart in an election; required.
	Name string
	// LeaderTTL is how long a leader that died is waited for; default 10 s, in whole seconds.
	LeaderTTL time.Duration
	// History is how many snapshots are kept; default 1,000.
	History int
	// HistoryAge is how long a snapshot is kept; default 30 days. The newest is always kept.
	HistoryAge time.Duration
	// Grace is how old an object that nothing refers to must be before it is deleted; default 1 hour. It must be
	// longer than any commit takes and than the replicas' clocks differ.
	Grace time.Duration
	// SweepEvery is how often the leader sweeps; default 10 minutes.
	SweepEvery time.Duration
	// CompactEvery is how often the leader lets etcd forget overwritten values; default 5 minutes. Snapshots are keys
	// of their own and stay.
	CompactEvery time.Duration
	// Now is the clock; default time.Now.
	Now func() time.Time
	// Policies say how changes go to the fleet, by class; by default all go at once.
	Policies release.Policies
	// Log takes what nobody waits for; default slog.Default().
	Log *slog.Logger
}

// Store is one replica's view of the stored configuration and its way to change it. Its methods may be used from any
// number of goroutines.
type Store struct {
	cfg    Config
	etcd   *clientv3.Client
	log    *slog.Logger
	keys   keys
	queue  queue
	recent recent
	names  names
	turn   turn

	installation atomic.Pointer[recordv1.Installation]
	state        atomic.Pointer[state]
	pending      atomic.Pointer[inflight] // what the committer is writing; its revision is not known yet
	ended        ended
	steps        chan *stepRequest
	stopped      chan struct{} // closed when nothing commits any more
	trouble      atomic.Pointer[error]
	since, heard atomic.Int64 // see Following, in Unix nanoseconds
	leading      atomic.Pointer[fence]

	mu       sync.Mutex // guards all below, and changes of state
	watchers map[chan struct{}]struct{}
	fleet    fleet
}

// state is what is known of head.
type state struct {
	tree     *snapshot.Tree     // released's head
	released *release.State     // what the fleet ought to have
	record   *recordv1.Snapshot // of tree; empty at version 0
	revision int64              // the etcd revision at which head was last written
}

// inflight is a state that is being written, and what head holds then.
type inflight struct {
	*state
	head string
}

func (st *state) at(revision int64) *state {
	next := *st
	next.revision = revision
	return &next
}

// New returns a store that knows nothing until Run has loaded it.
func New(cfg Config) (*Store, error) {
	if cfg.Client == nil {
		return nil, errors.New("store: Config.Client is required")
	}
	if cfg.Name == "" {
		return nil, errors.New("store: Config.Name is required")
	}
	cfg.Prefix = "/" + strings.Trim(cmp.Or(cfg.Prefix, "/prism"), "/")
	cfg.Timeout = cmp.Or(cfg.Timeout, 1500*time.Millisecond)
	cfg.LeaderTTL = cmp.Or(cfg.LeaderTTL, 10*time.Second)
	cfg.History = cmp.Or(cfg.History, 1000)
	cfg.HistoryAge = cmp.Or(cfg.HistoryAge, 30*24*time.Hour)
	cfg.Grace = cmp.Or(cfg.Grace, time.Hour)
	cfg.SweepEvery = cmp.Or(cfg.SweepEvery, 10*time.Minute)
	cfg.CompactEvery = cmp.Or(cfg.CompactEvery, 5*time.Minute)
	cfg.Log = cmp.Or(cfg.Log, slog.Default())
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &Store{
		cfg:      cfg,
		etcd:     cfg.Client,
		log:      cfg.Log,
		keys:     keys{cfg.Prefix},
		queue:    newQueue(),
		watchers: map[chan struct{}]struct{}{},
		steps:    make(chan *stepRequest),
		stopped:  make(chan struct{}),
		fleet:    newFleet(),
	}
	return s, nil
}

// Run loads the configuration, then follows and commits until ctx ends, which is no error. While etcd does not answer
// it goes on trying. What is stored but damaged is an error before the first load, because there is nothing good to
// serve; afterwards Ready tells it and the last good tree stays.
func (s *Store) Run(ctx context.Context) error {
	revision, err := s.firstLoad(ctx)
	if err != nil || ctx.Err() != nil {
		s.queue.close(errNotLoaded)
		close(s.stopped)
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	var committer sync.WaitGroup
	committer.Go(func() { s.commitLoop(ctx) })
	s.followLoop(ctx, revision)
	committer.Wait()
	return nil
}

// Head returns the newest tree known, nil until one is loaded and verified.
func (s *Store) Head() *snapshot.Tree {
	if st := s.state.Load(); st != nil {
		return st.tree
	}
	return nil
}

// Released returns what the fleet ought to have, nil until a tree is loaded and verified. Its head is the newest tree
// known.
func (s *Store) Released() *release.State {
	if st := s.state.Load(); st != nil {
		return st.released
	}
	return nil
}

// Recorded returns the record of the newest snapshot known, nil until one is loaded and empty at version 0. It may be
// newer than a Head that was asked for before.
func (s *Store) Recorded() *recordv1.Snapshot {
	if st := s.state.Load(); st != nil {
		return st.record
	}
	return nil
}

// Revision returns the etcd revision at which the head that is known was written, 0 until one is loaded. It only grows.
func (s *Store) Revision() int64 {
	if st := s.state.Load(); st != nil {
		return st.revision
	}
	return 0
}

// Installation returns what was fixed when the installation was created, nil until it is loaded.
func (s *Store) Installation() *recordv1.Installation { return s.installation.Load() }

// Ready returns nil while the head is known and followed, and otherwise what is in the way.
func (s *Store) Ready() error {
	if s.state.Load() == nil {
		if err := s.trouble.Load(); err != nil {
			return *err
		}
		return errNotLoaded
	}
	if err := s.trouble.Load(); err != nil {
		return *err
	}
	return nil
}

// Watch returns a channel that is sent to when head may have moved or a release may have made a step, and at once when a
// head is known; signals that nobody took are one. The function ends it.
func (s *Store) Watch() (<-chan struct{}, func()) {
	c := make(chan struct{}, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watchers[c] = struct{}{}
	if s.state.Load() != nil {
		c <- struct{}{}
	}
	return c, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.watchers, c)
	}
}

// publish makes next the head that is known, unless a newer one is. The committer and the follower both come here with
// the same head, in any order.
func (s *Store) publish(next *state) {
	s.mu.Lock()
	defer s.mu.Unlock()
	current := s.state.Load()
	if current != nil && next.revision <= current.revision {
		return
	}
	s.state.Store(next)
	if current == nil || current.tree.Version() != next.tree.Version() {
		s.recent.add(next.tree)
	}
	s.signalLocked()
}

// signalLocked tells all that watch.
func (s *Store) signalLocked() {
	for c := range s.watchers {
		signal(c)
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// loaded returns the state, or the fault that there is none yet.
func (s *Store) loaded() (*state, error) {
	if st := s.state.Load(); st != nil {
		return st, nil
	}
	return nil, errNotLoaded
}

var errNotLoaded = fault.New(fault.Unavailable, fault.NotLoaded,
	"this replica has not loaded its configuration yet: try again in a moment").WithRetry(time.Second).WithOutcome(fault.NotApplied)
