package push

import (
	"slices"
	"strings"
	"sync"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"

	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	"github.com/prism-gateway/prism/shared/ident"
)

// state is what streams are shown. It does not change, but for the endings, which are made when they are needed.
type state struct {
	released *release.State
	revision int64 // of the store at which released was the newest
	news     *news
	owners   *owners

	mu   sync.Mutex        // guards ends; held to look one up, or to make one
	ends map[endKey]ending // made since the state is shown
}

// view is what a proxy is to have of a partition.
func (s *state) view(node string, p ident.Partition) release.View {
	rank := release.Other
	if len(s.released.Active()) > 0 { // else every rank sees the same
		rank = s.owners.rank(node, p)
	}
	return s.released.View(p, rank)
}

// partitions is how many there are.
func (s *state) partitions() uint32 { return s.released.Head().Partitions() }

// owners is an assignment, as it is pushed and as it is asked. It does not change.
type owners struct {
	resource   *discoveryv3.Resource
	size       int // of resource, in bytes on the wire
	assignment *configv1.Assignment
	members    map[string]uint32 // places in the assignment, by id
}

func newOwners(a *configv1.Assignment) (*owners, error) {
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(a)
	if err != nil {
		return nil, err
	}
	resource := &discoveryv3.Resource{
		Name:     fleetName,
		Version:  ident.HashOf(body).String(),
		Resource: &anypb.Any{TypeUrl: AssignmentType, Value: body},
	}
	o := &owners{resource: resource, size: sizeOf(resource), assignment: a, members: make(map[string]uint32, len(a.GetMembers()))}
	for i, m := range a.GetMembers() {
		o.members[m.GetId()] = uint32(i)
	}
	return o, nil
}

// rank is a proxy's in a partition. One that is not in the fleet has none.
func (o *owners) rank(node string, p ident.Partition) release.Rank {
	if o == nil {
		return release.Other
	}
	member, ok := o.members[node]
	if !ok {
		return release.Other
	}
	if o.assignment.GetMembers()[member].GetValidator() {
		return release.Validator
	}
	if int(p) < len(o.assignment.GetPartitions()) {
		if rank := slices.Index(o.assignment.GetPartitions()[p].GetOwners(), member); rank >= 0 {
			return release.Rank(rank)
		}
	}
	return release.Other
}

// shift is a step from one state to the next, of the releases and not of the owners.
type shift struct {
	before, after *release.State
	// shared is whether the shared collection of any cell may have moved, waves whether a release has come to more
	// cells or has ended.
	shared, waves bool
}

func newShift(before, after *release.State) shift {
	m := shift{before: before, after: after, waves: wavesMoved(before.Active(), after.Active())}
	m.shared = moved(before.Head().Shared(), after.Head().Shared()) || moved(before.Stable().Shared(), after.Stable().Shared()) ||
		m.waves && moved(after.Stable().Shared(), after.Head().Shared())
	return m
}

// may reports whether a view of a partition may have moved. It only compares roots.
func (m shift) may(p ident.Partition) bool {
	head, stable := m.after.Head().Collection(p), m.after.Stable().Collection(p)
	return m.shared || moved(m.before.Head().Collection(p), head) || moved(m.before.Stable().Collection(p), stable) ||
		m.waves && moved(stable, head)
}

func moved(from, to *snapshot.Collection) bool { return from != to && from.Root() != to.Root() }

func wavesMoved(before, after []*recordv1.Release) bool {
	return !slices.EqualFunc(before, after, func(a, b *recordv1.Release) bool {
		return a == b || a.GetSnapshot() == b.GetSnapshot() && a.GetWave() == b.GetWave()
	})
}

// news is what the newest snapshot's record tells those who get it at once.
type news struct {
	version  uint64
	recorded *timestamppb.Timestamp
	traces   func() traces
}

// traces are the trace contexts of the newest traced changes of a snapshot: of each partition, and of all of them.
type traces struct {
	all string
	of  map[ident.Partition]string
}

func newNews(record *recordv1.Snapshot, partitions uint32) *news {
	n := &news{version: record.GetVersion(), recorded: record.GetRecordedAt()}
	n.traces = sync.OnceValue(func() traces {
		t := traces{of: map[ident.Partition]string{}}
		for _, c := range record.GetChanges() {
			switch namespace, ok := strings.CutPrefix(c.GetName(), snapshot.NamespacePrefix); {
			case c.GetTraceParent() == "":
			case ok:
				t.of[ident.PartitionOf(namespace, partitions)] = c.GetTraceParent()
			default:
				t.all = c.GetTraceParent()
			}
		}
		return t
	})
	return n
}

// announce adds to a partition's sentinel what is known of the snapshot that it is of. How long ago it was recorded
// says nothing about a snapshot that goes in waves.
func (s *state) announce(sentinel *configv1.Sentinel, c cell) {
	if sentinel.GetSnapshotVersion() != s.news.version {
		return
	}
	if !slices.ContainsFunc(s.released.Active(), func(r *recordv1.Release) bool { return r.GetSnapshot() == s.news.version }) {
		sentinel.CommittedAt = s.news.recorded
	}
	t := s.news.traces()
	sentinel.TraceParent = t.all
	if own, ok := t.of[ident.Partition(c)]; ok && c != sharedCell {
		sentinel.TraceParent = own
	}
}
