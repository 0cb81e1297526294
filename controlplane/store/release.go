package store

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/prism-gateway/prism/controlplane/release"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
)

const (
	maxBack  = 8_000 // objects that one snapshot takes back
	maxEnded = 256   // ended releases in memory
	minEnded = 100   // that are kept however old their snapshots are
)

// stepRequest is a step that waits for the committer.
type stepRequest struct {
	choose func(*release.State) (release.Step, error)
	answer chan stepAnswer // of one
}

type stepAnswer struct {
	result release.Result
	err    error
}

// Step makes a step of a release and returns once etcd has it. choose says which, from the state as it is; it is pure,
// and is asked again when that has moved. When it returns the zero Step nothing is done. Its error is returned as it
// is, and only after etcd confirmed that the state is the newest. A step that is fenced is made only while this replica
// leads.
func (s *Store) Step(ctx context.Context, choose func(*release.State) (release.Step, error)) (release.Result, error) {
	if _, err := s.loaded(); err != nil {
		return release.Result{}, err
	}
	r := &stepRequest{choose: choose, answer: make(chan stepAnswer, 1)}
	select {
	case s.steps <- r:
	case <-s.stopped:
		return release.Result{}, errStopping
	case <-ctx.Done():
		return release.Result{}, fault.From(ctx.Err()).WithOutcome(fault.NotApplied)
	}
	select {
	case a := <-r.answer:
		return a.result, a.err
	case <-ctx.Done():
		return release.Result{}, fault.From(ctx.Err()).WithOutcome(fault.OutcomeUnknown)
	}
}

var errNotLeading = fault.New(fault.Unavailable, fault.TxConflict, "this replica does not lead any more").WithOutcome(fault.NotApplied)

// step answers a step.
func (s *Store) step(ctx context.Context, r *stepRequest) {
	result, err := s.takeStep(ctx, r)
	r.answer <- stepAnswer{result, err}
}

func (s *Store) takeStep(ctx context.Context, r *stepRequest) (release.Result, error) {
	began := time.Now()
	written := map[ident.Hash]bool{}
	for attempt := 0; ; attempt++ {
		st := s.state.Load()
		step, done, more, err := s.plan(st, r)
		if err != nil {
			if lost := s.confirm(ctx, st); !errors.Is(lost, errLost) {
				return release.Result{}, cmp.Or(lost, err)
			}
		} else if step.Do == 0 || done.State == st.released {
			return release.Result{State: st.released, Release: releaseOf(done, step.Release)}, nil
		} else {
			p := &plan{next: done.State, ended: done.Ended, changes: done.Changes}
			if step.Fenced {
				if p.fence = s.leading.Load(); p.fence == nil {
					return release.Result{}, errNotLeading
				}
			}
			next, lost := s.record(ctx, st, p, written)
			if lost == nil {
				s.ended.add(p.ended...)
				s.publish(next)
				result := release.Result{State: next.released, Release: releaseOf(done, step.Release), Changed: true}
				if len(p.changes) > 0 {
					result.Snapshot = next.record
				}
				s.logStep(step, result)
				if !more {
					return result, nil
				}
				attempt, began = 0, time.Now()
				continue
			}
			if err = lost; !errors.Is(err, errLost) {
				return release.Result{}, err
			}
		}
		if attempt >= maxRetries || attempt >= minRetries && time.Since(began) > longFactor*s.cfg.Timeout {
			return release.Result{}, errSlower(err)
		}
	}
}

func errSlower(err error) error {
	return fault.Wrap(err, fault.Unavailable, fault.TxConflict,
		"other replicas were always faster: try again").WithRetry(time.Second).WithOutcome(fault.NotApplied)
}

// plan works out a step on a state; more is whether the same is to be asked again after it, because it was too much for
// one snapshot's record.
func (s *Store) plan(st *state, r *stepRequest) (step release.Step, done release.Transition, more bool, err error) {
	done.State = st.released
	if step, err = r.choose(st.released); err != nil || step.Do == 0 {
		return step, done, false, err
	}
	if done, err = st.released.Apply(step, s.cfg.Now()); err != nil {
		return step, done, false, err
	}
	if len(done.Changes) > maxBack {
		pending := st.released.Pending(step.Release)
		step.Do, step.Objects = release.Eject, nil
		for _, d := range pending[:min(len(pending), maxBack/2)] {
			step.Objects = append(step.Objects, release.Ejected{Name: d.Name})
		}
		done, err = st.released.Apply(step, s.cfg.Now())
		return step, done, true, err
	}
	return step, done, false, nil
}

// releaseOf is a release as a transition leaves it.
func releaseOf(t release.Transition, snapshot uint64) *recordv1.Release {
	for _, r := range t.Ended {
		if r.Snapshot == snapshot {
			return r
		}
	}
	r, _ := t.State.Release(snapshot)
	return r
}

func (s *Store) logStep(step release.Step, result release.Result) {
	last := &recordv1.ReleaseEvent{}
	if events := result.Release.GetEvents(); len(events) > 0 {
		last = events[len(events)-1]
	}
	s.log.Info("release step", "release", step.Release, "step", last.GetWhat(), "wave", result.Release.GetWave(),
		"snapshot", result.State.Head().Version(), "author", step.Author, "reason", step.Reason, "request_id", step.RequestID)
}

// ended are the releases that have ended, as far as they are kept in memory.
type ended struct {
	mu   sync.Mutex          // guards all below
	list []*recordv1.Release // newest first; replaced when it changes
}

func byNewest(r *recordv1.Release, snapshot uint64) int {
	return cmp.Compare(snapshot, r.GetSnapshot())
}

func (e *ended) add(releases ...*recordv1.Release) {
	if len(releases) == 0 {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.list = slices.Clone(e.list)
	for _, r := range releases {
		if i, there := slices.BinarySearchFunc(e.list, r.Snapshot, byNewest); !there {
			e.list = slices.Insert(e.list, i, r)
		}
	}
	e.list = e.list[:min(len(e.list), maxEnded)]
}

func (e *ended) all() []*recordv1.Release {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.list
}

// Ended returns the releases that ended last, newest first; at most 256. They must not be changed.
func (s *Store) Ended() []*recordv1.Release { return s.ended.all() }

// Releases returns at most limit releases that have ended, newest first: those below before, or the newest when before
// is 0.
func (s *Store) Releases(ctx context.Context, before uint64, limit int) ([]*recordv1.Release, error) {
	if limit < 1 {
		return nil, nil
	}
	end := clientv3.GetPrefixRangeEnd(s.keys.releases())
	if before > 0 {
		end = s.keys.release(before)
	}
	resp, err := s.readTxn(ctx, clientv3.OpGet(s.keys.releases(), clientv3.WithRange(end),
		clientv3.WithSort(clientv3.SortByKey, clientv3.SortDescend), clientv3.WithLimit(int64(limit))))
	if err != nil {
		return nil, err
	}
	return decodeReleases(resp.Responses[0].GetResponseRange().Kvs)
}

// getEnded reads the releases that ended last.
func (s *Store) getEnded() clientv3.Op {
	return clientv3.OpGet(s.keys.releases(), clientv3.WithPrefix(),
		clientv3.WithSort(clientv3.SortByKey, clientv3.SortDescend), clientv3.WithLimit(maxEnded))
}

func (s *Store) loadEnded(kvs []*mvccpb.KeyValue) error {
	releases, err := decodeReleases(kvs)
	s.ended.add(releases...)
	return err
}

func decodeReleases(kvs []*mvccpb.KeyValue) ([]*recordv1.Release, error) {
	var out []*recordv1.Release
	for _, kv := range kvs {
		r, err := decode[recordv1.Release](string(kv.Key), kv.Value)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

// releaseEvent takes over a release that the watch tells to have ended. One that has left the history stays in memory
// until newer ones take its place.
func (s *Store) releaseEvent(event *clientv3.Event) error {
	if event.Type == clientv3.EventTypeDelete {
		return nil
	}
	if err := s.loadEnded([]*mvccpb.KeyValue{event.Kv}); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.signalLocked()
	return nil
}

// readReleases makes what the fleet ought to have by a head, whose tree next has already. current is what is known.
func (s *Store) readReleases(ctx context.Context, current *release.State, next *state, head *recordv1.Head, seen map[string][]byte) (*release.State, error) {
	stable := next.tree
	if head.Stable != nil {
		rec := &recordv1.Snapshot{Version: head.Version, Root: head.Stable.Root, Groups: head.Stable.Groups, Shared: head.Stable.Shared}
		var err error
		if stable, err = s.assemble(ctx, s.keys.head(), current.Stable(), next.tree, rec, seen); err != nil {
			return nil, err
		}
	}
	state, err := release.Load(current, next.tree, stable, head.Releases, func(version uint64) ([]*recordv1.Change, error) {
		if version == next.record.GetVersion() {
			return next.record.GetChanges(), nil
		}
		rec, err := s.snapshot(ctx, version, seen)
		if fault.Is(err, fault.Snapshot) {
			err = damaged(s.keys.snapshot(version), errMissing)
		}
		return rec.GetChanges(), err
	})
	if err != nil {
		if f := fault.From(err); f.Code == fault.Internal {
			err = damaged(s.keys.head(), err)
		}
		return nil, err
	}
	return state, nil
}

// trimReleases deletes ended releases whose snapshots have left the history, but for the newest.
func (s *Store) trimReleases(ctx context.Context) error {
	resp, err := s.readTxn(ctx,
		clientv3.OpGet(s.keys.releases(), clientv3.WithPrefix(), clientv3.WithKeysOnly()),
		clientv3.OpGet(s.keys.snapshots(), clientv3.WithPrefix(), clientv3.WithKeysOnly(), clientv3.WithLimit(1)))
	if err != nil {
		return err
	}
	kept, oldest := resp.Responses[0].GetResponseRange().Kvs, resp.Responses[1].GetResponseRange().Kvs
	if len(oldest) == 0 {
		return nil
	}
	first, err := s.keys.version(string(oldest[0].Key))
	if err != nil {
		return damaged(string(oldest[0].Key), err)
	}
	var deletes []clientv3.Op
	for _, kv := range kept[:max(0, len(kept)-minEnded)] {
		if string(kv.Key) < s.keys.release(first) {
			deletes = append(deletes, clientv3.OpDelete(string(kv.Key)))
		}
	}
	for first := 0; first < len(deletes); first += maxOps {
		if _, err := s.readTxn(ctx, deletes[first:min(first+maxOps, len(deletes))]...); err != nil {
			return err
		}
	}
	return nil
}
