package adminapi

import (
	"context"
	"slices"

	"github.com/prism-gateway/prism/controlplane/pipeline"
	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
)

// DeleteNamespace drains a namespace, waits for its owners, and removes it. Where the drain goes in waves it answers at
// once, and the elected replica removes the namespace when they are done. A deletion that was cut short leaves it
// draining; deleting it again goes on.
func (s *Server) DeleteNamespace(ctx context.Context, in *controlv1.DeleteNamespaceRequest) (*controlv1.DeleteNamespaceResponse, error) {
	if err := check(in); err != nil {
		return nil, err
	}
	if in.GetPurge() {
		return nil, refusal(fault.FailedPrecondition, fault.NotOffered, []fault.Violation{{
			Field: "purge", Rule: "offered.purge", Text: "this build cannot remove a namespace's data yet; delete without purge and the data stays",
		}})
	}
	tree, err := s.head()
	if err != nil {
		return nil, err
	}
	note := noteOf(ctx, in.GetNote())
	order, err := note.order(in.GetRelease())
	if err != nil {
		return nil, err
	}
	present, _ := tree.Namespace(in.GetNamespace())
	order = s.ordered(order, snapshot.TeamOf(present.Data), 1)
	d, err := s.drain(ctx, in, note, order)
	if err != nil {
		return nil, err
	}
	if d.release != 0 && d.waits {
		return &controlv1.DeleteNamespaceResponse{SnapshotVersion: d.snapshot, DataRemainsOn: backendsOf(d.config), Release: d.release}, nil
	}
	drained := false
	if d.release == 0 { // else the owners that the waves have not reached serve it until it is gone
		if drained, err = s.drained(ctx, in.GetNamespace(), d.version); err != nil {
			return nil, err
		}
	}
	if !drained {
		s.cfg.Log.Warn("namespace removed although not every owner is known to have stopped serving it", "namespace", in.GetNamespace())
	}
	order.AtOnce, order.ConfirmWithin = true, 0 // what was worth watching was the drain
	name := snapshot.NamespacePrefix + in.GetNamespace()
	commit, err := s.cfg.Store.Commit(ctx, order, func(base *snapshot.Tree, _ uint64) ([]snapshot.Set, error) {
		switch o, ok := base.Namespace(in.GetNamespace()); {
		case !ok:
			return nil, nil // another deletion was faster
		case o.Hash.String() != d.version:
			return nil, changed("namespace "+in.GetNamespace(), o.Hash.String())
		}
		return []snapshot.Set{note.set(name, nil, nil)}, nil
	})
	if err != nil {
		return nil, err
	}
	return &controlv1.DeleteNamespaceResponse{SnapshotVersion: commit.Tree.Version(), DataRemainsOn: backendsOf(d.config), Drained: drained}, nil
}

// drain is a namespace that takes no new work.
type drain struct {
	config   *configv1.NamespaceConfig
	version  string
	snapshot uint64
	waits    bool   // its removal is the elected replica's, when the release is done
	release  uint64 // that brings it to the owners; 0 when they are given it at once
}

// drain records that a namespace takes no new work, and where that goes in waves that it is to be removed then.
func (s *Server) drain(ctx context.Context, in *controlv1.DeleteNamespaceRequest, note by, order release.Order) (drain, error) {
	name := in.GetNamespace()
	policy := s.cfg.Policies.Of(configv1.ReleaseClass_RELEASE_CLASS_SCOPED)
	d := drain{waits: order.ConfirmWithin > 0 || !order.AtOnce && !policy.GetAtOnce()}
	commit, err := s.cfg.Store.Commit(ctx, order, func(base *snapshot.Tree, _ uint64) ([]snapshot.Set, error) {
		o, ok := base.Namespace(name)
		if !ok {
			return nil, noNamespace(name)
		}
		present, err := read[configv1.NamespaceConfig](o.Name, o.Data)
		if err != nil {
			return nil, err
		}
		if present.GetDraining() && (!d.waits || present.GetRemoval() != nil) {
			d.config, d.version = present, o.Hash.String()
			return nil, nil
		}
		if in.GetVersion() != "" && in.GetVersion() != o.Hash.String() && !present.GetDraining() {
			return nil, changed("namespace "+name, o.Hash.String())
		}
		present.Draining = true
		if d.waits {
			present.Removal = &configv1.Removal{Author: note.author, Message: note.message, RequestId: note.requestID}
		}
		data, err := pipeline.Marshal(present)
		if err != nil {
			return nil, err
		}
		d.config, d.version = present, ident.HashOf(data).String()
		set := note.set(o.Name, data, nil)
		set.Kind = recordv1.ChangeKind_CHANGE_KIND_DRAIN
		return []snapshot.Set{set}, nil
	})
	if err != nil {
		return drain{}, err
	}
	d.snapshot = commit.Tree.Version()
	if commit.InRelease {
		d.release = commit.Snapshot.GetVersion()
	} else if r, pending := s.cfg.Store.Released().Of(snapshot.NamespacePrefix + name); pending {
		d.release = r.GetSnapshot() // another's deletion may have drained it in waves that are still under way
	}
	return d, nil
}

// drained waits until every owner has taken the draining version, or for the drain timeout.
func (s *Server) drained(ctx context.Context, name, version string) (bool, error) {
	waiting, cancel := context.WithTimeout(ctx, s.cfg.DrainTimeout)
	defer cancel()
	all := false
	err := s.cfg.Fleet.WatchStatus(waiting, name, func(st *configv1.NamespaceStatus) bool {
		if st.GetVersion() != version && st.GetVersion() != "" {
			return false // this replica's view is about to move
		}
		all = !slices.ContainsFunc(st.GetOwners(), func(o *configv1.OwnerStatus) bool { return o.GetStage() < configv1.Stage_STAGE_ACCEPTED })
		return all
	})
	switch {
	case ctx.Err() != nil:
		return false, fault.From(ctx.Err())
	case fault.Is(err, fault.Namespace):
		return true, nil // another deletion was faster
	case err != nil && waiting.Err() == nil:
		return false, err
	}
	return all, nil
}
