package admission_test

import (
	"google.golang.org/protobuf/reflect/protoreflect"
	"pgregory.net/rapid"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
)

// anyRequest fills every kind of field with anything that its type can hold. That it need not be well-formed is the
// point: an export must not depend on it.
func anyRequest(t *rapid.T) *configv1.NamespaceRequest {
	req := &configv1.NamespaceRequest{Namespace: "orders"}
	fill(t, req.ProtoReflect(), "")
	return req
}

func fill(t *rapid.T, m protoreflect.Message, path string) {
	fields := m.Descriptor().Fields()
	if m.Descriptor().FullName() == "google.protobuf.Duration" {
		d := rapid.Int64Range(-1<<62, 1<<62).Draw(t, path)
		m.Set(fields.ByName("seconds"), protoreflect.ValueOfInt64(d/1e9))
		m.Set(fields.ByName("nanos"), protoreflect.ValueOfInt32(int32(d%1e9)))
		return
	}
	for i := range fields.Len() {
		fd := fields.Get(i)
		at := path + "." + string(fd.Name())
		if !rapid.Bool().Draw(t, at+"?") {
			continue
		}
		switch {
		case fd.IsMap():
			for range rapid.IntRange(0, 3).Draw(t, at+" n") {
				m.Mutable(fd).Map().Set(protoreflect.ValueOfString(anyText().Draw(t, at)).MapKey(), value(t, fd.MapValue(), nil, at))
			}
		case fd.IsList():
			list := m.Mutable(fd).List()
			for range rapid.IntRange(0, 3).Draw(t, at+" n") {
				list.Append(value(t, fd, list.NewElement, at))
			}
		default:
			m.Set(fd, value(t, fd, func() protoreflect.Value { return m.NewField(fd) }, at))
		}
	}
}

func value(t *rapid.T, fd protoreflect.FieldDescriptor, fresh func() protoreflect.Value, at string) protoreflect.Value {
	switch fd.Kind() {
	case protoreflect.MessageKind:
		v := fresh()
		fill(t, v.Message(), at)
		return v
	case protoreflect.EnumKind:
		values := fd.Enum().Values()
		return protoreflect.ValueOfEnum(values.Get(rapid.IntRange(0, values.Len()-1).Draw(t, at)).Number())
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(rapid.Bool().Draw(t, at))
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(rapid.Uint32().Draw(t, at))
	}
	return protoreflect.ValueOfString(anyText().Draw(t, at))
}

// anyText is random, or a text that YAML would take for something else.
func anyText() *rapid.Generator[string] {
	return rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{
		"", "true", "null", "~", "yes", "1.0", "0x10", "1_000", "2024-01-01", "<<", "=", "-", "? a", "a: b", "# c", "*a", "&a",
		"!t", "|", ">", "%", "@", "`", "'", "\"", "{", "[", ",", " lead", "trail ", "two\nlines", "\nlead", "trail\n\n", "tab\there",
		"\u0085", "\u2028", "\ufeff", "\r", "\x00", "\x7f", "é", "🙂", "...", "---", "a #b", "a:", ".inf", "1e3", "12:30:45",
	}))
}
