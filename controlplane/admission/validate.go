package admission

import (
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/constraint"
	"github.com/prism-gateway/prism/shared/fault"
)

// Validate holds a request against the rules of its fields and those between its fields. It returns every violation, in
// the order of the rules; none means that the request is well-formed.
func Validate(req *configv1.NamespaceRequest) []fault.Violation {
	found := constraint.Check(req)
	for _, r := range rules {
		r.check(req, func(field, format string, args ...any) {
			found = append(found, fault.Violation{Field: field, Rule: r.id, Text: fmt.Sprintf(format, args...)})
		})
	}
	return found
}

// units of sizes.
var units = []struct {
	name  string
	bytes uint64
}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1}}

// ParseSize takes a size such as 20GiB and returns bytes; the empty text is 0.
func ParseSize(s string) (uint64, error) {
	if s == "" {
		return 0, nil
	}
	for _, unit := range units {
		digits, ok := strings.CutSuffix(s, unit.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(digits, 10, 64)
		if err != nil {
			break
		}
		if n > 1<<60/unit.bytes {
			return 0, fmt.Errorf("%q is more than 1 EiB", s)
		}
		return n * unit.bytes, nil
	}
	return 0, fmt.Errorf("%q: want a whole number and a unit: B, KiB, MiB, GiB or TiB, such as 20GiB", s)
}

// part is one pattern of a request, guided or advanced.
type part struct {
	at      string // path before its fields: empty, or patterns[1].
	name    string // field of its type: pattern, or patterns[1].type
	pattern *configv1.Pattern
}

// Patterns returns the patterns that a request asks for: those it names, or for a guided request the one it means, which
// is named like its type. The messages are the request's own where it has them.
func Patterns(req *configv1.NamespaceRequest) []*configv1.Pattern {
	if req.GetPattern() == "" {
		return req.GetPatterns()
	}
	return []*configv1.Pattern{{Name: req.GetPattern(), Type: req.GetPattern(), Needs: req.GetNeeds()}}
}

func parts(req *configv1.NamespaceRequest) []part {
	if req.GetPattern() != "" {
		return []part{{at: "", name: "pattern", pattern: Patterns(req)[0]}}
	}
	var out []part
	for i, p := range req.GetPatterns() {
		at := fmt.Sprintf("patterns[%d].", i)
		out = append(out, part{at: at, name: at + "type", pattern: p})
	}
	return out
}

// has reports whether a field of needs is set, by its proto name.
func has(needs *configv1.Needs, field string) bool {
	if needs == nil {
		return false
	}
	m := needs.ProtoReflect()
	return m.Has(m.Descriptor().Fields().ByName(protoreflect.Name(field)))
}
