package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/shared/fault"
)

const (
	// partBytes is the length of the parts that a large object is put in, all but the last. Stores take no shorter ones, and
	// at most 10,000.
	partBytes = 5 << 20
	// partTries is how often a part is sent that the store did not take.
	partTries = 3
	// unfinishedLife is how long an object may take to arrive, and how old a beginning is that nobody finishes any more.
	unfinishedLife = 45 * time.Minute
)

// parts are buffers of partBytes.
var parts = sync.Pool{New: func() any { return new([partBytes]byte) }}

// ReadValue opens a value. It is read in one request, which reads one version also when the item is replaced meanwhile.
func (i *Instance) ReadValue(ctx context.Context, space driver.Space, name driver.Name, offset uint64) (*driver.Value, error) {
	c, f := i.begin(ctx, 0)
	if f != nil {
		return nil, f.WithOutcome("")
	}
	v, f := c.open(i.object(space, name), name, offset)
	if v == nil {
		c.end()
		if f != nil {
			return nil, f.WithOutcome("")
		}
		return nil, nil
	}
	i.running.Done() // Close does not wait for readers, who may be slow; they fail
	return v, nil
}

func (c *call) open(object string, name driver.Name, offset uint64) (*driver.Value, *fault.Fault) {
	for range maxTries {
		s, f := c.look(object, name, false)
		if !s.there() {
			return nil, f
		}
		offset = min(offset, s.size)
		r := &reader{call: c, body: io.NopCloser(bytes.NewReader(nil))}
		v := &driver.Value{Item: *s.item(), ReadCloser: r}
		if offset == s.size {
			return v, nil
		}
		skip := offset / frameBytes * (frameBytes + sumSize)
		in := &s3.GetObjectInput{
			Bucket: &c.i.bucket, Key: &object, IfMatch: &s.tag, Range: aws.String(fmt.Sprintf("bytes=%d-", uint64(s.start)+skip)),
		}
		c.sent.Store(false)
		out, err := c.i.client.GetObject(c.ctx, in)
		if err != nil {
			if err = c.failed(err); errors.Is(err, errOvertaken) { // replaced since its beginning was read
				continue
			}
			return nil, fault.From(unsupported(err))
		}
		r.body = out.Body
		r.from = &unframer{from: out.Body, left: s.framed - skip}
		if _, err := io.CopyN(io.Discard, r, int64(offset%frameBytes)); err != nil {
			r.body.Close()
			return nil, fault.From(err)
		}
		return v, nil
	}
	return nil, fault.New(fault.Conflict, fault.VersionMismatch, "others changed the item all the time").WithRetry(pause)
}

// reader reads a value. It is used by one goroutine.
type reader struct {
	call *call
	body io.ReadCloser
	from *unframer // nil: there is nothing to read
	once sync.Once
}

// Read gives the next bytes.
func (r *reader) Read(p []byte) (int, error) {
	if r.from == nil {
		return 0, io.EOF
	}
	n, err := r.from.Read(p)
	if err == nil || errors.Is(err, io.EOF) && r.from.left == 0 {
		return n, err
	}
	if f, ok := errors.AsType[*fault.Fault](err); ok {
		return n, f
	}
	return n, r.call.fault(err).WithOutcome("")
}

// Close ends the request.
func (r *reader) Close() (err error) {
	r.once.Do(func() {
		err = r.body.Close()
		r.call.stop()
	})
	return err
}

// WriteValue puts an object in parts, and finishes it on the condition of the write. What fits into one part is put as
// Write does.
func (i *Instance) WriteValue(ctx context.Context, space driver.Space, w driver.Write, r io.Reader) (driver.Written, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, unfinishedLife, errTooSlow)
	defer cancel()
	c, f := i.begin(ctx, 0)
	if f != nil {
		return driver.Written{}, f
	}
	defer c.end()
	object := i.object(space, w.Name)
	if f := c.admits(object, w); f != nil {
		return driver.Written{}, f
	}
	h := header{name: w.Name, modified: i.now().UnixMicro(), contentType: w.ContentType, metadata: w.Metadata}
	begin, f := h.encode()
	if f != nil {
		return driver.Written{}, f
	}
	u := &upload{call: c, object: object, from: newFramer(begin, r)}
	first := parts.Get().(*[partBytes]byte)
	defer parts.Put(first)
	n, err := io.ReadFull(u.from, first[:])
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return c.change(object, w, func(_ int64, tag string) ([]byte, error) {
			_, err := c.put(object, first[:n], tag)
			return h.version, err
		})
	case err != nil:
		return driver.Written{}, err
	}
	if err := u.send(first); err != nil {
		u.abort()
		return driver.Written{}, err
	}
	done, err := c.change(object, w, func(_ int64, tag string) ([]byte, error) { return h.version, u.complete(tag) })
	if f := fault.From(err); f != nil && f.Outcome == fault.NotApplied {
		u.abort()
	}
	return done, err
}

var errTooSlow = fault.New(fault.DeadlineExceeded, fault.Backend, "the value took too long to arrive").WithOutcome(fault.NotApplied)

// upload is an object that is put in parts.
type upload struct {
	call   *call
	object string
	from   *framer
	id     *string
	done   []types.CompletedPart
}

// send sends all parts, of which the first was read already. One part is read while the one before it is sent.
func (u *upload) send(first *[partBytes]byte) error {
	c := u.call
	c.sent.Store(false)
	made, err := c.i.client.CreateMultipartUpload(c.ctx, &s3.CreateMultipartUploadInput{Bucket: &c.i.bucket, Key: &u.object})
	if err != nil {
		return c.fault(err).WithOutcome(fault.NotApplied)
	}
	u.id = made.UploadId
	second := parts.Get().(*[partBytes]byte)
	defer parts.Put(second)
	sending, next := first, second
	for size := partBytes; size > 0; {
		sent := make(chan *fault.Fault, 1)
		go func() { sent <- u.part(sending[:size]) }()
		n, err := io.ReadFull(u.from, next[:])
		if f := <-sent; f != nil {
			return f
		}
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return err
		}
		sending, next, size = next, sending, n
	}
	return nil
}

// part sends the next part. By itself it is nothing, so that it can be sent again.
func (u *upload) part(data []byte) *fault.Fault {
	c := u.call
	number := aws.Int32(int32(len(u.done) + 1))
	for try := 1; ; try++ {
		c.sent.Store(false)
		out, err := c.i.client.UploadPart(c.ctx, &s3.UploadPartInput{
			Bucket: &c.i.bucket, Key: &u.object, UploadId: u.id, PartNumber: number, Body: bytes.NewReader(data),
		})
		if err == nil {
			u.done = append(u.done, types.CompletedPart{ETag: out.ETag, PartNumber: number})
			return nil
		}
		f := c.fault(err).WithOutcome(fault.NotApplied)
		if f.Code != fault.Unavailable || f.Reason != fault.BackendDown || try == partTries || c.rest(pause) != nil {
			return f
		}
	}
}

// complete makes the object of its parts if the one that is there has a tag.
func (u *upload) complete(tag string) error {
	c := u.call
	in := &s3.CompleteMultipartUploadInput{
		Bucket: &c.i.bucket, Key: &u.object, UploadId: u.id, MultipartUpload: &types.CompletedMultipartUpload{Parts: u.done},
	}
	in.IfMatch, in.IfNoneMatch = condition(tag)
	c.sent.Store(false)
	_, err := c.i.client.CompleteMultipartUpload(c.ctx, in)
	return c.failed(err)
}

// abort removes what was sent. What it cannot remove the sweeper does.
func (u *upload) abort() {
	if u.id == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(u.call.ctx), 5*time.Second)
	defer cancel()
	u.call.i.client.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &u.call.i.bucket, Key: &u.object, UploadId: u.id})
}
