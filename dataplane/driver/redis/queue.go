package redis

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/prism-gateway/prism/shared/fault"
)

const (
	// defaultLines is how many connections work at once. Few lines under load send many commands together, which costs
	// both sides less than many lines with one command each.
	defaultLines = 3
	// maxBatch bounds what one line sends together, so that one slow answer delays few.
	maxBatch = 64
	// maxQueued bounds what waits for a line.
	maxQueued = 4096
)

// queue gives commands to lines. A line is a goroutine that takes what waits, sends it as one pipeline, and hands out the
// answers. Callers wait only as long as their context allows; the command itself may go on.
type queue struct {
	client  *redis.Client
	waiting chan *request
	stop    chan struct{} // closed by close
	stopped chan struct{} // closed when no line runs any more
	once    sync.Once
}

// request is one command on its way.
type request struct {
	cmd      redis.Cmder
	deadline time.Time // zero: none
	state    atomic.Int32
	done     chan struct{} // one value when the command is answered
}

// The states of a request. Only the one who moves it out of queued may use the command.
const (
	queued int32 = iota
	taken
	abandoned
)

func newQueue(client *redis.Client, lines int) *queue {
	q := &queue{client: client, waiting: make(chan *request, maxQueued), stop: make(chan struct{}), stopped: make(chan struct{})}
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

// close ends the lines, breaking what they wait for.
func (q *queue) close() {
	q.once.Do(func() {
		close(q.stop)
		q.client.Close()
	})
	<-q.stopped
}

// requests are used again: a Get would otherwise spend a third of its allocations on them.
var requests = sync.Pool{New: func() any { return &request{done: make(chan struct{}, 1)} }}

// do performs a command. Its fault says whether the command can have reached the server.
func (q *queue) do(ctx context.Context, cmd redis.Cmder) *fault.Fault {
	r, f := q.begin(ctx, cmd)
	if f != nil {
		return f
	}
	return q.wait(ctx, r)
}

// doAll performs commands, which reach the server in no order.
func (q *queue) doAll(ctx context.Context, cmds []redis.Cmder) []*fault.Fault {
	begun, faults := make([]*request, len(cmds)), make([]*fault.Fault, len(cmds))
	for n, cmd := range cmds {
		begun[n], faults[n] = q.begin(ctx, cmd)
	}
	for n, r := range begun {
		if r != nil {
			faults[n] = q.wait(ctx, r)
		}
	}
	return faults
}

// begin puts a command in the queue.
func (q *queue) begin(ctx context.Context, cmd redis.Cmder) (*request, *fault.Fault) {
	if err := ctx.Err(); err != nil {
		return nil, unsent(err)
	}
	select {
	case <-q.stop:
		return nil, closedFault()
	default:
	}
	r := requests.Get().(*request)
	r.cmd = cmd
	r.deadline, _ = ctx.Deadline()
	r.state.Store(queued)
	select {
	case q.waiting <- r:
		return r, nil
	default:
	}
	select {
	case q.waiting <- r:
		return r, nil
	case <-ctx.Done():
		return nil, unsent(ctx.Err())
	case <-q.stop:
		return nil, closedFault()
	}
}

// wait waits for the answer to a command, for the end of the caller's patience, or for the end of the lines.
func (q *queue) wait(ctx context.Context, r *request) *fault.Fault {
	select {
	case <-r.done:
	case <-ctx.Done():
		if r.state.CompareAndSwap(queued, abandoned) {
			r.cmd = nil // the value does not stay until a line comes by
			return unsent(ctx.Err())
		}
		f := fault.From(ctx.Err())
		return f.WithOutcome(fault.OutcomeUnknown)
	case <-q.stopped:
		select {
		case <-r.done:
		default: // no line took it
			return closedFault()
		}
	}
	err := r.cmd.Err()
	r.cmd = nil
	requests.Put(r)
	return answer(err)
}

// line performs what waits until the queue is closed.
func (q *queue) line() {
	batch := make([]*request, 0, maxBatch)
	for {
		select {
		case <-q.stop:
			return
		case r := <-q.waiting:
			batch = take(batch[:0], r)
		}
	fill:
		for len(batch) < maxBatch {
			select {
			case r := <-q.waiting:
				batch = take(batch, r)
			default:
				break fill
			}
		}
		q.perform(batch)
		for n, r := range batch {
			r.done <- struct{}{}
			batch[n] = nil
		}
	}
}

// take adds a request to a batch unless its caller has given up.
func take(batch []*request, r *request) []*request {
	if r.state.CompareAndSwap(queued, taken) {
		return append(batch, r)
	}
	return batch
}

// perform sends a batch and reads its answers. The wait ends with the latest deadline of the batch.
func (q *queue) perform(batch []*request) {
	defer func() {
		// The SDK panics at lengths that no value has.
		if p := recover(); p != nil {
			fail(batch, fmt.Errorf("an answer that cannot be read: %v", p))
		}
	}()
	ctx := until{Context: context.Background()}
	for _, r := range batch {
		if r.deadline.IsZero() {
			ctx.deadline = time.Time{}
			break
		}
		if r.deadline.After(ctx.deadline) {
			ctx.deadline = r.deadline
		}
	}
	switch len(batch) {
	case 0:
	case 1:
		q.client.Process(ctx, batch[0].cmd)
	default:
		pipe := q.client.Pipeline()
		for _, r := range batch {
			pipe.Process(ctx, r.cmd)
		}
		_, err := pipe.Exec(ctx)
		if err != nil && !slices.ContainsFunc(batch, func(r *request) bool { return r.cmd.Err() != nil }) {
			// The server refused the connection: the SDK leaves the commands as if they had been answered.
			fail(batch, err)
		}
	}
}

// fail gives an error to the commands that have none.
func fail(batch []*request, err error) {
	for _, r := range batch {
		if r.cmd.Err() == nil {
			r.cmd.SetErr(err)
		}
	}
}

// until is a context with a deadline that needs no timer: the SDK gives it to the connection.
type until struct {
	context.Context
	deadline time.Time
}

func (u until) Deadline() (time.Time, bool) { return u.deadline, !u.deadline.IsZero() }
