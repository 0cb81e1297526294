package adminapi

import (
	"context"
	"fmt"
	"regexp"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/prism-gateway/prism/controlplane/admission"
	"github.com/prism-gateway/prism/controlplane/pipeline"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/constraint"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
)

// want is one request to carry out.
type want struct {
	request *configv1.NamespaceRequest
	at      string // path of the request in its message
	mode    mode
	version string // read by the caller; empty: whatever there is
}

// mode is what may become of a request.
type mode int

const (
	createOrUpdate mode = iota
	createOnly
	updateOnly
)

// result is what became of one.
type result struct {
	action   controlv1.PlanAction
	config   *configv1.NamespaceConfig
	record   *recordv1.NamespaceRecord
	version  string
	before   *recordv1.NamespaceRecord // nil when it is new
	previous *configv1.NamespaceConfig
}

// nested are the paths in and of requests inside of messages; their own rules are checked with those between their
// fields.
var nested = regexp.MustCompile(`^(request|requests\[\d+\]|changes\[\d+\]\.request)(\.|$)`)

// admit checks a message with the requests in it: all violations at once, or else all that is not offered at once.
func admit(m proto.Message, wants []want) error {
	var found, missing []fault.Violation
	for _, v := range constraint.Check(m) {
		inside := nested.FindString(v.Field)
		if inside == "" || inside == v.Field && v.Rule == "required" {
			found = append(found, v)
		}
	}
	first := map[string]string{}
	for _, w := range wants {
		if w.request == nil {
			continue // required, so it is told already
		}
		found = append(found, under(w.at, admission.Validate(w.request))...)
		missing = append(missing, under(w.at, admission.NotOffered(w.request))...)
		name := w.request.GetNamespace()
		if before, twice := first[name]; twice {
			found = append(found, fault.Violation{
				Field: w.at + ".namespace", Rule: "apply.once", Text: fmt.Sprintf("%q stands twice, first in %s; want each namespace once", name, before),
			})
			continue
		}
		first[name] = w.at
	}
	if err := invalid(found); err != nil {
		return err
	}
	if len(missing) > 0 {
		return refusal(fault.FailedPrecondition, fault.NotOffered, missing)
	}
	return nil
}

func under(at string, violations []fault.Violation) []fault.Violation {
	for i := range violations {
		if violations[i].Field == "" {
			violations[i].Field = at
			continue
		}
		violations[i].Field = at + "." + violations[i].Field
	}
	return violations
}

// apply commits all requests as one change, or none.
func (s *Server) apply(ctx context.Context, wants []want, note by, options *controlv1.ReleaseOptions, tokens map[string]string) ([]result, snapshot.Commit, error) {
	head, err := s.head()
	if err != nil {
		return nil, snapshot.Commit{}, err
	}
	order, err := note.order(options)
	if err != nil {
		return nil, snapshot.Commit{}, err
	}
	order = s.ordered(order, mostly(wants), len(wants))
	order.Tokens = tokenHashes(tokens)
	records := s.records()
	defer records.end()
	if err := records.prefetch(ctx, head, wants); err != nil {
		return nil, snapshot.Commit{}, fault.From(err).WithOutcome(fault.NotApplied)
	}
	var results []result
	allowed := s.allowance(options.GetAllowShrink())
	commit, err := s.cfg.Store.Commit(ctx, order, func(base *snapshot.Tree, version uint64) ([]snapshot.Set, error) {
		planned, sets, err := s.plan(ctx, base, version, wants, records, note)
		if err != nil {
			return nil, err
		}
		results = planned
		return sets, allowed.admit(base, sets)
	})
	allowed.settle(err)
	if err != nil {
		return nil, snapshot.Commit{}, err // results may still be written to
	}
	return results, commit, nil
}

// plan works out what becomes of the requests on a tree.
func (s *Server) plan(ctx context.Context, base *snapshot.Tree, version uint64, wants []want, records *records, note by) ([]result, []snapshot.Set, error) {
	planner, err := pipeline.New(base, version)
	if err != nil {
		return nil, nil, err
	}
	results := make([]result, 0, len(wants))
	var sets []snapshot.Set
	for _, w := range wants {
		name := w.request.GetNamespace()
		present, there := base.Namespace(name)
		r := result{action: controlv1.PlanAction_PLAN_ACTION_CREATE}
		if there {
			if r.previous, r.before, err = records.of(ctx, present); err != nil {
				return nil, nil, err
			}
			if r.previous.GetDraining() {
				return nil, nil, fault.Newf(fault.FailedPrecondition, fault.NamespaceDraining,
					"namespace %q is being deleted; wait until it is gone", name).WithOutcome(fault.NotApplied)
			}
			if proto.Equal(r.before.GetRequest(), w.request) {
				r.action = controlv1.PlanAction_PLAN_ACTION_NONE
				r.config, r.record, r.version = r.previous, r.before, present.Hash.String()
				results = append(results, r)
				continue
			}
			r.action = controlv1.PlanAction_PLAN_ACTION_UPDATE
		}
		if err := w.permits(there, present); err != nil {
			return nil, nil, err
		}
		p, err := planner.Plan(pipeline.Input{Request: w.request, Present: r.before, Author: note.author, Now: s.cfg.Now()})
		if err != nil {
			return nil, nil, named(err, name, len(wants))
		}
		records.draft(ident.HashOf(p.RecordData), p.Record)
		r.config, r.record, r.version = p.Config, p.Record, p.Version()
		results = append(results, r)
		sets = append(sets, note.set(snapshot.NamespacePrefix+name, p.Data, p.RecordData))
	}
	return results, sets, nil
}

// permits holds a request that would change something against what the caller believes to be there.
func (w want) permits(there bool, present snapshot.Object) error {
	name := w.request.GetNamespace()
	switch {
	case there && w.mode == createOnly:
		return fault.Newf(fault.Exists, fault.AlreadyThere, "namespace %q exists and is another", name).WithOutcome(fault.NotApplied)
	case !there && w.mode == updateOnly:
		return noNamespace(name)
	case !there && w.version != "":
		return gone("namespace " + name)
	case there && w.version != "" && w.version != present.Hash.String():
		return changed("namespace "+name, present.Hash.String())
	}
	return nil
}

// named says which of several namespaces a fault is about.
func named(err error, name string, of int) error {
	f := *fault.From(err)
	if f.Code == fault.Internal {
		return err
	}
	if of > 1 {
		f.Text = name + ": " + f.Text
	}
	return f.With("namespace", name).WithOutcome(fault.NotApplied)
}

// response is what a team is told of a namespace.
func response(tree *snapshot.Tree, version string, config *configv1.NamespaceConfig, record *recordv1.NamespaceRecord) *configv1.NamespaceResponse {
	r := &configv1.NamespaceResponse{
		Namespace: config.GetNamespace(), Version: version, SnapshotVersion: record.GetSnapshotVersion(),
		Partition: uint32(ident.PartitionOf(config.GetNamespace(), tree.Partitions())),
		Decisions: record.GetDecisions(), Request: record.GetRequest(), CreatedAt: record.GetCreatedAt(), UpdatedAt: record.GetUpdatedAt(),
		Draining: config.GetDraining(), Limits: config.GetLimits(),
	}
	for i, p := range config.GetPatterns() {
		a := &configv1.AssignedPattern{
			Name: p.GetName(), Type: p.GetType(), Version: p.GetVersion(), Interfaces: p.GetInterfaces(), Bindings: p.GetBindings(),
		}
		if asked := admission.Patterns(record.GetRequest()); i < len(asked) {
			a.SessionAware = asked[i].GetSessionAware()
		}
		r.Patterns = append(r.Patterns, a)
	}
	return r
}

func (r result) response(tree *snapshot.Tree) *configv1.NamespaceResponse {
	return response(tree, r.version, r.config, r.record)
}

func (r result) plan(tree *snapshot.Tree) *controlv1.NamespacePlan {
	p := &controlv1.NamespacePlan{Action: r.action, Namespace: r.response(tree)}
	if r.action == controlv1.PlanAction_PLAN_ACTION_UPDATE {
		p.Differences = slices.Concat(
			differences("", r.before.GetRequest(), r.record.GetRequest()),
			differences("assigned.", assignedOf(r.previous), assignedOf(r.config)),
		)
	}
	return p
}

// assignedOf is the part of a configuration that Prism chose.
func assignedOf(c *configv1.NamespaceConfig) *configv1.NamespaceConfig {
	return &configv1.NamespaceConfig{Patterns: c.GetPatterns(), SingleOwner: c.GetSingleOwner()}
}
