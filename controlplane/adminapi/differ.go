package adminapi

import (
	"fmt"
	"slices"
	"strconv"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/prism-gateway/prism/shared/strictyaml"
)

// maxDifferences bounds what is told of one object.
const maxDifferences = 100

// differences says what leads from one message to another, a line for each field: "needs.ttl: 1h -> 24h". Lines begin
// with prefix and stand in the order of the fields.
func differences(prefix string, from, to proto.Message, except ...protoreflect.Name) []string {
	var was, is leaves
	was.message("", from.ProtoReflect(), except)
	is.message("", to.ProtoReflect(), except)
	old, now := was.byPath(), is.byPath()
	var out []string
	for _, l := range is {
		if before, ok := old[l.path]; !ok {
			out = append(out, prefix+l.path+": (none) -> "+l.text)
		} else if before != l.text {
			out = append(out, prefix+l.path+": "+before+" -> "+l.text)
		}
	}
	for _, l := range was {
		if _, ok := now[l.path]; !ok {
			out = append(out, prefix+l.path+": "+l.text+" -> (none)")
		}
	}
	if len(out) > maxDifferences {
		more := len(out) - maxDifferences + 1
		out = append(out[:maxDifferences-1], fmt.Sprintf("and %d more", more))
	}
	return out
}

// leaves are the fields of a message that hold no fields, in order.
type leaves []leaf

type leaf struct{ path, text string }

func (l leaves) byPath() map[string]string {
	out := make(map[string]string, len(l))
	for _, one := range l {
		out[one.path] = one.text
	}
	return out
}

func (l *leaves) message(path string, m protoreflect.Message, except []protoreflect.Name) {
	switch v := m.Interface().(type) {
	case *durationpb.Duration:
		*l = append(*l, leaf{path, strictyaml.FormatDuration(v.AsDuration())})
		return
	case *timestamppb.Timestamp:
		*l = append(*l, leaf{path, v.AsTime().Format("2006-01-02T15:04:05.000Z07:00")})
		return
	}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if !m.Has(fd) || slices.Contains(except, fd.Name()) {
			continue
		}
		at := string(fd.Name())
		if path != "" {
			at = path + "." + at
		}
		switch {
		case fd.IsMap():
			l.mapping(at, m.Get(fd).Map(), fd)
		case fd.IsList():
			for n := range m.Get(fd).List().Len() {
				l.value(at+"["+strconv.Itoa(n)+"]", m.Get(fd).List().Get(n), fd)
			}
		default:
			l.value(at, m.Get(fd), fd)
		}
	}
}

func (l *leaves) mapping(path string, m protoreflect.Map, fd protoreflect.FieldDescriptor) {
	var keys []string
	m.Range(func(k protoreflect.MapKey, _ protoreflect.Value) bool {
		keys = append(keys, k.String())
		return true
	})
	slices.Sort(keys)
	for _, key := range keys {
		l.value(path+"["+strconv.Quote(key)+"]", m.Get(protoreflect.ValueOfString(key).MapKey()), fd.MapValue())
	}
}

func (l *leaves) value(path string, v protoreflect.Value, fd protoreflect.FieldDescriptor) {
	switch fd.Kind() {
	case protoreflect.MessageKind, protoreflect.GroupKind:
		before := len(*l)
		l.message(path, v.Message(), nil)
		if len(*l) == before {
			*l = append(*l, leaf{path, "{}"})
		}
	case protoreflect.EnumKind:
		text := strconv.Itoa(int(v.Enum()))
		if e := fd.Enum().Values().ByNumber(v.Enum()); e != nil {
			text = strictyaml.EnumName(e)
		}
		*l = append(*l, leaf{path, text})
	case protoreflect.BytesKind:
		*l = append(*l, leaf{path, fmt.Sprintf("%x", v.Bytes())})
	default:
		*l = append(*l, leaf{path, v.String()})
	}
}
