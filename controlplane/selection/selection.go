// Package selection is the second stage of the pipeline: from what a team needs to patterns with versions, interfaces
// and slots, by the rules of the catalogue.
//
// It is pure and takes requests that admission found well-formed.
package selection

import (
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/prism-gateway/prism/controlplane/admission"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/catalog"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
	"github.com/prism-gateway/prism/shared/strictyaml"
)

// Selection is what was chosen for a request.
type Selection struct {
	// Patterns are in the order of the request.
	Patterns []Pattern
	// Region is where the backends must be; empty means anywhere.
	Region string
	// Credential is what opens the backends of storage.
	Credential Credential
	// Decisions say which rule chose what, in order.
	Decisions []*configv1.Decision
}

// Pattern is one pattern with what it asks of its backends.
type Pattern struct {
	Name, Type, Version string
	SessionAware        bool
	// Interfaces are what the pattern offers and its backends must have, sorted.
	Interfaces []string
	// Slots are the backends that it depends on.
	Slots []Slot
	// Durability and Consistency are those in force, never unspecified.
	Durability  configv1.Durability
	Consistency configv1.Consistency
	// DefaultTTL is how long an item lives by default; 0 means for ever.
	DefaultTTL time.Duration
	// MaxValueBytes is the largest value; 0 means the backend's limit.
	MaxValueBytes uint64
	// MaxStaleness is how old what a read sees may be; 0 means that there is no cache.
	MaxStaleness time.Duration
	// What is reserved on the backend of each slot.
	ReadRPS, WriteRPS uint32
	DataBytes         uint64
}

// Slot is a dependency that wants a backend.
type Slot struct {
	// Purpose is what the backend is for: storage.
	Purpose string
	// Type is the backend type that the request names; empty means any.
	Type string
	// Backend is the name of the one backend that the request names; empty means any.
	Backend string
	// Labels are those that the backend must carry.
	Labels map[string]string
	// CredentialPath is the request's own for this slot; empty means the namespace's or the backend's.
	CredentialPath string
	// Copies says that the backend holds copies only.
	Copies bool
}

// Credential is what the namespace says of the credentials of its backends.
type Credential struct {
	// Path is where those for storage are; empty means the backend's own.
	Path string
	// Scope is who shares one, never unspecified.
	Scope configv1.CredentialScope
}

// credential is the request's; each principal has its own where callers say who they are.
func credential(auth *configv1.Auth) Credential {
	c := Credential{Scope: configv1.CredentialScope_CREDENTIAL_SCOPE_NAMESPACE}
	if !auth.GetEnabled() {
		return c
	}
	asked := auth.GetVault().GetCredentials()
	c.Path, c.Scope = asked.GetPath(), asked.GetScope()
	if c.Scope == configv1.CredentialScope_CREDENTIAL_SCOPE_UNSPECIFIED {
		c.Scope = configv1.CredentialScope_CREDENTIAL_SCOPE_PRINCIPAL
	}
	return c
}

// Select chooses. An error is a fault that names the pattern which no rule can serve.
func Select(req *configv1.NamespaceRequest) (Selection, error) {
	s := Selection{Region: req.GetDeployment().GetRegion(), Credential: credential(req.GetAuth())}
	for _, asked := range admission.Patterns(req) {
		p, decisions, err := selectPattern(asked)
		if err != nil {
			return Selection{}, err
		}
		s.Patterns = append(s.Patterns, p)
		s.Decisions = append(s.Decisions, decisions...)
	}
	return s, nil
}

func selectPattern(asked *configv1.Pattern) (Pattern, []*configv1.Decision, error) {
	known, ok := catalog.PatternByType(asked.GetType())
	if !ok {
		return Pattern{}, nil, fault.Newf(fault.Invalid, fault.Field, "unknown pattern %q", asked.GetType())
	}
	version, ok := admission.ResolveVersion(known.Versions, asked.GetVersion())
	if !ok {
		return Pattern{}, nil, fault.Newf(fault.Invalid, fault.Field, "no version of %s is in %q", known.Type, asked.GetVersion())
	}
	needs := asked.GetNeeds()
	p := Pattern{
		Name: asked.GetName(), Type: known.Type, Version: version, SessionAware: asked.GetSessionAware(),
		DefaultTTL: needs.GetTtl().AsDuration(), MaxStaleness: needs.GetMaxStaleness().AsDuration(),
		ReadRPS: needs.GetReadRps(), WriteRPS: needs.GetWriteRps(),
	}
	var err error
	if p.DataBytes, err = admission.ParseSize(needs.GetDataSize()); err != nil {
		return Pattern{}, nil, fault.New(fault.Invalid, fault.Field, err.Error())
	}
	if p.MaxValueBytes, err = admission.ParseSize(needs.GetMaxValueSize()); err != nil {
		return Pattern{}, nil, fault.New(fault.Invalid, fault.Field, err.Error())
	}
	decisions := []*configv1.Decision{versionDecision(asked, version)}
	decide := func(choice, rule, reason string) {
		decisions = append(decisions, &configv1.Decision{Stage: "select", Subject: p.Name, Choice: choice, Rule: rule, Reason: reason})
	}
	interfaces := slices.Clone(known.Base)
	var purposes []string // of optional slots that rules ask for
	for _, name := range known.Base {
		decide(name, "select.pattern", "every "+known.Type+" has it")
	}
	for _, r := range catalog.Rules() {
		if !applies(r, known.Type, needs) || r.Interface && slices.Contains(interfaces, r.Choice) {
			continue
		}
		if r.Interface {
			interfaces = append(interfaces, r.Choice)
		}
		if r.Slot {
			purposes = append(purposes, r.Choice)
		}
		switch r.Need {
		case "durability":
			p.Durability = configv1.Durability(strictyaml.EnumNumber(p.Durability.Descriptor(), r.Choice))
		case "consistency":
			p.Consistency = configv1.Consistency(strictyaml.EnumNumber(p.Consistency.Descriptor(), r.Choice))
		}
		decide(r.Choice, r.ID, r.Reason)
	}
	for _, name := range needs.GetInterfaces() {
		if !slices.Contains(interfaces, name) {
			interfaces = append(interfaces, name)
			decide(name, "select.interface", "the request asks for it")
		}
	}
	slices.Sort(interfaces)
	p.Interfaces = interfaces
	if p.Slots, err = slots(known, asked, purposes); err != nil {
		return Pattern{}, nil, err
	}
	return p, decisions, nil
}

func versionDecision(asked *configv1.Pattern, version string) *configv1.Decision {
	d := &configv1.Decision{
		Stage: "select", Subject: asked.GetName(), Choice: asked.GetType() + " " + version,
		Rule: "select.version.newest", Reason: "no version was named, so it is the newest",
	}
	if asked.GetVersion() != "" {
		d.Rule, d.Reason = "select.version.range", fmt.Sprintf("it is the newest that %q admits", asked.GetVersion())
	}
	return d
}

// applies reports whether a rule is for the pattern and its need is there with the rule's value.
func applies(r catalog.Rule, pattern string, needs *configv1.Needs) bool {
	if len(r.Patterns) > 0 && !slices.Contains(r.Patterns, pattern) {
		return false
	}
	m := needs.ProtoReflect()
	field := m.Descriptor().Fields().ByName(protoreflect.Name(r.Need))
	switch {
	case field == nil:
		return false
	case !m.Has(field):
		return r.Unset
	case r.Unset:
		return false
	case r.Value == "":
		return true
	}
	return m.Get(field).Enum() == strictyaml.EnumNumber(field.Enum(), r.Value)
}

// slots are the request's, and the pattern's own that the request leaves out; the optional ones among these where they are
// wanted.
func slots(known catalog.Pattern, asked *configv1.Pattern, wanted []string) ([]Slot, error) {
	var out []Slot
	for _, want := range known.Slots {
		slot, named := Slot{Purpose: want.Purpose, Copies: want.Copies}, false
		for _, s := range asked.GetSlots() {
			name, err := ident.ParseSlot(s.GetName())
			if err != nil {
				return nil, fault.New(fault.Invalid, fault.Field, err.Error())
			}
			if name.Purpose() == want.Purpose {
				named = true
				slot.Type = name.BackendType()
				slot.Backend = s.GetPrefer().GetBackend()
				slot.Labels = s.GetPrefer().GetLabels()
				slot.CredentialPath = s.GetCredentialPath()
			}
		}
		if named || !want.Optional || slices.Contains(wanted, want.Purpose) {
			out = append(out, slot)
		}
	}
	return out, nil
}
