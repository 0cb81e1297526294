package store

import (
	"context"
	"crypto/rand"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/prism-gateway/prism/controlplane/snapshot"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
)

const (
	maxOneTxn = 90        // nodes that are written together with head
	maxShort  = 128 << 10 // bytes of a request that is not given more time
	writers   = 4
)

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
	resp, err := send(bounded, s.etcd.Txn(bounded).If(conditions...).Then(puts...).Else(clientv3.OpGet(s.keys.head())))
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
	missing := head.Missing(stored...)
	if stable != head {
		missing = append(missing, stable.Missing(append(stored, head)...)...)
	}
	// A namespace brings its record; what goes with them to head makes a few more.
	puts := make([]clientv3.Op, 0, len(missing)+len(p.records)+4)
	hashes := make([]ident.Hash, 0, cap(puts))
	planned := make(map[ident.Hash]bool, cap(puts))
	put := func(kind snapshot.NodeKind, h ident.Hash, data []byte) {
		if !written[h] && !planned[h] {
			planned[h] = true
			hashes = append(hashes, h)
			puts = append(puts, clientv3.OpPut(s.keys.node(kind, h), string(data)))
		}
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
			_, err := send(long, s.etcd.Txn(long).Then(part...))
			return err
		})
	}
	if err := work.Wait(); err != nil {
		return notWritten(err)
	}
	return nil
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
