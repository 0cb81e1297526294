package postgres

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/jackc/pgx/v5"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/shared/fault"
)

const (
	partBytes = 512 << 10
	// unfinishedLife is how long after its last part a large value that was not finished is kept.
	unfinishedLife = time.Hour
)

// ReadValue opens a value. One that is replaced while it is read goes on until its parts are swept.
func (i *Instance) ReadValue(ctx context.Context, space driver.Space, name driver.Name, offset uint64) (*driver.Value, error) {
	if err := i.prepared(ctx); err != nil {
		return nil, failed(err)
	}
	l := i.lookUp(space, name, false)
	if f := i.reads.do(ctx, &l.request); f != nil {
		return nil, i.failed(f)
	}
	it := &l.item
	if !l.found || driver.Expired(it.expire, i.now()) {
		return nil, nil
	}
	if err := it.decode(); err != nil {
		return nil, err
	}
	v := &driver.Value{Item: it.Item}
	v.Value = nil
	if it.large == nil {
		v.Size = uint64(len(it.Value))
		v.ReadCloser = io.NopCloser(bytes.NewReader(it.Value[min(offset, v.Size):]))
		return v, nil
	}
	v.ReadCloser = &reader{ctx: ctx, i: i, space: space, name: name, large: it.large, at: min(offset, v.Size), size: v.Size}
	return v, nil
}

// reader reads a large value part by part. It is used by one goroutine.
type reader struct {
	ctx      context.Context
	i        *Instance
	space    driver.Space
	name     driver.Name
	large    []byte
	at, size uint64
	rest     []byte // of the part that at is in
}

// Read gives the next bytes.
func (r *reader) Read(p []byte) (int, error) {
	if r.at == r.size {
		return 0, io.EOF
	}
	if len(r.rest) == 0 {
		if err := r.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.rest)
	r.at, r.rest = r.at+uint64(n), r.rest[n:]
	return n, nil
}

func (r *reader) next() error {
	var sum int64
	var data []byte
	found := false
	q := &request{text: r.i.texts.readPart, args: []any{r.large, int32(r.at / partBytes)}, read: func(rows pgx.Rows) error {
		for rows.Next() {
			found = true
			if err := rows.Scan(&sum, &data); err != nil {
				return err
			}
		}
		return nil
	}}
	if f := r.i.long.do(r.ctx, q); f != nil {
		return r.i.failed(f)
	}
	switch {
	case !found:
		return r.missing()
	case uint64(sum) != xxhash.Sum64(data), uint64(len(data)) != min(partBytes, r.size-r.at/partBytes*partBytes):
		return damaged()
	}
	r.rest = data[r.at%partBytes:]
	return nil
}

// missing is the fault of a part that is not there: the value was replaced, or it is damaged.
func (r *reader) missing() error {
	l := r.i.lookUp(r.space, r.name, true)
	if f := r.i.reads.do(r.ctx, &l.request); f != nil {
		return r.i.failed(f)
	}
	if l.found && bytes.Equal(l.item.large, r.large) {
		return damaged()
	}
	return fault.New(fault.Conflict, fault.VersionMismatch, "the value was replaced while it was read").WithOutcome(fault.NotApplied)
}

func damaged() error {
	return fault.New(fault.DataLoss, fault.Checksum, "the stored value is damaged")
}

// Close frees nothing: no statement is open between two parts.
func (r *reader) Close() error { return nil }

// WriteValue writes the parts, each in a transaction of its own, and then the item. A value of one part is a plain one.
func (i *Instance) WriteValue(ctx context.Context, space driver.Space, w driver.Write, r io.Reader) (driver.Written, error) {
	if err := i.prepared(ctx); err != nil {
		return driver.Written{}, err
	}
	data := make([]byte, partBytes)
	n, err := io.ReadFull(r, data)
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		w.Value = data[:n]
		return i.Write(ctx, space, w)
	case err != nil:
		return driver.Written{}, err
	}
	value := &large{name: make([]byte, 16)}
	rand.Read(value.name)
	if err := i.writeParts(ctx, value, data, r); err != nil {
		i.giveUp(ctx, value)
		return driver.Written{}, err
	}
	w.Value = nil
	q, a := i.write(space, w, value, i.now())
	if f := i.writes.do(ctx, q); f != nil {
		if f.Outcome == fault.NotApplied {
			i.giveUp(ctx, value)
		}
		return driver.Written{}, i.forget(f)
	}
	if a.status != done {
		i.giveUp(ctx, value)
	}
	return a.written(w)
}

// writeParts writes a first part, which is whole, and what follows.
func (i *Instance) writeParts(ctx context.Context, value *large, part []byte, r io.Reader) error {
	if _, f := i.exec(ctx, i.texts.begin, value.name, i.now().UnixMilli()); f != nil {
		return f.WithOutcome(fault.NotApplied) // a part by itself is nothing
	}
	for number := int32(0); len(part) > 0; number++ {
		if value.size += uint64(len(part)); value.size > driver.MaxLarge {
			return fault.Newf(fault.Invalid, fault.TooLarge, "the value is longer than %d bytes", uint64(driver.MaxLarge)).WithOutcome(fault.NotApplied)
		}
		n, f := i.exec(ctx, i.texts.part, value.name, i.now().UnixMilli(), number, int64(xxhash.Sum64(part)), part)
		if f != nil {
			return f.WithOutcome(fault.NotApplied)
		}
		if n == 0 {
			return tooSlow()
		}
		// A line may still send a part whose caller gave up, so each has its own bytes.
		part = make([]byte, partBytes)
		read, err := io.ReadFull(r, part)
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return err
		}
		part = part[:read]
	}
	return nil
}

// exec performs a statement that changes no item, and may be sent twice, and says how many rows it changed.
func (i *Instance) exec(ctx context.Context, text string, args ...any) (n int64, f *fault.Fault) {
	r := &request{text: text, args: args}
	r.read = func(rows pgx.Rows) error {
		rows.Close()
		n = rows.CommandTag().RowsAffected()
		return nil
	}
	f = i.long.do(ctx, r)
	return n, f
}

// tooSlow is the fault of a value whose parts were swept before the last came.
func tooSlow() error {
	return fault.New(fault.DeadlineExceeded, fault.Backend, "the value took too long to arrive").WithOutcome(fault.NotApplied)
}

// giveUp marks the parts of a value that came to nothing. What it cannot mark the sweeper does.
func (i *Instance) giveUp(ctx context.Context, value *large) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	i.exec(ctx, i.texts.giveUp, value.name)
}
