package store

import (
	"context"
	"errors"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

// fence is what must hold in etcd for this replica to be the leader.
type fence struct {
	key      string
	revision int64
}

func (f *fence) holds() clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(f.key), "=", f.revision)
}

// Lead stands for election until ctx ends, which is no error, and calls work whenever this replica is elected. The
// context that work is given ends when the leadership does; work must then return. When work returns by itself the
// leadership is given up, and its error is logged. A Store stands for election once at a time, and not before a head is
// known: an etcd without an installation is left as it is.
func (s *Store) Lead(ctx context.Context, work func(context.Context) error) error {
	moved, stop := s.Watch()
	defer stop()
	for s.Head() == nil {
		select {
		case <-moved:
		case <-ctx.Done():
			return nil
		}
	}
	for attempt := 0; ctx.Err() == nil; attempt++ {
		elected, err := s.lead(ctx, work)
		if ctx.Err() != nil {
			return nil
		}
		if elected {
			attempt = 0
		}
		if err != nil {
			s.log.Warn("leadership ended", "error", err)
		}
		if !pause(ctx, attempt) {
			return nil
		}
	}
	return nil
}

// lead stands for election once.
func (s *Store) lead(ctx context.Context, work func(context.Context) error) (elected bool, err error) {
	granting, cancelGrant := context.WithTimeout(ctx, longFactor*s.cfg.Timeout)
	defer cancelGrant()
	lease, err := s.etcd.Grant(granting, int64(max(1, s.cfg.LeaderTTL/time.Second)))
	if err != nil {
		return false, err
	}
	// The session's context must outlive ctx, so that the leadership can be given back.
	session, err := concurrency.NewSession(s.etcd, concurrency.WithLease(lease.ID))
	if err != nil {
		return false, err
	}
	defer func() {
		session.Orphan()
		revoking, cancelRevoke := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.Timeout)
		defer cancelRevoke()
		_, revoked := s.etcd.Revoke(revoking, lease.ID)
		err = errors.Join(err, revoked)
	}()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := make(chan struct{})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		select {
		case <-session.Done():
			cancel()
		case <-stop:
		}
	}()
	defer func() { close(stop); <-stopped }()

	election := concurrency.NewElection(session, s.keys.election())
	if err := election.Campaign(ctx, s.cfg.Name); err != nil {
		return false, err
	}
	s.leading.Store(&fence{key: election.Key(), revision: election.Rev()})
	s.log.Info("leadership began")
	err = work(ctx)
	s.leading.Store(nil)
	resign, cancelResign := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.Timeout)
	defer cancelResign()
	return true, errors.Join(err, election.Resign(resign))
}

// Leading reports whether this replica was elected and does not know of having lost it.
func (s *Store) Leading() bool { return s.leading.Load() != nil }

// Maintain sweeps, and lets etcd forget overwritten values, until ctx ends, which is no error. It is for the leader.
func (s *Store) Maintain(ctx context.Context) error {
	sweep := time.NewTicker(s.cfg.SweepEvery)
	defer sweep.Stop()
	compact := time.NewTicker(s.cfg.CompactEvery)
	defer compact.Stop()
	var before int64 // what watchers are given time to read
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-sweep.C:
			swept, err := s.Sweep(ctx)
			if err != nil {
				s.log.Warn("sweep ended early", "error", err, "cause", errors.Unwrap(err))
			}
			s.log.Info("swept", "snapshots", swept.Snapshots, "nodes", swept.Nodes)
		case <-compact.C:
			now, err := s.Compact(ctx, before)
			if err != nil {
				s.log.Warn("store not compacted", "error", err, "cause", errors.Unwrap(err))
				continue
			}
			before = now
		}
	}
}
