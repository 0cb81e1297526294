package strictyaml

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Format writes a message the way a person would: fields that are set, in the order of the proto, enum values by their
// short name, durations as 24h. Decode reads it back to an equal message. A message that no YAML can say (a duration out
// of range, text that is not UTF-8, an unknown enum value) is an error.
func Format(m proto.Message) ([]byte, error) {
	node, err := encodeMessage(m.ProtoReflect())
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	if err := enc.Encode(node); err != nil {
		return nil, err
	}
	if err := enc.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// EnumName is the short name of an enum value: strong for DURABILITY_STRONG.
func EnumName(v protoreflect.EnumValueDescriptor) string {
	return strings.ToLower(strings.TrimPrefix(string(v.Name()), enumPrefix(v.Parent().(protoreflect.EnumDescriptor))))
}

// EnumNumber is the value of that short name, 0 when there is none.
func EnumNumber(e protoreflect.EnumDescriptor, name string) protoreflect.EnumNumber {
	for i := range e.Values().Len() {
		if v := e.Values().Get(i); EnumName(v) == name {
			return v.Number()
		}
	}
	return 0
}

// Suggest returns `; did you mean "keyvalue"?` when one of known is near to what was typed, and else lists them all.
func Suggest(typed string, known []string) string {
	known = slices.Sorted(slices.Values(known))
	return suggest(typed, known)
}

func encodeMessage(m protoreflect.Message) (*yaml.Node, error) {
	switch v := m.Interface().(type) {
	case *durationpb.Duration:
		return encodeDuration(v)
	case *timestamppb.Timestamp:
		return text(v.AsTime().Format(time.RFC3339Nano)), v.CheckValid()
	}
	node := &yaml.Node{Kind: yaml.MappingNode}
	fields := m.Descriptor().Fields()
	if fields.Len() > 0 && fields.Get(0).ContainingOneof() != nil {
		node.Style = yaml.FlowStyle // a message that is one choice reads best as {group: analytics}
	}
	for i := range fields.Len() {
		fd := fields.Get(i)
		if !m.Has(fd) {
			continue
		}
		value, err := encodeField(m.Get(fd), fd)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", fd.Name(), err)
		}
		node.Content = append(node.Content, text(string(fd.Name())), value)
	}
	if len(node.Content) == 0 {
		node.Style = yaml.FlowStyle
	}
	return node, nil
}

func encodeField(v protoreflect.Value, fd protoreflect.FieldDescriptor) (*yaml.Node, error) {
	switch {
	case fd.IsMap():
		return encodeMap(v.Map(), fd)
	case fd.IsList():
		node := &yaml.Node{Kind: yaml.SequenceNode}
		if fd.Message() == nil {
			node.Style = yaml.FlowStyle
		}
		for i := range v.List().Len() {
			element, err := encodeValue(v.List().Get(i), fd)
			if err != nil {
				return nil, fmt.Errorf("[%d]: %w", i, err)
			}
			node.Content = append(node.Content, element)
		}
		return node, nil
	}
	return encodeValue(v, fd)
}

func encodeMap(m protoreflect.Map, fd protoreflect.FieldDescriptor) (*yaml.Node, error) {
	values := map[string]protoreflect.Value{}
	m.Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
		values[k.String()] = v
		return true
	})
	var keys []string
	for key := range values {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	node := &yaml.Node{Kind: yaml.MappingNode}
	for _, key := range keys {
		value, err := encodeValue(values[key], fd.MapValue())
		if err != nil {
			return nil, fmt.Errorf("[%q]: %w", key, err)
		}
		node.Content = append(node.Content, text(key), value)
	}
	return node, nil
}

func encodeValue(v protoreflect.Value, fd protoreflect.FieldDescriptor) (*yaml.Node, error) {
	switch fd.Kind() {
	case protoreflect.MessageKind, protoreflect.GroupKind:
		return encodeMessage(v.Message())
	case protoreflect.StringKind:
		return text(v.String()), nil
	case protoreflect.BytesKind:
		return text(base64.StdEncoding.EncodeToString(v.Bytes())), nil
	case protoreflect.EnumKind:
		value := fd.Enum().Values().ByNumber(v.Enum())
		if value == nil {
			return nil, fmt.Errorf("%d is no value of %s", v.Enum(), fd.Enum().Name())
		}
		if value.Number() == 0 {
			return text(string(value.Name())), nil
		}
		return text(EnumName(value)), nil
	}
	return &yaml.Node{Kind: yaml.ScalarNode, Value: v.String()}, nil
}

// text is a scalar that reads back as this text. Whatever is more than plain words is quoted.
func text(s string) *yaml.Node {
	node := &yaml.Node{Kind: yaml.ScalarNode, Value: s}
	node.SetString(s)
	node.Style = 0
	if strings.ContainsFunc(s, func(r rune) bool { return r != ' ' && !unicode.IsGraphic(r) || unicode.IsSpace(r) && r != ' ' }) {
		node.Style = yaml.DoubleQuotedStyle
	}
	return node
}

func encodeDuration(d *durationpb.Duration) (*yaml.Node, error) {
	if err := d.CheckValid(); err != nil {
		return nil, err
	}
	v := d.AsDuration()
	if durationpb.New(v).GetSeconds() != d.GetSeconds() {
		return nil, fmt.Errorf("a duration of %s s is out of range", strconv.FormatInt(d.GetSeconds(), 10))
	}
	return text(FormatDuration(v)), nil
}

// FormatDuration writes the shortest form that Decode reads: 24h, 1h30m, 1.5s.
func FormatDuration(v time.Duration) string {
	s := v.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
