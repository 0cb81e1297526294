package strictyaml

import (
	"encoding/base64"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/reflect/protoreflect"
)

type decoder struct {
	file     string
	places   map[string]place
	problems Errors
}

func (d *decoder) report(n *yaml.Node, field, format string, args ...any) {
	if len(d.problems) < maxErrors {
		d.problems = append(d.problems, &Error{File: d.file, Line: n.Line, Column: n.Column, Field: field, Text: fmt.Sprintf(format, args...)})
	}
}

// message fills m from a mapping, or from text for a duration or a time.
func (d *decoder) message(path string, n *yaml.Node, m protoreflect.Message) {
	switch m.Descriptor().FullName() {
	case "google.protobuf.Duration":
		d.duration(path, n, m)
		return
	case "google.protobuf.Timestamp":
		d.timestamp(path, n, m)
		return
	}
	if n.Kind != yaml.MappingNode {
		d.report(n, path, "want a mapping of field names to values, not %s", kindOf(n))
		return
	}
	fields := m.Descriptor().Fields()
	for i := 0; i < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		fd := fields.ByTextName(key.Value)
		if fd == nil {
			fd = fields.ByJSONName(key.Value)
		}
		if fd == nil {
			d.report(key, path, "unknown field %q%s", key.Value, suggestion(key.Value, fields))
			continue
		}
		at := join(path, string(fd.Name()))
		d.places[at] = placeOf(key)
		if m.Has(fd) {
			d.report(key, at, "the field is there twice, by its two names")
			continue
		}
		if one := fd.ContainingOneof(); one != nil {
			if other := m.WhichOneof(one); other != nil {
				d.report(key, at, "only one of %s and %s can be set", other.Name(), fd.Name())
				continue
			}
		}
		d.field(at, value, m, fd)
	}
}

func (d *decoder) field(path string, n *yaml.Node, m protoreflect.Message, fd protoreflect.FieldDescriptor) {
	switch {
	case isNull(n):
		d.report(n, path, "has no value: give it one or leave the field out")
	case fd.IsMap():
		d.mapping(path, n, m.Mutable(fd).Map(), fd)
	case fd.IsList():
		if n.Kind != yaml.SequenceNode {
			d.report(n, path, "want a list, not %s", kindOf(n))
			return
		}
		list := m.Mutable(fd).List()
		for i, element := range n.Content {
			at := path + "[" + strconv.Itoa(i) + "]"
			d.places[at] = placeOf(element)
			if v, ok := d.value(at, element, fd, list.NewElement); ok {
				list.Append(v)
			}
		}
	default:
		if v, ok := d.value(path, n, fd, func() protoreflect.Value { return m.NewField(fd) }); ok {
			m.Set(fd, v)
		}
	}
}

func (d *decoder) mapping(path string, n *yaml.Node, m protoreflect.Map, fd protoreflect.FieldDescriptor) {
	if n.Kind != yaml.MappingNode {
		d.report(n, path, "want a mapping of names to values, not %s", kindOf(n))
		return
	}
	for i := 0; i < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		at := path + "[" + strconv.Quote(key.Value) + "]"
		d.places[at] = placeOf(key)
		k, ok := d.value(at, key, fd.MapKey(), nil)
		if !ok {
			continue
		}
		if v, ok := d.value(at, value, fd.MapValue(), m.NewValue); ok {
			m.Set(k.MapKey(), v)
		}
	}
}

// value reads one value. It reports why when it cannot.
func (d *decoder) value(path string, n *yaml.Node, fd protoreflect.FieldDescriptor, fresh func() protoreflect.Value) (v protoreflect.Value, ok bool) {
	kind := fd.Kind()
	if kind == protoreflect.MessageKind || kind == protoreflect.GroupKind {
		if isNull(n) {
			d.report(n, path, "has no value")
			return v, false
		}
		v = fresh()
		d.message(path, n, v.Message())
		return v, true
	}
	if n.Kind != yaml.ScalarNode || isNull(n) {
		d.report(n, path, "want %s, not %s", wanted(fd), kindOf(n))
		return v, false
	}
	v, ok = scalar(n, fd)
	if !ok {
		d.report(n, path, "%q: want %s", n.Value, wanted(fd))
	}
	return v, ok
}

func scalar(n *yaml.Node, fd protoreflect.FieldDescriptor) (v protoreflect.Value, ok bool) {
	text, tag := n.Value, n.Tag
	switch fd.Kind() {
	case protoreflect.StringKind:
		// A number is taken as it is written: a version 1.2 need not be quoted. true and false are likely mistakes.
		return protoreflect.ValueOfString(text), tag != "!!bool"
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(text == "true"), tag == "!!bool" && (text == "true" || text == "false")
	case protoreflect.BytesKind:
		b, err := base64.StdEncoding.DecodeString(text)
		return protoreflect.ValueOfBytes(b), err == nil && tag == "!!str"
	case protoreflect.EnumKind:
		if e := enumValue(fd.Enum(), text); e != nil && tag == "!!str" {
			return protoreflect.ValueOfEnum(e.Number()), true
		}
		return v, false
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		i, err := strconv.ParseInt(text, 10, 32)
		return protoreflect.ValueOfInt32(int32(i)), err == nil && tag == "!!int"
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		i, err := strconv.ParseUint(text, 10, 32)
		return protoreflect.ValueOfUint32(uint32(i)), err == nil && tag == "!!int"
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		i, err := strconv.ParseInt(text, 10, 64) // protojson writes 64 bits as text
		return protoreflect.ValueOfInt64(i), err == nil
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		i, err := strconv.ParseUint(text, 10, 64)
		return protoreflect.ValueOfUint64(i), err == nil
	case protoreflect.DoubleKind:
		f, err := strconv.ParseFloat(text, 64)
		return protoreflect.ValueOfFloat64(f), err == nil && tag != "!!str"
	case protoreflect.FloatKind:
		f, err := strconv.ParseFloat(text, 32)
		return protoreflect.ValueOfFloat32(float32(f)), err == nil && tag != "!!str"
	}
	return v, false
}

// wanted says what a field takes, for people.
func wanted(fd protoreflect.FieldDescriptor) string {
	switch fd.Kind() {
	case protoreflect.StringKind:
		return "text (quote true and false)"
	case protoreflect.BoolKind:
		return "true or false"
	case protoreflect.BytesKind:
		return "bytes in base64"
	case protoreflect.EnumKind:
		return "one of " + strings.Join(enumNames(fd.Enum()), ", ")
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind,
		protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		return "a whole number"
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return fmt.Sprintf("a whole number from 0 to %d", uint32(math.MaxUint32))
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return "a whole number, not negative"
	}
	return "a number"
}

// enumValue finds a value by its full name (DURABILITY_STRONG) or its short one (strong, read-your-writes).
func enumValue(e protoreflect.EnumDescriptor, text string) protoreflect.EnumValueDescriptor {
	if v := e.Values().ByName(protoreflect.Name(text)); v != nil {
		return v
	}
	if text != strings.ToLower(text) {
		return nil
	}
	short := strings.ToUpper(strings.ReplaceAll(text, "-", "_"))
	v := e.Values().ByName(protoreflect.Name(enumPrefix(e) + short))
	if v == nil || v.Number() == 0 {
		return nil // "unspecified" is said by leaving the field out
	}
	return v
}

func enumNames(e protoreflect.EnumDescriptor) []string {
	var names []string
	for i := range e.Values().Len() {
		if v := e.Values().Get(i); v.Number() != 0 {
			names = append(names, strings.ToLower(strings.TrimPrefix(string(v.Name()), enumPrefix(e))))
		}
	}
	return names
}

// enumPrefix is what all names of an enum's values begin with: AuditPolicy -> AUDIT_POLICY_.
func enumPrefix(e protoreflect.EnumDescriptor) string {
	var b strings.Builder
	for i, r := range string(e.Name()) {
		if i > 0 && unicode.IsUpper(r) {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToUpper(r))
	}
	return b.String() + "_"
}

func (d *decoder) duration(path string, n *yaml.Node, m protoreflect.Message) {
	v, ok := ParseDuration(n.Value)
	if n.Kind != yaml.ScalarNode || !ok {
		what := kindOf(n)
		if n.Kind == yaml.ScalarNode {
			what = strconv.Quote(n.Value)
		}
		d.report(n, path, "%s: want a duration: a number and a unit, such as 500ms, 10s, 24h or 30d", what)
		return
	}
	fields := m.Descriptor().Fields()
	m.Set(fields.ByName("seconds"), protoreflect.ValueOfInt64(int64(v/time.Second)))
	m.Set(fields.ByName("nanos"), protoreflect.ValueOfInt32(int32(v%time.Second)))
}

// ParseDuration takes what time.ParseDuration takes, but for a 0 without a unit, and whole days.
func ParseDuration(text string) (time.Duration, bool) {
	if days, ok := strings.CutSuffix(text, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		return time.Duration(n) * 24 * time.Hour, err == nil
	}
	v, err := time.ParseDuration(text)
	return v, err == nil && text != "0"
}

func (d *decoder) timestamp(path string, n *yaml.Node, m protoreflect.Message) {
	t, err := time.Parse(time.RFC3339Nano, n.Value)
	if n.Kind != yaml.ScalarNode || err != nil {
		d.report(n, path, "want a time such as 2006-01-02T15:04:05Z")
		return
	}
	fields := m.Descriptor().Fields()
	m.Set(fields.ByName("seconds"), protoreflect.ValueOfInt64(t.Unix()))
	m.Set(fields.ByName("nanos"), protoreflect.ValueOfInt32(int32(t.Nanosecond())))
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// suggestion names the field that was probably meant, or else all there are.
func suggestion(typed string, fields protoreflect.FieldDescriptors) string {
	var names []string
	for i := range fields.Len() {
		names = append(names, string(fields.Get(i).Name()))
	}
	slices.Sort(names)
	return suggest(typed, names)
}

func suggest(typed string, names []string) string {
	best, least := "", 1+len(typed)/3
	for _, name := range names {
		if n := distance(typed, name); n <= least && (best == "" || n < distance(typed, best)) {
			best = name
		}
	}
	if best != "" {
		return fmt.Sprintf("; did you mean %q?", best)
	}
	return "; want one of " + strings.Join(names, ", ")
}

// distance is the least number of inserted, removed and replaced bytes that make b of a.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
