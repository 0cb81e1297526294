// Package subscribe keeps a proxy's configuration the same as the control plane's: it subscribes to the partitions that
// the proxy owns, verifies each collection against its root before anything of it is used, gives whole states to the
// assembler, acknowledges what is in effect, and keeps the last good state on disk.
//
// Without a control plane the state is kept for ever. Nothing here forgets configuration because nobody answers.
package subscribe

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/ident"
	"github.com/prism-gateway/prism/shared/telemetry"
	"github.com/prism-gateway/prism/shared/telemetry/trace"
)

// The types pushed to proxies, in push order.
const (
	AssignmentType = "type.googleapis.com/prism.config.v1.Assignment"
	SharedType     = "type.googleapis.com/prism.config.v1.Shared"
	NamespaceType  = "type.googleapis.com/prism.config.v1.NamespaceConfig"

	sentinelType = "type.googleapis.com/prism.config.v1.Sentinel"

	assignmentName = "fleet"
	sharedName     = "shared"
)

const (
	answerTimeout = 15 * time.Second // for a subscription to be answered, as xDS has it
	firstBackoff  = 200 * time.Millisecond
	maxBackoff    = 30 * time.Second
)

// Object is one member of a collection: a resource's bytes and their SHA-256. It does not change.
type Object struct {
	Hash ident.Hash
	Data []byte
}

// Partition is what a proxy is to run of one partition. It does not change once handed out.
type Partition struct {
	// Root and SharedRoot are the roots of the partition and of the shared set that its names resolve in.
	Root, SharedRoot ident.Hash
	// Snapshot is the snapshot that this state belongs to.
	Snapshot uint64
	// CommittedAt is when that snapshot was recorded, by the control plane's clock.
	CommittedAt time.Time
	// Members are the NamespaceConfigs by name (ns/...). In place of bytes that Apply refused in this shared set stand
	// the last that it took, or nothing.
	Members map[string]Object
}

// State is all that a proxy is to run. It does not change once handed out; the receiver may keep it and must not write
// to it.
type State struct {
	// Assignment tells who owns what; nil until it is known.
	Assignment *configv1.Assignment
	// Epoch is the assignment's.
	Epoch uint64
	// Partitions are those held, each complete and verified.
	Partitions map[ident.Partition]*Partition
	// Shared are the sets that Partitions refer to, by root: members by name (backend/..., profile/...). The set
	// without members has the zero root and is always there.
	Shared map[ident.Hash]map[string]Object
	// Changed are the partitions that differ from the last State, in order; one that Partitions lacks is gone.
	Changed []ident.Partition
}

// Unready is a namespace that is in the table but cannot serve, and why.
type Unready struct{ Namespace, Reason string }

// Readiness is what the proxy says of itself to the fleet.
type Readiness struct {
	// Ready is whether it takes calls; Reasons say why not.
	Ready   bool
	Reasons []string
	// Draining is whether it is leaving.
	Draining bool
	// CallsPerSecond is over the last heartbeat interval.
	CallsPerSecond float64
	// Load is what the proxy carries.
	Load Load
}

// Load is what a proxy carries now.
type Load struct {
	// CallsInFlight are calls under way, Connections those of applications and other proxies.
	CallsInFlight uint64
	Connections   uint32
	// MemoryBytes is what the process has from its system, and CPU the processor time that it has used.
	MemoryBytes uint64
	CPU         time.Duration
}

// Traffic counts the calls that a proxy answered for a partition.
type Traffic struct {
	// Calls were answered since Since; Failed are those that failed by the fault of Prism or a backend.
	Calls, Failed uint64
	// Took is the time that all of them took together.
	Took time.Duration
	// Since is when counting began, the proxy's start.
	Since time.Time
}

// Facts are what the fleet is told and only the caller knows. The methods are called from one goroutine.
type Facts interface {
	Readiness() Readiness
	// Unready lists the namespaces of a partition in effect that cannot serve.
	Unready(ident.Partition) []Unready
	// Traffic counts the calls of a partition; without calls nothing is told of it.
	Traffic(ident.Partition) Traffic
}

// Node is the proxy as the fleet knows it.
type Node struct {
	// ID is unique in the fleet and kept over restarts.
	ID string
	// Address is host:port at which it takes data calls.
	Address string
	// Labels are the region, the zone.
	Labels map[string]string
	// Build is the program's version.
	Build string
	// Validator is whether the proxy has every partition, to compile what it is sent, and takes no calls.
	Validator bool
}

// Config is what a Client needs.
type Config struct {
	// Endpoints are the replicas' xDS addresses, host:port or a gRPC target. Required.
	Endpoints []string
	// Node is this proxy. Its ID is required.
	Node Node
	// StateDir is where the last good state is kept; empty keeps none. It is used by one Client at a time.
	StateDir string
	// ReleaseDelay is how long a partition that moved away goes on being served; 0 means not at all.
	ReleaseDelay time.Duration
	// Apply puts a state in effect and returns when it is, with what it refused: resources by name (ns/..., backend/...),
	// field and reason. What it refuses keeps, in the table, its former version. It is called from one goroutine at a
	// time; whatever arrives meanwhile comes with the next call. Required.
	Apply func(ctx context.Context, state State) []*configv1.Rejection
	// Check tells which members of a partition in effect, by name (ns/...), have routes that are not, or are no longer, what
	// their bytes say, and which routes have no member. The next Apply that has the partition among the changed makes these
	// anew. It is not called while Apply runs. Nil: nothing is looked over.
	Check func(partition ident.Partition, state *Partition) []string
	// Foreign is told, for people, which endpoints are refused because a control plane of another installation answers
	// there than that of the state; an empty text when there is none any more. It must not block. Nil: nobody is told.
	Foreign func(reason string)
	// Facts are told to the fleet. Without them nothing is reported.
	Facts Facts
	// Commons is shared with other clients of the process, so that what they are all sent is kept once; nil shares nothing.
	Commons *Commons
	// Tracer makes a span of each change that came into effect; nil makes none.
	Tracer *trace.Tracer
	// DialOptions are added to the client's own; without credentials among them the connection is plaintext.
	DialOptions []grpc.DialOption
	// Registerer takes the metrics; nil keeps them unregistered.
	Registerer prometheus.Registerer
	// Logger is required.
	Logger *slog.Logger
}

// Client is the proxy's end of the push. Its methods may be called from any goroutine.
type Client struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics

	view     atomic.Pointer[view]   // what is in effect, published by the loop
	endpoint atomic.Pointer[string] // of the stream that answered; nil while there is none
	stale    atomic.Int64           // since when nobody answers, in Unix nanoseconds; 0 while connected
	since    atomic.Int64           // since when endpoint answers, in Unix nanoseconds
	heard    atomic.Int64           // when a control plane said anything last, in Unix nanoseconds; 0 when none ever did
	saveErr  atomic.Pointer[string] // why the state is not on disk; nil while it is

	notify chan struct{} // holds one signal for the reporter
	recent propagations  // that the reporter has not told yet
}

// New checks cfg. It does no I/O.
func New(cfg Config) (*Client, error) {
	switch {
	case len(cfg.Endpoints) == 0:
		return nil, errors.New("subscribe: Config.Endpoints is required")
	case cfg.Node.ID == "":
		return nil, errors.New("subscribe: Config.Node.ID is required")
	case cfg.Apply == nil:
		return nil, errors.New("subscribe: Config.Apply is required")
	case cfg.Logger == nil:
		return nil, errors.New("subscribe: Config.Logger is required")
	case cfg.ReleaseDelay < 0:
		return nil, errors.New("subscribe: Config.ReleaseDelay is negative")
	}
	c := &Client{cfg: cfg, log: cfg.Logger, notify: make(chan struct{}, 1)}
	c.view.Store(&view{})
	m, err := newMetrics(cfg.Registerer, c)
	if err != nil {
		return nil, err
	}
	c.metrics = m
	return c, nil
}

// Run loads the state on disk, puts it in effect, then follows the control plane until ctx ends. It returns an error
// only when the state directory cannot be had, such as when another proxy uses it.
func (c *Client) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var disk *disk
	former := &saved{}
	if c.cfg.StateDir != "" {
		var err error
		if disk, err = openDisk(c.cfg.StateDir, c.cfg.Node.ID); err != nil {
			return fmt.Errorf("state directory: %w", err)
		}
		defer disk.close()
		var problems []error
		former, problems = disk.load()
		for _, problem := range problems {
			c.metrics.persistErrors.Inc()
			c.log.Error("a part of the state on disk is refused and will be fetched anew", telemetry.KeyError, problem)
		}
	}
	since := former.lastContact
	if since.IsZero() {
		since = time.Now()
	} else {
		c.heard.Store(since.UnixNano())
	}
	c.stale.Store(since.UnixNano())

	l := newLoop(c, former)
	var tasks sync.WaitGroup
	defer tasks.Wait()
	saving, stopSaving := context.WithCancel(context.WithoutCancel(ctx)) // ends last: the loop has a last word
	defer stopSaving()
	defer cancel()
	if disk != nil {
		l.saver = &saver{client: c, disk: disk, next: make(chan *saved, 1)}
		tasks.Go(func() { l.saver.run(saving) })
	}
	l.applySaved(ctx)
	tasks.Go(func() { c.connect(ctx, l.events) })
	if c.cfg.Facts != nil {
		tasks.Go(func() { c.report(ctx) })
	}
	l.run(ctx)
	return nil
}

// Notify tells the fleet soon that what Facts say has changed. It does not block.
func (c *Client) Notify() {
	select {
	case c.notify <- struct{}{}:
	default: // a signal is waiting already
	}
}

// Staleness is for how long no control plane has answered, 0 while connected.
func (c *Client) Staleness() time.Duration {
	if since := c.stale.Load(); since != 0 {
		return max(time.Since(time.Unix(0, since)), 1)
	}
	return 0
}

// setConnected records whether a control plane answers, with the endpoint when one does.
func (c *Client) setConnected(endpoint string) {
	if endpoint != "" {
		c.since.Store(time.Now().UnixNano())
		c.endpoint.Store(&endpoint)
		c.stale.Store(0)
		return
	}
	if c.endpoint.Swap(nil) != nil {
		c.stale.Store(time.Now().UnixNano())
	}
}

// Status is what a Client has and how it stands with the control plane.
type Status struct {
	// Endpoint is the connected replica's, empty while none answers.
	Endpoint string
	// StaleSince is since when none answers, the zero time while one does; ConnectedSince the other way round.
	StaleSince, ConnectedSince time.Time
	// Heard is when a control plane said anything last, before a restart too; the zero time when none ever did.
	Heard time.Time
	// Installation is the id of the installation that the state belongs to, empty while unknown.
	Installation string
	// Revision is the highest revision of the control plane's store that was seen.
	Revision int64
	// Epoch is the assignment's in effect.
	Epoch uint64
	// Assigned is whether an assignment is known.
	Assigned bool
	// Missing are the partitions assigned to this proxy that are not in effect yet, in order.
	Missing []ident.Partition
	// Cells are the partitions in effect, in order.
	Cells []Cell
	// Refused are shared objects that the last Apply refused.
	Refused []*configv1.Rejection
	// PersistError says why the state is not on disk, empty while it is.
	PersistError string
}

// Cell is one partition in effect.
type Cell struct {
	Partition        ident.Partition
	Root, SharedRoot ident.Hash
	Snapshot         uint64
	CommittedAt      time.Time
	// Members is how many namespaces are in effect.
	Members int
	// Leaving is whether the partition moved away and is served only until the release delay has passed.
	Leaving bool
	// Rejections are the refused namespaces.
	Rejections []*configv1.Rejection
	// Drifted names what was found, when it was last looked at, not to be what its version stands for, in order.
	Drifted []string
}

// view is the part of Status that the loop publishes; it does not change.
type view struct {
	installation string
	revision     int64
	epoch        uint64
	assigned     bool
	missing      []ident.Partition
	cells        []*Cell
	refused      []*configv1.Rejection
}

// Status returns a snapshot. The caller must not change what its slices refer to.
func (c *Client) Status() Status {
	v := c.view.Load()
	s := Status{
		Endpoint: *cmp.Or(c.endpoint.Load(), new(string)), Installation: v.installation, Revision: v.revision,
		Epoch: v.epoch, Assigned: v.assigned, Missing: v.missing, Refused: v.refused,
		PersistError: *cmp.Or(c.saveErr.Load(), new(string)),
		Cells:        make([]Cell, len(v.cells)),
	}
	for i, cell := range v.cells {
		s.Cells[i] = *cell
	}
	if since := c.stale.Load(); since != 0 {
		s.StaleSince = time.Unix(0, since)
	} else if since := c.since.Load(); since != 0 {
		s.ConnectedSince = time.Unix(0, since)
	}
	if heard := c.heard.Load(); heard != 0 {
		s.Heard = time.Unix(0, heard)
	}
	return s
}
