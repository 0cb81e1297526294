// Package constraint holds messages against the rules that their protos state, and says in words what would be right.
package constraint

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

	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/strictyaml"
)

// Check holds any message against the rules that its proto states. It returns every violation; none means that all hold.
func Check(m proto.Message) []fault.Violation {
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
			return fmt.Sprintf("%q: %s", Clip(v.FieldValue.String()), shape)
		}
	case "string.in":
		return fmt.Sprintf("%q: want one of %s", Clip(v.FieldValue.String()), words(v.RuleValue.List()))
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

// words joins what a field may say; that it may be empty goes without saying.
func words(list protoreflect.List) string {
	var all []string
	for i := range list.Len() {
		if word := list.Get(i).String(); word != "" {
			all = append(all, word)
		}
	}
	return strings.Join(all, ", ")
}

// durationBounds tells a duration and its bounds; protovalidate's own words count in seconds.
func durationBounds(v *protovalidate.Violation) string {
	field, ok := proto.GetExtension(v.FieldDescriptor.Options(), validate.E_Field).(*validate.FieldRules)
	value, isDuration := v.FieldValue.Message().Interface().(*durationpb.Duration)
	if !ok || !isDuration {
		return v.Proto.GetMessage()
	}
	bounds := field.GetDuration()
	return fmt.Sprintf("%s: want a duration from %s to %s", Duration(value), Duration(bounds.GetGte()), Duration(bounds.GetLte()))
}

// Clip cuts a value to what fits into a message.
func Clip(s string) string {
	if len(s) <= 80 {
		return s
	}
	return strings.ToValidUTF8(s[:80], "") + "…"
}

// Duration writes 24h or 30d, not 24h0m0s.
func Duration(d *durationpb.Duration) string {
	v := d.AsDuration()
	if days := v / (24 * time.Hour); days > 1 && v == days*24*time.Hour {
		return strconv.FormatInt(int64(days), 10) + "d"
	}
	return strictyaml.FormatDuration(v)
}
