package store

import (
	"context"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// turnTTL is for how long the others hold back for a replica that died in its turn; etcd takes about a second more.
const turnTTL = 2 * time.Second

// turn is the key by which a replica whose commit takes long, and so loses to shorter ones, asks the others to hold
// back. It is advice: what is committed is decided by the compare-and-swap of head alone.
type turn struct {
	mu       sync.Mutex    // guards all below
	revision int64         // at which etcd made the key that is known; 0 when there is none
	own      int64         // the revision of this replica's last
	over     chan struct{} // closed when the known one ends
	until    time.Time     // when it has lasted long enough
}

// set takes over the key as etcd has it, if it does.
func (t *turn) set(kvs []*mvccpb.KeyValue, longest time.Duration) {
	revision := int64(0)
	if len(kvs) > 0 {
		revision = kvs[0].CreateRevision
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if revision == t.revision {
		return
	}
	if t.revision != 0 {
		close(t.over)
	}
	t.revision, t.over, t.until = revision, make(chan struct{}), time.Now().Add(longest)
}

// others returns the turn of another replica that is to be respected, nil when there is none.
func (t *turn) others() (over <-chan struct{}, until time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.revision == 0 || t.revision == t.own || time.Now().After(t.until) {
		return nil, time.Time{}
	}
	return t.over, t.until
}

// maxTurn is how long a turn is respected.
func (s *Store) maxTurn() time.Duration { return longFactor * s.cfg.Timeout }

// yield holds back while it is the turn of another replica, until that has lasted too long, for no longer than most, or
// until ctx ends. Steps of releases are made meanwhile: they are few, and what they stop may be doing harm. It returns
// how long it was.
func (s *Store) yield(ctx context.Context, most time.Duration) time.Duration {
	over, until := s.turn.others()
	if over == nil || most <= 0 {
		return 0
	}
	began := time.Now()
	long := time.NewTimer(min(until.Sub(began), most))
	defer long.Stop()
	for {
		select {
		case <-over:
			return time.Since(began)
		case <-long.C:
			return time.Since(began)
		case <-ctx.Done():
			return time.Since(began)
		case r := <-s.steps:
			s.step(context.WithoutCancel(ctx), r)
		}
	}
}

// settle returns when head has stayed for a moment, or moves on all the same: what the others had begun before they knew
// of a turn is done then, and costs its holder no attempt.
func (s *Store) settle() {
	moved, stop := s.Watch()
	defer stop()
	latest := time.NewTimer(s.cfg.Timeout)
	defer latest.Stop()
	moment := s.cfg.Timeout / 10
	quiet := time.NewTimer(moment)
	defer quiet.Stop()
	for {
		select {
		case <-moved:
			quiet.Reset(moment)
		case <-quiet.C:
			return
		case <-latest.C:
			return
		}
	}
}

// takeTurn makes it this replica's turn until the function that it returns is called. It returns nil when that cannot be
// had, because another has it or etcd does not answer.
func (s *Store) takeTurn(ctx context.Context) (end func()) {
	bounded, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	lease, err := s.etcd.Grant(bounded, int64(turnTTL/time.Second))
	if err != nil {
		return nil
	}
	revoke := func() {
		bounded, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
		defer cancel()
		_, _ = s.etcd.Revoke(bounded, lease.ID) // it runs out by itself
	}
	resp, err := s.etcd.Txn(bounded).If(clientv3.Compare(clientv3.CreateRevision(s.keys.turn()), "=", 0)).
		Then(clientv3.OpPut(s.keys.turn(), s.cfg.Name, clientv3.WithLease(lease.ID))).Commit()
	if err != nil || !resp.Succeeded {
		revoke()
		return nil
	}
	s.turn.mu.Lock()
	s.turn.own = resp.Header.Revision
	s.turn.mu.Unlock()
	keeping, stop := context.WithCancel(ctx)
	var keeper sync.WaitGroup
	keeper.Go(func() {
		kept, err := s.etcd.KeepAlive(keeping, lease.ID)
		if err != nil {
			return
		}
		for range kept { // ends with keeping, or with the lease
		}
	})
	s.settle()
	return func() {
		stop()
		keeper.Wait()
		revoke()
	}
}
