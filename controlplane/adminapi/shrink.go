package adminapi

import (
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/prism-gateway/prism/controlplane/snapshot"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/fault"
)

// loss is what a change removes.
type loss struct{ namespaces, bindings uint64 }

// lossOf counts what sets remove from a tree. A set that deletes a namespace by its name is not counted: it cannot remove
// more than it says.
func lossOf(base *snapshot.Tree, sets []snapshot.Set) loss {
	var l loss
	for _, set := range sets {
		if o, ok := base.Object(set.Name); ok && set.Data != nil && strings.HasPrefix(set.Name, snapshot.NamespacePrefix) {
			l.bindings += fewer(o.Data, set.Data)
		}
	}
	return l
}

// lossOfDiff counts what leads from one tree to another removes.
func lossOfDiff(found []snapshot.Difference) loss {
	var l loss
	for _, d := range found {
		if !strings.HasPrefix(d.Name, snapshot.NamespacePrefix) {
			continue
		}
		if d.Before.Data != nil && d.After.Data == nil {
			l.namespaces++
		}
		l.bindings += fewer(d.Before.Data, d.After.Data)
	}
	return l
}

// fewer is by how many a namespace is bound to fewer backends than before.
func fewer(before, after []byte) uint64 {
	return uint64(max(0, bindings(before)-bindings(after)))
}

func bindings(data []byte) int {
	config := new(configv1.NamespaceConfig)
	if proto.Unmarshal(data, config) != nil {
		return 0 // what is stored was written by Prism; a guard need not judge it
	}
	return len(backendsOf(config))
}

// guard refuses a change that removes more than half of the namespaces, or of what they are bound to, unless that is
// said to be meant.
func guard(base *snapshot.Tree, l loss, allowed bool) error {
	if allowed || l == (loss{}) {
		return nil
	}
	var bound uint64
	for _, o := range base.Backends() {
		bound += base.Usage(o.ShortName()).Namespaces
	}
	refuse := func(lost, of uint64, what string) error {
		return fault.Newf(fault.FailedPrecondition, fault.CheckFailed,
			"this change removes %d of %d %s: more than half, which must be allowed by itself", lost, of, what).
			With("guard", "allow_shrink").WithOutcome(fault.NotApplied)
	}
	switch {
	case 2*l.namespaces > uint64(base.Len()):
		return refuse(l.namespaces, uint64(base.Len()), "namespaces")
	case l.bindings > 1 && 2*l.bindings > bound:
		return refuse(l.bindings, bound, "bindings of namespaces to backends")
	}
	return nil
}
