package admission

import (
	"fmt"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/catalog"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
)

// notOffered are the things that a well-formed request may ask for and that this build cannot do. A request that asks
// for one is refused: nothing is accepted and then ignored.
var notOffered = []rule{
	{"offered.pattern", func(req *configv1.NamespaceRequest, report report) {
		for _, p := range parts(req) {
			if known, ok := catalog.PatternByType(p.pattern.GetType()); ok && !known.Offered {
				report(p.name, "this build does not run the pattern %s yet", known.Type)
			}
		}
	}},
	{"offered.interface", func(req *configv1.NamespaceRequest, report report) {
		eachInterface(req, func(at string, p part, name string) {
			// The interfaces of a pattern that is not offered are refused with it.
			if known, ok := catalog.PatternByType(p.pattern.GetType()); ok && known.Offered && !catalog.InterfaceOffered(name) {
				report(at, "no driver of this build offers %s yet", name)
			}
		})
	}},
	{"offered.session_aware", func(req *configv1.NamespaceRequest, report report) {
		for _, p := range parts(req) {
			if p.pattern.GetSessionAware() {
				report(p.at+"session_aware", "this build has no sessions yet")
			}
		}
	}},
	{"offered.slot_type", func(req *configv1.NamespaceRequest, report report) {
		eachSlot(req, func(at string, _ part, s *configv1.Slot) {
			slot, err := ident.ParseSlot(s.GetName())
			if t, ok := catalog.Type(slot.BackendType()); err == nil && ok && !t.Offered {
				report(at+"name", "this build has no driver for %s yet", t.Name)
			}
		})
	}},
	{"offered.slot_config", func(req *configv1.NamespaceRequest, report report) {
		eachSlot(req, func(at string, _ part, s *configv1.Slot) {
			if len(s.GetConfig()) > 0 {
				report(at+"config", "slots take no settings yet; the backend's own hold")
			}
		})
	}},
	{"offered.pii", func(req *configv1.NamespaceRequest, report report) {
		if req.GetPolicies().GetPii() {
			report("policies.pii", "this build does not keep data about persons apart yet")
		}
	}},
	{"offered.encrypt", func(req *configv1.NamespaceRequest, report report) {
		if req.GetPolicies().GetEncrypt() {
			report("policies.encrypt", "this build does not encrypt values yet")
		}
	}},
	{"offered.profile", func(req *configv1.NamespaceRequest, report report) {
		if req.GetProfile() != "" {
			report("profile", "this build has no profiles yet")
		}
	}},
	{"offered.owners", func(req *configv1.NamespaceRequest, report report) {
		if req.GetDeployment().GetOwners() != 0 {
			report("deployment.owners", "a namespace has the installation's number of owners; leave owners out")
		}
	}},
}

// NotOffered returns what a well-formed request asks for and this build cannot do. Any of it refuses the request.
func NotOffered(req *configv1.NamespaceRequest) []fault.Violation {
	var found []fault.Violation
	for _, r := range notOffered {
		r.check(req, func(field, format string, args ...any) {
			found = append(found, fault.Violation{Field: field, Rule: r.id, Text: fmt.Sprintf(format, args...)})
		})
	}
	return found
}
