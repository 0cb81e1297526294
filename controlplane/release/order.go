package release

import (
	"bytes"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/prism-gateway/prism/controlplane/snapshot"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/ident"
)

// Order is how one change is to be recorded and released.
type Order struct {
	// Team is whose share of the commits the change takes, and Weight how large that share is; less than 1 means 1.
	Team   string
	Weight int
	// Objects is how many objects the change may touch; less than 1 means 1.
	Objects int
	// AtOnce gives the change to every owner at once, whatever the policy of its class says.
	AtOnce bool
	// ConfirmWithin is how long after it was recorded the change is taken back by itself unless somebody confirms it; 0
	// means that nothing need be confirmed.
	ConfirmWithin time.Duration
	// Tokens are the hashes of the tokens of reservations, by namespace, whose names the change may make.
	Tokens map[string]ident.Hash
}

// Policies are the policies by class. One that is nil is at once.
type Policies struct {
	Additive, Scoped, Shared, Rollback *configv1.ReleasePolicy
}

// Of returns the policy of a class, complete. It is the caller's.
func (p Policies) Of(class configv1.ReleaseClass) *configv1.ReleasePolicy {
	switch class {
	case configv1.ReleaseClass_RELEASE_CLASS_ADDITIVE:
		return Complete(p.Additive)
	case configv1.ReleaseClass_RELEASE_CLASS_SCOPED:
		return Complete(p.Scoped)
	case configv1.ReleaseClass_RELEASE_CLASS_SHARED:
		return Complete(p.Shared)
	case configv1.ReleaseClass_RELEASE_CLASS_ROLLBACK:
		return Complete(p.Rollback)
	}
	return Complete(nil)
}

// Complete returns a copy of a policy in which what was left out has its default. A policy that is nil is at once.
func Complete(p *configv1.ReleasePolicy) *configv1.ReleasePolicy {
	if p == nil {
		p = &configv1.ReleasePolicy{AtOnce: true}
	}
	p = proto.CloneOf(p)
	if p.FirstPercent == 0 {
		p.FirstPercent = 5
	}
	if p.Soak == nil {
		p.Soak = durationpb.New(30 * time.Second)
	}
	if p.Silence == nil {
		p.Silence = durationpb.New(30 * time.Second)
	}
	if p.MaxFailedPoints == 0 {
		p.MaxFailedPoints = 1
	}
	if p.MaxLatencyFactor == 0 {
		p.MaxLatencyFactor = 2
	}
	if p.MinCalls == 0 {
		p.MinCalls = 100
	}
	return p
}

// Classify says what a request can hurt: of all that it does, the gravest.
func Classify(base *snapshot.Tree, sets []snapshot.Set) configv1.ReleaseClass {
	class := configv1.ReleaseClass_RELEASE_CLASS_ADDITIVE
	for _, set := range sets {
		class = Graver(class, classOf(base, set))
	}
	return class
}

// Graver returns the class that can hurt more. A way back is to what was good once, so it comes after what is new to
// namespaces in use.
func Graver(a, b configv1.ReleaseClass) configv1.ReleaseClass {
	if gravity(b) > gravity(a) {
		return b
	}
	return a
}

func gravity(c configv1.ReleaseClass) int {
	switch c {
	case configv1.ReleaseClass_RELEASE_CLASS_ADDITIVE:
		return 1
	case configv1.ReleaseClass_RELEASE_CLASS_ROLLBACK:
		return 2
	case configv1.ReleaseClass_RELEASE_CLASS_SCOPED:
		return 3
	case configv1.ReleaseClass_RELEASE_CLASS_SHARED:
		return 4
	}
	return 0
}

func classOf(base *snapshot.Tree, set snapshot.Set) configv1.ReleaseClass {
	present, there := base.Object(set.Name)
	backend, isBackend := strings.CutPrefix(set.Name, snapshot.BackendPrefix)
	switch {
	case set.Kind == recordv1.ChangeKind_CHANGE_KIND_ROLLBACK:
		return configv1.ReleaseClass_RELEASE_CLASS_ROLLBACK
	case !there, bytes.Equal(present.Data, set.Data) && set.Data != nil:
		return configv1.ReleaseClass_RELEASE_CLASS_ADDITIVE
	case strings.HasPrefix(set.Name, snapshot.NamespacePrefix):
		return configv1.ReleaseClass_RELEASE_CLASS_SCOPED
	case isBackend && base.Usage(backend).Namespaces == 0:
		return configv1.ReleaseClass_RELEASE_CLASS_ADDITIVE
	}
	return configv1.ReleaseClass_RELEASE_CLASS_SHARED
}
