package store

import (
	"cmp"
	"container/heap"
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
)

const (
	maxQueue = 10_000 // changes that wait for the committer
	maxBatch = 16     // objects of one commit, but for a change that is larger by itself; more is hardly more in a second
)

// evaluated is what a change made of a draft.
type evaluated struct {
	draft   *release.Draft
	changes []*recordv1.Change
	records map[ident.Hash][]byte                // of namespaces, by hash
	names   map[string]*recordv1.NameReservation // that it makes, renews or, nil, ends
}

// request is a change that waits for the committer.
type request struct {
	ctx    context.Context
	apply  func(*release.Draft) (evaluated, error) // nil when it is about a reservation
	guard  *guard
	taken  atomic.Bool // by the committer, or by a caller that gave up before
	answer chan answer // of one

	team    string // whose share it takes
	weight  int    // of the team; less than 1 means 1
	objects int    // how many it may change; less than 1 means 1

	tokens map[string]ident.Hash // of reservations of names that it makes
	name   string                // whose reservation it is about
	decide decision              // what becomes of that

	arrived float64 // the queue's virtual time when it came
	number  uint64  // in the order of arrival
}

func (r *request) size() int { return max(1, r.objects) }

// cost is what a request takes of its team's share.
func (r *request) cost() float64 { return float64(r.size()) / float64(max(1, r.weight)) }

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

// queue holds requests for the committer, fair to teams. It is start-time fair queueing: a team's turn comes when
// virtual time, which is the start of the last turn, reaches its own start; that is when its request came, or when its
// share of what went before is used up, whichever is later. Within a team the order is that of arrival.
//
// A request costs the number of objects that it may change, as its caller says; to a team of weight 2 it costs half.
// Those that were given up cost nothing.
type queue struct {
	wake chan struct{} // of one: there are requests

	mu     sync.Mutex       // guards all below
	teams  map[string]*team // those that wait, and those whose share is used up beyond now
	turns  turns            // of those that wait
	count  int              // requests that wait
	number uint64           // of the last that came
	now    float64          // virtual time
	large  bool             // the last batch was one request larger than a batch
	closed error
}

// team is what waits of one team, and when its turn is.
type team struct {
	name    string
	waiting []*request // by arrival
	used    float64    // the virtual time until which its share is used up
	start   float64    // of its turn; meaningless while nothing waits
}

func newQueue() queue { return queue{wake: make(chan struct{}, 1), teams: map[string]*team{}} }

func (q *queue) add(r *request) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed != nil {
		return q.closed
	}
	if q.count >= maxQueue && !q.evictLocked(r) {
		return errQueue
	}
	t := q.teams[r.team]
	if t == nil {
		t = &team{name: r.team}
		q.teams[r.team] = t
	}
	q.number++
	r.arrived, r.number = q.now, q.number
	q.count++
	if t.waiting = append(t.waiting, r); len(t.waiting) == 1 {
		q.enterLocked(t)
	}
	signal(q.wake)
	return nil
}

var errQueue = fault.Newf(fault.Exhausted, fault.Queue, "%d changes wait already: try again later", maxQueue).
	WithRetry(time.Second).WithOutcome(fault.NotApplied)

// evictLocked makes room for a request by refusing the last one of the team that has most waiting for its weight. It
// returns false when that is the request's own team.
func (q *queue) evictLocked(r *request) bool {
	length := func(t *team) float64 { return float64(len(t.waiting)) / float64(max(1, t.waiting[0].weight)) }
	longest := slices.MaxFunc(q.turns, func(a, b *team) int { return cmp.Compare(length(a), length(b)) })
	own := 1 / float64(max(1, r.weight))
	if t := q.teams[r.team]; t != nil {
		own += float64(len(t.waiting)) / float64(max(1, r.weight))
	}
	if own > length(longest) || len(longest.waiting) == 1 {
		return false
	}
	n := len(longest.waiting) - 1
	last := longest.waiting[n]
	longest.waiting[n], longest.waiting = nil, longest.waiting[:n]
	q.count--
	if last.taken.CompareAndSwap(false, true) {
		last.answer <- answer{err: errQueue}
	}
	return true
}

// enterLocked gives a team with a new first request its turn.
func (q *queue) enterLocked(t *team) {
	t.start = max(t.waiting[0].arrived, t.used)
	heap.Push(&q.turns, t)
}

// leaveLocked takes the first request of the team whose turn it is.
func (q *queue) leaveLocked() {
	t := heap.Pop(&q.turns).(*team)
	t.waiting[0], t.waiting = nil, t.waiting[1:]
	if q.count--; len(t.waiting) > 0 {
		q.enterLocked(t)
	}
}

// take removes the requests whose turn it is and claims them: as many as come to so many objects, or one that is larger
// by itself. After such a one it is the turn of those that are not, so that they wait for one large commit at most.
func (q *queue) take(objects int) []*request {
	q.mu.Lock()
	defer q.mu.Unlock()
	small := q.large
	q.large = false
	batch := q.takeLocked(objects, small)
	if small && len(batch) == 0 {
		batch = q.takeLocked(objects, false)
	}
	if q.count > 0 {
		signal(q.wake)
		return batch
	}
	clear(q.teams) // nobody waits for another's share
	q.now = 0
	return batch
}

func (q *queue) takeLocked(objects int, small bool) []*request {
	var batch []*request
	var passed []*team
	for room := objects; room > 0 && len(q.turns) > 0; {
		t := q.turns[0]
		r := t.waiting[0]
		size := r.size()
		if r.taken.Load() { // given up
			q.leaveLocked()
			continue
		}
		if small && size > objects {
			passed = append(passed, heap.Pop(&q.turns).(*team))
			continue
		}
		if size > room && len(batch) > 0 {
			break
		}
		if !r.taken.CompareAndSwap(false, true) {
			continue
		}
		batch = append(batch, r)
		room -= size
		q.large = size > objects
		q.now = max(q.now, t.start)
		t.used = t.start + r.cost()
		q.leaveLocked()
	}
	for _, t := range passed {
		heap.Push(&q.turns, t)
	}
	if len(q.teams) > 2*len(q.turns)+maxBatch {
		maps.DeleteFunc(q.teams, func(_ string, t *team) bool { return len(t.waiting) == 0 && t.used <= q.now })
	}
	return batch
}

// fail answers all that wait.
func (q *queue) fail(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, t := range q.turns {
		for _, r := range t.waiting {
			if r.taken.CompareAndSwap(false, true) {
				r.answer <- answer{err: err}
			}
		}
	}
	clear(q.teams)
	q.turns, q.count, q.now, q.large = nil, 0, 0, false
}

// close answers all that wait, now and later.
func (q *queue) close(err error) {
	q.mu.Lock()
	q.closed = err
	q.mu.Unlock()
	q.fail(err)
}

// turns are teams that wait, a heap by start; of those with the same, who waits longest is first.
type turns []*team

func (t turns) Len() int { return len(t) }
func (t turns) Less(i, j int) bool {
	if t[i].start != t[j].start {
		return t[i].start < t[j].start
	}
	return t[i].waiting[0].number < t[j].waiting[0].number
}
func (t turns) Swap(i, j int) { t[i], t[j] = t[j], t[i] }
func (t *turns) Push(x any)   { *t = append(*t, x.(*team)) }
func (t *turns) Pop() any {
	old := *t
	n := len(old) - 1
	last := old[n]
	old[n] = nil
	*t = old[:n]
	return last
}
