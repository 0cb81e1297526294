package store

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/prism-gateway/prism/controlplane/snapshot"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
)

// Swept is what a sweep deleted.
type Swept struct {
	Snapshots int // records that left the history
	Nodes     int // objects, manifests and groups that nothing refers to
	Names     int // reservations that have run out
}

// keysPage is how many keys are listed at once.
const keysPage = 5000

// Sweep deletes the snapshots that have left the history, then what no snapshot refers to any more and was last
// written before the grace.
//
// It is safe beside commits, by three rules. A commit writes all that its parent does not have, even if it is stored
// already, so it is young, and a node is deleted only if it was not written since it was looked at. A rollback, which
// relies on an older snapshot instead, is recorded only if that snapshot's record is still there; records are deleted
// first, and those that are left are looked at after that. Time is told by marks: keys that a sweep writes, whose
// revision says what is older than they are.
func (s *Store) Sweep(ctx context.Context) (Swept, error) {
	var swept Swept
	if err := s.Sync(ctx); err != nil {
		return swept, err
	}
	before, err := s.mark(ctx)
	if err != nil {
		return swept, err
	}
	if swept.Snapshots, err = s.trim(ctx, s.oldestNeeded()); err != nil {
		return swept, err
	}
	if err := s.trimReleases(ctx); err != nil {
		return swept, err
	}
	if swept.Names, err = s.sweepNames(ctx); err != nil {
		return swept, err
	}
	if before == 0 {
		return swept, nil
	}
	live, err := s.reachable(ctx)
	if err != nil {
		return swept, err
	}
	for _, kind := range []snapshot.NodeKind{snapshot.GroupNode, snapshot.ManifestNode, snapshot.ObjectNode} {
		n, err := s.sweepNodes(ctx, kind, live, before)
		swept.Nodes += n
		if err != nil {
			return swept, err
		}
	}
	return swept, nil
}

// mark writes a mark for now and returns the revision of the youngest that is older than the grace, 0 when there is
// none. Older marks are deleted.
func (s *Store) mark(ctx context.Context) (int64, error) {
	now := s.cfg.Now()
	own := fmt.Sprintf("%s%020d", s.keys.marks(), now.UnixNano())
	resp, err := s.readTxn(ctx, clientv3.OpPut(own, ""), clientv3.OpGet(s.keys.marks(), clientv3.WithPrefix()))
	if err != nil {
		return 0, err
	}
	var before int64
	var passed []clientv3.Op
	for _, kv := range resp.Responses[1].GetResponseRange().Kvs {
		nanos, err := strconv.ParseInt(strings.TrimPrefix(string(kv.Key), s.keys.marks()), 10, 64)
		if err != nil {
			return 0, damaged(string(kv.Key), err)
		}
		if now.Sub(time.Unix(0, nanos)) < s.cfg.Grace {
			break
		}
		before = kv.ModRevision
		passed = append(passed, clientv3.OpDelete(string(kv.Key)))
	}
	if len(passed) > 1 {
		_, err = s.readTxn(ctx, passed[:min(len(passed)-1, maxOps)]...)
	}
	return before, err
}

// oldestNeeded is the snapshot that is kept whatever its age, with those after it: the newest, or the oldest whose
// release is under way.
func (s *Store) oldestNeeded() uint64 {
	st := s.state.Load()
	if active := st.released.Active(); len(active) > 0 {
		return active[0].Snapshot
	}
	return st.tree.Version()
}

// trim deletes the records that are too many or too old, up to the oldest that is needed. They are the oldest, so that
// the history keeps no gaps.
func (s *Store) trim(ctx context.Context, needed uint64) (int, error) {
	resp, err := s.readTxn(ctx, clientv3.OpGet(s.keys.snapshots(), clientv3.WithPrefix(), clientv3.WithKeysOnly()))
	if err != nil {
		return 0, err
	}
	oldest := s.cfg.Now().Add(-s.cfg.HistoryAge)
	var deletes []clientv3.Op
	for i, kv := range resp.Responses[0].GetResponseRange().Kvs {
		key := string(kv.Key)
		version, err := s.keys.version(key)
		if err != nil {
			return 0, damaged(key, err)
		}
		if version >= needed {
			break
		}
		if tooMany := len(resp.Responses[0].GetResponseRange().Kvs)-i > s.cfg.History; !tooMany {
			rec, err := s.snapshot(ctx, version, nil)
			if fault.Is(err, fault.Snapshot) {
				continue // another replica sweeps too
			} else if err != nil {
				return 0, err
			}
			if !rec.RecordedAt.AsTime().Before(oldest) {
				break
			}
		}
		deletes = append(deletes, clientv3.OpDelete(key))
	}
	for first := 0; first < len(deletes); first += maxOps {
		if _, err := s.readTxn(ctx, deletes[first:min(first+maxOps, len(deletes))]...); err != nil {
			return first, err
		}
	}
	return len(deletes), nil
}

// reachable returns the hashes of all that a snapshot refers to.
func (s *Store) reachable(ctx context.Context) (map[ident.Hash]bool, error) {
	live := map[ident.Hash]bool{}
	st := s.state.Load()
	// The newest tree is in memory; of the others only what differs from it is read.
	for _, tree := range []*snapshot.Tree{st.tree, st.released.Stable()} {
		if err := s.reachTree(live, tree); err != nil {
			return nil, err
		}
	}
	for next := uint64(0); ; {
		resp, err := s.readTxn(ctx, clientv3.OpGet(s.keys.snapshot(next),
			clientv3.WithRange(clientv3.GetPrefixRangeEnd(s.keys.snapshots())), clientv3.WithLimit(maxOps)))
		if err != nil {
			return nil, err
		}
		kvs := resp.Responses[0].GetResponseRange().Kvs
		for _, kv := range kvs {
			rec, err := decode[recordv1.Snapshot](string(kv.Key), kv.Value)
			if err != nil {
				return nil, err
			}
			if err := s.reachRecord(ctx, live, st.tree, rec); err != nil {
				return nil, err
			}
			next = rec.Version + 1
		}
		if len(kvs) < maxOps {
			return live, nil
		}
	}
}

func (s *Store) reachTree(live map[ident.Hash]bool, tree *snapshot.Tree) error {
	for _, n := range tree.Missing() {
		if err := reachNode(live, n.Hash, n.Data, n.Namespace); err != nil {
			return err
		}
	}
	return nil
}

func reachNode(live map[ident.Hash]bool, h ident.Hash, data []byte, namespace bool) error {
	live[h] = true
	if !namespace {
		return nil
	}
	record, err := snapshot.RecordHash(data)
	if err != nil {
		return err
	}
	live[record] = true
	return nil
}

func (s *Store) reachRecord(ctx context.Context, live map[ident.Hash]bool, base *snapshot.Tree, rec *recordv1.Snapshot) error {
	o, err := s.outline(ctx, base, rec, nil)
	if err != nil {
		return err
	}
	for _, raw := range rec.Groups {
		h, err := ident.HashFrom(raw)
		if err != nil {
			return damaged(s.keys.snapshot(rec.Version), err)
		}
		live[h] = true
	}
	var roots []ident.Hash
	for _, root := range append(o.roots, o.shared) {
		if !root.IsZero() && !live[root] {
			live[root] = true
			roots = append(roots, root)
		}
	}
	manifests, err := s.manifests(ctx, nil, roots)
	if err != nil {
		return err
	}
	var hashes []ident.Hash
	for _, m := range manifests {
		for _, e := range m.Entries() {
			if !live[e.Hash] {
				live[e.Hash] = true
				if strings.HasPrefix(e.Name, snapshot.NamespacePrefix) {
					hashes = append(hashes, e.Hash)
				}
			}
		}
	}
	data, err := s.nodes(ctx, nil, snapshot.ObjectNode, hashes)
	if err != nil {
		return err
	}
	for i, h := range hashes {
		if err := reachNode(live, h, data[i], true); err != nil {
			return damaged(s.keys.node(snapshot.ObjectNode, h), err)
		}
	}
	return nil
}

// sweepNodes deletes the nodes of one kind that are not live and were last written before a revision.
func (s *Store) sweepNodes(ctx context.Context, kind snapshot.NodeKind, live map[ident.Hash]bool, before int64) (int, error) {
	deleted := 0
	end := clientv3.GetPrefixRangeEnd(s.keys.nodes(kind))
	for from := s.keys.nodes(kind); ; {
		resp, err := s.readTxn(ctx, clientv3.OpGet(from, clientv3.WithRange(end), clientv3.WithKeysOnly(), clientv3.WithLimit(keysPage)))
		if err != nil {
			return deleted, err
		}
		kvs := resp.Responses[0].GetResponseRange().Kvs
		var dead []*mvccpb.KeyValue
		for _, kv := range kvs {
			h, err := ident.ParseHash(strings.TrimPrefix(string(kv.Key), s.keys.nodes(kind)))
			if err != nil {
				return deleted, damaged(string(kv.Key), err)
			}
			if !live[h] && kv.ModRevision < before {
				dead = append(dead, kv)
			}
		}
		for first := 0; first < len(dead); first += maxOps {
			n, err := s.deleteUnwritten(ctx, dead[first:min(first+maxOps, len(dead))])
			deleted += n
			if err != nil {
				return deleted, err
			}
		}
		if len(kvs) < keysPage {
			return deleted, nil
		}
		from = string(kvs[len(kvs)-1].Key) + "\x00"
	}
}

// deleteUnwritten deletes keys that were not written since they were listed. When one of them was, none goes: the next
// sweep looks again.
func (s *Store) deleteUnwritten(ctx context.Context, dead []*mvccpb.KeyValue) (int, error) {
	var conditions []clientv3.Cmp
	var deletes []clientv3.Op
	for _, kv := range dead {
		conditions = append(conditions, clientv3.Compare(clientv3.ModRevision(string(kv.Key)), "=", kv.ModRevision))
		deletes = append(deletes, clientv3.OpDelete(string(kv.Key)))
	}
	ctx, cancel := context.WithTimeout(ctx, longFactor*s.cfg.Timeout)
	defer cancel()
	resp, err := s.etcd.Txn(ctx).If(conditions...).Then(deletes...).Commit()
	if err != nil {
		return 0, down(err)
	}
	if !resp.Succeeded {
		return 0, nil
	}
	return len(dead), nil
}

// Compact lets etcd forget the values that were overwritten or deleted before a revision, none when it is 0, and
// returns the present revision.
func (s *Store) Compact(ctx context.Context, before int64) (int64, error) {
	resp, err := s.readTxn(ctx, clientv3.OpGet(s.keys.head()))
	if err != nil || before == 0 {
		if err != nil {
			return 0, err
		}
		return resp.Header.Revision, nil
	}
	ctx, cancel := context.WithTimeout(ctx, longFactor*s.cfg.Timeout)
	defer cancel()
	if _, err := s.etcd.Compact(ctx, before); err != nil && !errors.Is(err, rpctypes.ErrCompacted) {
		return 0, down(err)
	}
	return resp.Header.Revision, nil
}
