package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/prism-gateway/prism/controlplane/snapshot"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
	"github.com/prism-gateway/prism/shared/manifest"
)

// etcd's limits are 128 operations and 1.5 MiB for one request.
const (
	maxOps     = 100
	maxBytes   = 1 << 20
	readers    = 8
	longFactor = 5 // how much longer than a small write a request that moves much may take
)

// down is a fault for an etcd that did not answer a read.
func down(err error) error {
	if _, ok := errors.AsType[*fault.Fault](err); ok || errors.Is(err, context.Canceled) {
		return err
	}
	return fault.Wrap(err, fault.Unavailable, fault.StoreDown,
		"the store of the control plane does not answer: try again in a moment").WithRetry(time.Second)
}

// damaged is a fault for a key that is missing or holds what it must not hold.
func damaged(key string, err error) error {
	return fault.Wrap(err, fault.DataLoss, fault.Checksum,
		fmt.Sprintf("the stored configuration is damaged: key %s %v; restore etcd from a backup", key, err))
}

// errReset is a fault for an etcd that is behind what it once told.
func errReset(key string, now, known int64) error {
	return damaged(key, fmt.Errorf("was read at revision %d, and etcd is at revision %d: it was reset or restored from an old backup", known, now))
}

var (
	errMissing = errors.New("is missing")
	errAltered = errors.New("does not have the hash that it is stored under: it was altered or cut")
)

// nodes returns the bytes of nodes of one kind, verified, from what was seen before or else from etcd. A zero hash
// gives no bytes.
func (s *Store) nodes(ctx context.Context, seen map[string][]byte, kind snapshot.NodeKind, hashes []ident.Hash) ([][]byte, error) {
	out := make([][]byte, len(hashes))
	var ops []clientv3.Op
	var places []int
	for i, h := range hashes {
		if h.IsZero() {
			continue
		}
		key := s.keys.node(kind, h)
		if data, ok := seen[key]; ok && ident.HashOf(data) == h {
			out[i] = data
			continue
		}
		// Any member may answer, without asking its leader: what has the right hash cannot be out of date.
		ops = append(ops, clientv3.OpGet(key, clientv3.WithSerializable()))
		places = append(places, i)
	}
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(readers)
	for first := 0; first < len(ops); first += maxOps {
		last := min(first+maxOps, len(ops))
		work.Go(func() error {
			resp, err := s.readTxn(ctx, ops[first:last]...)
			if err != nil {
				return err
			}
			for i, r := range resp.Responses {
				h, kvs := hashes[places[first+i]], r.GetResponseRange().Kvs
				key := s.keys.node(kind, h)
				if len(kvs) == 0 { // or the member that answered lags behind
					again, err := s.readTxn(ctx, clientv3.OpGet(key))
					if err != nil {
						return err
					}
					kvs = again.Responses[0].GetResponseRange().Kvs
					if known := s.Revision(); again.Header.Revision < known {
						return errReset(s.keys.head(), again.Header.Revision, known)
					}
				}
				if len(kvs) == 0 {
					return damaged(key, errMissing)
				}
				if ident.HashOf(kvs[0].Value) != h {
					return damaged(key, errAltered)
				}
				out[places[first+i]] = kvs[0].Value
			}
			return nil
		})
	}
	return out, work.Wait()
}

func (s *Store) readTxn(ctx context.Context, ops ...clientv3.Op) (*clientv3.TxnResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, longFactor*s.cfg.Timeout)
	defer cancel()
	resp, err := s.etcd.Txn(ctx).Then(ops...).Commit()
	if err != nil {
		return nil, down(err)
	}
	return resp, nil
}

// outline is a snapshot's record with the manifests' roots of all partitions.
type outline struct {
	record *recordv1.Snapshot
	roots  []ident.Hash // by partition
	shared ident.Hash
}

// outline reads the groups of a record; those that base has are not read.
func (s *Store) outline(ctx context.Context, base *snapshot.Tree, rec *recordv1.Snapshot, seen map[string][]byte) (*outline, error) {
	return s.outlineOf(ctx, s.keys.snapshot(rec.Version), base, rec, seen)
}

// outlineOf is outline of what stands in a key.
func (s *Store) outlineOf(ctx context.Context, key string, base *snapshot.Tree, rec *recordv1.Snapshot, seen map[string][]byte) (*outline, error) {
	if len(rec.Groups) != base.Groups() {
		return nil, damaged(key, fmt.Errorf("has %d groups, not %d", len(rec.Groups), base.Groups()))
	}
	o := &outline{record: rec, roots: make([]ident.Hash, base.Partitions())}
	var err error
	if o.shared, err = ident.HashFrom(rec.Shared); err != nil {
		return nil, damaged(key, err)
	}
	hashes := make([]ident.Hash, len(rec.Groups)) // zero for those that base has
	for n, raw := range rec.Groups {
		h, err := ident.HashFrom(raw)
		if err != nil {
			return nil, damaged(key, err)
		}
		if h == base.GroupHash(n) {
			first, count := base.GroupPartitions(n)
			for p := first; p < first+ident.Partition(count); p++ {
				o.roots[p] = base.Collection(p).Root()
			}
			continue
		}
		hashes[n] = h
	}
	groups, err := s.nodes(ctx, seen, snapshot.GroupNode, hashes)
	if err != nil {
		return nil, err
	}
	for n, h := range hashes {
		if h.IsZero() {
			continue // base's, or empty
		}
		first, count := base.GroupPartitions(n)
		roots, err := snapshot.DecodeGroup(groups[n], count)
		if err != nil {
			return nil, damaged(s.keys.node(snapshot.GroupNode, h), err)
		}
		copy(o.roots[first:], roots)
	}
	return o, nil
}

// manifests reads manifests by their roots.
func (s *Store) manifests(ctx context.Context, seen map[string][]byte, roots []ident.Hash) ([]*manifest.Manifest, error) {
	data, err := s.nodes(ctx, seen, snapshot.ManifestNode, roots)
	if err != nil {
		return nil, err
	}
	out := make([]*manifest.Manifest, len(roots))
	for i, raw := range data {
		if roots[i].IsZero() {
			out[i] = manifest.Empty
			continue
		}
		if out[i], err = manifest.Decode(raw); err != nil {
			return nil, damaged(s.keys.node(snapshot.ManifestNode, roots[i]), err)
		}
	}
	return out, nil
}

// build makes the tree of a record out of base and another tree, of what was seen, and of what etcd holds. It reads and
// copies only what differs from base and is not in the other, and verifies all of that.
func (s *Store) build(ctx context.Context, base, other *snapshot.Tree, rec *recordv1.Snapshot, seen map[string][]byte) (*snapshot.Tree, error) {
	tree, err := s.assemble(ctx, s.keys.snapshot(rec.Version), base, other, rec, seen)
	if err == nil && uint64(tree.Len()) != rec.Namespaces {
		return nil, damaged(s.keys.snapshot(rec.Version), fmt.Errorf("tells of %d namespaces, and there are %d", rec.Namespaces, tree.Len()))
	}
	return tree, err
}

// assemble is build for a tree that stands in a key.
func (s *Store) assemble(ctx context.Context, key string, base, other *snapshot.Tree, rec *recordv1.Snapshot, seen map[string][]byte) (*snapshot.Tree, error) {
	o, err := s.outlineOf(ctx, key, base, rec, seen)
	if err != nil {
		return nil, err
	}
	replaced := map[ident.Partition]*snapshot.Collection{}
	var from []*snapshot.Collection
	var partitions []ident.Partition
	var roots []ident.Hash
	for p, root := range o.roots {
		if c := base.Collection(ident.Partition(p)); c.Root() != root {
			if known := other.Collection(ident.Partition(p)); known.Root() == root {
				replaced[ident.Partition(p)] = known
				continue
			}
			from, roots, partitions = append(from, c), append(roots, root), append(partitions, ident.Partition(p))
		}
	}
	shared := base.Shared()
	if other.Shared().Root() == o.shared {
		shared = other.Shared()
	}
	from, roots = append(from, shared), append(roots, o.shared)
	built, err := s.collections(ctx, from, roots, seen)
	if err != nil {
		return nil, err
	}
	for i, p := range partitions {
		replaced[p] = built[i]
	}
	tree := base.Replace(rec.Version, replaced, built[len(partitions)])
	if want, err := ident.HashFrom(rec.Root); err != nil || tree.Root() != want {
		return nil, damaged(key, fmt.Errorf("names root %x, and its parts make %s", rec.Root, tree.Root()))
	}
	return tree, nil
}

// collections makes collections of the given roots, each out of another state of it. They are made in parallel, in
// pieces of about one request.
func (s *Store) collections(ctx context.Context, from []*snapshot.Collection, roots []ident.Hash, seen map[string][]byte) ([]*snapshot.Collection, error) {
	unknown := make([]ident.Hash, len(roots))
	for i, root := range roots {
		if root != from[i].Root() {
			unknown[i] = root
		}
	}
	manifests, err := s.manifests(ctx, seen, unknown)
	if err != nil {
		return nil, err
	}
	out := make([]*snapshot.Collection, len(roots))
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(readers)
	for first := 0; first < len(roots); {
		var wanted []ident.Hash
		last := first
		for ; last < len(roots) && len(wanted) < maxOps; last++ {
			if roots[last] == from[last].Root() {
				out[last] = from[last]
				continue
			}
			set, _ := manifest.Diff(from[last].Manifest(), manifests[last])
			for _, e := range set {
				wanted = append(wanted, e.Hash)
			}
		}
		begin, end := first, last
		first = last
		work.Go(func() error {
			data, err := s.nodes(ctx, seen, snapshot.ObjectNode, wanted)
			if err != nil {
				return err
			}
			next := 0
			for i := begin; i < end; i++ {
				if out[i] != nil {
					continue
				}
				// Next asks in the order of the manifest, which is Diff's.
				c, err := from[i].Next(manifests[i], func(manifest.Entry) ([]byte, error) { next++; return data[next-1], nil })
				if err != nil {
					return damaged(s.keys.node(snapshot.ManifestNode, roots[i]), err)
				}
				out[i] = c
			}
			return nil
		})
	}
	return out, work.Wait()
}

// Object returns the bytes stored under a hash: a configuration, a record of a namespace, a backend, a profile.
func (s *Store) Object(ctx context.Context, hash ident.Hash) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout) // one small read, for which people wait
	defer cancel()
	data, err := s.nodes(ctx, nil, snapshot.ObjectNode, []ident.Hash{hash})
	if err != nil {
		return nil, notKept(err)
	}
	return data[0], nil
}

// notKept turns damage into a plain absence, for a hash that a caller brought.
func notKept(err error) error {
	if errors.Is(err, errMissing) {
		return fault.Wrap(err, fault.NotFound, fault.Object, "no snapshot that is kept has this object")
	}
	return err
}

// Manifest returns the manifest with a root, of any snapshot that is kept.
func (s *Store) Manifest(ctx context.Context, root ident.Hash) (*manifest.Manifest, error) {
	m, err := s.manifests(ctx, nil, []ident.Hash{root})
	if err != nil {
		return nil, notKept(err)
	}
	return m[0], nil
}

// decode reads a stored message.
func decode[M any, P interface {
	*M
	proto.Message
}](key string, data []byte) (P, error) {
	m := P(new(M))
	if err := proto.Unmarshal(data, m); err != nil {
		return nil, damaged(key, fmt.Errorf("cannot be read: %w", err))
	}
	return m, nil
}

func encode(m proto.Message) (string, error) {
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	return string(data), err
}
