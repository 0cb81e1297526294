package store_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	"github.com/prism-gateway/prism/controlplane/store"
)

// TestALargeChangeIsMadeAmongManySmall makes a change of 5,000 namespaces, all of which are others with each attempt as
// those of the API are, while another replica makes small ones without pause.
func TestALargeChangeIsMadeAmongManySmall(t *testing.T) {
	const many = 5000
	const timeout = 5 * time.Second // with the race detector one attempt takes longer than a turn by default
	large, busy := open(t, store.Config{Name: "large", Timeout: timeout}), open(t, store.Config{Name: "busy", Timeout: timeout})
	var made atomic.Int64
	more := make(chan struct{}, 1)
	ctx, stop := context.WithCancel(t.Context())
	var callers sync.WaitGroup
	for n := range 4 {
		callers.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				if _, err := busy.Commit(t.Context(), release.Order{}, edit(namespace(t, fmt.Sprintf("small-%d", n), fmt.Sprint(i)))); err != nil {
					t.Error(err)
					return
				}
				made.Add(1)
				select {
				case more <- struct{}{}:
				default:
				}
			}
		})
	}
	until := func(goal int64) {
		for made.Load() < goal {
			<-more
		}
	}
	until(50)
	attempts := 0
	c, err := large.Commit(t.Context(), release.Order{Objects: many}, func(_ *snapshot.Tree, version uint64) ([]snapshot.Set, error) {
		attempts++
		sets := make([]snapshot.Set, many)
		for i := range sets {
			sets[i] = namespace(t, fmt.Sprintf("large-%d", i), fmt.Sprint(version))
		}
		return sets, nil
	})
	before := made.Load()
	until(before + 50)
	stop()
	callers.Wait()
	if err != nil {
		t.Fatal(err)
	}
	if got := contentOf(t, c.Tree, "large-0"); got != fmt.Sprint(c.Tree.Version()) || len(c.Snapshot.Changes) != many {
		t.Errorf("snapshot %d has %q and %d changes", c.Tree.Version(), got, len(c.Snapshot.Changes))
	}
	t.Logf("%d attempts among %d small changes", attempts, before)
}

func TestOthersHoldBackInATurn(t *testing.T) {
	client := dial(t)
	for _, c := range []struct {
		name    string
		timeout time.Duration
		ends    bool
	}{
		{"until it ends", time.Minute, true},
		{"but not for ever", 400 * time.Millisecond, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := open(t, store.Config{Client: client, Prefix: prefix(t), Timeout: c.timeout})
			key := "/" + prefix(t) + "/turn"
			if _, err := client.Put(t.Context(), key, "another"); err != nil {
				t.Fatal(err)
			}
			known(t, s)
			answer := committing(t, s, namespace(t, "orders", "1"))
			if !c.ends {
				<-answer
				return
			}
			// Steps do not hold back.
			if _, err := s.Step(t.Context(), func(*release.State) (release.Step, error) { return release.Step{}, nil }); err != nil {
				t.Fatal(err)
			}
			gone, err := client.Delete(t.Context(), key)
			if err != nil {
				t.Fatal(err)
			}
			if got := <-answer; got.Revision <= gone.Header.Revision {
				t.Errorf("committed at revision %d, in a turn that ended at %d", got.Revision, gone.Header.Revision)
			}
		})
	}
}

// TestATurnIsKnownFromTheStart holds a replica that starts in the turn of another.
func TestATurnIsKnownFromTheStart(t *testing.T) {
	client, key := dial(t), "/"+prefix(t)+"/turn"
	if _, err := client.Put(t.Context(), key, "another"); err != nil {
		t.Fatal(err)
	}
	s := open(t, store.Config{Client: client, Timeout: time.Minute})
	answer := committing(t, s, namespace(t, "orders", "1"))
	gone, err := client.Delete(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	if got := <-answer; got.Revision <= gone.Header.Revision {
		t.Errorf("committed at revision %d, in a turn that ended at %d", got.Revision, gone.Header.Revision)
	}
}

// committing starts to make a change, and tells what became of it.
func committing(t *testing.T, s *replica, set snapshot.Set) <-chan store.Commit {
	answer := make(chan store.Commit, 1)
	go func() {
		c, err := s.Commit(t.Context(), release.Order{}, edit(set))
		if err != nil {
			t.Error(err)
		}
		answer <- c
	}()
	return answer
}

// known returns when a replica has followed everything that was written before.
func known(t *testing.T, s *replica) {
	t.Helper()
	changed, stop := s.WatchFleet()
	defer stop()
	if _, _, err := s.PutMember(t.Context(), member("mark", "another"), time.Minute); err != nil {
		t.Fatal(err)
	}
	for len(s.Members()) == 0 {
		<-changed
	}
}
