package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
)

// maxSeen bounds what is kept of objects whose head has not come yet; more than that is read again.
const maxSeen = 64 << 20

// askEvery is how often etcd is asked how far it is.
const askEvery = 5 * time.Second

// firstLoad loads until it succeeds, ctx ends, or what is stored turns out to be damaged. It returns the revision of
// what it loaded.
func (s *Store) firstLoad(ctx context.Context) (int64, error) {
	for attempt := 0; ; attempt++ {
		revision, err := s.load(ctx)
		s.tell(err)
		if err == nil || ctx.Err() != nil {
			return revision, nil
		}
		// Damage is believed when it is seen again: head may have moved on while it was read.
		if f := fault.From(err); f.Code == fault.FailedPrecondition || f.Code == fault.DataLoss && attempt > 1 {
			return 0, err
		}
		if !pause(ctx, attempt) {
			return 0, nil
		}
	}
}

// followLoop keeps the state up to date from the revision after the loaded one, until ctx ends.
func (s *Store) followLoop(ctx context.Context, revision int64) {
	for attempt := 0; ctx.Err() == nil; attempt++ {
		began := time.Now()
		err := s.follow(ctx, revision+1)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > time.Minute {
			attempt = 0
		}
		for {
			s.tell(err)
			if !pause(ctx, attempt) {
				return
			}
			attempt++
			if revision, err = s.load(ctx); err == nil {
				s.tell(nil)
				break
			}
		}
	}
}

// tell keeps what is in the way for Ready, and logs when that changes.
func (s *Store) tell(err error) {
	if err == nil {
		s.since.Store(time.Now().UnixNano())
		if s.trouble.Swap(nil) != nil {
			s.log.Info("store followed again")
		}
		return
	}
	s.since.Store(0)
	if old := s.trouble.Swap(&err); old == nil || (*old).Error() != err.Error() {
		s.log.Warn("store not followed", "error", err, "cause", errors.Unwrap(err))
	}
}

// hear notes that etcd said something.
func (s *Store) hear() { s.heard.Store(time.Now().UnixNano()) }

// Following returns since when etcd is followed without a break, the zero time while it is not, and when it said anything
// last, the zero time when it never did. While it is well it is heard of every 5 s.
func (s *Store) Following() (since, heard time.Time) {
	of := func(a *atomic.Int64) (t time.Time) {
		if at := a.Load(); at != 0 {
			t = time.Unix(0, at)
		}
		return t
	}
	return of(&s.since), of(&s.heard)
}

// pause waits before another attempt, with full jitter; it returns false when ctx ends.
func pause(ctx context.Context, attempt int) bool {
	longest := min(5*time.Second, 50*time.Millisecond<<min(attempt, 10))
	select {
	case <-ctx.Done():
		return false
	case <-time.After(rand.N(longest) + time.Millisecond):
		return true
	}
}

// load reads head and what the state lacks of it, and the keys of the fleet, all at one revision, which it returns.
func (s *Store) load(ctx context.Context) (int64, error) {
	resp, err := s.open(ctx)
	if err != nil {
		return 0, err
	}
	s.hear()
	revision := resp.Header.Revision
	base := snapshot.New(s.installation.Load().Partitions)
	current := s.state.Load()
	if current != nil {
		base = current.tree
	}
	next, err := s.readHead(ctx, base, resp.Responses[1].GetResponseRange().Kvs[0], nil)
	if err != nil {
		return 0, err
	}
	if current != nil && (next.revision < current.revision || next.tree.Version() < current.tree.Version() ||
		next.tree.Version() == current.tree.Version() && next.tree.Root() != current.tree.Root()) {
		return 0, damaged(s.keys.head(), fmt.Errorf("names snapshot %d, and snapshot %d is known: etcd was reset or restored from an old backup",
			next.tree.Version(), current.tree.Version()))
	}
	if err := s.loadFleet(resp.Responses[2:5]); err != nil {
		return 0, err
	}
	if err := s.loadNames(resp.Responses[5].GetResponseRange().Kvs, revision); err != nil {
		return 0, err
	}
	if err := s.loadEnded(resp.Responses[6].GetResponseRange().Kvs); err != nil {
		return 0, err
	}
	s.turn.set(resp.Responses[7].GetResponseRange().Kvs, s.maxTurn())
	s.publish(next)
	return revision, nil
}

// open creates the installation when there is nothing at all under the prefix, and reads install, head and the keys of
// the fleet in one request.
func (s *Store) open(ctx context.Context) (*clientv3.TxnResponse, error) {
	gets := []clientv3.Op{
		clientv3.OpGet(s.keys.install()), clientv3.OpGet(s.keys.head()), clientv3.OpGet(s.keys.members(), clientv3.WithPrefix()),
		clientv3.OpGet(s.keys.replicas(), clientv3.WithPrefix()), clientv3.OpGet(s.keys.placement()),
		clientv3.OpGet(s.keys.names(), clientv3.WithPrefix()), s.getEnded(),
		clientv3.OpGet(s.keys.turn()),
	}
	resp, err := s.readTxn(ctx, gets...)
	if err != nil {
		return nil, err
	}
	if s.installation.Load() == nil && resp.Responses[0].GetResponseRange().Count+resp.Responses[1].GetResponseRange().Count == 0 {
		if s.cfg.Existing {
			return nil, fault.Newf(fault.Unavailable, fault.NotLoaded,
				"etcd at %s holds no installation under %s: restore a backup, or start one replica once with --create",
				strings.Join(s.etcd.Endpoints(), ", "), s.keys.prefix)
		}
		if err := s.create(ctx); err != nil {
			return nil, err
		}
		if resp, err = s.readTxn(ctx, gets...); err != nil {
			return nil, err
		}
	}
	for i, key := range []string{s.keys.install(), s.keys.head()} {
		if resp.Responses[i].GetResponseRange().Count == 0 {
			return nil, damaged(key, errMissing)
		}
	}
	install, err := decode[recordv1.Installation](s.keys.install(), resp.Responses[0].GetResponseRange().Kvs[0].Value)
	if err != nil {
		return nil, err
	}
	switch known := s.installation.Load(); {
	case install.Partitions == 0 || install.Id == "":
		return nil, damaged(s.keys.install(), errors.New("lacks the number of partitions or the id"))
	case known != nil && known.Id != install.Id:
		return nil, damaged(s.keys.install(), fmt.Errorf("names installation %s, not %s", install.Id, known.Id))
	case s.cfg.Partitions != 0 && s.cfg.Partitions != install.Partitions:
		return nil, fault.Newf(fault.FailedPrecondition, fault.Object,
			"the installation was created with %d partitions and cannot have %d", install.Partitions, s.cfg.Partitions)
	}
	s.installation.Store(install)
	return resp, nil
}

// create writes install and head once, whoever comes first. Left-over snapshots without them mean that something was
// deleted, and nothing is created over that.
func (s *Store) create(ctx context.Context) error {
	partitions := s.cfg.Partitions
	if partitions == 0 {
		partitions = 1024
	}
	install, err := encode(&recordv1.Installation{
		Partitions: partitions, Id: uuid.NewString(), CreatedAt: timestamppb.New(s.cfg.Now()),
	})
	if err != nil {
		return err
	}
	head, err := encode(&recordv1.Head{Root: snapshot.New(partitions).Root().Bytes()})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, longFactor*s.cfg.Timeout)
	defer cancel()
	_, err = s.etcd.Txn(ctx).If(
		clientv3.Compare(clientv3.CreateRevision(s.keys.install()), "=", 0),
		clientv3.Compare(clientv3.CreateRevision(s.keys.head()), "=", 0),
		clientv3.Compare(clientv3.CreateRevision(s.keys.snapshots()), "=", 0).WithPrefix(),
	).Then(clientv3.OpPut(s.keys.install(), install), clientv3.OpPut(s.keys.head(), head)).Commit()
	if err != nil {
		return down(err)
	}
	return nil
}

// readHead makes the state that a head key names.
func (s *Store) readHead(ctx context.Context, base *snapshot.Tree, kv *mvccpb.KeyValue, seen map[string][]byte) (*state, error) {
	head, err := decode[recordv1.Head](s.keys.head(), kv.Value)
	if err != nil {
		return nil, err
	}
	root, err := ident.HashFrom(head.Root)
	if err != nil {
		return nil, damaged(s.keys.head(), err)
	}
	// The watch is often faster than the answer to the write that it tells of, and then its state is there.
	own := s.pending.Load()
	if own != nil && own.head != string(kv.Value) {
		own = nil
	}
	next := &state{tree: base, record: &recordv1.Snapshot{}, revision: kv.ModRevision}
	current := s.state.Load()
	if current == nil {
		current = &state{released: release.Settled(base)}
	}
	if current.tree != nil && current.tree.Version() == head.Version {
		next.tree, next.record = current.tree, current.record
		if own != nil && own.record == current.record {
			return own.at(kv.ModRevision), nil
		}
	} else if head.Version > 0 {
		if next.record, err = s.snapshot(ctx, head.Version, seen); err != nil {
			if fault.Is(err, fault.Snapshot) {
				err = damaged(s.keys.snapshot(head.Version), errMissing)
			}
			return nil, err
		}
		if own != nil && own.record.CommitId == next.record.CommitId {
			return own.at(kv.ModRevision), nil
		}
		if next.tree, err = s.build(ctx, base, current.released.Stable(), next.record, seen); err != nil {
			return nil, err
		}
	} else {
		next.tree = snapshot.New(base.Partitions())
	}
	if next.tree.Root() != root {
		return nil, damaged(s.keys.head(), fmt.Errorf("names root %s, and snapshot %d has %s", root, head.Version, next.tree.Root()))
	}
	next.released, err = s.readReleases(ctx, current.released, next, head, seen)
	return next, err
}

// follow applies what the watch brings, from a revision on, until the watch ends or brings what cannot be used.
func (s *Store) follow(ctx context.Context, from int64) error {
	ctx, cancel := context.WithCancelCause(clientv3.WithRequireLeader(ctx))
	var asking sync.WaitGroup
	defer asking.Wait()
	defer cancel(nil)
	asking.Go(func() {
		if err := s.noticeReset(ctx); err != nil {
			cancel(err)
		}
	})
	seen := seen{data: map[string][]byte{}}
	for resp := range s.etcd.Watch(ctx, s.keys.prefix+"/", clientv3.WithPrefix(), clientv3.WithRev(from),
		clientv3.WithProgressNotify(), clientv3.WithFragment()) {
		if err := resp.Err(); err != nil {
			return down(err)
		}
		s.hear()
		var head *mvccpb.KeyValue
		for _, event := range resp.Events {
			key := string(event.Kv.Key)
			switch {
			case key == s.keys.head(), key == s.keys.install():
				if event.Type == clientv3.EventTypeDelete {
					return damaged(key, errMissing)
				}
				if key == s.keys.head() {
					head = event.Kv
				}
			case key == s.keys.turn():
				var there []*mvccpb.KeyValue
				if event.Type == clientv3.EventTypePut {
					there = append(there, event.Kv)
				}
				s.turn.set(there, s.maxTurn())
			case s.isFleet(key):
				if err := s.fleetEvent(key, event); err != nil {
					s.log.Error("fleet key ignored", "error", err)
				}
			case strings.HasPrefix(key, s.keys.releases()):
				if err := s.releaseEvent(event); err != nil {
					return err
				}
			case s.isName(key):
				if err := s.nameEvent(event); err != nil {
					return err
				}
			case event.Type == clientv3.EventTypePut:
				seen.add(key, event.Kv.Value)
			}
		}
		// Objects come before the head that needs them, and of several heads only the last matters.
		if head == nil {
			continue
		}
		current := s.state.Load()
		if head.ModRevision > current.revision {
			next, err := s.readHead(ctx, current.tree, head, seen.data)
			if err != nil {
				return err
			}
			if next.tree.Version() < current.tree.Version() {
				return damaged(s.keys.head(), fmt.Errorf("goes from snapshot %d back to %d", current.tree.Version(), next.tree.Version()))
			}
			s.publish(next)
		}
		seen.clear()
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return errors.New("store: the watch ended")
}

// noticeReset asks etcd now and then how far it is, until ctx ends, and fails when that is less than it once was. The
// watch of an etcd that was reset is silent until it has come as far again.
func (s *Store) noticeReset(ctx context.Context) error {
	again := time.NewTicker(askEvery)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-again.C:
		}
		known := s.Revision()
		resp, err := s.readTxn(ctx, clientv3.OpGet(s.keys.head(), clientv3.WithKeysOnly()))
		if err != nil {
			continue // the watch has more to say
		}
		if resp.Header.Revision < known {
			return errReset(s.keys.head(), resp.Header.Revision, known)
		}
		s.hear()
	}
}

// seen is what the watch brought since the last head, by key.
type seen struct {
	data map[string][]byte
	size int
}

func (s *seen) add(key string, value []byte) {
	if s.size += len(value); s.size > maxSeen {
		s.clear()
	}
	s.data[key] = value
}

func (s *seen) clear() {
	clear(s.data)
	s.size = 0
}

// Sync returns when the state is at least as new as what etcd held when Sync was called, so that what is read next
// contains every commit that was acknowledged before, by any replica.
func (s *Store) Sync(ctx context.Context) error {
	st, err := s.loaded()
	if err != nil {
		return err
	}
	resp, err := s.readTxn(ctx, clientv3.OpGet(s.keys.head()))
	if err != nil {
		return err
	}
	kvs := resp.Responses[0].GetResponseRange().Kvs
	if len(kvs) == 0 {
		return damaged(s.keys.head(), errMissing)
	}
	if kvs[0].ModRevision <= st.revision {
		return nil
	}
	return s.catchUp(ctx, kvs[0])
}

// catchUp brings the state up to a head. The watch does that by itself in a moment; when it does not, because it was
// cut, what is missing is read.
func (s *Store) catchUp(ctx context.Context, head *mvccpb.KeyValue) error {
	moved, stop := s.Watch()
	defer stop()
	patience := time.NewTimer(100 * time.Millisecond)
	defer patience.Stop()
	for {
		current := s.state.Load()
		if current.revision >= head.ModRevision {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-moved:
		case <-patience.C:
			if err := s.readNames(ctx); err != nil {
				return err
			}
			next, err := s.readHead(ctx, current.tree, head, nil)
			if errors.Is(err, errMissing) { // another head may have come meanwhile, and this one been swept
				newer, failed := s.newerHead(ctx, head)
				if failed != nil {
					return failed
				}
				if newer != nil {
					head = newer
					patience.Reset(0)
					continue
				}
			}
			if err != nil {
				return err
			}
			s.publish(next)
			return nil
		}
	}
}

// newerHead is the head, if it is another than before; else nil.
func (s *Store) newerHead(ctx context.Context, before *mvccpb.KeyValue) (*mvccpb.KeyValue, error) {
	resp, err := s.readTxn(ctx, clientv3.OpGet(s.keys.head()))
	if err != nil {
		return nil, err
	}
	if kvs := resp.Responses[0].GetResponseRange().Kvs; len(kvs) > 0 && kvs[0].ModRevision > before.ModRevision {
		return kvs[0], nil
	}
	return nil, nil
}
