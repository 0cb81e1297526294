package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
)

const (
	maxRecord  = 1450 << 10 // bytes of changes in one snapshot's record, which must fit into one request
	maxBeside  = 48 << 10   // bytes of head that fit beside the largest record
	maxObject  = 1 << 20    // bytes of one object
	maxOneTxn  = 90         // nodes that are written together with head
	maxRetries = 100        // lost compare-and-swaps of one commit
	minRetries = 3          // of them whatever time they take
	maxShort   = 128 << 10  // bytes of a request that is not given more time
	writers    = 4
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
	// A commit that has begun is finished, also while the replica is stopping.
	finish := context.WithoutCancel(ctx)
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
			batch = s.commit(finish, batch)
		}
	}
}

var errStopping = fault.New(fault.Unavailable, fault.Draining, "this replica is stopping: try another").WithOutcome(fault.NotApplied)

// plan is what a batch, or a step of a release, makes of a head.
type plan struct {
	draft   *release.Draft // of a batch
	next    *release.State // what follows, once the draft is done
	ended   []*recordv1.Release
	fence   *fence // that must hold; nil for none
	changes []*recordv1.Change
	records map[ident.Hash][]byte
	guards  []*guard
	answers map[*request]answer                  // refused
	names   map[string]*recordv1.NameReservation // that it makes, renews or, nil, ends
	done    []*request                           // part of the plan
	changed map[*request]bool                    // of those that are part of it
	waved   map[*request]bool                    // go in waves, of those
	rest    []*request                           // did not fit
}

// evaluate applies requests in order, each to the tree that the one before left. One that fails is left out.
func (s *Store) evaluate(st *state, batch []*request) *plan {
	p := &plan{draft: st.released.Draft(s.cfg.Now()), waved: map[*request]bool{}, records: map[ident.Hash][]byte{}, names: map[string]*recordv1.NameReservation{}, answers: map[*request]answer{}, changed: map[*request]bool{}}
	most := maxRecord
	if active := st.released.Active(); len(active) > 0 {
		most -= max(0, proto.Size(&recordv1.Head{Releases: active})-maxBeside)
	}
	size := 0
	for i, r := range batch {
		e, err := s.apply(p, r)
		if errors.Is(err, release.ErrApart) {
			p.rest = batch[i:]
			break
		}
		added := 0
		var before *recordv1.Change
		if n := len(p.changes); n > 0 {
			before = p.changes[n-1]
		}
		for _, c := range e.changes {
			n, bad := storedSize(before, c)
			if bad != nil && err == nil {
				err = fault.Wrap(bad, fault.Invalid, fault.Field, "author, message and request id must be UTF-8")
			}
			added += n
			before = c
		}
		if err == nil && added > most {
			err = fault.Newf(fault.Invalid, fault.TooLarge, "%d changes are too many for one snapshot: make several of them", len(e.changes))
		}
		if err != nil {
			p.answers[r] = answer{err: err}
			continue
		}
		if size += added; size > most {
			p.rest = batch[i:]
			break
		}
		p.done = append(p.done, r)
		maps.Copy(p.names, e.names)
		if len(e.changes) == 0 {
			continue
		}
		p.changed[r] = true
		p.waved[r] = slices.ContainsFunc(e.changes, func(c *recordv1.Change) bool { return c.InRelease })
		p.draft, p.changes = e.draft, append(p.changes, e.changes...)
		for h, data := range e.records {
			p.records[h] = data
		}
		if r.guard != nil {
			p.guards = append(p.guards, r.guard)
		}
	}
	return p
}

// commit answers a batch but for those that it returns, which did not fit.
func (s *Store) commit(ctx context.Context, batch []*request) []*request {
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

var (
	errLost    = errors.New("store: head moved")
	errChanged = errors.New("not as it was")
)

// guardError says that a snapshot that a rollback goes to was deleted meanwhile.
type guardError struct{ version uint64 }

func (e *guardError) Error() string { return fmt.Sprintf("store: snapshot %d is gone", e.version) }

// record writes a plan and returns the state that follows. errLost means that head has moved, that the state is newer
// now, and that the plan must be made again.
func (s *Store) record(ctx context.Context, st *state, p *plan, written map[ident.Hash]bool) (*state, error) {
	if p.draft != nil {
		done, err := p.draft.Done()
		if err != nil {
			return nil, fault.From(err)
		}
		p.next, p.ended = done.State, done.Ended
	}
	if p.next == st.released && len(p.names) > 0 {
		return s.recordNames(ctx, st, p)
	}
	if p.next == st.released {
		return st, s.confirm(ctx, st)
	}
	next := &state{tree: p.next.Head(), released: p.next, record: st.record}
	recData := ""
	if len(p.changes) > 0 {
		rec := next.tree.Record(st.tree.Version(), nil)
		rec.RecordedAt, rec.CommitId = timestamppb.New(s.cfg.Now()), s.cfg.Name+"/"+rand.Text()
		var err error
		if recData, err = encodeRecord(rec, p.changes); err != nil {
			return nil, fault.From(err)
		}
		rec.Changes = p.changes
		next.record = rec
	}
	headData, err := s.headOf(next)
	if err != nil {
		return nil, fault.From(err)
	}
	puts, hashes, err := s.puts(st, p, written)
	if err != nil {
		return nil, err
	}
	size := len(recData) + len(headData)
	for _, op := range puts {
		size += len(op.ValueBytes()) + len(op.KeyBytes())
	}
	nameOps, err := s.nameOps(p)
	if err != nil {
		return nil, err
	}
	if len(puts)+len(nameOps) > maxOneTxn || size > maxBytes {
		if err := s.write(ctx, puts); err != nil {
			return nil, err
		}
		puts, size = nil, len(recData)+len(headData)
		for _, h := range hashes {
			written[h] = true
		}
	}
	// head comes last, so that a watcher has seen all that it names.
	puts = append(puts, nameOps...)
	for _, r := range p.ended {
		data, err := encode(r)
		if err != nil {
			return nil, fault.From(err)
		}
		size += len(data)
		puts = append(puts, clientv3.OpPut(s.keys.release(r.Snapshot), data))
	}
	if recData != "" {
		puts = append(puts, clientv3.OpPut(s.keys.snapshot(next.record.Version), recData))
	}
	puts = append(puts, clientv3.OpPut(s.keys.head(), headData))
	conditions := []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(s.keys.head()), "=", st.revision)}
	for _, g := range p.guards {
		conditions = append(conditions, clientv3.Compare(clientv3.ModRevision(s.keys.snapshot(g.version)), "=", g.revision))
	}
	if p.fence != nil {
		conditions = append(conditions, p.fence.holds())
	}
	s.pending.Store(&inflight{next, headData})
	defer s.pending.Store(nil)
	timeout := s.cfg.Timeout
	if size > maxShort {
		timeout *= longFactor
	}
	bounded, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	resp, err := s.etcd.Txn(bounded).If(conditions...).Then(puts...).Else(clientv3.OpGet(s.keys.head())).Commit()
	switch {
	case err != nil:
		revision, err := s.resolve(ctx, st, next, headData, err)
		return next.at(revision), err
	case resp.Succeeded:
		return next.at(resp.Header.Revision), nil
	}
	if kvs := resp.Responses[0].GetResponseRange().Kvs; len(kvs) > 0 && kvs[0].ModRevision == st.revision {
		return nil, s.lostGuard(ctx, p)
	} else {
		return nil, s.lost(ctx, kvs)
	}
}

// puts are the nodes and records that a plan needs and its parent does not have. They are written even if etcd should
// have them already, because a sweep spares what was written within its grace.
func (s *Store) puts(st *state, p *plan, written map[ident.Hash]bool) ([]clientv3.Op, []ident.Hash, error) {
	head, stable := p.next.Head(), p.next.Stable()
	stored := []*snapshot.Tree{st.tree}
	if was := st.released.Stable(); was != st.tree {
		stored = append(stored, was)
	}
	for _, g := range p.guards {
		stored = append(stored, g.tree)
	}
	var puts []clientv3.Op
	var hashes []ident.Hash
	planned := map[ident.Hash]bool{}
	put := func(kind snapshot.NodeKind, h ident.Hash, data []byte) {
		if !written[h] && !planned[h] {
			planned[h] = true
			hashes = append(hashes, h)
			puts = append(puts, clientv3.OpPut(s.keys.node(kind, h), string(data)))
		}
	}
	missing := head.Missing(stored...)
	if stable != head {
		missing = append(missing, stable.Missing(append(stored, head)...)...)
	}
	for _, n := range missing {
		if n.Kind == snapshot.ObjectNode && n.Namespace {
			h, err := snapshot.RecordHash(n.Data)
			if err != nil {
				return nil, nil, fault.From(err)
			}
			if data, ok := p.records[h]; ok {
				put(snapshot.ObjectNode, h, data)
			}
		}
		put(n.Kind, n.Hash, n.Data)
	}
	return puts, hashes, nil
}

// write puts nodes in several requests. Nothing refers to them yet, so their order does not matter.
func (s *Store) write(ctx context.Context, puts []clientv3.Op) error {
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(writers)
	for len(puts) > 0 {
		n, size := 0, 0
		for n < len(puts) && n < maxOps && (n == 0 || size+len(puts[n].ValueBytes()) <= maxBytes) {
			size += len(puts[n].ValueBytes())
			n++
		}
		part := puts[:n]
		puts = puts[n:]
		work.Go(func() error {
			long, cancel := context.WithTimeout(ctx, longFactor*s.cfg.Timeout)
			defer cancel()
			_, err := s.etcd.Txn(long).Then(part...).Commit()
			return err
		})
	}
	if err := work.Wait(); err != nil {
		return notWritten(err)
	}
	return nil
}

// confirm finds out whether the head that is known is the newest; errLost means that it was not.
func (s *Store) confirm(ctx context.Context, st *state) error {
	short, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	resp, err := s.etcd.Get(short, s.keys.head())
	if err != nil {
		return notWritten(err)
	}
	if len(resp.Kvs) > 0 && resp.Kvs[0].ModRevision == st.revision {
		return nil
	}
	return s.lost(ctx, resp.Kvs)
}

// lost brings the state up to the head that won.
func (s *Store) lost(ctx context.Context, head []*mvccpb.KeyValue) error {
	if len(head) == 0 {
		return fault.From(damaged(s.keys.head(), errMissing)).WithOutcome(fault.NotApplied)
	}
	ctx, cancel := context.WithTimeout(ctx, longFactor*s.cfg.Timeout)
	defer cancel()
	if err := s.catchUp(ctx, head[0]); err != nil {
		return fault.From(down(err)).WithOutcome(fault.NotApplied)
	}
	return errLost
}

// lostGuard finds the snapshot that was deleted while a rollback to it was under way.
func (s *Store) lostGuard(ctx context.Context, p *plan) error {
	if p.fence != nil {
		return errNotLeading
	}
	for _, g := range p.guards {
		_, revision, err := s.snapshotAt(ctx, g.version, nil)
		switch {
		case fault.Is(err, fault.Snapshot), err == nil && revision != g.revision:
			return &guardError{g.version}
		case err != nil:
			return fault.From(err).WithOutcome(fault.NotApplied)
		}
	}
	return fault.From(damaged(s.keys.head(), errChanged)).WithOutcome(fault.NotApplied)
}

// resolve finds out what became of a commit whose answer was lost, and returns its revision if it was made. It writes
// head anew as it was: either that is refused, because the commit or another was made, or the commit cannot be made
// any more, however late it arrives.
func (s *Store) resolve(ctx context.Context, st, next *state, headData string, cause error) (int64, error) {
	if refused(cause) {
		return 0, notWritten(cause)
	}
	head, err := s.headOf(st)
	if err != nil {
		return 0, fault.From(err)
	}
	short, cancel := context.WithTimeout(ctx, s.cfg.Timeout/3)
	defer cancel()
	resp, err := s.etcd.Txn(short).If(clientv3.Compare(clientv3.ModRevision(s.keys.head()), "=", st.revision)).
		Then(clientv3.OpPut(s.keys.head(), head)).
		Else(clientv3.OpGet(s.keys.head()), clientv3.OpGet(s.keys.snapshot(next.tree.Version()))).Commit()
	if err != nil {
		return 0, fault.Wrap(errors.Join(cause, err), fault.Unavailable, fault.StoreDown,
			"the store of the control plane does not answer, and it is not known whether the change was made: read before trying again").
			WithRetry(time.Second).WithOutcome(fault.OutcomeUnknown)
	}
	if resp.Succeeded {
		s.publish(st.at(resp.Header.Revision))
		return 0, errLost
	}
	if next.record == st.record { // a step without a snapshot: it is told by the head that it wrote
		if kvs := resp.Responses[0].GetResponseRange().Kvs; len(kvs) > 0 && string(kvs[0].Value) == headData {
			return kvs[0].ModRevision, nil
		}
	} else if kvs := resp.Responses[1].GetResponseRange().Kvs; len(kvs) > 0 {
		stored, err := decodeRecord(string(kvs[0].Key), kvs[0].Value)
		if err != nil {
			return 0, err
		}
		if stored.CommitId == next.record.CommitId {
			return kvs[0].ModRevision, nil
		}
	}
	return 0, s.lost(ctx, resp.Responses[0].GetResponseRange().Kvs)
}

// headOf is what the head key holds in a state.
func (s *Store) headOf(st *state) (string, error) {
	head := &recordv1.Head{Version: st.tree.Version(), Root: st.tree.Root().Bytes(), Releases: st.released.Active()}
	if stable := st.released.Stable(); stable.Root() != st.tree.Root() {
		rec := stable.Record(0, nil)
		head.Stable = &recordv1.Stable{Root: rec.Root, Groups: rec.Groups, Shared: rec.Shared}
	}
	return encode(head)
}

// Own reports whether this replica recorded a snapshot.
func (s *Store) Own(record *recordv1.Snapshot) bool {
	id := record.GetCommitId()
	return strings.LastIndexByte(id, '/') == len(s.cfg.Name) && strings.HasPrefix(id, s.cfg.Name)
}

// refused reports whether etcd answered that it did not do a request.
func refused(err error) bool {
	code := status.Code(err)
	if own, ok := errors.AsType[rpctypes.EtcdError](err); ok {
		code = own.Code()
	}
	switch code {
	case codes.InvalidArgument, codes.ResourceExhausted, codes.FailedPrecondition, codes.PermissionDenied, codes.Unauthenticated, codes.OutOfRange:
		return true
	}
	return false
}

// notWritten is a fault for a write that did not change the configuration, whatever etcd did with it.
func notWritten(err error) error {
	text := "the store of the control plane does not answer; nothing was changed: try again in a moment"
	if refused(err) {
		text = "the store of the control plane refuses to write; nothing was changed: see the log of this replica"
	}
	return fault.Wrap(err, fault.Unavailable, fault.StoreDown, text).WithRetry(time.Second).WithOutcome(fault.NotApplied)
}
