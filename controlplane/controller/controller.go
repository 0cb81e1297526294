// Package controller brings releases to the fleet: it begins their waves, holds each against its gate, ends them, takes
// back what proxies refuse, and removes the namespaces that releases have drained.
//
// All that is decided is in the head record, so any replica goes on where another stopped. What a leader knows besides,
// such as how many calls had failed when a wave began, is lost with it: the next one holds the wave anew.
package controller

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/ident"
)

// store is the part of the snapshot store that releases are kept in.
type store interface {
	Released() *release.State
	Watch() (<-chan struct{}, func())
	Step(ctx context.Context, step func(*release.State) (release.Step, error)) (release.Result, error)
	Commit(ctx context.Context, order release.Order, edit snapshot.Edit) (snapshot.Commit, error)
	Ended() []*recordv1.Release // newest first
	Members() []*recordv1.MemberLease
}

// fleet is who owns what, and how far that is with what.
type fleet interface {
	Assignment() *configv1.Assignment
	WatchAssignment() (<-chan struct{}, func())
	WatchStatus(ctx context.Context, namespace string, told func(*configv1.NamespaceStatus) (done bool)) error
}

// Observation is what all replicas know of some partitions.
type Observation interface {
	// Changed is sent to after something has changed.
	Changed() <-chan struct{}
	// Moved returns the partitions that have changed since it was called last.
	Moved() []ident.Partition
	// Cells is what is known of a partition, by proxy.
	Cells(p ident.Partition) map[string]*controlv1.CellState
	// Complete reports whether all who can be asked have answered.
	Complete() bool
	// Close ends the observation.
	Close()
}

// Config is what a Controller and a Brake need.
type Config struct {
	// Store and Fleet are required.
	Store store
	Fleet fleet
	// Observe begins to follow partitions; a Controller requires it.
	Observe func(partitions ...ident.Partition) Observation
	// Lease is for how long a proxy that is well may not be heard of; 0 means 10 s.
	Lease time.Duration
	// Registerer takes the metrics; nil means that nobody asks for them.
	Registerer prometheus.Registerer
	// Logger is required.
	Logger *slog.Logger
}

func (c *Config) complete() error {
	switch {
	case c.Store == nil:
		return errors.New("controller: Config.Store is required")
	case c.Fleet == nil:
		return errors.New("controller: Config.Fleet is required")
	case c.Logger == nil:
		return errors.New("controller: Config.Logger is required")
	}
	c.Lease = cmp.Or(c.Lease, 10*time.Second)
	return nil
}

// Controller brings releases to the fleet. It is for the elected replica.
type Controller struct {
	cfg Config
	log *slog.Logger
}

// New checks cfg. It does no I/O.
func New(cfg Config) (*Controller, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	if cfg.Observe == nil {
		return nil, errors.New("controller: Config.Observe is required")
	}
	return &Controller{cfg: cfg, log: cfg.Logger}, nil
}

// Run brings the releases under way forward until ctx ends, which is no error. Run it for as long as this replica leads.
func (c *Controller) Run(ctx context.Context) error {
	moved, stop := c.cfg.Store.Watch()
	defer stop()
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { c.remove(ctx) })
	followed := map[uint64]chan struct{}{} // closed when it is followed no more
	for {
		if state := c.cfg.Store.Released(); state != nil {
			for snapshot, done := range followed {
				select {
				case <-done:
					delete(followed, snapshot)
				default:
				}
			}
			for _, r := range state.Active() {
				if snapshot := r.GetSnapshot(); followed[snapshot] == nil {
					done := make(chan struct{})
					followed[snapshot] = done
					running.Go(func() {
						defer close(done)
						c.follow(ctx, snapshot)
					})
				}
			}
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return nil
		}
	}
}
