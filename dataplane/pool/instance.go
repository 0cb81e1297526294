package pool

import (
	"context"
	"io"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/shared/fault"
)

// The capabilities of a Leased are those of the driver: whoever makes one asks the driver which these are. Each call goes to
// the pool of its caller's credential. One that the backend refused is tried once more, with another.

// with does a call.
func with[T any](ctx context.Context, l *Leased, do func(i driver.Instance) (T, error)) (T, error) {
	for again := true; ; again = false {
		o, err := l.take(ctx)
		if err != nil {
			var none T
			return none, err
		}
		out, err := do(o.pool.instance)
		refused := err != nil && o.lane.refuse(o, err)
		o.end()
		if !refused || !again {
			return out, err
		}
	}
}

// Ping reports whether the backend answers, where all callers share a credential.
func (l *Leased) Ping(ctx context.Context) error {
	if !l.shared() {
		return nil
	}
	_, err := with(ctx, l, func(i driver.Instance) (struct{}, error) { return struct{}{}, i.Ping(ctx) })
	return err
}

// Close does nothing: Release lets it go.
func (l *Leased) Close() error { return nil }

// Get is driver.KeyValue's.
func (l *Leased) Get(ctx context.Context, space driver.Space, name driver.Name, headOnly bool) (*driver.Item, error) {
	return with(ctx, l, func(i driver.Instance) (*driver.Item, error) {
		return i.(driver.KeyValue).Get(ctx, space, name, headOnly)
	})
}

// Write is driver.KeyValue's.
func (l *Leased) Write(ctx context.Context, space driver.Space, w driver.Write) (driver.Written, error) {
	return with(ctx, l, func(i driver.Instance) (driver.Written, error) { return i.(driver.KeyValue).Write(ctx, space, w) })
}

// BatchGet is driver.KeyValue's.
func (l *Leased) BatchGet(ctx context.Context, space driver.Space, names []driver.Name, headOnly bool) []driver.GetResult {
	out, err := with(ctx, l, func(i driver.Instance) ([]driver.GetResult, error) {
		out := i.(driver.KeyValue).BatchGet(ctx, space, names, headOnly)
		return out, allRefused(len(out), func(n int) error { return out[n].Err })
	})
	if out == nil {
		out = make([]driver.GetResult, len(names))
		for n := range out {
			out[n].Err = err
		}
	}
	return out
}

// BatchWrite is driver.KeyValue's.
func (l *Leased) BatchWrite(ctx context.Context, space driver.Space, writes []driver.Write) []driver.WriteResult {
	out, err := with(ctx, l, func(i driver.Instance) ([]driver.WriteResult, error) {
		out := i.(driver.KeyValue).BatchWrite(ctx, space, writes)
		return out, allRefused(len(out), func(n int) error { return out[n].Err })
	})
	if out == nil {
		out = make([]driver.WriteResult, len(writes))
		for n := range out {
			out[n].Err = err
		}
	}
	return out
}

// allRefused is the error of a batch whose every entry was refused for its credential, and so was not done.
func allRefused(n int, err func(int) error) error {
	for i := range n {
		if f := fault.From(err(i)); f == nil || f.Reason != fault.CredentialsUnavailable || f.Outcome == fault.OutcomeUnknown {
			return nil
		}
	}
	if n == 0 {
		return nil
	}
	return err(0)
}

// scanned and listed are answers of two parts.
type scanned struct {
	items []driver.Item
	more  bool
}

type listed struct {
	ids  [][]byte
	next []byte
}

// Scan is driver.Scanner's.
func (l *Leased) Scan(ctx context.Context, space driver.Space, r driver.Range) ([]driver.Item, bool, error) {
	out, err := with(ctx, l, func(i driver.Instance) (scanned, error) {
		items, more, err := i.(driver.Scanner).Scan(ctx, space, r)
		return scanned{items, more}, err
	})
	return out.items, out.more, err
}

// ListIDs is driver.Lister's.
func (l *Leased) ListIDs(ctx context.Context, space driver.Space, cursor []byte, limit int) ([][]byte, []byte, error) {
	out, err := with(ctx, l, func(i driver.Instance) (listed, error) {
		ids, next, err := i.(driver.Lister).ListIDs(ctx, space, cursor, limit)
		return listed{ids, next}, err
	})
	return out.ids, out.next, err
}

// Increment is driver.Counter's.
func (l *Leased) Increment(ctx context.Context, space driver.Space, c driver.Increment) (driver.Incremented, error) {
	return with(ctx, l, func(i driver.Instance) (driver.Incremented, error) {
		return i.(driver.Counter).Increment(ctx, space, c)
	})
}

// Transact is driver.Transactor's.
func (l *Leased) Transact(ctx context.Context, space driver.Space, t driver.Transaction) (driver.Transacted, error) {
	return with(ctx, l, func(i driver.Instance) (driver.Transacted, error) {
		return i.(driver.Transactor).Transact(ctx, space, t)
	})
}

// Watch is driver.Watcher's. It goes on with the next pool when its own is replaced: after the last event that it sent, or
// with a Resync where there was none.
func (l *Leased) Watch(ctx context.Context, space driver.Space, from driver.From, send func([]driver.Event) error) error {
	placed, sent := false, false
	for {
		replaced, err := l.watch(ctx, space, from, func(events []driver.Event) error {
			if len(events) == 0 && placed {
				if sent {
					return nil
				}
				events = []driver.Event{{Kind: driver.Resync}} // what changed meanwhile is not known
			}
			placed = true
			if n := len(events); n > 0 {
				if v := events[n-1].Item.Version; len(v) > 0 {
					from.After, sent = v, true
				}
			}
			return send(events)
		})
		if !replaced || ctx.Err() != nil {
			return err
		}
	}
}

// watch follows with one pool, and reports whether it ended because the pool was replaced.
func (l *Leased) watch(ctx context.Context, space driver.Space, from driver.From, send func([]driver.Event) error) (replaced bool, err error) {
	o, err := l.take(ctx)
	if err != nil {
		return false, err
	}
	defer o.end()
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-o.ended:
			cancel()
		case <-inner.Done():
		}
	}()
	err = o.pool.instance.(driver.Watcher).Watch(inner, space, from, send)
	if o.retired.Load() && (err == nil || fault.From(err).Code == fault.Unavailable) {
		return true, nil
	}
	if err != nil && o.lane.refuse(o, err) {
		return true, err
	}
	return false, err
}

// ReadValue is driver.LargeValues'. The value holds its pool until it is closed.
func (l *Leased) ReadValue(ctx context.Context, space driver.Space, name driver.Name, offset uint64) (*driver.Value, error) {
	o, err := l.take(ctx)
	if err != nil {
		return nil, err
	}
	v, err := o.pool.instance.(driver.LargeValues).ReadValue(ctx, space, name, offset)
	if v == nil || err != nil {
		if err != nil {
			o.lane.refuse(o, err)
		}
		o.end()
		return v, err
	}
	held := *v
	held.ReadCloser = &holding{ReadCloser: v.ReadCloser, opened: o}
	return &held, nil
}

// holding is a value that is read from a pool.
type holding struct {
	io.ReadCloser
	opened *opened
	closed bool
}

// Close ends the reading; it is called by the goroutine that reads.
func (h *holding) Close() error {
	err := h.ReadCloser.Close()
	if !h.closed {
		h.closed = true
		h.opened.end()
	}
	return err
}

// WriteValue is driver.LargeValues'. What r has given cannot be asked for again, so it is not tried twice.
func (l *Leased) WriteValue(ctx context.Context, space driver.Space, w driver.Write, r io.Reader) (driver.Written, error) {
	o, err := l.take(ctx)
	if err != nil {
		return driver.Written{}, err
	}
	defer o.end()
	done, err := o.pool.instance.(driver.LargeValues).WriteValue(ctx, space, w, r)
	if err != nil {
		o.lane.refuse(o, err)
	}
	return done, err
}
