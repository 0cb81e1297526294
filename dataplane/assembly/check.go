package assembly

import (
	"strings"

	"github.com/prism-gateway/prism/dataplane/routing"
	"github.com/prism-gateway/prism/dataplane/subscribe"
	"github.com/prism-gateway/prism/shared/ident"
)

// Check names the members of a partition in effect whose routes are missing, are of other bytes or have changed, and the
// routes that have no member; a partition that is missing or of another root is named itself. The next Apply that has the
// partition among the changed makes what was named anew. It must not be called while Apply runs.
func (a *Assembler) Check(n ident.Partition, state *subscribe.Partition) (drifted []string) {
	t := a.cfg.Routes.Current()
	if t.Fleet() == nil {
		return nil // nothing can be in the table yet
	}
	p := t.Partition(n)
	if p == nil {
		return []string{n.String()}
	}
	if p.Number != n || p.Root != state.Root || p.SharedRoot != state.SharedRoot {
		drifted = append(drifted, n.String())
	}
	found := 0
	for resource, object := range state.Members {
		name := strings.TrimPrefix(resource, namespaceName)
		r := p.Routes[name]
		if r != nil {
			found++
		}
		if !sound(r, name, object) {
			a.suspect[resource] = true
			drifted = append(drifted, resource)
		}
	}
	if found == len(p.Routes) {
		return drifted
	}
	for name := range p.Routes {
		if _, ok := state.Members[namespaceName+name]; !ok {
			drifted = append(drifted, namespaceName+name)
		}
	}
	return drifted
}

// sound reports whether a route is what was made of an object, and of no other.
func sound(r *routing.Route, name string, o subscribe.Object) bool {
	return r != nil && r.Namespace == name && r.Config.Hash == o.Hash && r.Intact()
}
