package store

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/prism-gateway/prism/controlplane/snapshot"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
)

// maxQueue bounds the changes that wait for the committer.
const maxQueue = 10_000

// evaluated is what a change made of a tree.
type evaluated struct {
	tree    *snapshot.Tree
	changes []*recordv1.Change
	records map[ident.Hash][]byte // of namespaces, by hash
}

// request is a change that waits for the committer.
type request struct {
	ctx    context.Context
	apply  func(base *snapshot.Tree, version uint64) (evaluated, error)
	guard  *guard
	taken  atomic.Bool // by the committer, or by a caller that gave up before
	answer chan answer // of one
}

// guard is, for a rollback, the stored snapshot that must still be kept when the rollback is recorded: as long as it
// is, no sweep deletes what it refers to.
type guard struct {
	version  uint64
	revision int64
	tree     *snapshot.Tree
}

type answer struct {
	commit Commit
	err    error
}

// queue holds requests for the committer, in order.
type queue struct {
	wake chan struct{} // of one: there are requests

	mu      sync.Mutex // guards all below
	waiting []*request
	closed  error
}

func newQueue() queue { return queue{wake: make(chan struct{}, 1)} }

func (q *queue) add(r *request) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed != nil {
		return q.closed
	}
	if len(q.waiting) >= maxQueue {
		return fault.Newf(fault.Exhausted, fault.Queue, "%d changes wait already: try again later", maxQueue).WithOutcome(fault.NotApplied)
	}
	q.waiting = append(q.waiting, r)
	signal(q.wake)
	return nil
}

// take removes the first requests, at most limit, and claims them; those whose callers gave up are left out.
func (q *queue) take(limit int) []*request {
	q.mu.Lock()
	defer q.mu.Unlock()
	var batch []*request
	n := 0
	for ; n < len(q.waiting) && len(batch) < limit; n++ {
		if q.waiting[n].taken.CompareAndSwap(false, true) {
			batch = append(batch, q.waiting[n])
		}
	}
	clear(q.waiting[:n])
	if q.waiting = q.waiting[n:]; len(q.waiting) > 0 {
		signal(q.wake)
	} else {
		q.waiting = nil
	}
	return batch
}

// fail answers all that wait.
func (q *queue) fail(err error) {
	for _, r := range q.take(maxQueue) {
		r.answer <- answer{err: err}
	}
}

// close answers all that wait, now and later.
func (q *queue) close(err error) {
	q.mu.Lock()
	q.closed = err
	q.mu.Unlock()
	q.fail(err)
}
