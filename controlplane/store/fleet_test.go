package store_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/prism-gateway/prism/controlplane/store"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
)

// waitFleet returns when the fleet is as it is wanted.
func waitFleet(t *testing.T, s *replica, wanted func() bool) {
	t.Helper()
	moved, stop := s.WatchFleet()
	defer stop()
	for {
		select {
		case <-moved:
			if wanted() {
				return
			}
		case <-t.Context().Done():
			t.Fatal("the test ended before the fleet was as wanted")
		}
	}
}

func member(id, replica string) *recordv1.MemberLease {
	return &recordv1.MemberLease{Member: &configv1.Member{Id: id, Address: "127.0.0.1:1"}, Replica: replica}
}

func TestMembersLiveAsLongAsTheirLeases(t *testing.T) {
	a, b := open(t, store.Config{}), open(t, store.Config{})
	keep, release, err := a.PutMember(t.Context(), member("proxy-1", "a"), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.PutMember(t.Context(), member("proxy-0", "a"), time.Hour); err != nil {
		t.Fatal(err)
	}
	waitFleet(t, b, func() bool { return len(b.Members()) == 2 && b.Members()[0].Member.Id == "proxy-0" })
	if err := keep(t.Context()); err != nil {
		t.Error(err)
	}
	// The proxy goes to another replica; what the first one does with its lease no longer matters.
	_, releaseB, err := b.PutMember(t.Context(), member("proxy-1", "b"), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := release(t.Context()); err != nil {
		t.Error(err)
	}
	if err := keep(t.Context()); !errors.Is(err, store.ErrLeaseLost) {
		t.Errorf("kept after its release: %v", err)
	}
	waitFleet(t, a, func() bool { return len(a.Members()) == 2 && a.Members()[1].Replica == "b" })
	if cold := open(t, store.Config{}); len(cold.Members()) != 2 {
		t.Errorf("a cold replica knows %v", cold.Members())
	}
	if err := releaseB(t.Context()); err != nil {
		t.Error(err)
	}
	waitFleet(t, a, func() bool { return len(a.Members()) == 1 })
	// The least that etcd grants, and nobody keeps it.
	if _, _, err := a.PutMember(t.Context(), member("proxy-2", "a"), time.Second); err != nil {
		t.Fatal(err)
	}
	waitFleet(t, b, func() bool { return len(b.Members()) == 2 })
	waitFleet(t, b, func() bool { return len(b.Members()) == 1 })
}

func TestReplicasKnowEachOther(t *testing.T) {
	a, b := open(t, store.Config{}), open(t, store.Config{})
	_, release, err := a.PutReplica(t.Context(), &recordv1.Replica{Id: "a", FleetAddress: "127.0.0.1:1"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	waitFleet(t, b, func() bool { return len(b.Replicas()) == 1 && b.Replicas()[0].FleetAddress == "127.0.0.1:1" })
	if err := release(t.Context()); err != nil {
		t.Error(err)
	}
	waitFleet(t, b, func() bool { return len(b.Replicas()) == 0 })
}

func TestOneLeadsAndOnlyItPlaces(t *testing.T) {
	a, b := open(t, store.Config{Name: "a"}), open(t, store.Config{Name: "b"})
	if err := a.PutPlacement(t.Context(), &recordv1.Placement{Epoch: 1}); !errors.Is(err, store.ErrNotLeader) {
		t.Errorf("placed before any election: %v", err)
	}
	lead := func(s *replica) (elected chan context.Context, stop func()) {
		ctx, cancel := context.WithCancel(t.Context())
		elected, ended := make(chan context.Context, 1), make(chan struct{})
		go func() {
			defer close(ended)
			err := s.Lead(ctx, func(ctx context.Context) error {
				elected <- ctx
				<-ctx.Done()
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		}()
		return elected, func() { cancel(); <-ended }
	}
	electedA, stopA := lead(a)
	<-electedA
	electedB, stopB := lead(b)
	if err := a.PutPlacement(t.Context(), &recordv1.Placement{Epoch: 1}); err != nil {
		t.Error(err)
	}
	waitFleet(t, b, func() bool { return b.Placement().GetEpoch() == 1 })
	if err := b.PutPlacement(t.Context(), &recordv1.Placement{Epoch: 2}); !errors.Is(err, store.ErrNotLeader) {
		t.Errorf("placed without being elected: %v", err)
	}
	stopA()
	<-electedB
	if err := a.PutPlacement(t.Context(), &recordv1.Placement{Epoch: 3}); !errors.Is(err, store.ErrNotLeader) || a.Leading() {
		t.Errorf("placed after resigning: %v", err)
	}
	if err := b.PutPlacement(t.Context(), &recordv1.Placement{Epoch: 4}); err != nil {
		t.Error(err)
	}
	waitFleet(t, a, func() bool { return a.Placement().GetEpoch() == 4 })
	stopB()
}

func TestALeaderThatLostItsLeaseIsFenced(t *testing.T) {
	client := dial(t)
	s := open(t, store.Config{})
	elections := make(chan struct{})
	go s.Lead(t.Context(), func(ctx context.Context) error {
		elections <- struct{}{}
		<-ctx.Done()
		return nil
	})
	<-elections
	// Its key goes, as when the lease runs out while the replica hangs and does not notice.
	for key := range all(t, client, "/"+prefix(t)+"/leader/") {
		remove(t, client, key)
	}
	if err := s.PutPlacement(t.Context(), &recordv1.Placement{Epoch: 1}); !errors.Is(err, store.ErrNotLeader) {
		t.Errorf("placed although the leadership is gone: %v", err)
	}
	// And its lease goes: it stands for election again.
	leases, err := client.Leases(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range leases.Leases {
		if _, err := client.Revoke(t.Context(), l.ID); err != nil {
			t.Fatal(err)
		}
	}
	<-elections
	if err := s.PutPlacement(t.Context(), &recordv1.Placement{Epoch: 2}); err != nil {
		t.Error(err)
	}
}

func TestFollowingTellsSinceWhen(t *testing.T) {
	fresh, err := store.New(store.Config{Client: dial(t), Name: "replica"})
	if err != nil {
		t.Fatal(err)
	}
	if since, heard := fresh.Following(); !since.IsZero() || !heard.IsZero() {
		t.Errorf("before it runs it follows since %v and heard of it at %v", since, heard)
	}
	a := open(t, store.Config{})
	var since, heard time.Time
	for i, id := range []string{"proxy-0", "proxy-1"} {
		if _, _, err := a.PutMember(t.Context(), member(id, "a"), time.Hour); err != nil {
			t.Fatal(err)
		}
		waitFleet(t, a, func() bool { return len(a.Members()) == i+1 })
		still, later := a.Following()
		if still.IsZero() || i > 0 && still != since || !later.After(heard) {
			t.Errorf("after %s it follows since %v, before since %v; heard of it at %v, before at %v", id, still, since, later, heard)
		}
		since, heard = still, later
	}
}
