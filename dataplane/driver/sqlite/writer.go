package sqlite

import (
	"context"
	"database/sql"
	sqldriver "database/sql/driver"
	"errors"
	"sync/atomic"
	"time"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/shared/fault"
)

const (
	maxQueued = 1024 // requests that wait for the writer
	maxGroup  = 64   // requests in one transaction
	maxSwept  = 500  // expired items that one transaction removes
)

// request is what one caller wants done, in one transaction or not at all.
type request struct {
	// run does it on the writer's connection, perhaps several times: what it found before counts for nothing then. Only
	// an error of the store is an error; a condition that does not hold is a result.
	run   func(ctx context.Context, w *connection, now time.Time) error
	fault *fault.Fault // of the transaction
	state atomic.Int32
	done  chan struct{}
}

// The states of a request. Only the one who moves it out of queued may go on with it.
const (
	queued int32 = iota
	taken
	abandoned
)

// Write is a batch of one. The slices of a write whose caller gave up are still read for a while: leave them alone.
func (i *Instance) Write(ctx context.Context, space driver.Space, w driver.Write) (driver.Written, error) {
	r := i.BatchWrite(ctx, space, []driver.Write{w})[0]
	return r.Written, r.Err
}

// BatchWrite gives the writes to the writer.
func (i *Instance) BatchWrite(ctx context.Context, space driver.Space, writes []driver.Write) []driver.WriteResult {
	results := make([]driver.WriteResult, len(writes))
	f := i.submit(ctx, func(ctx context.Context, w *connection, now time.Time) error {
		for n, write := range writes {
			done, refused, err := i.once(ctx, w, space, write, now)
			if err != nil {
				return err
			}
			results[n] = driver.WriteResult{Written: done, Err: refused}
		}
		return nil
	})
	if f != nil {
		// The writer may still be at results.
		results = make([]driver.WriteResult, len(writes))
		for n := range results {
			results[n].Err = f
		}
	}
	return results
}

// submit waits until a request is done, or until the caller's patience ends; then run may still be at work.
func (i *Instance) submit(ctx context.Context, run func(context.Context, *connection, time.Time) error) *fault.Fault {
	if _, err := i.prepared(ctx); err != nil {
		return fault.From(err).WithOutcome(fault.NotApplied)
	}
	r := &request{run: run, done: make(chan struct{})}
	select {
	case i.waiting <- r:
	case <-ctx.Done():
		return unsent(ctx.Err())
	case <-i.stop:
		return closedFault()
	}
	select {
	case <-r.done:
		return r.fault
	case <-ctx.Done():
		if r.state.CompareAndSwap(queued, abandoned) {
			return unsent(ctx.Err())
		}
		return fault.From(ctx.Err()).WithOutcome(fault.OutcomeUnknown)
	case <-i.stopped:
		select {
		case <-r.done:
			return r.fault
		default: // the writer never saw it
			return closedFault()
		}
	}
}

// writer does what waits, in groups, until Close.
func (i *Instance) writer() {
	w := &connection{db: i.write}
	defer w.drop()
	for {
		select {
		case <-i.stop:
			return
		case first := <-i.waiting:
			i.group(w, first)
		}
	}
}

// group does a request and those that wait behind it in one transaction.
func (i *Instance) group(w *connection, first *request) {
	ctx := context.Background()
	if err := w.begin(ctx); err != nil {
		if first.state.CompareAndSwap(queued, taken) {
			first.fault = storeFault(err)
			close(first.done)
		}
		return
	}
	var group []*request
	for r := first; r != nil; {
		if r.state.CompareAndSwap(queued, taken) {
			group = append(group, r)
		}
		r = nil
		if len(group) < maxGroup {
			select {
			case r = <-i.waiting:
			default:
			}
		}
	}
	var err error
	for n := 0; n < len(group) && err == nil; n++ {
		err = group[n].run(ctx, w, i.now())
	}
	f := w.end(ctx, err)
	if f != nil && len(group) > 1 && f.Outcome == fault.NotApplied {
		// One request must not fail the others: each by itself.
		for _, r := range group {
			i.alone(ctx, w, r)
		}
		return
	}
	for _, r := range group {
		r.fault = f
		close(r.done)
	}
}

// alone does one request in a transaction.
func (i *Instance) alone(ctx context.Context, w *connection, r *request) {
	err := w.begin(ctx)
	if err != nil {
		r.fault = storeFault(err)
	} else {
		r.fault = w.end(ctx, r.run(ctx, w, i.now()))
	}
	close(r.done)
}

// once does one write inside a transaction, unless its token says that it was done.
func (i *Instance) once(ctx context.Context, w *connection, space driver.Space, write driver.Write, now time.Time) (done driver.Written, refused, err error) {
	before, reused, err := w.repeated(ctx, space, write.ID, write.Token, now)
	switch {
	case err != nil || reused != nil:
		return driver.Written{}, reused, err
	case before != nil:
		return before.Results[0], nil, nil
	}
	if done, refused, err = i.one(ctx, w, space, write, nil, now); refused != nil || err != nil {
		return done, refused, err
	}
	return done, nil, w.remember(ctx, space, write.ID, write.Token, driver.Done{Results: []driver.Written{done}})
}

// large names a value that was written in parts.
type large struct {
	name []byte
	size uint64
}

// one does one write inside a transaction; its value is large if that is not nil.
func (i *Instance) one(ctx context.Context, w *connection, space driver.Space, write driver.Write, value *large, now time.Time) (done driver.Written, refused, err error) {
	at := []any{[]byte(space), blob(write.ID), blob(write.Key)}
	stmt := w.head
	if write.Previous {
		stmt = w.get
	}
	old, oldExpire, err := scanItem(stmt.QueryRowContext(ctx, at...), false)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		old = nil
	case err != nil:
		return done, nil, err
	case driver.Expired(oldExpire, now):
		old = nil
	}
	var current []byte
	if old != nil {
		current = old.Version
	}
	if refused := write.Refusal(current); refused != nil {
		return done, refused, nil
	}
	done.Existed = old != nil
	if write.Previous && old != nil {
		old.Name = driver.Name{ID: blob(write.ID), Key: old.Key}
		done.Previous = &old.Item
	}
	if write.Op == driver.Delete {
		_, err := w.delete.ExecContext(ctx, at...)
		return done, nil, err
	}
	expire := driver.ExpireMillis(write.ExpireAt)
	if write.KeepExpiry && old != nil {
		expire = oldExpire
	}
	done.Version, done.ExpireAt = i.versions.Next(), driver.ExpireTime(expire)
	if write.Op == driver.Touch {
		_, err := w.touch.ExecContext(ctx, append([]any{done.Version, expire}, at...)...)
		return done, nil, err
	}
	modified := now.UnixMicro()
	if old != nil {
		modified = max(modified, old.ModifiedAt.UnixMicro())
	}
	if value == nil {
		value = &large{}
	}
	_, err = w.put.ExecContext(ctx, append(at, done.Version, expire, modified, write.ContentType, encodeMetadata(write.Metadata), blob(write.Value), value.name, value.size)...)
	return done, nil, err
}

// connection is the one that writes, with its statements. Only the writer uses it.
type connection struct {
	db                            *sql.DB
	conn                          *sql.Conn // nil: none
	get, head, put, touch, delete *sql.Stmt
	token, remembered             *sql.Stmt
	start, progress, part         *sql.Stmt
	finish, giveUp                *sql.Stmt
	sweep, sweepTokens, abandoned *sql.Stmt
}

// begin starts a transaction, which waits for other processes a while.
func (w *connection) begin(ctx context.Context) error {
	if w.conn == nil {
		if err := w.open(ctx); err != nil {
			w.drop()
			return err
		}
	}
	err := exec(ctx, w.conn, "BEGIN IMMEDIATE")
	if err != nil && !isBusy(err) {
		w.drop()
	}
	return err
}

func (w *connection) open(ctx context.Context) error {
	var err error
	if w.conn, err = w.db.Conn(ctx); err != nil {
		return err
	}
	const head = "SELECT key, version, expire, modified, type, metadata, large, " + sizeColumn + ", "
	const here = " WHERE space = ? AND id = ? AND key = ?"
	for _, p := range []struct {
		to   **sql.Stmt
		text string
	}{
		{&w.get, head + "value FROM item" + here},
		{&w.head, head + "x'' FROM item" + here},
		{&w.put, "INSERT INTO item (space, id, key, version, expire, modified, type, metadata, value, large, size) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)" +
			" ON CONFLICT DO UPDATE SET version = excluded.version, expire = excluded.expire, modified = excluded.modified, type = excluded.type," +
			" metadata = excluded.metadata, value = excluded.value, large = excluded.large, size = excluded.size"},
		{&w.touch, "UPDATE item SET version = ?, expire = ?" + here},
		{&w.delete, "DELETE FROM item" + here},
		{&w.token, "SELECT request, until, result FROM token WHERE space = ? AND id = ? AND nonce = ?"},
		{&w.remembered, "INSERT OR REPLACE INTO token (space, id, nonce, request, until, result) VALUES (?, ?, ?, ?, ?, ?)"},
		{&w.start, "INSERT INTO unfinished (touched, large) VALUES (?, ?)"},
		{&w.progress, "UPDATE unfinished SET touched = ? WHERE large = ?"},
		{&w.part, "INSERT INTO part (large, number, sum, data) VALUES (?, ?, ?, ?)"},
		{&w.finish, "DELETE FROM unfinished WHERE large = ?"},
		{&w.giveUp, "DELETE FROM part WHERE large = ?"},
		{&w.sweepTokens, "DELETE FROM token WHERE (space, id, nonce) IN (SELECT space, id, nonce FROM token WHERE until <= ? LIMIT ?)"},
		{&w.abandoned, "SELECT large FROM unfinished WHERE touched <= ? LIMIT 1"},
		{&w.sweep, "DELETE FROM item WHERE (space, id, key) IN (SELECT space, id, key FROM item WHERE expire > 0 AND expire <= ? LIMIT ?)"},
	} {
		if *p.to, err = w.conn.PrepareContext(ctx, p.text); err != nil {
			return err
		}
	}
	return nil
}

// end commits, or rolls back after an error, and returns the fault of the whole transaction.
func (w *connection) end(ctx context.Context, err error) *fault.Fault {
	committing := err == nil
	if committing {
		if err = exec(ctx, w.conn, "COMMIT"); err == nil {
			return nil
		}
	}
	f := storeFault(err)
	if committing && !isBusy(err) {
		// The log may hold it: what could not be synced may still be read after a crash.
		f = f.WithOutcome(fault.OutcomeUnknown)
	}
	if exec(ctx, w.conn, "ROLLBACK") != nil {
		w.drop()
	}
	return f
}

// drop gives the connection up; the next transaction opens another.
func (w *connection) drop() {
	if w.conn == nil {
		return
	}
	w.conn.Raw(func(any) error { return sqldriver.ErrBadConn })
	w.conn.Close()
	w.conn = nil
}

// sweeper removes expired items until Close.
func (i *Instance) sweeper(ctx context.Context, every time.Duration) {
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			// What fails now is tried again at the next tick.
			i.Sweep(ctx)
		}
	}
}

// Sweep removes all expired items now and says how many there were, and what else has had its time. Other writes come
// between its transactions.
func (i *Instance) Sweep(ctx context.Context) (int, error) {
	n := 0
	for {
		var items, others int64
		f := i.submit(ctx, func(ctx context.Context, w *connection, now time.Time) error {
			var err error
			if items, err = affected(w.sweep.ExecContext(ctx, now.UnixMilli(), maxSwept)); err != nil {
				return err
			}
			if others, err = affected(w.sweepTokens.ExecContext(ctx, now.UnixMilli(), maxSwept)); err != nil {
				return err
			}
			abandoned, err := w.sweepParts(ctx, now)
			others += abandoned
			return err
		})
		if f != nil {
			return n, f
		}
		n += int(items)
		if items+others < maxSwept {
			return n, nil
		}
	}
}

func affected(r sql.Result, err error) (int64, error) {
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}
