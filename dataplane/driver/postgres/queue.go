package postgres

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/prism-gateway/prism/shared/fault"
)

const (
	// maxBatch bounds what one line sends together, so that one slow answer delays few.
	maxBatch = 64
	// maxQueued bounds what waits for a line.
	maxQueued = 4096
	// maxWait bounds a batch in which a call has no deadline.
	maxWait = 10 * time.Second
	// maxTries bounds how often a batch that lost to others, or a read whose connection broke, is sent.
	maxTries = 3
)

// queue gives statements to lines. A line is a goroutine that takes what waits, sends it as one pipeline, which is one
// transaction, and hands out the answers. Callers wait only as long as their context allows.
type queue struct {
	pool       *pgxpool.Pool
	broke      *moment
	most       int  // statements in one batch
	repeatable bool // doing one twice does no more, so a broken connection is no reason not to try again
	waiting    chan *request
	stop       <-chan struct{}
	ctx        context.Context // ends when the lines are to end
	stopped    chan struct{}   // closed when no line runs any more
}

// request is one statement on its way. Its caller looks at what read left only when it is done.
type request struct {
	text     string
	args     []any
	lock     int64                // the advisory lock that it takes: all batches take theirs in one order
	read     func(pgx.Rows) error // reads the answer; called again when the statement is sent again
	deadline time.Time            // zero: none
	state    atomic.Int32
	err      error
	sent     bool // whether the statement can have reached the server
	done     chan struct{}
}

// The states of a request.
const (
	queued int32 = iota
	taken
	abandoned
)

func newQueue(ctx context.Context, pool *pgxpool.Pool, broke *moment, lines, most int, repeatable bool) *queue {
	q := &queue{
		pool: pool, broke: broke, most: most, repeatable: repeatable,
		waiting: make(chan *request, maxQueued), stop: ctx.Done(), ctx: ctx, stopped: make(chan struct{}),
	}
	var running sync.WaitGroup
	for range lines {
		running.Go(q.line)
	}
	go func() {
		running.Wait()
		close(q.stopped)
	}()
	return q
}

// do performs a statement. Its fault says whether the statement can have taken effect.
func (q *queue) do(ctx context.Context, r *request) *fault.Fault {
	if f := q.begin(ctx, r); f != nil {
		return f
	}
	return q.wait(ctx, r)
}

// doAll performs statements, in no order and not as one.
func (q *queue) doAll(ctx context.Context, requests []*request) []*fault.Fault {
	faults := make([]*fault.Fault, len(requests))
	for n, r := range requests {
		faults[n] = q.begin(ctx, r)
	}
	for n, r := range requests {
		if faults[n] == nil {
			faults[n] = q.wait(ctx, r)
		}
	}
	return faults
}

func (q *queue) begin(ctx context.Context, r *request) *fault.Fault {
	if err := ctx.Err(); err != nil {
		return unsent(err)
	}
	if q.ctx.Err() != nil {
		return closedFault()
	}
	r.done = make(chan struct{})
	r.deadline, _ = ctx.Deadline()
	select {
	case q.waiting <- r:
		return nil
	case <-ctx.Done():
		return unsent(ctx.Err())
	case <-q.stop:
		return closedFault()
	}
}

func (q *queue) wait(ctx context.Context, r *request) *fault.Fault {
	select {
	case <-r.done:
	case <-ctx.Done():
		if r.state.CompareAndSwap(queued, abandoned) {
			return unsent(ctx.Err())
		}
		return fault.From(ctx.Err()).WithOutcome(fault.OutcomeUnknown)
	case <-q.stopped:
		select {
		case <-r.done:
		default: // no line took it
			return closedFault()
		}
	}
	switch {
	case r.err == nil:
		return nil
	case q.ctx.Err() != nil && (!r.sent || told(r.err)):
		return closedFault()
	case !r.sent:
		return connectFault(r.err)
	}
	return storeFault(r.err)
}

// line performs what waits until the queue is closed.
func (q *queue) line() {
	batch := make([]*request, 0, q.most)
	for {
		select {
		case <-q.stop:
			return
		case r := <-q.waiting:
			batch = append(batch[:0], r)
		}
	fill:
		for len(batch) < q.most {
			select {
			case r := <-q.waiting:
				batch = append(batch, r)
			default:
				break fill
			}
		}
		q.perform(batch)
		for n, r := range batch {
			close(r.done)
			batch[n] = nil
		}
	}
}

// take leaves those of a batch whose callers have not given up, who from now on do not know whether it was sent.
func take(batch []*request) []*request {
	return slices.DeleteFunc(batch, func(r *request) bool {
		return r.state.Load() != taken && !r.state.CompareAndSwap(queued, taken)
	})
}

// perform sends a batch until it is answered. When the server undid a batch because of one statement, each is sent by
// itself.
func (q *queue) perform(batch []*request) {
	if len(batch) == 0 {
		return
	}
	slices.SortStableFunc(batch, func(a, b *request) int {
		switch {
		case a.lock < b.lock:
			return -1
		case a.lock > b.lock:
			return 1
		}
		return 0
	})
	ctx, cancel := context.WithDeadline(q.ctx, latest(batch))
	defer cancel()
	var err error
	var sent bool
	for range maxTries {
		sent, err = q.send(ctx, batch)
		if err == nil || ctx.Err() != nil || !(again(err) || (q.repeatable && sent && !told(err))) {
			break
		}
	}
	if err != nil && told(err) && len(batch) > 1 && ctx.Err() == nil {
		for n := range batch {
			q.perform(batch[n : n+1])
		}
		return
	}
	for _, r := range batch {
		r.err, r.sent = err, sent
	}
}

// latest is the latest deadline of a batch.
func latest(batch []*request) time.Time {
	var last time.Time
	for _, r := range batch {
		if r.deadline.IsZero() {
			return time.Now().Add(maxWait)
		}
		if r.deadline.After(last) {
			last = r.deadline
		}
	}
	return last
}

// send sends a batch once and reads its answers.
func (q *queue) send(ctx context.Context, requests []*request) (sent bool, err error) {
	conn, err := q.pool.Acquire(ctx)
	if err != nil {
		return false, err
	}
	defer conn.Release()
	if requests = take(slices.Clone(requests)); len(requests) == 0 {
		return false, nil
	}
	if len(requests) == 1 { // without what a pipeline costs
		err = requests[0].answered(conn.Query(ctx, requests[0].text, requests[0].args...))
	} else {
		err = pipeline(ctx, conn.Conn(), requests)
	}
	switch {
	case err == nil:
	case state(err) == "25006":
		q.pool.Reset() // a server that takes no writes any more is of no use to the other connections either
	case ctx.Err() == nil && conn.Conn().IsClosed():
		q.broke.now() // the others may be broken too; a caller's time that ran out says nothing about them
	}
	return true, err
}

// pipeline sends statements as one transaction and reads their answers.
func pipeline(ctx context.Context, conn *pgx.Conn, requests []*request) (err error) {
	batch := &pgx.Batch{QueuedQueries: make([]*pgx.QueuedQuery, 0, len(requests))}
	for _, r := range requests {
		batch.Queue(r.text, r.args...)
	}
	results := conn.SendBatch(ctx, batch)
	for _, r := range requests {
		if err = r.answered(results.Query()); err != nil {
			break
		}
	}
	// Only when the end of the transaction is answered is anything done.
	if closeErr := results.Close(); err == nil {
		err = closeErr
	}
	return err
}

// answered reads an answer to its end, which of a statement by itself is that of its transaction.
func (r *request) answered(rows pgx.Rows, err error) error {
	if err != nil {
		return err
	}
	err = r.read(rows)
	rows.Close()
	return errors.Join(rows.Err(), err)
}

// moment is when a connection last broke. One that has not been used since is asked whether it lives before it is.
type moment struct{ nanos atomic.Int64 }

func (m *moment) now() { m.nanos.Store(time.Now().UnixNano()) }

// after reports whether it was after a connection was last used.
func (m *moment) after(idle time.Duration) bool {
	return time.Now().Add(-idle).UnixNano() <= m.nanos.Load()
}
