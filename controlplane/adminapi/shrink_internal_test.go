package adminapi

import (
	"fmt"
	"testing"

	"github.com/prism-gateway/prism/controlplane/pipeline"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/fault"
)

// bound is the set of a namespace that is bound to so many backends.
func bound(t *testing.T, name string, backends int) snapshot.Set {
	config := &configv1.NamespaceConfig{Namespace: name, Patterns: []*configv1.PatternConfig{{Name: "main"}}}
	for i := range backends {
		config.Patterns[0].Bindings = append(config.Patterns[0].Bindings, &configv1.Binding{Backend: fmt.Sprint("backend-", i)})
	}
	data, err := pipeline.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	return snapshot.Set{Name: snapshot.NamespacePrefix + name, Data: data}
}

func TestGuard(t *testing.T) {
	var sets []snapshot.Set
	for i := range 3 {
		sets = append(sets, snapshot.Set{Name: fmt.Sprint("backend/backend-", i), Data: []byte{}}, bound(t, fmt.Sprint("name-", i), 3))
	}
	base, _, err := snapshot.New(4).With(1, sets)
	if err != nil {
		t.Fatal(err)
	}
	cut := []snapshot.Set{bound(t, "name-0", 1), bound(t, "name-1", 1), bound(t, "name-2", 2), bound(t, "new", 0)}
	gone := []snapshot.Set{{Name: "ns/name-0"}, {Name: "ns/name-1"}}
	after, _, err := base.With(2, gone)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		loss    loss
		allowed bool
		refused bool
	}{
		{"most bindings", lossOf(base, cut), false, true},
		{"most bindings, as it is meant", lossOf(base, cut), true, false},
		{"some bindings", lossOf(base, cut[:2]), false, false},
		{"namespaces deleted by name", lossOf(base, gone), false, false},
		{"most namespaces, by a rollback", lossOfDiff(snapshot.Diff(base, after)), false, true},
		{"namespaces that come back", lossOfDiff(snapshot.Diff(after, base)), false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := guard(base, c.loss, c.allowed)
			if refused := fault.Is(err, fault.CheckFailed); refused != c.refused || !refused && err != nil {
				t.Errorf("%+v: %v", c.loss, err)
			}
		})
	}
}
