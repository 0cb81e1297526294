package admission

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/strictyaml"
)

// Validate holds a request against the rules of its fields and those between its fields. It returns every violation, in
// the order of the rules; none means that the request is well-formed.
func Validate(req *configv1.NamespaceRequest) []fault.Violation {
	found := FieldRules(req)
	for _, r := range rules {
		r.check(req, func(field, format string, args ...any) {
			found = append(found, fault.Violation{Field: field, Rule: r.id, Text: fmt.Sprintf(format, args...)})
		})
	}
	return found
}

// FieldRules holds any message against the rules that its proto states.
func FieldRules(m proto.Message) []fault.Violation {
	err := protovalidate.Validate(m)
	if err == nil {
		return nil
	}
	invalid, ok := errors.AsType[*protovalidate.ValidationError](err)
	if !ok {
		return []fault.Violation{{Rule: "proto", Text: err.Error()}}
	}
	var found []fault.Violation
	for _, v := range invalid.Violations {
		field := protovalidate.FieldPathString(v.Proto.GetField())
		found = append(found, fault.Violation{Field: field, Rule: v.Proto.GetRuleId(), Text: explain(v)})
	}
	return found
}

// shapes says what a pattern in the protos wants, for people.
var shapes = map[string]string{
	`^[a-z][a-z0-9-]{2,62}$`:              "want a lower-case letter, then 2 to 62 of a-z, 0-9 and '-'",
	`^[a-z][a-z0-9-]{1,62}$`:              "want a lower-case letter, then 1 to 62 of a-z, 0-9 and '-'",
	`^[a-z][a-z0-9]{1,30}$`:               "want a lower-case letter, then 1 to 30 of a-z and 0-9",
	`^[0-9]{1,15}(B|KiB|MiB|GiB|TiB)$`:    "want a whole number and a unit: B, KiB, MiB, GiB or TiB, such as 20GiB",
	`^[a-z]+(\.[a-z]+)?$`:                 "want an interface such as keyvalue.scan",
	`^[0-9]{1,4}(\.([0-9]{1,4}|x)){0,2}$`: "want a version such as 1.2.0, or a range such as 1.x",
	`^[a-z][a-z0-9]*-[a-z][a-z0-9]*$`:     "want {purpose}-{type}, such as storage-redis",
	`^[a-z0-9][a-z0-9-]{0,62}$`:           "want 1 to 63 of a-z, 0-9 and '-', not beginning with '-'",
	`^[a-zA-Z0-9][a-zA-Z0-9._-]{0,127}$`:  "want 1 to 128 letters, digits, '.', '_' and '-', beginning with a letter or digit",
}

// explain says what would be right. The value is told only where the rule is about its form, so never for a credential.
func explain(v *protovalidate.Violation) string {
	text := v.Proto.GetMessage()
	switch v.Proto.GetRuleId() {
	case "string.pattern":
		if shape, ok := shapes[v.RuleValue.String()]; ok {
			if v.FieldValue.String() == "" {
				return "is missing; " + shape
			}
			return fmt.Sprintf("%q: %s", clip(v.FieldValue.String()), shape)
		}
	case "repeated.unique":
		return "has an entry twice; each may stand there once"
	case "string.max_len":
		return fmt.Sprintf("has more than %d characters", v.RuleValue.Uint())
	case "duration.gte_lte":
		return durationBounds(v)
	case "required":
		return "must be set"
	case "enum.defined_only":
		return fmt.Sprintf("%d is not one of the values", v.FieldValue.Enum())
	}
	return text
}

// durationBounds tells a duration and its bounds; protovalidate's own words count in seconds.
func durationBounds(v *protovalidate.Violation) string {
	field, ok := proto.GetExtension(v.FieldDescriptor.Options(), validate.E_Field).(*validate.FieldRules)
	value, isDuration := v.FieldValue.Message().Interface().(*durationpb.Duration)
	if !ok || !isDuration {
		return v.Proto.GetMessage()
	}
	bounds := field.GetDuration()
	return fmt.Sprintf("%s: want a duration from %s to %s", duration(value), duration(bounds.GetGte()), duration(bounds.GetLte()))
}

func clip(s string) string {
	if len(s) <= 80 {
		return s
	}
	return strings.ToValidUTF8(s[:80], "") + "…"
}

// duration writes 24h or 30d, not 24h0m0s.
func duration(d *durationpb.Duration) string {
	v := d.AsDuration()
	if days := v / (24 * time.Hour); days > 1 && v == days*24*time.Hour {
		return strconv.FormatInt(int64(days), 10) + "d"
	}
	return strictyaml.FormatDuration(v)
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
