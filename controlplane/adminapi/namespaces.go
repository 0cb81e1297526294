package adminapi

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
)

// PlanNamespaces runs the pipeline on the newest tree and records nothing.
func (s *Server) PlanNamespaces(ctx context.Context, in *controlv1.PlanNamespacesRequest) (*controlv1.PlanNamespacesResponse, error) {
	var wants []want
	for i, r := range in.GetRequests() {
		wants = append(wants, want{request: r, at: fmt.Sprintf("requests[%d]", i)})
	}
	if err := admit(in, wants); err != nil {
		return nil, err
	}
	tree, err := s.head()
	if err != nil {
		return nil, err
	}
	records := s.records()
	defer records.end()
	if err := records.prefetch(ctx, tree, wants); err != nil {
		return nil, err
	}
	results, sets, err := s.plan(ctx, tree, tree.Version()+1, wants, records, by{})
	if err != nil {
		return nil, err
	}
	out := &controlv1.PlanNamespacesResponse{Plans: plans(tree, results), Headroom: s.headroom(tree, sets)}
	if err := s.bounds(tree, sets, false); err != nil {
		f := fault.From(err)
		if f.Code == fault.Internal {
			return nil, err
		}
		out.Refusal = f.Text
	}
	if len(sets) > 0 {
		out.Class = release.Classify(tree, sets)
		out.Policy = s.cfg.Policies.Of(out.Class)
	}
	return out, nil
}

// plans tells all results. When they are too many for one answer, those at its end are told without what the caller
// knows or can ask for: request, decisions, patterns, differences.
func plans(tree *snapshot.Tree, results []result) []*controlv1.NamespacePlan {
	out := make([]*controlv1.NamespacePlan, len(results))
	bytes := 0
	for i, r := range results {
		out[i] = r.plan(tree)
		if bytes += proto.Size(out[i]); bytes > maxAnswer {
			n := out[i].GetNamespace()
			out[i] = &controlv1.NamespacePlan{Action: r.action, Namespace: &configv1.NamespaceResponse{
				Namespace: n.GetNamespace(), Version: n.GetVersion(), SnapshotVersion: n.GetSnapshotVersion(), Partition: n.GetPartition(),
			}}
		}
	}
	return out
}

// CreateNamespace makes a namespace, or finds that the same request made it.
func (s *Server) CreateNamespace(ctx context.Context, in *controlv1.CreateNamespaceRequest) (*controlv1.CreateNamespaceResponse, error) {
	r, err := s.applyOne(ctx, in, want{request: in.GetRequest(), at: "request", mode: createOnly}, in.GetNote(), in.GetRelease(),
		map[string]string{in.GetRequest().GetNamespace(): in.GetReservationToken()})
	if err != nil {
		return nil, err
	}
	return &controlv1.CreateNamespaceResponse{Namespace: r}, nil
}

// UpdateNamespace replaces a namespace's request, if it is as the caller read it.
func (s *Server) UpdateNamespace(ctx context.Context, in *controlv1.UpdateNamespaceRequest) (*controlv1.UpdateNamespaceResponse, error) {
	w := want{request: in.GetRequest(), at: "request", mode: updateOnly, version: in.GetVersion()}
	r, err := s.applyOne(ctx, in, w, in.GetNote(), in.GetRelease(), nil)
	if err != nil {
		return nil, err
	}
	return &controlv1.UpdateNamespaceResponse{Namespace: r}, nil
}

func (s *Server) applyOne(ctx context.Context, in proto.Message, w want, note *controlv1.ChangeNote, options *controlv1.ReleaseOptions, tokens map[string]string) (*configv1.NamespaceResponse, error) {
	if err := admit(in, []want{w}); err != nil {
		return nil, err
	}
	results, commit, err := s.apply(ctx, []want{w}, noteOf(ctx, note), options, tokens)
	if err != nil {
		return nil, err
	}
	return results[0].response(commit.Tree), nil
}

// ApplyNamespaces creates or updates several namespaces in one snapshot.
func (s *Server) ApplyNamespaces(ctx context.Context, in *controlv1.ApplyNamespacesRequest) (*controlv1.ApplyNamespacesResponse, error) {
	var wants []want
	for i, c := range in.GetChanges() {
		wants = append(wants, want{request: c.GetRequest(), at: fmt.Sprintf("changes[%d].request", i), version: c.GetVersion()})
	}
	if err := admit(in, wants); err != nil {
		return nil, err
	}
	results, commit, err := s.apply(ctx, wants, noteOf(ctx, in.GetNote()), in.GetRelease(), in.GetReservationTokens())
	if err != nil {
		return nil, err
	}
	return &controlv1.ApplyNamespacesResponse{Results: plans(commit.Tree, results), SnapshotVersion: commit.Tree.Version(), Release: releaseOf(commit)}, nil
}

// GetNamespace returns a namespace as the newest snapshot has it, or an older one.
func (s *Server) GetNamespace(ctx context.Context, in *controlv1.GetNamespaceRequest) (*controlv1.GetNamespaceResponse, error) {
	if err := check(in); err != nil {
		return nil, err
	}
	tree, err := s.head()
	if err != nil {
		return nil, err
	}
	object, ok := tree.Namespace(in.GetNamespace())
	if v := in.GetSnapshotVersion(); v != 0 {
		if object, ok, err = s.cfg.Store.ObjectAt(ctx, v, snapshot.NamespacePrefix+in.GetNamespace()); err != nil {
			return nil, err
		}
	}
	if !ok {
		return nil, noNamespace(in.GetNamespace())
	}
	config, record, err := s.records().of(ctx, object)
	if in.GetWithStatus() && fault.Is(err, fault.StoreDown) {
		// How far it is live is known here all the same. What was filed is left out.
		config, err = read[configv1.NamespaceConfig](object.Name, object.Data)
	}
	if err != nil {
		return nil, err
	}
	out := response(tree, object.Hash.String(), config, record)
	if in.GetWithStatus() {
		if out.Status, err = s.cfg.Fleet.Status(ctx, in.GetNamespace()); err != nil {
			return nil, err
		}
	}
	return &controlv1.GetNamespaceResponse{Namespace: out}, nil
}

// ListNamespaces returns a page of names in order.
func (s *Server) ListNamespaces(_ context.Context, in *controlv1.ListNamespacesRequest) (*controlv1.ListNamespacesResponse, error) {
	if err := check(in); err != nil {
		return nil, err
	}
	query := []string{"namespaces", in.GetPrefix(), in.GetTeam()}
	after, err := pageAfter(in.GetPageToken(), query...)
	if err != nil {
		return nil, err
	}
	tree, err := s.head()
	if err != nil {
		return nil, err
	}
	out := &controlv1.ListNamespacesResponse{TotalCount: count(tree, in.GetPrefix(), in.GetTeam())}
	size := pageSize(in.GetPageSize())
	for o := range tree.Namespaces(in.GetPrefix(), after) {
		if in.GetTeam() != "" && snapshot.TeamOf(o.Data) != in.GetTeam() {
			continue
		}
		if len(out.Namespaces) == size {
			out.NextPageToken = pageToken(out.Namespaces[size-1].GetNamespace(), query...)
			break
		}
		summary, err := summaryOf(tree, o)
		if err != nil {
			return nil, err
		}
		out.Namespaces = append(out.Namespaces, summary)
	}
	return out, nil
}

func count(tree *snapshot.Tree, prefix, team string) uint64 {
	switch {
	case prefix == "" && team == "":
		return uint64(tree.Len())
	case prefix == "":
		return tree.Team(team).Namespaces
	}
	var n uint64
	for p := range ident.Partition(tree.Partitions()) {
		c := tree.Collection(p)
		for i := range c.Len() {
			o := c.At(i)
			if strings.HasPrefix(o.ShortName(), prefix) && (team == "" || snapshot.TeamOf(o.Data) == team) {
				n++
			}
		}
	}
	return n
}

func summaryOf(tree *snapshot.Tree, o snapshot.Object) (*controlv1.NamespaceSummary, error) {
	config, err := read[configv1.NamespaceConfig](o.Name, o.Data)
	if err != nil {
		return nil, err
	}
	out := &controlv1.NamespaceSummary{
		Namespace: config.GetNamespace(), Team: config.GetTeam(), Backends: backendsOf(config),
		Partition: uint32(ident.PartitionOf(config.GetNamespace(), tree.Partitions())),
		Version:   o.Hash.String(), Draining: config.GetDraining(),
	}
	for _, p := range config.GetPatterns() {
		out.Patterns = append(out.Patterns, p.GetType())
	}
	return out, nil
}

// backendsOf are the backends that a namespace is bound to, each once, in order.
func backendsOf(config *configv1.NamespaceConfig) []string {
	var out []string
	for _, p := range config.GetPatterns() {
		for _, b := range p.GetBindings() {
			if !slices.Contains(out, b.GetBackend()) {
				out = append(out, b.GetBackend())
			}
		}
	}
	return out
}

// WatchNamespaceStatus tells how far a namespace is live, at each change.
func (s *Server) WatchNamespaceStatus(in *controlv1.WatchNamespaceStatusRequest, stream grpc.ServerStreamingServer[controlv1.WatchNamespaceStatusResponse]) error {
	if err := check(in); err != nil {
		return err
	}
	var sending error
	err := s.cfg.Fleet.WatchStatus(stream.Context(), in.GetNamespace(), func(st *configv1.NamespaceStatus) bool {
		sending = stream.Send(&controlv1.WatchNamespaceStatusResponse{Status: st})
		return sending != nil || in.GetUntilSnapshot() != 0 && st.GetLive() && st.GetSnapshotVersion() >= in.GetUntilSnapshot()
	})
	if sending != nil {
		return sending
	}
	return err
}
