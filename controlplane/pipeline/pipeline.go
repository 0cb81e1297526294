// Package pipeline runs select and assign for requests that admission let pass. From a request and the configuration as
// it is comes the namespace as it would be, with the reason of every choice, and nothing is recorded.
//
// It is pure: the caller brings the tree, the time and the record.
package pipeline

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/prism-gateway/prism/controlplane/assignment"
	"github.com/prism-gateway/prism/controlplane/selection"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/catalog"
	"github.com/prism-gateway/prism/shared/ident"
)

// Input is one request and what surrounds it.
type Input struct {
	// Request is well-formed and asks for nothing that is not offered: admission found no fault in it.
	Request *configv1.NamespaceRequest
	// Present is the record of the namespace as it is; nil when there is none. Its configuration is in the tree.
	Present *recordv1.NamespaceRecord
	// Author and Now go into the record.
	Author string
	Now    time.Time
}

// Plan is a namespace as it would be.
type Plan struct {
	Config *configv1.NamespaceConfig
	Record *recordv1.NamespaceRecord
	// Data and RecordData are the bytes to store; Data holds the hash of RecordData.
	Data, RecordData []byte
}

// Version is the name of the namespace's version: the hash of its bytes.
func (p Plan) Version() string { return ident.HashOf(p.Data).String() }

// Planner plans several namespaces on one tree: what the first reserves, the next no longer finds. It is not safe for
// concurrent use.
type Planner struct {
	tree     *snapshot.Tree
	version  uint64
	backends []assignment.Backend
	moved    map[string]delta
}

// delta is what planned namespaces take from a backend and give back.
type delta struct{ taken, given assignment.Reserved }

// New returns a planner for changes of tree that the snapshot of that version will hold.
func New(tree *snapshot.Tree, version uint64) (*Planner, error) {
	p := &Planner{tree: tree, version: version, moved: map[string]delta{}}
	for _, o := range tree.Backends() {
		b := new(configv1.Backend)
		if err := proto.Unmarshal(o.Data, b); err != nil {
			return nil, fmt.Errorf("pipeline: %s: %w", o.Name, err)
		}
		u := tree.Usage(b.GetName())
		p.backends = append(p.backends, assignment.Backend{Backend: b, Reserved: assignment.Reserved{
			Namespaces: u.Namespaces, ReadRPS: u.ReadRPS, WriteRPS: u.WriteRPS, DataBytes: u.DataBytes,
		}})
	}
	return p, nil
}

// Plan runs select and assign for one request and counts what it reserves. A namespace is planned at most once. An error
// is a fault.
func (p *Planner) Plan(in Input) (Plan, error) {
	name := in.Request.GetNamespace()
	var present *configv1.NamespaceConfig
	if o, ok := p.tree.Namespace(name); ok {
		present = new(configv1.NamespaceConfig)
		if err := proto.Unmarshal(o.Data, present); err != nil {
			return Plan{}, fmt.Errorf("pipeline: %s: %w", o.Name, err)
		}
	}
	selected, err := selection.Select(in.Request)
	if err != nil {
		return Plan{}, err
	}
	current := currentOf(present)
	assigned, err := assignment.Assign(selected, p.without(current.Held), current)
	if err != nil {
		return Plan{}, err
	}
	p.count(current.Held, assigned.Reservations)

	created := timestamppb.New(in.Now)
	prefix := name + "." + strconv.FormatUint(p.version, 36)
	if present != nil {
		prefix = present.GetStoragePrefix()
		if in.Present.GetCreatedAt() != nil {
			created = in.Present.GetCreatedAt()
		}
	}
	record := &recordv1.NamespaceRecord{
		Request:   in.Request,
		Decisions: slices.Concat([]*configv1.Decision{validated(name)}, selected.Decisions, assigned.Decisions),
		CreatedAt: created, UpdatedAt: timestamppb.New(in.Now), Author: in.Author, SnapshotVersion: p.version,
	}
	recordData, err := Marshal(record)
	if err != nil {
		return Plan{}, err
	}
	config := &configv1.NamespaceConfig{
		Namespace: name, Team: in.Request.GetTeam(), StoragePrefix: prefix, Limits: limits(in.Request.GetLimits()),
		SingleOwner: assigned.SingleOwner, RecordHash: ident.HashOf(recordData).Bytes(), Reservations: assigned.Reservations,
		Access: in.Request.GetAccess(), Auth: authentication(in.Request), Audit: in.Request.GetPolicies().GetAudit(),
	}
	for i, s := range selected.Patterns {
		config.Patterns = append(config.Patterns, patternConfig(s, assigned.Bindings[i]))
	}
	data, err := Marshal(config)
	if err != nil {
		return Plan{}, err
	}
	return Plan{Config: config, Record: record, Data: data, RecordData: recordData}, nil
}

// Marshal writes a message so that equal messages have equal bytes within one build.
func Marshal(m proto.Message) ([]byte, error) {
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("pipeline: %w", err)
	}
	return data, nil
}

// currentOf is what a namespace has now.
func currentOf(config *configv1.NamespaceConfig) assignment.Current {
	c := assignment.Current{Bindings: map[string]string{}, Held: map[string]assignment.Reserved{}}
	for _, p := range config.GetPatterns() {
		for _, b := range p.GetBindings() {
			slot, err := ident.ParseSlot(b.GetSlot())
			if err != nil {
				continue // written by another build; then nothing is kept
			}
			c.Bindings[assignment.SlotKey(p.GetName(), slot.Purpose())] = b.GetBackend()
			c.Held[b.GetBackend()] = assignment.Reserved{Namespaces: 1}
		}
	}
	for _, r := range config.GetReservations() {
		c.Held[r.GetBackend()] = reserved(r)
	}
	return c
}

func reserved(r *configv1.Reservation) assignment.Reserved {
	return assignment.Reserved{
		Namespaces: 1, ReadRPS: uint64(r.GetReadRps()), WriteRPS: uint64(r.GetWriteRps()), DataBytes: r.GetDataBytes(),
	}
}

// without returns the backends as they are after the namespaces planned before, less what one namespace holds.
func (p *Planner) without(held map[string]assignment.Reserved) []assignment.Backend {
	out := slices.Clone(p.backends)
	for i, b := range out {
		d := p.moved[b.GetName()]
		out[i].Reserved = subtract(b.Reserved.Add(d.taken), d.given.Add(held[b.GetName()]))
	}
	return out
}

func (p *Planner) count(given map[string]assignment.Reserved, taken []*configv1.Reservation) {
	for _, name := range slices.Sorted(maps.Keys(given)) {
		d := p.moved[name]
		d.given = d.given.Add(given[name])
		p.moved[name] = d
	}
	for _, r := range taken {
		d := p.moved[r.GetBackend()]
		d.taken = d.taken.Add(reserved(r))
		p.moved[r.GetBackend()] = d
	}
}

// subtract does not go below nothing.
func subtract(a, b assignment.Reserved) assignment.Reserved {
	return assignment.Reserved{
		Namespaces: a.Namespaces - min(a.Namespaces, b.Namespaces),
		ReadRPS:    a.ReadRPS - min(a.ReadRPS, b.ReadRPS),
		WriteRPS:   a.WriteRPS - min(a.WriteRPS, b.WriteRPS),
		DataBytes:  a.DataBytes - min(a.DataBytes, b.DataBytes),
	}
}

func validated(name string) *configv1.Decision {
	return &configv1.Decision{Stage: "validate", Subject: name, Choice: "accepted", Rule: "validate.rules", Reason: "it breaks no rule, and asks for nothing that this build cannot do"}
}

// limits are the request's, and the platform's for what it leaves out.
func limits(asked *configv1.Limits) *configv1.Limits {
	l := catalog.DefaultLimits()
	if asked.GetRps() != 0 {
		l.Rps = asked.GetRps()
	}
	if asked.GetConcurrency() != 0 {
		l.Concurrency = asked.GetConcurrency()
	}
	if asked.GetDefaultDeadline() != nil {
		l.DefaultDeadline = asked.GetDefaultDeadline()
	}
	if asked.GetMaxDeadline() != nil {
		l.MaxDeadline = asked.GetMaxDeadline()
	}
	return l
}

// The times of a session for which the request says none.
const (
	sessionTTL  = time.Hour
	sessionIdle = 30 * time.Minute
)

// authentication is what the request says of callers, with the times of sessions complete; nil where callers need not say
// who they are. Who says who may do what, and nothing else, wants to know who calls.
func authentication(req *configv1.NamespaceRequest) *configv1.Auth {
	a := proto.CloneOf(req.GetAuth())
	if access := req.GetAccess(); a == nil && len(access.GetOwners())+len(access.GetWriters())+len(access.GetReaders()) > 0 {
		a = &configv1.Auth{Enabled: true}
	}
	if !a.GetEnabled() {
		return nil
	}
	if a.Session == nil {
		a.Session = &configv1.SessionPolicy{}
	}
	if a.Session.Ttl == nil {
		a.Session.Ttl = durationpb.New(sessionTTL)
	}
	if a.Session.IdleTimeout == nil {
		a.Session.IdleTimeout = durationpb.New(min(sessionIdle, a.Session.Ttl.AsDuration()))
	}
	return a
}

func patternConfig(s selection.Pattern, bindings []*configv1.Binding) *configv1.PatternConfig {
	p := &configv1.PatternConfig{
		Name: s.Name, Type: s.Type, Version: s.Version, Interfaces: s.Interfaces, Bindings: bindings,
		Consistency: s.Consistency, MaxValueBytes: s.MaxValueBytes,
	}
	if s.MaxStaleness > 0 {
		p.MaxStaleness = durationpb.New(s.MaxStaleness)
	}
	if s.DefaultTTL > 0 {
		p.DefaultTtl = durationpb.New(s.DefaultTTL)
	}
	return p
}
