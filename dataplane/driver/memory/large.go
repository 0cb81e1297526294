package memory

import (
	"context"
	"errors"
	"io"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/shared/fault"
)

// chunk is the size of the parts of a large value.
const chunk = 1 << 20

// large is a value that was written in parts. It does not change.
type large struct {
	parts [][]byte // all but the last of one chunk
	size  uint64
}

// ReadValue opens a value. What is replaced while it is read is read on.
func (i *Instance) ReadValue(ctx context.Context, space driver.Space, name driver.Name, offset uint64) (*driver.Value, error) {
	if err := i.usable(ctx); err != nil {
		return nil, err
	}
	s, id := i.place(space, name.ID)
	now := i.now()
	s.mu.RLock()
	it := s.visibleLocked(id, name.Key, now)
	s.mu.RUnlock()
	if it == nil {
		return nil, nil
	}
	of := it.large
	if of == nil {
		of = &large{parts: [][]byte{it.Value}, size: uint64(len(it.Value))}
	}
	v := &driver.Value{Item: *it.copyFor(true), ReadCloser: &reader{of: of, at: min(offset, of.size)}}
	v.Size = of.size
	return v, nil
}

// WriteValue reads the value whole and then puts it in place.
func (i *Instance) WriteValue(ctx context.Context, space driver.Space, w driver.Write, r io.Reader) (driver.Written, error) {
	value := &large{}
	for {
		part := make([]byte, chunk)
		n, err := io.ReadFull(r, part)
		value.parts, value.size = append(value.parts, part[:n:n]), value.size+uint64(n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return driver.Written{}, err
		}
		if value.size > driver.MaxLarge {
			return driver.Written{}, fault.Newf(fault.Invalid, fault.TooLarge, "the value is longer than %d bytes", uint64(driver.MaxLarge)).WithOutcome(fault.NotApplied)
		}
	}
	w.Value = nil
	return i.write(ctx, space, w, value)
}

// reader reads a large value. It is used by one goroutine.
type reader struct {
	of *large
	at uint64
}

// Read gives the next bytes.
func (r *reader) Read(p []byte) (int, error) {
	if r.at == r.of.size {
		return 0, io.EOF
	}
	part := r.of.parts[0]
	within := r.at
	if len(r.of.parts) > 1 {
		part, within = r.of.parts[r.at/chunk], r.at%chunk
	}
	n := copy(p, part[within:])
	r.at += uint64(n)
	return n, nil
}

// Close frees nothing.
func (r *reader) Close() error { return nil }
