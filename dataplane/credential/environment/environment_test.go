package environment_test

import (
	"strings"
	"sync"
	"testing"

	"github.com/prism-gateway/prism/dataplane/credential"
	"github.com/prism-gateway/prism/dataplane/credential/conformance"
	"github.com/prism-gateway/prism/dataplane/credential/environment"
)

func TestConformance(t *testing.T) {
	var set sync.Map
	lookup := func(name string) (string, bool) {
		text, ok := set.Load(name)
		if !ok {
			return "", false
		}
		return text.(string), true
	}
	conformance.Run(t, conformance.Subject{
		Provider: environment.New("", lookup), Type: "environment",
		Put: func(_ *testing.T, path, text string) { set.Store("PRISM_SECRET_"+strings.ToUpper(path), text) },
	})
}

func TestAPathIsTheNameOfAVariable(t *testing.T) {
	t.Setenv("OURS_TEAM_ORDERS_V2_1", `{"password":"p"}`)
	issued, err := environment.New("OURS_", nil).Fetch(t.Context(), credential.Request{Path: "team/orders-v2.1"})
	if err != nil || issued.Credential.Password.Reveal() != "p" {
		t.Error(err)
	}
}
