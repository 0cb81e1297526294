package adminapi

import (
	"context"
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/prism-gateway/prism/controlplane/admission"
	"github.com/prism-gateway/prism/controlplane/pipeline"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/catalog"
	"github.com/prism-gateway/prism/shared/constraint"
	"github.com/prism-gateway/prism/shared/fault"
)

// ListBackends returns a page of backends by name.
func (s *Server) ListBackends(_ context.Context, in *adminv1.ListBackendsRequest) (*adminv1.ListBackendsResponse, error) {
	if err := check(in); err != nil {
		return nil, err
	}
	after, err := pageAfter(in.GetPageToken(), "backends")
	if err != nil {
		return nil, err
	}
	tree, err := s.head()
	if err != nil {
		return nil, err
	}
	all := tree.Backends()
	out := &adminv1.ListBackendsResponse{TotalCount: uint64(len(all))}
	size := pageSize(in.GetPageSize())
	for _, o := range all {
		if o.ShortName() <= after && after != "" {
			continue
		}
		if len(out.Backends) == size {
			out.NextPageToken = pageToken(out.Backends[size-1].GetBackend().GetName(), "backends")
			break
		}
		view, err := viewOf(tree, o)
		if err != nil {
			return nil, err
		}
		out.Backends = append(out.Backends, view)
	}
	return out, nil
}

// GetBackend returns one backend with what is reserved on it.
func (s *Server) GetBackend(ctx context.Context, in *adminv1.GetBackendRequest) (*adminv1.GetBackendResponse, error) {
	if err := check(in); err != nil {
		return nil, err
	}
	tree, err := s.head()
	if err != nil {
		return nil, err
	}
	o, ok := tree.Backend(in.GetName())
	if !ok {
		return nil, noBackend(in.GetName())
	}
	view, err := viewOf(tree, o)
	if err != nil {
		return nil, err
	}
	view.TakenBack = s.cfg.Fleet.TakenBack(ctx, o.Name)
	return &adminv1.GetBackendResponse{Backend: view}, nil
}

// viewOf is a backend with what namespaces hold on it.
func viewOf(tree *snapshot.Tree, o snapshot.Object) (*adminv1.BackendView, error) {
	b, err := read[configv1.Backend](o.Name, o.Data)
	if err != nil {
		return nil, err
	}
	t, _ := catalog.Type(b.GetType())
	u := tree.Usage(b.GetName())
	return &adminv1.BackendView{
		Backend: b, Version: o.Hash.String(), Namespaces: u.Namespaces, Interfaces: t.Interfaces,
		Reserved: &configv1.Reservation{
			Backend: b.GetName(), ReadRps: uint32(min(u.ReadRPS, 1<<32-1)), WriteRps: uint32(min(u.WriteRPS, 1<<32-1)), DataBytes: u.DataBytes,
		},
	}, nil
}

// ApplyBackends registers or changes backends in one snapshot.
func (s *Server) ApplyBackends(ctx context.Context, in *adminv1.ApplyBackendsRequest) (*adminv1.ApplyBackendsResponse, error) {
	if err := admitBackends(in); err != nil {
		return nil, err
	}
	if _, err := s.head(); err != nil {
		return nil, err
	}
	note := noteOf(ctx, in.GetNote())
	order, err := note.order(in.GetRelease())
	if err != nil {
		return nil, err
	}
	commit, err := s.cfg.Store.Commit(ctx, order, func(base *snapshot.Tree, _ uint64) ([]snapshot.Set, error) {
		var sets []snapshot.Set
		for _, c := range in.GetChanges() {
			data, err := replaceBackend(base, c)
			if err != nil {
				return nil, err
			}
			if data != nil {
				sets = append(sets, note.set(snapshot.BackendPrefix+c.GetBackend().GetName(), data, nil))
			}
		}
		return sets, nil
	})
	if err != nil {
		return nil, err
	}
	out := &adminv1.ApplyBackendsResponse{SnapshotVersion: commit.Tree.Version(), Release: releaseOf(commit)}
	for _, c := range in.GetChanges() {
		o, ok := commit.Tree.Backend(c.GetBackend().GetName())
		if !ok {
			return nil, gone("backend " + c.GetBackend().GetName()) // deleted in the same snapshot
		}
		view, err := viewOf(commit.Tree, o)
		if err != nil {
			return nil, err
		}
		out.Backends = append(out.Backends, view)
	}
	return out, nil
}

// admitBackends checks all backends of a change: every violation at once, or else all that is not offered.
func admitBackends(in *adminv1.ApplyBackendsRequest) error {
	var found, missing []fault.Violation
	for _, v := range constraint.Check(in) {
		if !strings.Contains(v.Field, "].backend.") {
			found = append(found, v)
		}
	}
	first := map[string]int{}
	for i, c := range in.GetChanges() {
		if c.GetBackend() == nil {
			continue // required, so it is told already
		}
		at := fmt.Sprintf("changes[%d].backend", i)
		found = append(found, under(at, admission.ValidateBackend(c.GetBackend()))...)
		missing = append(missing, under(at, admission.BackendNotOffered(c.GetBackend()))...)
		name := c.GetBackend().GetName()
		if before, twice := first[name]; twice {
			found = append(found, fault.Violation{
				Field: at + ".name", Rule: "apply.once", Text: fmt.Sprintf("%q stands twice, first in changes[%d]; want each backend once", name, before),
			})
			continue
		}
		first[name] = i
	}
	if err := invalid(found); err != nil {
		return err
	}
	if len(missing) > 0 {
		return refusal(fault.FailedPrecondition, fault.NotOffered, missing)
	}
	return nil
}

// replaceBackend returns the bytes to store, nil when the backend is so already.
func replaceBackend(base *snapshot.Tree, c *adminv1.BackendChange) ([]byte, error) {
	b := c.GetBackend()
	data, err := pipeline.Marshal(b)
	if err != nil {
		return nil, err
	}
	present, there := base.Backend(b.GetName())
	if !there {
		if c.GetVersion() != "" {
			return nil, gone("backend " + b.GetName())
		}
		return data, nil
	}
	was, err := read[configv1.Backend](present.Name, present.Data)
	switch {
	case err != nil:
		return nil, err
	case proto.Equal(was, b):
		return nil, nil
	case c.GetVersion() != "" && c.GetVersion() != present.Hash.String():
		return nil, changed("backend "+b.GetName(), present.Hash.String())
	case was.GetType() != b.GetType() && base.Usage(b.GetName()).Namespaces > 0:
		return nil, inUse(base, b.GetName(), fmt.Sprintf("its type cannot become %s", b.GetType()))
	case weakens(was, b) && base.Usage(b.GetName()).Namespaces > 0:
		return nil, inUse(base, b.GetName(), "its settings cannot make it less durable")
	}
	return data, nil
}

// weakens reports whether a change of settings takes from namespaces the durability that they were given.
func weakens(was, is *configv1.Backend) bool {
	t, _ := catalog.Type(is.GetType())
	return t.DurabilityWith(is.GetConfig()) < t.DurabilityWith(was.GetConfig())
}

// DeleteBackend removes a backend that no namespace is bound to.
func (s *Server) DeleteBackend(ctx context.Context, in *adminv1.DeleteBackendRequest) (*adminv1.DeleteBackendResponse, error) {
	if err := check(in); err != nil {
		return nil, err
	}
	if _, err := s.head(); err != nil {
		return nil, err
	}
	note := noteOf(ctx, in.GetNote())
	order, err := note.order(in.GetRelease())
	if err != nil {
		return nil, err
	}
	commit, err := s.cfg.Store.Commit(ctx, order, func(base *snapshot.Tree, _ uint64) ([]snapshot.Set, error) {
		o, ok := base.Backend(in.GetName())
		switch {
		case !ok:
			return nil, noBackend(in.GetName())
		case in.GetVersion() != "" && in.GetVersion() != o.Hash.String():
			return nil, changed("backend "+in.GetName(), o.Hash.String())
		case base.Usage(in.GetName()).Namespaces > 0:
			return nil, inUse(base, in.GetName(), "it cannot be deleted")
		}
		return []snapshot.Set{note.set(o.Name, nil, nil)}, nil
	})
	if err != nil {
		return nil, err
	}
	return &adminv1.DeleteBackendResponse{SnapshotVersion: commit.Tree.Version(), Release: releaseOf(commit)}, nil
}

func noBackend(name string) error {
	return fault.Newf(fault.NotFound, fault.Object, "there is no backend %q", name).WithOutcome(fault.NotApplied)
}

// maxNamed bounds how many namespaces a refusal names.
const maxNamed = 10

// inUse names namespaces that are bound to a backend, the first ten by name.
func inUse(tree *snapshot.Tree, backend, what string) error {
	var names []string
	for o := range tree.Namespaces("", "") {
		config, err := read[configv1.NamespaceConfig](o.Name, o.Data)
		if err != nil {
			return err
		}
		for _, b := range backendsOf(config) {
			if b == backend {
				names = append(names, config.GetNamespace())
			}
		}
		if len(names) == maxNamed {
			break
		}
	}
	n := tree.Usage(backend).Namespaces
	text := fmt.Sprintf("%d namespaces are bound to backend %q, so %s: %s", n, backend, what, strings.Join(names, ", "))
	if n == 1 {
		text = fmt.Sprintf("namespace %s is bound to backend %q, so %s", strings.Join(names, ", "), backend, what)
	}
	if more := n - min(n, uint64(len(names))); more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return fault.New(fault.FailedPrecondition, fault.InUse, text).WithOutcome(fault.NotApplied)
}
