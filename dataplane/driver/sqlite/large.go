package sqlite

import (
	"bytes"
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"io"
	"slices"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/shared/fault"
)

const (
	partBytes = 512 << 10
	// unfinishedLife is how long after its last part a large value that was not finished is kept.
	unfinishedLife = time.Hour
)

// ReadValue opens a value. One that is replaced while it is read ends with the fault of another version.
func (i *Instance) ReadValue(ctx context.Context, space driver.Space, name driver.Name, offset uint64) (*driver.Value, error) {
	s, err := i.prepared(ctx)
	if err != nil {
		return nil, err
	}
	it, expire, err := scanItem(s.get.QueryRowContext(ctx, []byte(space), blob(name.ID), blob(name.Key)), false)
	if errors.Is(err, sql.ErrNoRows) || (err == nil && driver.Expired(expire, i.now())) {
		return nil, nil
	}
	if err != nil {
		return nil, i.failed(ctx, err)
	}
	v := &driver.Value{Item: it.Item}
	v.ID, v.Value = slices.Clone(name.ID), nil
	if it.large == nil {
		v.Size = uint64(len(it.Value))
		v.ReadCloser = io.NopCloser(bytes.NewReader(it.Value[min(offset, v.Size):]))
		return v, nil
	}
	v.ReadCloser = &reader{ctx: ctx, i: i, part: s.part, large: it.large, at: min(offset, v.Size), size: v.Size}
	return v, nil
}

// reader reads a large value part by part. It is used by one goroutine.
type reader struct {
	ctx      context.Context
	i        *Instance
	part     *sql.Stmt
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
	err := r.part.QueryRowContext(r.ctx, r.large, int64(r.at/partBytes)).Scan(&sum, &data)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return fault.New(fault.Conflict, fault.VersionMismatch, "the value was replaced while it was read").WithOutcome(fault.NotApplied)
	case err != nil:
		return r.i.failed(r.ctx, err)
	case uint64(sum) != xxhash.Sum64(data), uint64(len(data)) != min(partBytes, r.size-r.at/partBytes*partBytes):
		return fault.New(fault.DataLoss, fault.Checksum, "the stored value is damaged")
	}
	r.rest = data[r.at%partBytes:]
	return nil
}

// Close frees nothing: no statement is open between two parts.
func (r *reader) Close() error { return nil }

// WriteValue writes the parts, each in a transaction of its own, and then the item.
func (i *Instance) WriteValue(ctx context.Context, space driver.Space, write driver.Write, r io.Reader) (driver.Written, error) {
	value := &large{name: make([]byte, 16)}
	rand.Read(value.name)
	if err := i.writeParts(ctx, value, r); err != nil {
		i.giveUp(ctx, value)
		return driver.Written{}, err
	}
	var done driver.Written
	var refused error
	write.Value = nil
	f := i.submit(ctx, func(ctx context.Context, w *connection, now time.Time) error {
		finished, err := affected(w.finish.ExecContext(ctx, value.name))
		if err != nil {
			return err
		}
		if finished == 0 && value.size > 0 {
			refused = tooSlow()
			return nil
		}
		if done, refused, err = i.one(ctx, w, space, write, value, now); err != nil || refused == nil {
			return err
		}
		_, err = w.giveUp.ExecContext(ctx, value.name)
		return err
	})
	if f != nil {
		if f.Outcome == fault.NotApplied {
			i.giveUp(ctx, value)
		}
		return driver.Written{}, f
	}
	if refused != nil {
		return driver.Written{}, refused
	}
	return done, nil
}

func (i *Instance) writeParts(ctx context.Context, value *large, r io.Reader) error {
	for number := 0; ; number++ {
		// The writer may still be at a part whose caller gave up, so each has its own bytes.
		data := make([]byte, partBytes)
		n, err := io.ReadFull(r, data)
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return err
		}
		if n > 0 {
			part := data[:n]
			if value.size += uint64(n); value.size > driver.MaxLarge {
				return fault.Newf(fault.Invalid, fault.TooLarge, "the value is longer than %d bytes", uint64(driver.MaxLarge)).WithOutcome(fault.NotApplied)
			}
			var swept bool
			if f := i.submit(ctx, func(ctx context.Context, w *connection, now time.Time) error {
				note := w.start
				if number > 0 {
					note = w.progress
				}
				known, err := affected(note.ExecContext(ctx, now.UnixMilli(), value.name))
				if swept = known == 0; swept || err != nil {
					return err
				}
				_, err = w.part.ExecContext(ctx, value.name, number, int64(xxhash.Sum64(part)), part)
				return err
			}); f != nil {
				return f.WithOutcome(fault.NotApplied) // a part by itself is nothing
			}
			if swept {
				return tooSlow()
			}
		}
		if err != nil {
			return nil
		}
	}
}

// tooSlow is the fault of a value whose parts were swept before the last came.
func tooSlow() error {
	return fault.New(fault.DeadlineExceeded, fault.Backend, "the value took too long to arrive").WithOutcome(fault.NotApplied)
}

// giveUp removes the parts of a value that came to nothing. What it cannot remove the sweeper does.
func (i *Instance) giveUp(ctx context.Context, value *large) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	i.submit(ctx, func(ctx context.Context, w *connection, _ time.Time) error { return w.abandon(ctx, value.name) })
}

// abandon removes all parts of a value that was not finished.
func (w *connection) abandon(ctx context.Context, name []byte) error {
	if _, err := w.giveUp.ExecContext(ctx, name); err != nil {
		return err
	}
	_, err := w.finish.ExecContext(ctx, name)
	return err
}

// sweepParts removes one value that was never finished, and says whether there was one.
func (w *connection) sweepParts(ctx context.Context, now time.Time) (int64, error) {
	var name []byte
	err := w.abandoned.QueryRowContext(ctx, now.Add(-unfinishedLife).UnixMilli()).Scan(&name)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return maxSwept, w.abandon(ctx, name) // there may be more
}
