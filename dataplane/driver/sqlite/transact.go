package sqlite

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/prism-gateway/prism/dataplane/driver"
)

// Increment adds to a counter, in a transaction with what others write.
func (i *Instance) Increment(ctx context.Context, space driver.Space, inc driver.Increment) (driver.Incremented, error) {
	var result driver.Incremented
	var refused error
	f := i.submit(ctx, func(ctx context.Context, w *connection, now time.Time) (err error) {
		result, refused, err = i.increment(ctx, w, space, inc, now)
		return err
	})
	if f != nil {
		return driver.Incremented{}, f
	}
	if refused != nil {
		return driver.Incremented{}, refused
	}
	return result, nil
}

func (i *Instance) increment(ctx context.Context, w *connection, space driver.Space, inc driver.Increment, now time.Time) (result driver.Incremented, refused, err error) {
	before, refused, err := w.repeated(ctx, space, inc.ID, inc.Token, now)
	switch {
	case err != nil || refused != nil:
		return result, refused, err
	case before != nil:
		return driver.Incremented{Value: before.Sum, Written: before.Results[0]}, nil, nil
	}
	old, expire, err := scanItem(w.get.QueryRowContext(ctx, []byte(space), blob(inc.ID), blob(inc.Key)), false)
	there := err == nil && !driver.Expired(expire, now)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return result, nil, err
	}
	write := driver.Write{Op: driver.Put, Name: inc.Name, ExpireAt: inc.ExpireAt, KeepExpiry: inc.KeepExpiry}
	var value []byte
	if there {
		value, write.ContentType, write.Metadata = old.Value, old.ContentType, old.Metadata
	}
	if result.Value, refused = inc.Sum(value, there); refused != nil {
		return result, refused, nil
	}
	write.Value = driver.FormatNumber(result.Value)
	if result.Written, refused, err = i.one(ctx, w, space, write, nil, now); err != nil || refused != nil {
		return result, refused, err
	}
	return result, nil, w.remember(ctx, space, inc.ID, inc.Token, driver.Done{Results: []driver.Written{result.Written}, Sum: result.Value})
}

// Transact does all writes in one transaction of the store.
func (i *Instance) Transact(ctx context.Context, space driver.Space, t driver.Transaction) (driver.Transacted, error) {
	var done driver.Transacted
	var refused error
	f := i.submit(ctx, func(ctx context.Context, w *connection, now time.Time) error {
		// Others are in the same transaction of the store: what fails here must not take theirs with it.
		if err := exec(ctx, w.conn, "SAVEPOINT transact"); err != nil {
			return err
		}
		var err error
		if done, refused, err = i.transact(ctx, w, space, t, now); err != nil {
			return err
		}
		if refused != nil {
			if err := exec(ctx, w.conn, "ROLLBACK TO transact"); err != nil {
				return err
			}
		}
		return exec(ctx, w.conn, "RELEASE transact")
	})
	if f != nil {
		return driver.Transacted{}, f
	}
	if refused != nil {
		return driver.Transacted{}, refused
	}
	return done, nil
}

func (i *Instance) transact(ctx context.Context, w *connection, space driver.Space, t driver.Transaction, now time.Time) (done driver.Transacted, refused, err error) {
	before, refused, err := w.repeated(ctx, space, t.ID, t.Token, now)
	switch {
	case err != nil || refused != nil:
		return done, refused, err
	case before != nil:
		return driver.Transacted{Results: before.Results, Duplicate: true}, nil, nil
	}
	for n, c := range t.Checks {
		current, err := w.version(ctx, space, driver.Name{ID: t.ID, Key: c.Key}, now)
		if err != nil {
			return done, nil, err
		}
		if refused := c.Failed(current, n); refused != nil {
			return done, refused, nil
		}
	}
	done.Results = make([]driver.Written, len(t.Writes))
	for n, write := range t.Writes {
		if done.Results[n], refused, err = i.one(ctx, w, space, write, nil, now); err != nil {
			return done, nil, err
		}
		if refused != nil {
			current, err := w.version(ctx, space, write.Name, now)
			return done, driver.CheckFailed(current, len(t.Checks)+n), err
		}
	}
	return done, nil, w.remember(ctx, space, t.ID, t.Token, driver.Done{Results: done.Results})
}

// version is that of the visible item; nil when there is none.
func (w *connection) version(ctx context.Context, space driver.Space, name driver.Name, now time.Time) ([]byte, error) {
	it, expire, err := scanItem(w.head.QueryRowContext(ctx, []byte(space), blob(name.ID), blob(name.Key)), true)
	if errors.Is(err, sql.ErrNoRows) || (err == nil && driver.Expired(expire, now)) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return it.Version, nil
}

// repeated is what an earlier write with the token did; nil when there was none. reused is the refusal of a token that
// stands for another request.
func (w *connection) repeated(ctx context.Context, space driver.Space, id []byte, t *driver.Token, now time.Time) (before *driver.Done, reused, err error) {
	if t == nil {
		return nil, nil, nil
	}
	var request, result []byte
	var until int64
	err = w.token.QueryRowContext(ctx, []byte(space), blob(id), t.Nonce[:]).Scan(&request, &until, &result)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil, nil, nil
	case err != nil:
		return nil, nil, err
	case now.UnixMilli() >= until:
		return nil, nil, nil
	case !bytes.Equal(request, t.Request[:]):
		return nil, driver.Reused(), nil
	}
	done, err := driver.DecodeDone(result)
	return &done, nil, err
}

// remember keeps what a write did, if it has a token.
func (w *connection) remember(ctx context.Context, space driver.Space, id []byte, t *driver.Token, done driver.Done) error {
	if t == nil {
		return nil
	}
	result, err := done.Encode()
	if err != nil {
		return err
	}
	_, err = w.remembered.ExecContext(ctx, []byte(space), blob(id), t.Nonce[:], t.Request[:], driver.ExpireMillis(t.Until), result)
	return err
}
