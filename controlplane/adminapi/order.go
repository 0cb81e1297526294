package adminapi

import (
	"github.com/prism-gateway/prism/controlplane/release"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	"github.com/prism-gateway/prism/shared/fault"
)

// order is how a change goes to the fleet. Whoever passes the waves by says why.
func (b by) order(options *controlv1.ReleaseOptions) (release.Order, error) {
	if options.GetAtOnce() && b.message == "" {
		return release.Order{}, invalid([]fault.Violation{{
			Field: "note.message", Rule: "release.at_once", Text: "a change that is given to every owner at once needs a message that says why",
		}})
	}
	return release.Order{AtOnce: options.GetAtOnce(), ConfirmWithin: options.GetConfirmWithin().AsDuration()}, nil
}
