package store

import (
	"cmp"
	"context"
	"crypto/subtle"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/prism-gateway/prism/controlplane/snapshot"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
)

const (
	// nameGrace is for how long after its lease a reservation may still be renewed or used, by its holder alone.
	nameGrace = 10 * time.Minute
	// maxNames bounds the reservations of an installation.
	maxNames = 10_000
	// maxClaims bounds the reservations that one change uses, since all of them are part of its transaction.
	maxClaims = 32
)

// names are the reservations that are known. A write of one writes head too, unchanged, so that a commit that was
// evaluated without knowing of it loses its compare-and-swap and is evaluated again. The watch brings both in one
// revision: whoever knows a head knows all reservations that were written before it.
type names struct {
	mu   sync.Mutex // guards all below
	held map[string]heldName
	gone int64                      // the newest revision known at which a name was freed
	team map[string]map[string]bool // names by team
}

type heldName struct {
	*recordv1.NameReservation
	revision int64
}

// put takes over what a revision made of a name; nil is gone. What is newer already stays.
func (n *names) put(name string, r *recordv1.NameReservation, revision int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.putLocked(name, r, revision)
}

func (n *names) putLocked(name string, r *recordv1.NameReservation, revision int64) {
	old, there := n.held[name]
	if there && old.revision > revision {
		return
	}
	if there {
		delete(n.team[old.GetTeam()], name)
		if len(n.team[old.GetTeam()]) == 0 {
			delete(n.team, old.GetTeam())
		}
		delete(n.held, name)
	}
	if r == nil {
		n.gone = max(n.gone, revision)
		return
	}
	if n.held == nil {
		n.held, n.team = map[string]heldName{}, map[string]map[string]bool{}
	}
	if n.team[r.GetTeam()] == nil {
		n.team[r.GetTeam()] = map[string]bool{}
	}
	n.held[name], n.team[r.GetTeam()][name] = heldName{r, revision}, true
}

// replace takes over all that there was at a revision.
func (n *names) replace(all map[string]heldName, revision int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.replaceLocked(all, revision)
}

// refresh does what replace does, unless a name is known to have been freed since: all may hold that one, and no event
// would free it again.
func (n *names) refresh(all map[string]heldName, revision int64) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.gone > revision {
		return false
	}
	n.replaceLocked(all, revision)
	return true
}

func (n *names) replaceLocked(all map[string]heldName, revision int64) {
	for name, old := range n.held {
		if _, there := all[name]; !there && old.revision <= revision {
			n.putLocked(name, nil, revision)
		}
	}
	for name, r := range all {
		n.putLocked(name, r.NameReservation, r.revision)
	}
}

// get returns the reservation of a name, nil when it has none or when that has run out.
func (n *names) get(name string, now time.Time) *recordv1.NameReservation {
	n.mu.Lock()
	defer n.mu.Unlock()
	return live(n.held[name].NameReservation, now)
}

// live is r unless it has run out, with its grace, by the given time.
func live(r *recordv1.NameReservation, now time.Time) *recordv1.NameReservation {
	if r == nil || now.After(r.GetExpiresAt().AsTime().Add(nameGrace)) {
		return nil
	}
	return r
}

func (n *names) len() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.held)
}

// ReservedNames returns the reservations that hold, by name; those of names that are namespaces meanwhile do not.
func (s *Store) ReservedNames() []*recordv1.NameReservation {
	now, tree := s.cfg.Now(), s.Head()
	s.names.mu.Lock()
	defer s.names.mu.Unlock()
	var out []*recordv1.NameReservation
	for name, r := range s.names.held {
		if _, made := tree.Namespace(name); !made && live(r.NameReservation, now) != nil {
			out = append(out, r.NameReservation)
		}
	}
	slices.SortFunc(out, func(a, b *recordv1.NameReservation) int { return cmp.Compare(a.GetNamespace(), b.GetNamespace()) })
	return out
}

// ReservedBy returns the names that are reserved for a team, in no order. Some may be namespaces meanwhile.
func (s *Store) ReservedBy(team string) []string {
	now := s.cfg.Now()
	s.names.mu.Lock()
	defer s.names.mu.Unlock()
	var out []string
	for name := range s.names.team[team] {
		if live(s.names.held[name].NameReservation, now) != nil {
			out = append(out, name)
		}
	}
	return out
}

// ReserveName keeps a name for whoever has the token whose hash r holds, for r.LeaseSeconds from now. check may refuse
// it; like an Edit it is pure and may be asked again. A name that exists or is reserved is refused.
func (s *Store) ReserveName(ctx context.Context, r *recordv1.NameReservation, check func(base *snapshot.Tree) error) (*recordv1.NameReservation, error) {
	return s.changeName(ctx, r.GetNamespace(), r.GetTeam(), func(base *snapshot.Tree, held *recordv1.NameReservation) (*recordv1.NameReservation, error) {
		if _, there := base.Namespace(r.GetNamespace()); there {
			return nil, fault.Newf(fault.Exists, fault.AlreadyThere, "namespace %q exists", r.GetNamespace()).WithOutcome(fault.NotApplied)
		}
		if held != nil {
			return nil, reservedFault(held)
		}
		if s.names.len() >= maxNames {
			return nil, fault.Newf(fault.Exhausted, fault.Quota, "%d names are reserved already, and that is as many as there may be", maxNames).
				With("quota", "reservations").WithOutcome(fault.NotApplied)
		}
		if err := check(base); err != nil {
			return nil, err
		}
		now := s.cfg.Now()
		made := proto.CloneOf(r)
		made.ReservedAt = timestamppb.New(now)
		return leased(made, now), nil
	})
}

// leased is a reservation that was made or renewed now. It changes r.
func leased(r *recordv1.NameReservation, now time.Time) *recordv1.NameReservation {
	r.RenewedAt = timestamppb.New(now)
	r.ExpiresAt = timestamppb.New(now.Add(time.Duration(r.GetLeaseSeconds()) * time.Second))
	return r
}

// RenewName prolongs a reservation by its lease from now. token is the hash of the token that its holder has.
func (s *Store) RenewName(ctx context.Context, name string, token ident.Hash) (*recordv1.NameReservation, error) {
	return s.changeName(ctx, name, s.names.get(name, s.cfg.Now()).GetTeam(), func(_ *snapshot.Tree, held *recordv1.NameReservation) (*recordv1.NameReservation, error) {
		if !holds(held, token) {
			return nil, notHolder(name)
		}
		return leased(proto.CloneOf(held), s.cfg.Now()), nil
	})
}

// ReleaseName frees a name for its holder, or for an operator, who has no token and gives a zero hash. It returns the
// reservation that there was.
func (s *Store) ReleaseName(ctx context.Context, name string, token ident.Hash) (*recordv1.NameReservation, error) {
	var was *recordv1.NameReservation
	_, err := s.changeName(ctx, name, s.names.get(name, s.cfg.Now()).GetTeam(), func(_ *snapshot.Tree, held *recordv1.NameReservation) (*recordv1.NameReservation, error) {
		switch {
		case held == nil && token.IsZero():
			return nil, fault.Newf(fault.NotFound, fault.Reservation, "the name %q is not reserved", name).WithOutcome(fault.NotApplied)
		case !token.IsZero() && !holds(held, token):
			return nil, notHolder(name)
		}
		was = held
		return nil, nil
	})
	return was, err
}

// holds reports whether a token is that of a reservation, in a time that does not tell how much of it is right.
func holds(r *recordv1.NameReservation, token ident.Hash) bool {
	return r != nil && !token.IsZero() && subtle.ConstantTimeCompare(r.GetTokenHash(), token.Bytes()) == 1
}

func notHolder(name string) error {
	return fault.Newf(fault.FailedPrecondition, fault.Reservation,
		"the reservation of %q has run out, or the token is not its own", name).WithOutcome(fault.NotApplied)
}

func reservedFault(r *recordv1.NameReservation) error {
	until := r.GetExpiresAt().AsTime().Add(nameGrace).UTC().Format(time.RFC3339)
	return fault.Newf(fault.FailedPrecondition, fault.Reserved,
		"the name %q is reserved, until %s unless its holder renews it; its holder gives the token of the reservation", r.GetNamespace(), until).
		With("until", until).WithOutcome(fault.NotApplied)
}

// decision is what is to become of the reservation of a name, nil when it is to be free.
type decision func(base *snapshot.Tree, held *recordv1.NameReservation) (*recordv1.NameReservation, error)

// changeName takes the way of all changes, so that it is fair to teams and in one order with them.
func (s *Store) changeName(ctx context.Context, name, team string, decide decision) (*recordv1.NameReservation, error) {
	var next *recordv1.NameReservation
	_, err := s.submit(ctx, &request{team: team, name: name, decide: func(base *snapshot.Tree, held *recordv1.NameReservation) (*recordv1.NameReservation, error) {
		var err error
		next, err = decide(base, held)
		return next, err
	}})
	if err != nil {
		return nil, err // next may still be written to
	}
	return next, nil
}

// apply evaluates a request after those that are part of the plan already. A namespace that comes to be under a name
// that is reserved needs the reservation's token, and uses the reservation up.
func (s *Store) apply(p *plan, r *request) (evaluated, error) {
	now := s.cfg.Now()
	held := func(name string) *recordv1.NameReservation {
		if own, ok := p.names[name]; ok {
			return own
		}
		return s.names.get(name, now)
	}
	if r.decide != nil {
		next, err := r.decide(p.draft.Head(), held(r.name))
		return evaluated{draft: p.draft, names: map[string]*recordv1.NameReservation{r.name: next}}, err
	}
	e, err := r.apply(p.draft)
	if err != nil {
		return e, err
	}
	for _, c := range e.changes {
		name, ok := strings.CutPrefix(c.GetName(), snapshot.NamespacePrefix)
		if !ok || len(c.GetBefore()) > 0 {
			continue
		}
		of := held(name)
		if of == nil {
			continue // free, also for whoever held it once
		}
		if r.tokens[name].IsZero() {
			return e, reservedFault(of)
		}
		if !holds(of, r.tokens[name]) {
			return e, notHolder(name)
		}
		if e.names == nil {
			e.names = map[string]*recordv1.NameReservation{}
		}
		if e.names[name] = nil; len(e.names) > maxClaims {
			return e, fault.Newf(fault.Invalid, fault.TooLarge, "a change may use %d reservations at most: make several of them", maxClaims).WithOutcome(fault.NotApplied)
		}
	}
	return e, nil
}

// nameOps are what a plan does to reservations.
func (s *Store) nameOps(p *plan) ([]clientv3.Op, error) {
	var ops []clientv3.Op
	for _, name := range slices.Sorted(maps.Keys(p.names)) {
		if p.names[name] == nil {
			ops = append(ops, clientv3.OpDelete(s.keys.name(name)))
			continue
		}
		data, err := encode(p.names[name])
		if err != nil {
			return nil, fault.From(err)
		}
		ops = append(ops, clientv3.OpPut(s.keys.name(name), data))
	}
	return ops, nil
}

// recordNames writes reservations beside a head that stays as it is.
func (s *Store) recordNames(ctx context.Context, st *state, p *plan) (*state, error) {
	ops, err := s.nameOps(p)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, longFactor*s.cfg.Timeout)
	defer cancel()
	head, err := s.headOf(st)
	if err != nil {
		return nil, fault.From(err)
	}
	resp, err := s.etcd.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(s.keys.head()), "=", st.revision)).
		Then(append(ops, clientv3.OpPut(s.keys.head(), head))...).Else(clientv3.OpGet(s.keys.head())).Commit()
	switch {
	case err != nil && refused(err):
		return nil, notWritten(err)
	case err != nil:
		return nil, fault.Wrap(err, fault.Unavailable, fault.StoreDown,
			"the store of the control plane does not answer, and it is not known whether the reservation was changed: list the reserved names before trying again").
			WithRetry(time.Second).WithOutcome(fault.OutcomeUnknown)
	case !resp.Succeeded:
		return nil, s.lost(ctx, resp.Responses[0].GetResponseRange().Kvs)
	}
	return st.at(resp.Header.Revision), nil
}

// isName reports whether a key is that of a reservation.
func (s *Store) isName(key string) bool { return strings.HasPrefix(key, s.keys.names()) }

// nameEvent takes over what the watch tells of a reservation.
func (s *Store) nameEvent(event *clientv3.Event) error {
	key := string(event.Kv.Key)
	name := strings.TrimPrefix(key, s.keys.names())
	if event.Type == clientv3.EventTypeDelete {
		s.names.put(name, nil, event.Kv.ModRevision)
		return nil
	}
	r, err := decode[recordv1.NameReservation](key, event.Kv.Value)
	if err != nil {
		return err
	}
	s.names.put(name, r, event.Kv.ModRevision)
	return nil
}

// loadNames takes over all reservations as they were at a revision, after which the watch goes on.
func (s *Store) loadNames(kvs []*mvccpb.KeyValue, revision int64) error {
	all, err := s.decodeNames(kvs)
	if err == nil {
		s.names.replace(all, revision)
	}
	return err
}

func (s *Store) decodeNames(kvs []*mvccpb.KeyValue) (map[string]heldName, error) {
	all := make(map[string]heldName, len(kvs))
	for _, kv := range kvs {
		r, err := decode[recordv1.NameReservation](string(kv.Key), kv.Value)
		if err != nil {
			return nil, err
		}
		all[strings.TrimPrefix(string(kv.Key), s.keys.names())] = heldName{r, kv.ModRevision}
	}
	return all, nil
}

// readNames reads all reservations, for a head that the watch has not brought. It reads them again when the watch has
// overtaken it.
func (s *Store) readNames(ctx context.Context) error {
	for {
		resp, err := s.readTxn(ctx, clientv3.OpGet(s.keys.names(), clientv3.WithPrefix()))
		if err != nil {
			return err
		}
		all, err := s.decodeNames(resp.Responses[0].GetResponseRange().Kvs)
		if err != nil || s.names.refresh(all, resp.Header.Revision) {
			return err
		}
	}
}

// sweepNames deletes reservations that have run out, and those of names that are namespaces: a rollback brings a
// namespace back whoever has reserved its name since. One that was written meanwhile stays.
func (s *Store) sweepNames(ctx context.Context) (int, error) {
	now, tree := s.cfg.Now(), s.Head()
	var dead []*mvccpb.KeyValue
	s.names.mu.Lock()
	for name, r := range s.names.held {
		if _, made := tree.Namespace(name); made || live(r.NameReservation, now) == nil {
			dead = append(dead, &mvccpb.KeyValue{Key: []byte(s.keys.name(name)), ModRevision: r.revision})
		}
	}
	s.names.mu.Unlock()
	swept := 0
	for _, kv := range dead { // one by one, because those that are renewed are many at once
		n, err := s.deleteUnwritten(ctx, []*mvccpb.KeyValue{kv})
		swept += n
		if err != nil {
			return swept, err
		}
	}
	return swept, nil
}
