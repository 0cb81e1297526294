package store

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/prism-gateway/prism/controlplane/snapshot"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
	"github.com/prism-gateway/prism/shared/manifest"
)

func noSnapshot(version uint64) error {
	return fault.Newf(fault.NotFound, fault.Snapshot, "there is no snapshot %d, or it has left the history", version)
}

// Snapshot returns the record of a version.
func (s *Store) Snapshot(ctx context.Context, version uint64) (*recordv1.Snapshot, error) {
	if st := s.state.Load(); st != nil && version > 0 && st.tree.Version() == version {
		return st.record, nil
	}
	return s.snapshot(ctx, version, nil)
}

func (s *Store) snapshot(ctx context.Context, version uint64, seen map[string][]byte) (*recordv1.Snapshot, error) {
	rec, _, err := s.snapshotAt(ctx, version, seen)
	return rec, err
}

// snapshotAt returns a record and, when it was read, the revision at which it was written.
func (s *Store) snapshotAt(ctx context.Context, version uint64, seen map[string][]byte) (*recordv1.Snapshot, int64, error) {
	key := s.keys.snapshot(version)
	data, revision := seen[key], int64(0)
	if data == nil {
		resp, err := s.readTxn(ctx, clientv3.OpGet(key))
		if err != nil {
			return nil, 0, err
		}
		kvs := resp.Responses[0].GetResponseRange().Kvs
		if len(kvs) == 0 {
			return nil, 0, noSnapshot(version)
		}
		data, revision = kvs[0].Value, kvs[0].ModRevision
	}
	rec, err := decodeRecord(key, data)
	if err == nil && rec.Version != version {
		err = damaged(key, errAltered)
	}
	return rec, revision, err
}

// Snapshots returns at most limit records, newest first: those below before, or the newest when before is 0.
func (s *Store) Snapshots(ctx context.Context, before uint64, limit int) ([]*recordv1.Snapshot, error) {
	st, err := s.loaded()
	if err != nil {
		return nil, err
	}
	end := st.tree.Version() + 1
	if before > 0 {
		end = min(end, before)
	}
	// Versions have no gaps, so the keys are known; etcd would sort the whole history to give its last.
	begin := uint64(1)
	if limit < 1 {
		return nil, nil
	} else if end > uint64(limit) {
		begin = end - uint64(limit)
	}
	resp, err := s.readTxn(ctx, clientv3.OpGet(s.keys.snapshot(begin), clientv3.WithRange(s.keys.snapshot(end))))
	if err != nil {
		return nil, err
	}
	var out []*recordv1.Snapshot
	for _, kv := range slices.Backward(resp.Responses[0].GetResponseRange().Kvs) {
		rec, err := decodeRecord(string(kv.Key), kv.Value)
		if err != nil {
			return nil, err
		}
		out = append(out, rec)
	}
	return out, nil
}

// SnapshotAt returns the record of the newest snapshot that was recorded at or before a time, by the clocks of the
// replicas that recorded them. It reads as many records as it takes to halve the history down to one.
func (s *Store) SnapshotAt(ctx context.Context, at time.Time) (*recordv1.Snapshot, error) {
	st, err := s.loaded()
	if err != nil {
		return nil, err
	}
	resp, err := s.readTxn(ctx, clientv3.OpGet(s.keys.snapshots(), clientv3.WithPrefix(), clientv3.WithKeysOnly(), clientv3.WithLimit(1)))
	if err != nil {
		return nil, err
	}
	oldest := st.tree.Version() + 1
	for _, kv := range resp.Responses[0].GetResponseRange().Kvs {
		if oldest, err = s.keys.version(string(kv.Key)); err != nil {
			return nil, damaged(string(kv.Key), err)
		}
	}
	var found *recordv1.Snapshot
	for low, high := oldest, st.tree.Version(); low <= high; {
		middle := low + (high-low)/2
		rec, err := s.Snapshot(ctx, middle)
		switch {
		case fault.Is(err, fault.Snapshot): // it has left the history meanwhile, with all that are older
			low = middle + 1
		case err != nil:
			return nil, err
		case rec.RecordedAt.AsTime().After(at):
			high = middle - 1
		default:
			found, low = rec, middle+1
		}
	}
	if found == nil {
		return nil, fault.Newf(fault.NotFound, fault.Snapshot, "no snapshot that is kept was recorded at or before %s", at.UTC().Format(time.RFC3339))
	}
	return found, nil
}

// CountSnapshots returns how many snapshots the history holds.
func (s *Store) CountSnapshots(ctx context.Context) (uint64, error) {
	resp, err := s.readTxn(ctx, clientv3.OpGet(s.keys.snapshots(), clientv3.WithPrefix(), clientv3.WithCountOnly()))
	if err != nil {
		return 0, err
	}
	return uint64(resp.Responses[0].GetResponseRange().Count), nil
}

// TreeAt returns the tree of a version. It shares with the newest all that is alike and reads the rest.
func (s *Store) TreeAt(ctx context.Context, version uint64) (*snapshot.Tree, error) {
	tree, _, err := s.treeAt(ctx, version)
	return tree, err
}

// treeAt returns a tree and the revision at which its record was written.
func (s *Store) treeAt(ctx context.Context, version uint64) (*snapshot.Tree, int64, error) {
	st, err := s.loaded()
	if err != nil {
		return nil, 0, err
	}
	rec, revision, err := s.snapshotAt(ctx, version, nil)
	if err != nil {
		return nil, 0, err
	}
	if tree := s.recent.get(version); tree != nil {
		return tree, revision, nil
	}
	tree, err := s.build(ctx, st.tree, st.released.Stable(), rec, nil)
	return tree, revision, s.gone(ctx, err, version)
}

// gone finds out whether what was missing of some versions is so because they have left the history meanwhile.
func (s *Store) gone(ctx context.Context, err error, versions ...uint64) error {
	if !errors.Is(err, errMissing) {
		return err
	}
	for _, v := range versions {
		if _, check := s.snapshot(ctx, v, nil); fault.Is(check, fault.Snapshot) {
			return check
		}
	}
	return err
}

// ObjectAt returns one object, by its whole name, as a version had it.
func (s *Store) ObjectAt(ctx context.Context, version uint64, name string) (snapshot.Object, bool, error) {
	o, ok, err := s.objectAt(ctx, version, name)
	return o, ok, s.gone(ctx, err, version)
}

func (s *Store) objectAt(ctx context.Context, version uint64, name string) (snapshot.Object, bool, error) {
	st, err := s.loaded()
	if err != nil {
		return snapshot.Object{}, false, err
	}
	rec, err := s.Snapshot(ctx, version)
	if err != nil {
		return snapshot.Object{}, false, err
	}
	o, err := s.outline(ctx, st.tree, rec, nil)
	if err != nil {
		return snapshot.Object{}, false, err
	}
	root := o.shared
	if namespace, ok := strings.CutPrefix(name, snapshot.NamespacePrefix); ok {
		root = o.roots[ident.PartitionOf(namespace, st.tree.Partitions())]
	}
	m, err := s.Manifest(ctx, root)
	if err != nil {
		return snapshot.Object{}, false, err
	}
	hash, ok := m.Get(name)
	if !ok {
		return snapshot.Object{}, false, nil
	}
	data, err := s.Object(ctx, hash)
	return snapshot.Object{Name: name, Hash: hash, Data: data}, err == nil, err
}

// Diff returns what differs between two versions, by name: at most limit objects whose names come after `after`, and how
// many there are in all. It reads only the manifests that differ, and of the objects those that it returns.
func (s *Store) Diff(ctx context.Context, from, to uint64, after string, limit int) ([]snapshot.Difference, uint64, error) {
	out, total, err := s.diff(ctx, from, to, after, limit)
	return out, total, s.gone(ctx, err, from, to)
}

func (s *Store) diff(ctx context.Context, from, to uint64, after string, limit int) ([]snapshot.Difference, uint64, error) {
	all, err := s.differing(ctx, from, to)
	if err != nil {
		return nil, 0, err
	}
	first, _ := slices.BinarySearchFunc(all, after+"\x00", func(d snapshot.Difference, name string) int { return strings.Compare(d.Name, name) })
	out := all[first:min(len(all), first+max(0, limit))]
	hashes := make([]ident.Hash, 0, 2*len(out))
	for _, d := range out {
		hashes = append(hashes, d.Before.Hash, d.After.Hash)
	}
	data, err := s.nodes(ctx, nil, snapshot.ObjectNode, hashes)
	if err != nil {
		return nil, 0, err
	}
	for i := range out {
		out[i].Before.Data, out[i].After.Data = data[2*i], data[2*i+1]
	}
	return slices.Clone(out), uint64(len(all)), nil
}

// differing returns what differs between two versions, by name, without the objects' bytes.
func (s *Store) differing(ctx context.Context, from, to uint64) ([]snapshot.Difference, error) {
	st, err := s.loaded()
	if err != nil {
		return nil, err
	}
	var outlines [2]*outline
	for i, version := range []uint64{from, to} {
		rec, err := s.Snapshot(ctx, version)
		if err != nil {
			return nil, err
		}
		if outlines[i], err = s.outline(ctx, st.tree, rec, nil); err != nil {
			return nil, err
		}
	}
	var roots []ident.Hash // before and after in turn
	known := map[ident.Hash]*manifest.Manifest{}
	differ := func(before, after ident.Hash, present *snapshot.Collection) {
		if before != after {
			roots = append(roots, before, after)
			known[present.Root()] = present.Manifest()
		}
	}
	differ(outlines[0].shared, outlines[1].shared, st.tree.Shared())
	for p, root := range outlines[0].roots {
		differ(root, outlines[1].roots[p], st.tree.Collection(ident.Partition(p)))
	}
	unknown := slices.Clone(roots) // zero for those that the newest tree has
	for i, root := range roots {
		if known[root] != nil {
			unknown[i] = ident.Hash{}
		}
	}
	manifests, err := s.manifests(ctx, nil, unknown)
	if err != nil {
		return nil, err
	}
	for i, root := range roots {
		if m := known[root]; m != nil {
			manifests[i] = m
		}
	}
	var out []snapshot.Difference
	for i := 0; i < len(manifests); i += 2 {
		a := manifests[i]
		set, removed := manifest.Diff(a, manifests[i+1])
		for _, e := range set {
			d := snapshot.Difference{Name: e.Name, After: snapshot.Object{Name: e.Name, Hash: e.Hash}}
			if was, ok := a.Get(e.Name); ok {
				d.Before = snapshot.Object{Name: e.Name, Hash: was}
			}
			out = append(out, d)
		}
		for _, name := range removed {
			was, _ := a.Get(name)
			out = append(out, snapshot.Difference{Name: name, Before: snapshot.Object{Name: name, Hash: was}})
		}
	}
	slices.SortFunc(out, func(a, b snapshot.Difference) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// What is kept of versions that were head: so many, as long as what only they hold is not more than so many bytes.
const (
	maxRecent      = 64
	maxRecentBytes = 32 << 20
)

// recent are the trees that were head last, so that going back to one of them reads nothing.
type recent struct {
	mu    sync.Mutex // guards all below
	trees []*snapshot.Tree
	costs []int // bytes of objects that a tree does not share with the next
	cost  int
}

func (r *recent) add(tree *snapshot.Tree) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := len(r.trees); n > 0 {
		for _, d := range snapshot.Diff(r.trees[n-1], tree) {
			r.costs[n-1] += len(d.Before.Data)
		}
		r.cost += r.costs[n-1]
	}
	r.trees, r.costs = append(r.trees, tree), append(r.costs, 0)
	for len(r.trees) > maxRecent || r.cost > maxRecentBytes {
		r.cost -= r.costs[0]
		r.trees, r.costs = slices.Delete(r.trees, 0, 1), slices.Delete(r.costs, 0, 1)
	}
}

func (r *recent) get(version uint64) *snapshot.Tree {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, t := range r.trees {
		if t.Version() == version {
			return t
		}
	}
	return nil
}
