package adminapi

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/prism-gateway/prism/controlplane/snapshot"
	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
)

// ListSnapshots returns a page of snapshots, newest first. A page ends early where snapshots are large.
func (s *Server) ListSnapshots(ctx context.Context, in *adminv1.ListSnapshotsRequest) (*adminv1.ListSnapshotsResponse, error) {
	if err := check(in); err != nil {
		return nil, err
	}
	before, err := versionAfter(in.GetPageToken(), "snapshots")
	if err != nil {
		return nil, err
	}
	tree, err := s.head()
	if err != nil {
		return nil, err
	}
	size := pageSize(in.GetPageSize())
	total, err := s.cfg.Store.CountSnapshots(ctx)
	if err != nil {
		return nil, err
	}
	out := &adminv1.ListSnapshotsResponse{TotalCount: total}
	bytes := 0
	for {
		records, err := s.cfg.Store.Snapshots(ctx, before, min(historyStep, size+1-len(out.Snapshots)))
		if err != nil || len(records) == 0 {
			return out, err
		}
		for _, r := range records {
			before = r.GetVersion()
			view := snapshotOf(r, tree)
			bytes += proto.Size(view)
			if n := len(out.Snapshots); n == size || n > 0 && bytes > maxAnswer {
				out.NextPageToken = versionToken(out.Snapshots[n-1].GetVersion(), "snapshots")
				return out, nil
			}
			out.Snapshots = append(out.Snapshots, view)
		}
	}
}

func snapshotOf(r *recordv1.Snapshot, head *snapshot.Tree) *adminv1.Snapshot {
	out := &adminv1.Snapshot{
		Version: r.GetVersion(), Root: hexOf(r.GetRoot()), Parent: r.GetParent(), RecordedAt: r.GetRecordedAt(),
		Namespaces: r.GetNamespaces(), Head: r.GetVersion() == head.Version(),
	}
	bytes := 0
	for _, c := range r.GetChanges() {
		one := changeOf(c)
		if bytes += proto.Size(one); bytes > maxAnswer {
			one = &adminv1.SnapshotChange{Kind: one.GetKind(), Name: one.GetName(), After: one.GetAfter()}
		}
		out.Changes = append(out.Changes, one)
	}
	return out
}

func changeOf(c *recordv1.Change) *adminv1.SnapshotChange {
	return &adminv1.SnapshotChange{
		Kind: kindName(c.GetKind()), Name: c.GetName(), Author: c.GetAuthor(), Message: c.GetMessage(),
		RequestId: c.GetRequestId(), ToVersion: c.GetToVersion(), Before: hexOf(c.GetBefore()), After: hexOf(c.GetAfter()),
	}
}

// kindName is create, update, drain, delete or rollback.
func kindName(k recordv1.ChangeKind) string {
	return strings.ToLower(strings.TrimPrefix(k.String(), "CHANGE_KIND_"))
}

func hexOf(hash []byte) string {
	h, err := ident.HashFrom(hash)
	if err != nil {
		return ""
	}
	return h.String()
}

// GetSnapshot returns one snapshot.
func (s *Server) GetSnapshot(ctx context.Context, in *adminv1.GetSnapshotRequest) (*adminv1.GetSnapshotResponse, error) {
	if err := check(in); err != nil {
		return nil, err
	}
	tree, err := s.head()
	if err != nil {
		return nil, err
	}
	version := in.GetVersion()
	if version == 0 {
		version = tree.Version()
	}
	if version == 0 {
		return &adminv1.GetSnapshotResponse{Snapshot: emptySnapshot()}, nil
	}
	r, err := s.cfg.Store.Snapshot(ctx, version)
	if err != nil {
		return nil, err
	}
	return &adminv1.GetSnapshotResponse{Snapshot: snapshotOf(r, tree)}, nil
}

// emptySnapshot is what there is before the first change.
func emptySnapshot() *adminv1.Snapshot { return &adminv1.Snapshot{Head: true} }

// DiffSnapshots returns a page of what differs between two snapshots, by name. A page ends early where differences are
// large.
func (s *Server) DiffSnapshots(ctx context.Context, in *adminv1.DiffSnapshotsRequest) (*adminv1.DiffSnapshotsResponse, error) {
	if err := check(in); err != nil {
		return nil, err
	}
	// The token names the newest snapshot of the first page, so that all pages are of the same two.
	query := []string{"diff", strconv.FormatUint(in.GetFromVersion(), 10), strconv.FormatUint(in.GetToVersion(), 10)}
	place, err := pageAfter(in.GetPageToken(), query...)
	if err != nil {
		return nil, err
	}
	tree, err := s.head()
	if err != nil {
		return nil, err
	}
	to, after := in.GetToVersion(), ""
	if to == 0 {
		to = tree.Version()
	}
	if place != "" {
		version, name, _ := strings.Cut(place, " ")
		if to, err = strconv.ParseUint(version, 10, 64); err != nil {
			return nil, badToken()
		}
		after = name
	}
	size := pageSize(in.GetPageSize())
	found, total, err := s.cfg.Store.Diff(ctx, in.GetFromVersion(), to, after, size+1)
	if err != nil {
		return nil, err
	}
	out := &adminv1.DiffSnapshotsResponse{TotalCount: total}
	bytes := 0
	for _, d := range found {
		one := &adminv1.Difference{Kind: kindName(d.Kind()), Name: d.Name}
		if d.Kind() == recordv1.ChangeKind_CHANGE_KIND_UPDATE {
			if one.Fields, err = fieldsOf(d); err != nil {
				return nil, err
			}
		}
		bytes += proto.Size(one)
		if n := len(out.Differences); n == size || n > 0 && bytes > maxAnswer {
			last := strconv.FormatUint(to, 10) + " " + out.Differences[n-1].GetName()
			out.NextPageToken = pageToken(last, query...)
			return out, nil
		}
		out.Differences = append(out.Differences, one)
	}
	return out, nil
}

// fieldsOf says what differs in an object that both snapshots have.
func fieldsOf(d snapshot.Difference) ([]string, error) {
	if strings.HasPrefix(d.Name, snapshot.BackendPrefix) {
		return diffAs[configv1.Backend](d)
	}
	if strings.HasPrefix(d.Name, snapshot.NamespacePrefix) {
		return diffAs[configv1.NamespaceConfig](d)
	}
	return nil, nil
}

func diffAs[M any, P interface {
	*M
	proto.Message
}](d snapshot.Difference) ([]string, error) {
	before, err := read[M, P](d.Name, d.Before.Data)
	if err != nil {
		return nil, err
	}
	after, err := read[M, P](d.Name, d.After.Data)
	if err != nil {
		return nil, err
	}
	return differences("", before, after, "record_hash"), nil
}

// RollbackSnapshot makes a snapshot that is what an older one was, wholly or for one namespace.
func (s *Server) RollbackSnapshot(ctx context.Context, in *adminv1.RollbackSnapshotRequest) (*adminv1.RollbackSnapshotResponse, error) {
	if err := check(in); err != nil {
		return nil, err
	}
	if _, err := s.head(); err != nil {
		return nil, err
	}
	var commit snapshot.Commit
	var count uint64
	var err error
	if in.GetNamespace() == "" {
		commit, count, err = s.rollbackAll(ctx, in)
	} else {
		commit, count, err = s.rollbackOne(ctx, in)
	}
	if err != nil {
		return nil, err
	}
	if commit.Snapshot.GetVersion() == 0 {
		return &adminv1.RollbackSnapshotResponse{Snapshot: emptySnapshot()}, nil
	}
	return &adminv1.RollbackSnapshotResponse{Snapshot: snapshotOf(commit.Snapshot, commit.Tree), Changed: count, Release: releaseOf(commit)}, nil
}

func (s *Server) rollbackAll(ctx context.Context, in *adminv1.RollbackSnapshotRequest) (snapshot.Commit, uint64, error) {
	note := noteOf(ctx, in.GetNote())
	order, err := note.order(in.GetRelease())
	if err != nil {
		return snapshot.Commit{}, 0, err
	}
	var count uint64
	commit, err := s.cfg.Store.Rollback(ctx, order, in.GetToVersion(), note.note(), func(base, target *snapshot.Tree) error {
		found := snapshot.Diff(base, target)
		for _, d := range found {
			if err := refuseDraining(target, d.Name, in.GetToVersion()); err != nil {
				return err
			}
		}
		if err := guard(base, lossOfDiff(found), in.GetAllowShrink() || in.GetRelease().GetAllowShrink()); err != nil {
			return err
		}
		count = uint64(len(found))
		return nil
	})
	if err != nil {
		return snapshot.Commit{}, 0, err
	}
	return commit, count, nil
}

// refuseDraining finds a namespace that was being deleted in the snapshot that is gone back to: nobody would finish its
// deletion.
func refuseDraining(target *snapshot.Tree, name string, version uint64) error {
	then, ok := target.Object(name)
	if !ok || !strings.HasPrefix(name, snapshot.NamespacePrefix) {
		return nil
	}
	config, err := read[configv1.NamespaceConfig](name, then.Data)
	if err != nil {
		return err
	}
	if config.GetDraining() {
		return wasDraining(then.ShortName(), version)
	}
	return nil
}

func wasDraining(name string, version uint64) error {
	return fault.Newf(fault.FailedPrecondition, fault.NamespaceDraining,
		"in snapshot %d namespace %q was being deleted; name an earlier one, such as %d", version, name, version-1).WithOutcome(fault.NotApplied)
}

// rollbackOne brings one namespace back, with the record that it had. Its backends must still be there: unlike the
// rollback of everything, this one leaves them as they are.
func (s *Server) rollbackOne(ctx context.Context, in *adminv1.RollbackSnapshotRequest) (snapshot.Commit, uint64, error) {
	note := noteOf(ctx, in.GetNote())
	order, err := note.order(in.GetRelease())
	if err != nil {
		return snapshot.Commit{}, 0, err
	}
	name := snapshot.NamespacePrefix + in.GetNamespace()
	then, ok, err := s.cfg.Store.ObjectAt(ctx, in.GetToVersion(), name)
	if err != nil {
		return snapshot.Commit{}, 0, err
	}
	if !ok {
		return snapshot.Commit{}, 0, fault.Newf(fault.NotFound, fault.Namespace,
			"snapshot %d has no namespace %q; to be rid of it, delete it", in.GetToVersion(), in.GetNamespace()).WithOutcome(fault.NotApplied)
	}
	config, err := read[configv1.NamespaceConfig](name, then.Data)
	if err != nil {
		return snapshot.Commit{}, 0, err
	}
	if config.GetDraining() {
		return snapshot.Commit{}, 0, wasDraining(in.GetNamespace(), in.GetToVersion())
	}
	hash, err := ident.HashFrom(config.GetRecordHash())
	if err != nil {
		return snapshot.Commit{}, 0, fmt.Errorf("adminapi: %s: %w", name, err)
	}
	record, err := s.cfg.Store.Object(ctx, hash)
	if err != nil {
		return snapshot.Commit{}, 0, err
	}
	order = s.ordered(order, config.GetTeam(), 1)
	set := note.set(name, then.Data, record)
	set.Kind, set.ToVersion = recordv1.ChangeKind_CHANGE_KIND_ROLLBACK, in.GetToVersion()
	commit, err := s.cfg.Store.Commit(ctx, order, func(base *snapshot.Tree, _ uint64) ([]snapshot.Set, error) {
		if err := backendsStand(base, config); err != nil {
			return nil, err
		}
		// Going back is never refused for its size; bringing a deleted namespace back is one more.
		if _, there := base.Object(name); !there {
			if err := s.cfg.Quotas.Check(base, []snapshot.Set{set}, s.cfg.Store.ReservedBy); err != nil {
				return nil, err
			}
		}
		return []snapshot.Set{set}, nil
	})
	if err != nil {
		return snapshot.Commit{}, 0, err
	}
	if !commit.Changed {
		return commit, 0, nil
	}
	return commit, 1, nil
}

// backendsStand names the backends of a configuration that are gone or of another type now.
func backendsStand(base *snapshot.Tree, config *configv1.NamespaceConfig) error {
	var wrong []string
	for _, p := range config.GetPatterns() {
		for _, b := range p.GetBindings() {
			o, ok := base.Backend(b.GetBackend())
			if !ok {
				wrong = append(wrong, b.GetBackend()+" is gone")
				continue
			}
			now, err := read[configv1.Backend](o.Name, o.Data)
			if err != nil {
				return err
			}
			if now.GetType() != b.GetBackendType() {
				wrong = append(wrong, fmt.Sprintf("%s was a %s and is a %s", b.GetBackend(), b.GetBackendType(), now.GetType()))
			}
		}
	}
	if len(wrong) == 0 {
		return nil
	}
	slices.Sort(wrong)
	return fault.Newf(fault.FailedPrecondition, fault.NoBackend, "namespace %q cannot go back to its backends: %s",
		config.GetNamespace(), strings.Join(slices.Compact(wrong), "; ")).WithOutcome(fault.NotApplied)
}

// historyStep is how many snapshots are looked at in one reading. They may be large.
const historyStep = 20

// NamespaceHistory returns the snapshots in which a namespace changed, newest first.
func (s *Server) NamespaceHistory(ctx context.Context, in *adminv1.NamespaceHistoryRequest) (*adminv1.NamespaceHistoryResponse, error) {
	if err := check(in); err != nil {
		return nil, err
	}
	before, err := versionAfter(in.GetPageToken(), "history", in.GetNamespace())
	if err != nil {
		return nil, err
	}
	tree, err := s.head()
	if err != nil {
		return nil, err
	}
	out := &adminv1.NamespaceHistoryResponse{}
	size := pageSize(in.GetPageSize())
	for {
		records, err := s.cfg.Store.Snapshots(ctx, before, historyStep)
		if err != nil {
			return nil, err
		}
		if len(records) == 0 {
			return out, nil
		}
		for _, r := range records {
			before = r.GetVersion()
			only, err := s.changesOf(ctx, r, snapshot.NamespacePrefix+in.GetNamespace())
			if err != nil {
				return nil, err
			}
			if len(only) == 0 {
				continue
			}
			if n := len(out.Snapshots); n == size {
				out.NextPageToken = versionToken(out.Snapshots[n-1].GetVersion(), "history", in.GetNamespace())
				return out, nil
			}
			view := snapshotOf(&recordv1.Snapshot{
				Version: r.GetVersion(), Root: r.GetRoot(), Parent: r.GetParent(), RecordedAt: r.GetRecordedAt(),
				Namespaces: r.GetNamespaces(), Changes: only,
			}, tree)
			out.Snapshots = append(out.Snapshots, view)
		}
	}
}

// changesOf are the changes of one object in a snapshot. A rollback of everything names no objects, so it is asked
// whether the object differs from the snapshot before.
func (s *Server) changesOf(ctx context.Context, r *recordv1.Snapshot, name string) ([]*recordv1.Change, error) {
	var only []*recordv1.Change
	for _, c := range r.GetChanges() {
		if c.GetName() == name {
			only = append(only, c)
			continue
		}
		if c.GetName() != "" {
			continue
		}
		after, _, err := s.cfg.Store.ObjectAt(ctx, r.GetVersion(), name)
		if err != nil {
			return nil, err
		}
		before, _, err := s.cfg.Store.ObjectAt(ctx, r.GetParent(), name)
		if gone, ok := errors.AsType[*fault.Fault](err); ok && gone.Reason == fault.Snapshot {
			continue // the parent has left the history
		} else if err != nil {
			return nil, err
		}
		if before.Hash != after.Hash {
			c = proto.CloneOf(c)
			c.Name, c.Before, c.After = name, before.Hash.Bytes(), after.Hash.Bytes()
			only = append(only, c)
		}
	}
	return only, nil
}
