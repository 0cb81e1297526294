package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
)

const (
	maxObject  = 1 << 20 // bytes of one object
	maxRetries = 100     // lost compare-and-swaps of one commit
	minRetries = 3       // of them whatever time they take
	minLosses  = 2       // before a commit asks the others to hold back
)

// Commit is what became of a change.
type Commit = snapshot.Commit

// Commit records a change as part of a new snapshot and returns once etcd has it. Changes that come while a commit is
// under way are recorded together. The policy of the change's class says how it goes to the fleet, unless the order does.
// The edit's error is returned as it is, and only after etcd confirmed that the tree it was evaluated on is the newest;
// other errors are faults, whose outcome says whether the change may have been made.
func (s *Store) Commit(ctx context.Context, order release.Order, edit snapshot.Edit) (Commit, error) {
	r := s.request(order)
	r.apply = func(d *release.Draft) (evaluated, error) {
		sets, err := edit(d.Head(), d.Version())
		if err != nil {
			return evaluated{}, err
		}
		e := evaluated{records: map[ident.Hash][]byte{}}
		for _, set := range sets {
			if len(set.Data) > maxObject || len(set.Record) > maxObject {
				return evaluated{}, fault.Newf(fault.Invalid, fault.TooLarge, "%s is larger than %d bytes", set.Name, maxObject)
			}
			if set.Record != nil {
				e.records[ident.HashOf(set.Record)] = set.Record
			}
		}
		e.draft, e.changes, err = d.With(order, s.cfg.Policies, sets)
		return e, err
	}
	return s.submit(ctx, r)
}

// Rollback records a snapshot that is what an older version was, in one write whatever its size, and ends all releases
// under way. check may refuse it; like an Edit it is pure and may be asked again with a newer base.
func (s *Store) Rollback(ctx context.Context, order release.Order, to uint64, note snapshot.Note, check func(base, target *snapshot.Tree) error) (Commit, error) {
	target, revision, err := s.treeAt(ctx, to)
	if err != nil {
		return Commit{}, err
	}
	r := s.request(order)
	r.guard = &guard{version: to, revision: revision, tree: target}
	r.apply = func(d *release.Draft) (evaluated, error) {
		if check != nil {
			if err := check(d.Head(), target); err != nil {
				return evaluated{}, err
			}
		}
		draft, changes, err := d.Rollback(order, s.cfg.Policies, target, note)
		return evaluated{draft: draft, changes: changes}, err
	}
	return s.submit(ctx, r)
}

func (s *Store) request(order release.Order) *request {
	return &request{team: order.Team, weight: order.Weight, objects: order.Objects, tokens: order.Tokens}
}

func (s *Store) submit(ctx context.Context, r *request) (Commit, error) {
	if _, err := s.loaded(); err != nil {
		return Commit{}, err
	}
	r.ctx, r.answer = ctx, make(chan answer, 1)
	if err := s.queue.add(r); err != nil {
		return Commit{}, err
	}
	select {
	case a := <-r.answer:
		return a.commit, a.err
	case <-ctx.Done():
		outcome := fault.OutcomeUnknown
		if r.taken.CompareAndSwap(false, true) {
			outcome = fault.NotApplied
		}
		return Commit{}, fault.From(ctx.Err()).WithOutcome(outcome)
	}
}

// commitLoop commits what waits. There is no timer: what comes during one commit is the next.
func (s *Store) commitLoop(ctx context.Context) {
	defer close(s.stopped)
	defer s.queue.close(errStopping)
	finish := context.WithoutCancel(ctx) // what has begun is finished, also while the replica is stopping
	for {
		select {
		case <-ctx.Done():
			return
		case r := <-s.steps:
			s.step(finish, r)
			continue
		case <-s.queue.wake:
		}
		for batch := s.queue.take(maxBatch); len(batch) > 0; {
			select {
			case r := <-s.steps: // a step is never behind many changes
				s.step(finish, r)
			default:
			}
			batch = s.commit(ctx, batch)
		}
	}
}

var errStopping = fault.New(fault.Unavailable, fault.Draining, "this replica is stopping: try another").WithOutcome(fault.NotApplied)

// commit answers a batch but for those that it returns, which did not fit. When stopping ends it does not hold back any
// more, and is finished all the same.
func (s *Store) commit(stopping context.Context, batch []*request) []*request {
	ctx := context.WithoutCancel(stopping)
	own := false // it is this replica's turn
	held := s.yield(stopping, s.maxTurn())
	began := time.Now()
	written := map[ident.Hash]bool{}
	for attempt := 0; ; attempt++ {
		st := s.state.Load()
		p := s.evaluate(st, batch)
		next, err := s.record(ctx, st, p, written)
		switch {
		case err == nil:
			for name, r := range p.names {
				s.names.put(name, r, next.revision)
			}
			s.ended.add(p.ended...)
			s.publish(next)
			s.logCommit(p, next)
			for r, a := range p.answers {
				r.answer <- a
			}
			for _, r := range p.done {
				r.answer <- answer{commit: Commit{Tree: next.tree, Snapshot: next.record, Revision: next.revision, Changed: p.changed[r], InRelease: p.waved[r]}}
			}
			return p.rest
		case errors.Is(err, errLost) && attempt < maxRetries && (attempt < minRetries || time.Since(began) < longFactor*s.cfg.Timeout):
			if own {
				continue
			}
			if wait := s.yield(stopping, s.maxTurn()-held); wait > 0 {
				held, began = held+wait, began.Add(wait)
				continue
			}
			if attempt+1 < minLosses || time.Since(began) < s.cfg.Timeout/4 {
				continue
			}
			if end := s.takeTurn(ctx); end != nil {
				defer end()
				own, began = true, time.Now()
			}
			continue
		case errors.Is(err, errLost):
			err = errSlower(err)
		}
		if gone, ok := errors.AsType[*guardError](err); ok {
			batch = dropGuarded(batch, gone.version)
			continue
		}
		for _, r := range batch {
			r.answer <- answer{err: err}
		}
		if fault.Is(err, fault.StoreDown) {
			// Those behind would wait as long again, for the same.
			s.queue.fail(fault.From(err).WithOutcome(fault.NotApplied))
		}
		return nil
	}
}

// logCommit logs who changed what: the log is where one looks first.
func (s *Store) logCommit(p *plan, next *state) {
	if len(p.changes) == 0 {
		return
	}
	const most = 5
	var names []string
	for _, c := range p.changes[:min(len(p.changes), most)] {
		name := c.GetName()
		if name == "" {
			name = fmt.Sprintf("everything, to snapshot %d", c.GetToVersion())
		}
		names = append(names, strings.ToLower(strings.TrimPrefix(c.GetKind().String(), "CHANGE_KIND_"))+" "+name)
	}
	s.log.Info("snapshot recorded", "snapshot", next.record.GetVersion(), "count", len(p.changes), "changes", names,
		"author", p.changes[0].GetAuthor(), "request_id", p.changes[0].GetRequestId())
}

// dropGuarded answers the rollbacks to a version that has left the history.
func dropGuarded(batch []*request, version uint64) []*request {
	var left []*request
	for _, r := range batch {
		if r.guard != nil && r.guard.version == version {
			r.answer <- answer{err: noSnapshot(version)}
			continue
		}
		left = append(left, r)
	}
	return left
}

// Own reports whether this replica recorded a snapshot.
func (s *Store) Own(record *recordv1.Snapshot) bool {
	id := record.GetCommitId()
	return strings.LastIndexByte(id, '/') == len(s.cfg.Name) && strings.HasPrefix(id, s.cfg.Name)
}
