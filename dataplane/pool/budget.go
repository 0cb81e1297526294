package pool

import (
	"sync"
	"time"
)

// idleFor is how long a lane without a call keeps its connections when others wait for them.
const idleFor = 100 * time.Millisecond

// budget bounds the connections to one backend over all of its credentials. A tenth is kept for replacing one pool by
// another, which needs both for a moment.
type budget struct {
	most int

	mu    sync.Mutex // guards what follows
	used  int
	lanes map[*lane]bool // open, or waiting to be
	freed chan struct{}  // closed, and replaced, when connections were given back
}

// Budget is how many connections the credentials of a backend have.
type Budget struct {
	// Connections are granted, of Limit, to Credentials.
	Connections, Limit, Credentials int
}

func (b *budget) info() Budget {
	b.mu.Lock()
	defer b.mu.Unlock()
	return Budget{Connections: b.used, Limit: b.most, Credentials: len(b.lanes)}
}

func newBudget(most int) *budget {
	return &budget{most: most, lanes: map[*lane]bool{}, freed: make(chan struct{})}
}

func (b *budget) reserve() int { return max(1, b.most/10) }

// share is what each lane may have when all have the same.
func (b *budget) share() int { return max(1, (b.most-b.reserve())/max(1, len(b.lanes))) }

// join counts a lane from now on.
func (b *budget) join(l *lane) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lanes[l] = true
}

func (b *budget) leave(l *lane) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.lanes, l)
}

// take grants up to want connections: a lane's fair share of what is free, or none. Replacing a pool may use what is kept
// for that.
func (b *budget) take(want int, replacing bool) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	free := b.most - b.used
	if !replacing {
		free -= b.reserve()
	}
	n := min(want, b.share(), free)
	if n <= 0 {
		return 0
	}
	b.used += n
	return n
}

// give returns connections.
func (b *budget) give(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used -= n
	close(b.freed)
	b.freed = make(chan struct{})
}

// wait is closed when connections were given back since.
func (b *budget) wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.freed
}

// yielding is the lane that should give way to one that waits: the one unused longest among those without a call, or else
// the largest above its share, to be made smaller; nil when there is none.
func (b *budget) yielding(now time.Time) (victim *lane, idle bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	share, largest := b.share(), 0
	var big *lane
	for l := range b.lanes {
		size, calls := l.load()
		switch {
		case size == 0:
		case calls == 0 && !l.leased.shared() && now.Sub(time.Unix(0, l.used.Load())) > idleFor:
			if victim == nil || l.used.Load() < victim.used.Load() {
				victim = l
			}
		case size > max(share, largest):
			big, largest = l, size
		}
	}
	if victim != nil {
		return victim, true
	}
	return big, false
}
