package frame_test

import (
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"github.com/prism-gateway/prism/dataplane/frame"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
)

// FuzzRoutingAgreesWithDecoding holds the namespaces that calls are routed by against those that handlers see: a call must
// not be routed by one name and executed by another, whatever its bytes.
func FuzzRoutingAgreesWithDecoding(f *testing.F) {
	put := func(namespace string, id string) []byte {
		return marshal(f, &datav1.WriteValueRequest{Put: &datav1.PutRequest{Namespace: namespace, Id: []byte(id)}})
	}
	chunk := marshal(f, &datav1.WriteValueRequest{Chunk: []byte("chunk"), Sha256: make([]byte, 32)})
	get := marshal(f, &datav1.GetRequest{Namespace: "orders", Id: []byte("id")})
	for _, seed := range [][]byte{
		nil, get, append(get, get...), chunk,
		put("orders", "id"), append(put("orders", "id"), put("others", "id")...), append(put("orders", "id"), put("", "id")...),
		append(append(put("orders", ""), chunk...), put("others", "")...),
		{0x0a}, {0x0a, 0x80}, {0x0a, 0x02, 0x0a}, {0x0a, 0x00}, {0x0a, 0x02, 0x0a, 0x00}, // cut off, and empty
		{0x08, 0x01}, {0x0a, 0x02, 0x08, 0x01}, // another wire type
		{0x0b, 0x0c}, {0x0b}, {0x0c}, {0x0a, 0x02, 0x0b, 0x0c}, // groups
		{0x8a, 0x00, 0x01, 'x'}, {0x8a, 0x80, 0x80, 0x80, 0x80, 0x00, 0x01, 'x'}, // a tag that is longer than it needs to be
		{0x0a, 0x03, 0x0a, 0x01, 0xff}, // no UTF-8
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		held := &frame.Frame{}
		if err := frame.NewCodec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(data)}, held); err != nil {
			t.Fatal(err)
		}
		defer held.Free()
		flat, nested := &datav1.GetRequest{}, &datav1.WriteValueRequest{}
		name, ok := held.Namespace()
		if err := held.Decode(flat); err == nil && (!ok || name != flat.GetNamespace()) {
			t.Errorf("routed by %q, %v; decoded as %q", name, ok, flat.GetNamespace())
		}
		name, ok = held.NestedNamespace()
		if err := held.Decode(nested); err == nil && (!ok || name != nested.GetPut().GetNamespace()) {
			t.Errorf("routed by %q, %v; decoded as %q", name, ok, nested.GetPut().GetNamespace())
		}
	})
}

func marshal(f *testing.F, m proto.Message) []byte {
	f.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	return b
}
