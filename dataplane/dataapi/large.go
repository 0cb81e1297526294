package dataapi

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/dataplane/pattern/keyvalue"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/fault"
)

// chunkBytes is how much of a large value one message carries.
const chunkBytes = 256 << 10

func readValue(c streamed) error {
	in := &datav1.ReadValueRequest{}
	if err := c.first.Decode(in); err != nil {
		return undecodable(err)
	}
	kv, err := store(c.route)
	if err != nil {
		return err
	}
	v, err := kv.ReadValue(c.Context(), driver.Name{ID: in.GetId(), Key: in.GetKey()}, in.GetOffset())
	if err != nil {
		return err
	}
	if v == nil {
		return c.SendMsg(&datav1.ReadValueResponse{}) // absent is no error
	}
	defer v.Close() // nothing is left to lose when a reader fails to close
	out := &datav1.ReadValueResponse{Item: itemOf(&v.Item), Size: v.Size}
	chunk := make([]byte, chunkBytes)
	for {
		n, err := io.ReadFull(v, chunk)
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return err
		}
		if out.Chunk = chunk[:n]; n > 0 || out.Item != nil {
			if err := c.SendMsg(out); err != nil {
				return err
			}
		}
		if err != nil {
			return nil
		}
		out = &datav1.ReadValueResponse{}
	}
}

func writeValue(c streamed) error {
	in := &datav1.WriteValueRequest{}
	if err := c.first.Decode(in); err != nil {
		return undecodable(err)
	}
	put := in.GetPut()
	switch {
	case len(put.GetValue()) > 0:
		return keyvalue.Invalid(fault.Violation{Field: "put.value", Rule: "empty", Text: "goes in chunks"})
	case put.GetToken() != nil:
		return keyvalue.Invalid(fault.Violation{Field: "put.token", Rule: "absent", Text: "is not taken here; a condition makes a repeat harmless"})
	case put.GetReturnPrevious():
		return keyvalue.Invalid(fault.Violation{Field: "put.return_previous", Rule: "absent", Text: "is not offered for large values"})
	}
	w, err := writeOf(c.route, driver.Put, driver.Name{ID: put.GetId(), Key: put.GetKey()}, put.GetCondition(), put.GetExpiry(), nil, "put.")
	if err != nil {
		return err
	}
	w.ContentType, w.Metadata = put.GetContentType(), put.GetMetadata()
	done, err := c.route.KeyValue.WriteValue(c.Context(), w, &chunks{stream: c, sum: sha256.New(), next: in})
	if err != nil {
		return err
	}
	return c.SendMsg(&datav1.WriteValueResponse{Version: done.Version, ExpireAt: timeOf(done.ExpireAt), CommitToken: c.route.KeyValue.CommitToken()})
}

// chunks reads the value that a caller sends, and fails unless it ends with the checksum of what came. It is used by one
// goroutine.
type chunks struct {
	stream streamed
	sum    hash.Hash
	next   *datav1.WriteValueRequest // received; its chunk is what was not read yet
	read   int                       // messages before next
	err    error
}

// Read gives what came.
func (r *chunks) Read(p []byte) (int, error) {
	for r.err == nil && len(r.next.GetChunk()) == 0 {
		r.err = r.advance()
	}
	if r.err != nil {
		return 0, r.err
	}
	n := copy(p, r.next.GetChunk())
	r.sum.Write(p[:n])
	r.next.Chunk = r.next.GetChunk()[n:]
	return n, nil
}

// advance receives the next message; io.EOF is the end of a value that is whole.
func (r *chunks) advance() error {
	said := r.next.GetSha256()
	f, err := r.stream.server.receive(r.stream)
	if f != nil {
		defer f.Free()
	}
	switch {
	case errors.Is(err, io.EOF) && len(said) == 0:
		return keyvalue.Invalid(fault.Violation{Field: "sha256", Rule: "required", Text: "is missing in the last message"})
	case errors.Is(err, io.EOF) && !bytes.Equal(said, r.sum.Sum(nil)):
		return fault.New(fault.DataLoss, fault.Checksum, "what arrived does not have the checksum sent with it").WithOutcome(fault.NotApplied)
	case errors.Is(err, io.EOF):
		return io.EOF
	case fault.Is(err, fault.Queue):
		return err
	case err != nil:
		return fault.Wrap(err, fault.Cancelled, fault.Client, "the caller gave up").WithOutcome(fault.NotApplied)
	}
	if len(said) > 0 {
		return keyvalue.Invalid(fault.Violation{Field: "sha256", Rule: "last", Text: "was not in the last message"})
	}
	next := &datav1.WriteValueRequest{}
	if err := f.Decode(next); err != nil {
		return undecodable(err)
	}
	if r.read++; next.GetPut() != nil {
		return keyvalue.Invalid(fault.Violation{Field: "put", Rule: "first", Text: fmt.Sprintf("is in message %d; it belongs into the first", r.read)})
	}
	r.next = next
	return nil
}
