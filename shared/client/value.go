package client

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"

	"google.golang.org/protobuf/proto"

	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/fault/faultgrpc"
)

// chunkBytes is how much of a value one message carries.
const chunkBytes = 256 << 10

// Value is a value of any size that is being read. It is used by one goroutine, which closes it.
type Value struct {
	// Item is the value's item, without the value.
	Item *datav1.Item
	// Size is the length of the whole value, in bytes.
	Size uint64

	client   *Client
	ctx      context.Context
	cancel   context.CancelFunc
	in       *datav1.ReadValueRequest // Offset is where the rest begins
	stream   datav1.KeyValue_ReadValueClient
	chunk    []byte
	failures int
}

// ReadValue opens a value from in.Offset on; nil when there is no item. When the connection is lost, or the token is over and
// the client's source has another, reading goes on with the next endpoint, as long as the item has not changed; if it has,
// Read fails with VERSION_MISMATCH.
func (c *Client) ReadValue(ctx context.Context, in *datav1.ReadValueRequest) (*Value, error) {
	v := &Value{client: c, in: proto.CloneOf(in)}
	v.ctx, v.cancel = context.WithCancel(ctx)
	for {
		switch err := v.open(); {
		case err == nil && v.Item == nil:
			v.cancel()
			return nil, nil
		case err == nil:
			return v, nil
		case !v.again(err):
			v.cancel()
			return nil, err
		}
	}
}

// open begins a stream and reads its first message, which must be of the item that was read so far.
func (v *Value) open() error {
	stream, err := v.client.KeyValue.ReadValue(v.ctx, v.in)
	if err != nil {
		return err
	}
	first, err := stream.Recv()
	switch {
	case err != nil:
		return err
	case v.Item != nil && !bytes.Equal(first.GetItem().GetVersion(), v.Item.GetVersion()):
		return faultgrpc.Status(fault.New(fault.Conflict, fault.VersionMismatch, "the value was replaced while it was read"), "").Err()
	}
	v.stream, v.Item, v.Size = stream, first.GetItem(), first.GetSize()
	v.take(first)
	return nil
}

func (v *Value) take(m *datav1.ReadValueResponse) {
	if v.chunk = m.GetChunk(); len(v.chunk) > 0 {
		v.failures = 0
	}
}

// again decides whether a broken stream is opened again, after a pause.
func (v *Value) again(err error) bool {
	f := faultgrpc.FromStatus(err)
	v.failures++
	renewed := f.Reason == fault.TokenExpired && v.failures == 1 && v.client.router.cfg.Token != nil // the next stream shows another
	return (f.Code == fault.Unavailable || renewed) && v.failures < v.client.router.cfg.Attempts && v.client.router.pause(v.ctx, v.failures-1, 1, f.RetryAfter)
}

// Read gives the next bytes; io.EOF comes when all of the value was read.
func (v *Value) Read(p []byte) (int, error) {
	for len(v.chunk) == 0 {
		m, err := v.stream.Recv()
		switch {
		case err == nil:
			v.take(m)
			continue
		case errors.Is(err, io.EOF) && v.in.GetOffset() >= v.Size:
			return 0, io.EOF
		case errors.Is(err, io.EOF):
			return 0, io.ErrUnexpectedEOF
		}
		for err != nil {
			if !v.again(err) {
				return 0, err
			}
			err = v.open()
		}
	}
	n := copy(p, v.chunk)
	v.chunk = v.chunk[n:]
	v.in.Offset += uint64(n)
	return n, nil
}

// Close ends the call.
func (v *Value) Close() error {
	v.cancel()
	return nil
}

// WriteValue writes what from yields up to io.EOF as the value of an item, with its checksum; put.Value is not used. The
// item changes when all has arrived, or not at all. An error of from is returned as it is, and nothing is written then. It
// is not repeated: what was read cannot be read again.
func (c *Client) WriteValue(ctx context.Context, put *datav1.PutRequest, from io.Reader) (*datav1.WriteValueResponse, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // what is not whole by then is dropped
	stream, err := c.KeyValue.WriteValue(ctx)
	if err != nil {
		return nil, err
	}
	sum, chunk := sha256.New(), make([]byte, chunkBytes)
	out := &datav1.WriteValueRequest{Put: put}
	for {
		n, err := io.ReadFull(from, chunk)
		ended := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if err != nil && !ended {
			return nil, err
		}
		sum.Write(chunk[:n])
		if out.Chunk = chunk[:n]; ended {
			out.Sha256 = sum.Sum(nil)
		}
		if err := stream.Send(out); err != nil && !errors.Is(err, io.EOF) { // at EOF the answer tells why
			return nil, err
		} else if ended || err != nil {
			return stream.CloseAndRecv()
		}
		out = &datav1.WriteValueRequest{}
	}
}
