package store

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/fault"
)

// fleet is what is known of the keys beside the configuration. Its messages are not changed once they are in it.
type fleet struct {
	members   map[string]*recordv1.MemberLease // by key
	replicas  map[string]*recordv1.Replica     // by key
	placement *recordv1.Placement              // nil until one was made
	watchers  map[chan struct{}]struct{}
}

func newFleet() fleet {
	return fleet{
		members:  map[string]*recordv1.MemberLease{},
		replicas: map[string]*recordv1.Replica{},
		watchers: map[chan struct{}]struct{}{},
	}
}

// Members returns the proxies that are alive, by id.
func (s *Store) Members() []*recordv1.MemberLease {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.SortedFunc(maps.Values(s.fleet.members), func(a, b *recordv1.MemberLease) int {
		return strings.Compare(a.GetMember().GetId(), b.GetMember().GetId())
	})
}

// Member returns the proxy of that id that is alive, nil when none is.
func (s *Store) Member(id string) *recordv1.MemberLease {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fleet.members[s.keys.members()+id]
}

// Replicas returns the replicas that are alive, by id.
func (s *Store) Replicas() []*recordv1.Replica {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.SortedFunc(maps.Values(s.fleet.replicas), func(a, b *recordv1.Replica) int { return strings.Compare(a.Id, b.Id) })
}

// Placement returns what the elected replica decided last, nil when none has decided yet.
func (s *Store) Placement() *recordv1.Placement {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fleet.placement
}

// WatchFleet returns a channel that is sent to when members, replicas or the placement may have changed, and once at
// first; signals that nobody took are one. The function ends it.
func (s *Store) WatchFleet() (<-chan struct{}, func()) {
	c := make(chan struct{}, 1)
	c <- struct{}{}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fleet.watchers[c] = struct{}{}
	return c, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.fleet.watchers, c)
	}
}

// ErrLeaseLost is returned by keep when the lease ran out: put the key again.
var ErrLeaseLost = errors.New("store: the lease ran out")

// PutMember makes a proxy known for ttl, in whole seconds. keep prolongs it by ttl from now; it fails with ErrLeaseLost
// when it came too late. release ends it at once, unless another replica has put the member since.
func (s *Store) PutMember(ctx context.Context, m *recordv1.MemberLease, ttl time.Duration) (keep, release func(context.Context) error, err error) {
	if m.GetMember().GetId() == "" {
		return nil, nil, errors.New("store: a member needs an id")
	}
	return s.putLeased(ctx, s.keys.members()+m.Member.Id, m, ttl)
}

// PutReplica makes a replica known, as PutMember does a proxy.
func (s *Store) PutReplica(ctx context.Context, r *recordv1.Replica, ttl time.Duration) (keep, release func(context.Context) error, err error) {
	if r.GetId() == "" {
		return nil, nil, errors.New("store: a replica needs an id")
	}
	return s.putLeased(ctx, s.keys.replicas()+r.Id, r, ttl)
}

func (s *Store) putLeased(ctx context.Context, key string, value proto.Message, ttl time.Duration) (keep, release func(context.Context) error, err error) {
	data, err := encode(value)
	if err != nil {
		return nil, nil, err
	}
	bounded, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	lease, err := s.etcd.Grant(bounded, int64(max(1, ttl/time.Second)))
	if err != nil {
		return nil, nil, down(err)
	}
	release = func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
		defer cancel()
		if _, err := s.etcd.Revoke(ctx, lease.ID); err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
			return down(err)
		}
		return nil
	}
	if _, err := s.etcd.Put(bounded, key, data, clientv3.WithLease(lease.ID)); err != nil {
		return nil, nil, errors.Join(down(err), release(ctx))
	}
	keep = func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
		defer cancel()
		if _, err := s.etcd.KeepAliveOnce(ctx, lease.ID); errors.Is(err, rpctypes.ErrLeaseNotFound) {
			return ErrLeaseLost
		} else if err != nil {
			return down(err)
		}
		return nil
	}
	return keep, release, nil
}

// ErrNotLeader is returned by PutPlacement when this replica does not lead, or no longer does.
var ErrNotLeader = errors.New("store: this replica is not the leader")

// PutPlacement records what the leader decided. It fails with ErrNotLeader unless this replica leads at the moment at
// which etcd does it.
func (s *Store) PutPlacement(ctx context.Context, p *recordv1.Placement) error {
	leader := s.leading.Load()
	if leader == nil {
		return ErrNotLeader
	}
	data, err := encode(p)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	resp, err := s.etcd.Txn(ctx).If(leader.holds()).Then(clientv3.OpPut(s.keys.placement(), data)).Commit()
	if err != nil {
		return fault.From(down(err)).WithOutcome(fault.OutcomeUnknown)
	}
	if !resp.Succeeded {
		return ErrNotLeader
	}
	return nil
}

func (s *Store) isFleet(key string) bool {
	return key == s.keys.placement() || strings.HasPrefix(key, s.keys.members()) || strings.HasPrefix(key, s.keys.replicas())
}

// loadFleet replaces all that is known by what open read: members, replicas, placement.
func (s *Store) loadFleet(responses []*pb.ResponseOp) error {
	next := newFleet()
	for _, r := range responses {
		for _, kv := range r.GetResponseRange().Kvs {
			if err := next.put(s.keys, string(kv.Key), kv.Value); err != nil {
				return err
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	next.watchers = s.fleet.watchers
	s.fleet = next
	for c := range s.fleet.watchers {
		signal(c)
	}
	return nil
}

func (s *Store) fleetEvent(key string, event *clientv3.Event) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if event.Type == clientv3.EventTypeDelete {
		delete(s.fleet.members, key)
		delete(s.fleet.replicas, key)
		if key == s.keys.placement() {
			s.fleet.placement = nil
		}
	} else if err := s.fleet.put(s.keys, key, event.Kv.Value); err != nil {
		return err
	}
	for c := range s.fleet.watchers {
		signal(c)
	}
	return nil
}

func (f *fleet) put(keys keys, key string, data []byte) error {
	switch {
	case key == keys.placement():
		p, err := decode[recordv1.Placement](key, data)
		if err != nil {
			return err
		}
		f.placement = p
	case strings.HasPrefix(key, keys.members()):
		m, err := decode[recordv1.MemberLease](key, data)
		if err != nil {
			return err
		}
		f.members[key] = m
	default:
		r, err := decode[recordv1.Replica](key, data)
		if err != nil {
			return err
		}
		f.replicas[key] = r
	}
	return nil
}
