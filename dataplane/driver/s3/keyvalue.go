package s3

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/shared/fault"
)

const (
	// maxTries bounds how often a write that others were faster than begins again.
	maxTries = 50
	// atOnce is how many entries of a batch are under way at a time.
	atOnce = 64
	// maxValue is the longest value that is read in one piece: what the catalogue says.
	maxValue = 3 << 20
	// maxObject is the longest object that holds such a value.
	maxObject = maxHeader + maxValue + (maxValue/frameBytes+1)*sumSize
)

// stored is an object that is there.
type stored struct {
	header *header // nil: of an item that was removed; then only tag and its time count
	gone   int64   // when that was
	tag    string
	start  int    // of the frames
	framed uint64 // bytes of the frames
	size   uint64 // of the value, in bytes
	head   []byte // of the frames, what was read
}

// there says whether there is an item. It may be called of nil.
func (s *stored) there() bool { return s != nil && s.header != nil }

func (s *stored) item() *driver.Item { return s.header.item(s.size) }

// look reads the beginning of an object, or all of it if whole and if it holds a value that fits into one piece. It is nil
// when there is none. name is the item that it has to be of; with an empty id any.
func (c *call) look(object string, name driver.Name, whole bool) (*stored, *fault.Fault) {
	in := &s3.GetObjectInput{Bucket: &c.i.bucket, Key: &object}
	if !whole {
		in.Range = aws.String("bytes=0-" + strconv.Itoa(maxHeader-1))
	}
	out, f := c.get(in)
	if out == nil {
		return nil, f
	}
	defer out.Body.Close()
	total := aws.ToInt64(out.ContentLength)
	if r := aws.ToString(out.ContentRange); r != "" {
		_, text, _ := strings.Cut(r, "/")
		var err error
		if total, err = strconv.ParseInt(text, 10, 64); err != nil {
			return nil, damaged(err)
		}
	}
	want := total
	if !whole || total > maxObject {
		want = min(total, maxHeader)
	}
	if want <= 0 {
		return nil, damaged(errHeader)
	}
	b := make([]byte, want)
	if _, err := io.ReadFull(out.Body, b); err != nil {
		return nil, c.fault(err)
	}
	if gone, ok := decodeTrace(b); ok {
		return &stored{gone: gone, tag: aws.ToString(out.ETag)}, nil
	}
	h, start, err := decode(b)
	if err != nil {
		return nil, damaged(err)
	}
	if len(name.ID) > 0 && !same(h.name, name) {
		return nil, damaged(errName)
	}
	s := &stored{header: h, tag: aws.ToString(out.ETag), start: start, framed: uint64(total) - uint64(start), head: b[start:]}
	if s.size, err = valueSize(s.framed); err != nil {
		return nil, damaged(err)
	}
	return s, nil
}

// get asks for an object; nil when there is none.
func (c *call) get(in *s3.GetObjectInput) (*s3.GetObjectOutput, *fault.Fault) {
	c.sent.Store(false)
	out, err := c.i.client.GetObject(c.ctx, in)
	switch code := codeOf(err); {
	case err == nil:
		return out, nil
	case code == "NoSuchKey", code == "NotFound":
		return nil, nil
	}
	return nil, c.fault(err)
}

// put puts an object if the one that is there has a tag, or if there is none when the tag is empty, and returns its own. The
// error is errOvertaken, errUnsupported, or a fault.
func (c *call) put(object string, body []byte, tag string) (string, error) {
	in := &s3.PutObjectInput{Bucket: &c.i.bucket, Key: &object, Body: bytes.NewReader(body)}
	in.IfMatch, in.IfNoneMatch = condition(tag)
	c.sent.Store(false)
	out, err := c.i.client.PutObject(c.ctx, in)
	if err != nil {
		return "", c.failed(err)
	}
	if aws.ToString(out.ETag) == "" {
		return "", fault.New(fault.FailedPrecondition, fault.Backend, "the store gives no entity tag").WithOutcome(fault.Applied)
	}
	return *out.ETag, nil
}

// condition is that of a write to an object that has a tag, or that is not there when the tag is empty.
func condition(tag string) (match, noneMatch *string) {
	if tag == "" {
		return nil, aws.String("*")
	}
	return &tag, nil
}

// remove removes an object if it has a tag; with an empty one whatever there is. The error is as put's.
func (c *call) remove(object, tag string) error {
	in := &s3.DeleteObjectInput{Bucket: &c.i.bucket, Key: &object}
	if tag != "" {
		in.IfMatch = &tag
	}
	c.sent.Store(false)
	_, err := c.i.client.DeleteObject(c.ctx, in)
	return c.failed(err)
}

// Get is one question for an object.
func (i *Instance) Get(ctx context.Context, space driver.Space, name driver.Name, headOnly bool) (*driver.Item, error) {
	c, f := i.begin(ctx, maxWait)
	if f != nil {
		return nil, f.WithOutcome("")
	}
	defer c.end()
	it, f := c.read(i.object(space, name), name, headOnly)
	if f != nil {
		return nil, f.WithOutcome("")
	}
	if it != nil && !headOnly && it.Size > 0 {
		return nil, driver.TooLarge(it.Size)
	}
	return it, nil
}

// read reads an item; nil when there is none. Its Size is set when the value is left out.
func (c *call) read(object string, name driver.Name, headOnly bool) (*driver.Item, *fault.Fault) {
	s, f := c.look(object, name, !headOnly)
	if !s.there() {
		return nil, f
	}
	return s.whole(headOnly)
}

// whole is the item of an object of which all was read, if it fits into one piece.
func (s *stored) whole(headOnly bool) (*driver.Item, *fault.Fault) {
	it := s.item()
	if headOnly || s.size > maxValue {
		return it, nil
	}
	it.Size = 0
	var err error
	if it.Value, err = openFrames(s.head); err != nil {
		return nil, damaged(err)
	}
	return it, nil
}

// BatchGet asks for many items at a time.
func (i *Instance) BatchGet(ctx context.Context, space driver.Space, names []driver.Name, headOnly bool) []driver.GetResult {
	results := make([]driver.GetResult, len(names))
	each(len(names), func(n int) { results[n].Item, results[n].Err = i.Get(ctx, space, names[n], headOnly) })
	return results
}

// each calls a function for the numbers below n, many at a time.
func each(n int, f func(n int)) {
	var wait sync.WaitGroup
	for first := range min(n, atOnce) {
		wait.Go(func() {
			for at := first; at < n; at += atOnce {
				f(at)
			}
		})
	}
	wait.Wait()
}

// Write does one write.
func (i *Instance) Write(ctx context.Context, space driver.Space, w driver.Write) (driver.Written, error) {
	c, f := i.begin(ctx, maxWait)
	if f != nil {
		return driver.Written{}, f
	}
	defer c.end()
	object := i.object(space, w.Name)
	if f := c.admits(object, w); f != nil {
		return driver.Written{}, f
	}
	return c.change(object, w, func(modified int64, tag string) ([]byte, error) {
		h := header{name: w.Name, modified: modified, contentType: w.ContentType, metadata: w.Metadata}
		body, f := h.encode()
		if f != nil {
			return nil, f
		}
		_, err := c.put(object, appendFrames(body, w.Value), tag)
		return h.version, err
	})
}

// BatchWrite does many writes at a time, each by itself.
func (i *Instance) BatchWrite(ctx context.Context, space driver.Space, writes []driver.Write) []driver.WriteResult {
	results := make([]driver.WriteResult, len(writes))
	each(len(writes), func(n int) { results[n].Written, results[n].Err = i.Write(ctx, space, writes[n]) })
	return results
}

// admits refuses what the driver does not offer, and writes to a store that does not keep their conditions.
func (c *call) admits(object string, w driver.Write) *fault.Fault {
	missing := ""
	switch {
	case w.Op == driver.Touch, !w.ExpireAt.IsZero():
		missing = "keyvalue.ttl"
	case w.Token != nil:
		missing = "keyvalue.idempotency"
	}
	if missing != "" {
		return fault.Newf(fault.FailedPrecondition, fault.InterfaceMissing, "the backend does not offer %s", missing).
			With("interface", missing).WithOutcome(fault.NotApplied)
	}
	if len(object) > maxName {
		return fault.New(fault.Invalid, fault.TooLarge, "the name is longer than the backend takes").WithOutcome(fault.NotApplied)
	}
	return c.trust()
}

// change reads an object and does a write if nobody was faster; else it begins again. store puts the new object, which says
// that it was written at modified, if the one that is there has a tag, and returns its version.
func (c *call) change(object string, w driver.Write, store func(modified int64, tag string) ([]byte, error)) (driver.Written, error) {
	for try := range maxTries {
		if try > 0 {
			if f := c.rest(rand.N(time.Duration(min(try, 20)) * 2 * time.Millisecond)); f != nil {
				return driver.Written{}, f
			}
		}
		done, err := c.try(object, w, store)
		if !errors.Is(err, errOvertaken) {
			return done, err
		}
	}
	return driver.Written{}, fault.New(fault.Conflict, fault.TxConflict, "others changed the item all the time").WithOutcome(fault.NotApplied).WithRetry(pause)
}

func (c *call) try(object string, w driver.Write, store func(modified int64, tag string) ([]byte, error)) (driver.Written, error) {
	old, f := c.look(object, w.Name, w.Previous)
	if f != nil {
		return driver.Written{}, f.WithOutcome(fault.NotApplied)
	}
	var current []byte
	var tag string
	modified := c.i.now().UnixMicro()
	switch {
	case old.there():
		tag, current, modified = old.tag, old.header.version, max(modified, old.header.modified)
	case old != nil:
		tag, modified = old.tag, max(modified, old.gone)
	}
	if err := w.Refusal(current); err != nil {
		return driver.Written{}, err
	}
	done := driver.Written{Existed: old.there()}
	if w.Previous && done.Existed {
		if done.Previous, f = old.whole(false); f != nil {
			return driver.Written{}, f.WithOutcome(fault.NotApplied)
		}
	}
	switch {
	case w.Op == driver.Delete && !done.Existed:
		return done, nil
	case w.Op == driver.Delete && c.i.deletes:
		return done, unsupported(c.remove(object, tag))
	case w.Op == driver.Delete:
		_, err := c.put(object, trace(modified), tag)
		return done, unsupported(err)
	}
	var err error
	if done.Version, err = store(modified, tag); err != nil {
		return driver.Written{}, unsupported(err)
	}
	return done, nil
}

// unsupported makes a fault of an answer that a store cannot give that was tried before.
func unsupported(err error) error {
	if errors.Is(err, errUnsupported) {
		return fault.Wrap(err, fault.FailedPrecondition, fault.Backend, "the backend does not know the operation").WithOutcome(fault.NotApplied)
	}
	return err
}

// rest waits.
func (c *call) rest(wait time.Duration) *fault.Fault {
	select {
	case <-time.After(wait):
		return nil
	case <-c.ctx.Done():
		return c.ended()
	}
}

// ended is the fault of a call whose context has ended between two requests.
func (c *call) ended() *fault.Fault {
	c.sent.Store(false)
	return fault.From(c.failed(c.ctx.Err()))
}
