// Package frame carries messages of the data API in the form they came in, so that a call can be routed before it is
// decoded and forwarded without being decoded at all.
package frame

import (
	"fmt"
	"unsafe"

	"google.golang.org/grpc/encoding"
	grpcproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Frame is one encoded message. It is used by one goroutine at a time. The zero value is empty.
type Frame struct {
	buffer mem.Buffer
	give   bool
}

// Bytes are the encoded message; they may be read until Free.
func (f *Frame) Bytes() []byte {
	if f.buffer == nil {
		return nil
	}
	return f.buffer.ReadOnlyData()
}

// Decode decodes into m, which then shares nothing with the frame.
func (f *Frame) Decode(m proto.Message) error { return proto.Unmarshal(f.Bytes(), m) }

// Free gives the bytes back; the frame is empty then.
func (f *Frame) Free() {
	if f.buffer != nil {
		f.buffer.Free()
		f.buffer = nil
	}
}

// GiveAway makes the next marshalling of the frame the last: the bytes go with it and Free is not needed.
func (f *Frame) GiveAway() { f.give = true }

// Namespace is field 1 of the message, which names the namespace in every request of the data API. It is valid until
// Free. ok is false for a message that cannot be decoded.
func (f *Frame) Namespace() (name string, ok bool) { return lastString(f.Bytes(), 1) }

// NestedNamespace is the namespace of a message whose field 1 is a message that has it in its field 1. Where that message
// comes several times it is merged, as every decoder does.
func (f *Frame) NestedNamespace() (name string, ok bool) {
	ok = eachBytes(f.Bytes(), 1, func(nested []byte) bool {
		return eachBytes(nested, 1, func(v []byte) bool {
			name = text(v)
			return true
		})
	})
	return name, ok
}

// lastString returns a length-delimited field. Of several the last counts, as for every decoder: a call must not be
// routed by one name and executed by another.
func lastString(b []byte, field protowire.Number) (value string, ok bool) {
	ok = eachBytes(b, field, func(v []byte) bool {
		value = text(v)
		return true
	})
	return value, ok
}

// text is v as a string, without a copy.
func text(v []byte) string {
	if len(v) == 0 {
		return ""
	}
	return unsafe.String(&v[0], len(v))
}

// eachBytes calls do for each occurrence of a length-delimited field, and says whether all could be decoded.
func eachBytes(b []byte, field protowire.Number, do func([]byte) bool) bool {
	for len(b) > 0 {
		n, kind, size := protowire.ConsumeTag(b)
		if size < 0 {
			return false
		}
		b = b[size:]
		if n == field && kind == protowire.BytesType {
			v, size := protowire.ConsumeBytes(b)
			if size < 0 || !do(v) {
				return false
			}
			b = b[size:]
			continue
		}
		if size = protowire.ConsumeFieldValue(n, kind, b); size < 0 {
			return false
		}
		b = b[size:]
	}
	return true
}

// Codec is the protobuf codec that also takes frames. It is for servers and connections whose calls are forwarded.
type Codec struct{ proto encoding.CodecV2 }

// NewCodec makes a codec.
func NewCodec() Codec { return Codec{proto: encoding.GetCodecV2(grpcproto.Name)} }

// Name is that of the protobuf codec: on the wire there is no difference.
func (Codec) Name() string { return grpcproto.Name }

// Marshal encodes a message, or takes a frame's bytes as they are.
func (c Codec) Marshal(v any) (mem.BufferSlice, error) {
	f, ok := v.(*Frame)
	if !ok {
		return c.proto.Marshal(v)
	}
	if f.buffer == nil {
		return mem.BufferSlice{}, nil
	}
	out := mem.BufferSlice{f.buffer}
	if f.give {
		f.buffer = nil
	} else {
		f.buffer.Ref()
	}
	return out, nil
}

// Unmarshal decodes a message, or keeps the bytes in a frame.
func (c Codec) Unmarshal(data mem.BufferSlice, v any) error {
	f, ok := v.(*Frame)
	if !ok {
		return c.proto.Unmarshal(data, v)
	}
	if f.buffer != nil {
		return fmt.Errorf("frame: in use")
	}
	f.buffer = data.MaterializeToBuffer(mem.DefaultBufferPool())
	return nil
}
