package fleet

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"

	"github.com/prism-gateway/prism/controlplane/fleet/journal"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
)

// note notes what a proxy serves from now on.
func (f *Fleet) note(e journal.Entry) {
	if f.cfg.Journal != nil {
		f.cfg.Journal.Note(e)
	}
}

// ServedAt returns what a proxy told this replica that it served at a time in the past.
func (f *Fleet) ServedAt(ctx context.Context, in *controlv1.ServedAtRequest) (*controlv1.ServedAtResponse, error) {
	if err := in.GetAt().CheckValid(); err != nil {
		return nil, invalid("at", err)
	}
	return f.servedHere(ctx, in.GetProxy(), in.GetAt().AsTime())
}

func (f *Fleet) servedHere(ctx context.Context, proxy string, at time.Time) (*controlv1.ServedAtResponse, error) {
	out := &controlv1.ServedAtResponse{}
	if f.cfg.Journal == nil {
		return out, nil
	}
	s, err := f.cfg.Journal.At(ctx, proxy, at)
	if err != nil {
		return nil, fault.Wrap(err, fault.Unavailable, fault.StoreDown, "the journal of what proxies served cannot be read")
	}
	out.Begun, out.Oldest = timestamp(s.Begun), timestamp(s.Oldest)
	for _, c := range s.Cells {
		out.Cells = append(out.Cells, &controlv1.Served{
			Partition: uint32(c.Partition), Root: c.Root.Bytes(), SharedRoot: c.Shared.Bytes(), SnapshotVersion: c.Snapshot,
			Since: timestamp(c.Since), Other: timestamp(c.Other),
		})
	}
	return out, nil
}

// timestamp is nil for no time.
func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// Served returns what a proxy served at a time in the past, by partition; with a namespace only of its partition, and in
// which version. What replicas know that are gone, or do not answer, is not in it.
func (f *Fleet) Served(ctx context.Context, proxy string, at time.Time, namespace string) ([]*adminv1.ServedPartition, error) {
	tree := f.store.Head()
	if tree == nil {
		return nil, fault.New(fault.Unavailable, fault.NotLoaded, "this replica has not loaded the configuration yet").WithRetry(time.Second)
	}
	answers, missing, err := f.servedAnywhere(ctx, proxy, at)
	if err != nil {
		return nil, err
	}
	cells, known := mergeServed(answers)
	if !known {
		return nil, unknownThen(proxy, at, answers, missing)
	}
	var served []*adminv1.ServedPartition
	for _, c := range cells {
		p := ident.Partition(c.GetPartition())
		if namespace != "" && p != ident.PartitionOf(namespace, tree.Partitions()) {
			continue
		}
		s := &adminv1.ServedPartition{
			Partition: c.GetPartition(), Root: text(c.GetRoot()), SharedRoot: text(c.GetSharedRoot()),
			SnapshotVersion: c.GetSnapshotVersion(), Since: c.GetSince(),
		}
		if namespace != "" {
			if s.NamespaceVersion, err = f.versionIn(ctx, p, c.GetRoot(), namespace); err != nil {
				s.Unknown = "its partition's state of then is no longer kept"
			}
		}
		served = append(served, s)
	}
	return served, nil
}

// servedAnywhere asks all replicas at once.
func (f *Fleet) servedAnywhere(ctx context.Context, proxy string, at time.Time) (answers []*controlv1.ServedAtResponse, missing bool, err error) {
	here, err := f.servedHere(ctx, proxy, at)
	if err != nil {
		return nil, false, err
	}
	type answer struct {
		of  *controlv1.ServedAtResponse
		err error
	}
	clients := f.peers.clients()
	told := make(chan answer, len(clients))
	ctx, cancel := context.WithTimeout(ctx, 5*peerPatience) // they read files
	defer cancel()
	for id, client := range clients {
		go func() { // ends with ctx
			out, err := client.ServedAt(ctx, &controlv1.ServedAtRequest{Proxy: proxy, At: timestamppb.New(at)})
			if err != nil {
				f.log.Warn("another replica does not tell what a proxy served", "replica", id, "error", err)
			}
			told <- answer{out, err}
		}()
	}
	answers = append(answers, here)
	for range clients {
		a := <-told
		if a.err != nil {
			missing = true
			continue
		}
		answers = append(answers, a.of)
	}
	return answers, missing, nil
}

// unknownThen is the error where no replica knows what a proxy served.
func unknownThen(proxy string, at time.Time, answers []*controlv1.ServedAtResponse, missing bool) error {
	if missing {
		return fault.Newf(fault.Unavailable, fault.Object, "nobody knows what %q served then; not all replicas answered", proxy).WithRetry(time.Second)
	}
	var oldest time.Time
	for _, a := range answers {
		if t := a.GetOldest(); t != nil && (oldest.IsZero() || t.AsTime().Before(oldest)) {
			oldest = t.AsTime()
		}
	}
	switch {
	case oldest.IsZero():
		return fault.New(fault.FailedPrecondition, fault.Object, "no replica notes what proxies serve")
	case at.Before(oldest):
		return fault.Newf(fault.NotFound, fault.Object, "what proxies served is known since %s", oldest.UTC().Format(time.RFC3339))
	}
	return fault.Newf(fault.NotFound, fault.Object, "%q was not heard of then", proxy)
}

// mergeServed joins what replicas heard of a proxy: the one that it began to report to last knows what it served, and the
// others may know since when. It reports whether any heard of it.
func mergeServed(answers []*controlv1.ServedAtResponse) ([]*controlv1.Served, bool) {
	var newest *controlv1.ServedAtResponse
	for _, a := range answers {
		if a.GetBegun() != nil && (newest == nil || a.GetBegun().AsTime().After(newest.GetBegun().AsTime())) {
			newest = a
		}
	}
	if newest == nil {
		return nil, false
	}
	cells := make([]*controlv1.Served, 0, len(newest.GetCells()))
	for _, c := range newest.GetCells() {
		var other time.Time // when something else was served last
		if c.GetOther() != nil {
			other = c.GetOther().AsTime()
		}
		since := c.GetSince().AsTime()
		var same []time.Time
		for _, a := range answers {
			for _, o := range a.GetCells() {
				switch {
				case o == c || o.GetPartition() != c.GetPartition():
					continue
				case bytes.Equal(o.GetRoot(), c.GetRoot()) && bytes.Equal(o.GetSharedRoot(), c.GetSharedRoot()) && o.GetSnapshotVersion() == c.GetSnapshotVersion():
					same = append(same, o.GetSince().AsTime())
					if o.GetOther() != nil && o.GetOther().AsTime().After(other) {
						other = o.GetOther().AsTime()
					}
				default: // it said so when it began to report there, too
					for _, t := range []time.Time{o.GetSince().AsTime(), a.GetBegun().AsTime()} {
						if t.After(other) {
							other = t
						}
					}
				}
			}
		}
		if since.Before(other) {
			since = newest.GetBegun().AsTime() // it went elsewhere, served something else and came back
		}
		for _, s := range same {
			if s.Before(since) && !s.Before(other) {
				since = s
			}
		}
		cells = append(cells, &controlv1.Served{
			Partition: c.GetPartition(), Root: c.GetRoot(), SharedRoot: c.GetSharedRoot(), SnapshotVersion: c.GetSnapshotVersion(),
			Since: timestamppb.New(since), Other: timestamp(other),
		})
	}
	slices.SortFunc(cells, func(a, b *controlv1.Served) int { return cmp.Compare(a.GetPartition(), b.GetPartition()) })
	return cells, true
}

// errNotKept is the error of a root of which nobody knows the members any more.
var errNotKept = errors.New("the root is not kept")

// versionIn is the version of a namespace in a state of its partition, empty when it is not in it.
func (f *Fleet) versionIn(ctx context.Context, p ident.Partition, data []byte, namespace string) (string, error) {
	root, err := ident.HashFrom(data)
	if err != nil {
		return "", errNotKept
	}
	m, err := f.manifest(ctx, p, root)
	if err != nil {
		return "", err
	}
	hash, _ := m.Get(snapshot.NamespacePrefix + namespace)
	return hash.String(), nil
}

// text is a root in hex.
func text(data []byte) string {
	h, err := ident.HashFrom(data)
	if err != nil {
		return ""
	}
	return h.String()
}
