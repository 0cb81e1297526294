package store_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	"github.com/prism-gateway/prism/controlplane/store"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
)

// moment is a time that a test sets.
type moment struct{ passed atomic.Int64 }

func (c *moment) now() time.Time {
	return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(c.passed.Load()))
}

func (c *moment) set(d time.Duration) { c.passed.Store(int64(d)) }

func hashOf(token string) ident.Hash { return ident.HashOf([]byte(token)) }

func anything(*snapshot.Tree) error { return nil }

// reserve keeps a name for an hour for whoever has the token.
func reserve(t testing.TB, s *replica, name, token string) error {
	_, err := s.ReserveName(t.Context(), &recordv1.NameReservation{
		Namespace: name, Team: "accounts", TokenHash: hashOf(token).Bytes(), Author: "ann", LeaseSeconds: 3600,
	}, anything)
	return err
}

// create makes a namespace, with a token if there is one.
func create(t testing.TB, s *replica, name, token string) error {
	order := release.Order{}
	if token != "" {
		order.Tokens = map[string]ident.Hash{name: hashOf(token)}
	}
	_, err := s.Commit(t.Context(), order, edit(namespace(t, name, "1")))
	return err
}

func want(t *testing.T, what string, err error, reason fault.Reason) {
	t.Helper()
	if reason == "" && err != nil || reason != "" && !fault.Is(err, reason) {
		t.Errorf("%s: %v, want %q", what, err, reason)
	}
}

// TestReservingRacesCreating lets one replica reserve names while another makes or reserves them: of two one wins, and
// the other is told so.
func TestReservingRacesCreating(t *testing.T) {
	a, b := open(t, store.Config{Name: "a"}), open(t, store.Config{Name: "b"})
	reserved, made := 0, 0
	for round := range 150 {
		name := fmt.Sprint("name-", round)
		var first, second, other error
		var racing sync.WaitGroup
		racing.Go(func() { first = reserve(t, a, name, "of-a") })
		racing.Go(func() {
			if round%2 == 0 {
				second = create(t, b, name, "")
			} else {
				second = reserve(t, b, name, "of-b")
			}
		})
		racing.Go(func() { other = create(t, b, "busy", fmt.Sprint(round)) }) // so that heads move
		racing.Wait()
		want(t, "an unrelated change", other, "")
		switch {
		case first == nil && fault.Is(second, fault.Reserved):
			reserved++
			want(t, "the holder's creation elsewhere", create(t, b, name, "of-a"), "")
		case second == nil && round%2 == 0 && fault.Is(first, fault.AlreadyThere):
			made++
		case second == nil && fault.Is(first, fault.Reserved):
			want(t, "the holder's creation elsewhere", create(t, a, name, "of-b"), "")
		default:
			t.Fatalf("%s: reserving %v, the other %v", name, first, second)
		}
	}
	t.Logf("reserving won %d races, creating %d", reserved, made)
}

func TestReservationLastsItsLeaseAndGrace(t *testing.T) {
	var at moment
	a, b := open(t, store.Config{Name: "a", Now: at.now}), open(t, store.Config{Name: "b", Now: at.now})
	for _, name := range []string{"renewed", "used", "late", "lapsed", "released", "taken"} {
		want(t, "reserve "+name, reserve(t, a, name, "token"), "")
	}
	// What one replica acknowledged, another knows when it commits.
	at.set(59 * time.Minute)
	want(t, "reserve again", reserve(t, b, "renewed", "other"), fault.Reserved)
	want(t, "create without the token", create(t, b, "used", ""), fault.Reserved)
	want(t, "create with another token", create(t, b, "used", "other"), fault.Reservation)
	_, err := b.RenewName(t.Context(), "renewed", hashOf("other"))
	want(t, "renew with another token", err, fault.Reservation)
	_, err = b.ReleaseName(t.Context(), "released", hashOf("other"))
	want(t, "release with another token", err, fault.Reservation)
	_, err = b.ReleaseName(t.Context(), "released", hashOf("token"))
	want(t, "release", err, "")
	want(t, "reserve what was released", reserve(t, a, "released", "other"), "")
	_, err = b.ReleaseName(t.Context(), "taken", ident.Hash{})
	want(t, "take away", err, "")
	_, err = b.ReleaseName(t.Context(), "taken", ident.Hash{})
	want(t, "take away what is free", err, fault.Reservation)

	at.set(69 * time.Minute) // the lease has run out, the grace not
	want(t, "create in the grace of another", create(t, b, "late", ""), fault.Reserved)
	renewed, err := b.RenewName(t.Context(), "renewed", hashOf("token"))
	want(t, "renew in the grace", err, "")
	if until := renewed.GetExpiresAt().AsTime(); !until.Equal(at.now().Add(time.Hour)) {
		t.Errorf("renewed until %v", until)
	}
	want(t, "use in the grace", create(t, b, "used", "token"), "")
	want(t, "reserve what is used", reserve(t, a, "used", "other"), fault.AlreadyThere)

	at.set(71 * time.Minute) // free by itself
	_, err = a.RenewName(t.Context(), "lapsed", hashOf("token"))
	want(t, "renew too late", err, fault.Reservation)
	want(t, "create what has lapsed", create(t, a, "lapsed", ""), "")
	want(t, "reserve what has lapsed", reserve(t, b, "late", "other"), "")
	want(t, "create with the token that has lapsed", create(t, a, "late", "token"), fault.Reservation)

	names := func(s *replica) string {
		var out []string
		for _, r := range s.ReservedNames() {
			out = append(out, r.GetNamespace())
		}
		return fmt.Sprint(out)
	}
	if got := names(b); got != "[late released renewed]" {
		t.Errorf("reserved: %s", got)
	}
	if got := names(open(t, store.Config{Name: "c", Now: at.now})); got != "[late released renewed]" {
		t.Errorf("a cold replica knows %s", got)
	}
	if got := len(b.ReservedBy("accounts")); got != 3 {
		t.Errorf("reserved by the team: %d", got)
	}
	at.set(24 * time.Hour)
	// Those three, and the one that lapsed before somebody else used the name.
	if swept, err := b.Sweep(t.Context()); err != nil || swept.Names != 4 {
		t.Errorf("swept %+v, %v", swept, err)
	}
	left, err := dial(t).Get(t.Context(), prefix(t)+"/n/", clientv3.WithPrefix())
	if err != nil || left.Count != 0 {
		t.Errorf("%d reservations are stored, %v", left.Count, err)
	}
}

func TestAReservationIsUsedUpByTheCreation(t *testing.T) {
	s := open(t, store.Config{})
	want(t, "reserve", reserve(t, s, "orders", "token"), "")
	before := s.Head().Version()
	want(t, "create", create(t, s, "orders", "token"), "")
	if got := s.Head().Version(); got != before+1 {
		t.Errorf("snapshot %d, want %d: a reservation is no snapshot", got, before+1)
	}
	_, err := s.RenewName(t.Context(), "orders", hashOf("token"))
	want(t, "renew what is used up", err, fault.Reservation)
	commit(t, s, snapshot.Set{Name: "ns/orders"})
	want(t, "the name of a deleted namespace is free", create(t, s, "orders", ""), "")

	order := release.Order{Objects: 40, Tokens: map[string]ident.Hash{}}
	var sets []snapshot.Set
	for i := range 40 {
		name := fmt.Sprint("many-", i)
		want(t, "reserve", reserve(t, s, name, "token"), "")
		order.Tokens[name] = hashOf("token")
		sets = append(sets, namespace(t, name, "1"))
	}
	_, err = s.Commit(t.Context(), order, edit(sets...))
	want(t, "more than one change can use", err, fault.TooLarge)
	_, err = s.Commit(t.Context(), order, edit(sets[:32]...))
	want(t, "as many as one change can use", err, "")
	if got := len(s.ReservedNames()); got != 8 {
		t.Errorf("%d are still reserved, want 8", got)
	}
}

// TestARollbackBringsBackWhatIsReserved shows that nobody can keep a rollback from being made by reserving names.
func TestARollbackBringsBackWhatIsReserved(t *testing.T) {
	s := open(t, store.Config{})
	there := commit(t, s, namespace(t, "orders", "1"))
	commit(t, s, snapshot.Set{Name: "ns/orders"})
	want(t, "reserve", reserve(t, s, "orders", "token"), "")
	if _, err := s.Rollback(t.Context(), release.Order{}, there.Tree.Version(), snapshot.Note{}, nil); err != nil {
		t.Fatal(err)
	}
	if len(s.ReservedNames()) != 0 {
		t.Error("the name of a namespace is told to be reserved")
	}
	if swept, err := s.Sweep(t.Context()); err != nil || swept.Names != 1 {
		t.Errorf("swept %+v, %v", swept, err)
	}
}
