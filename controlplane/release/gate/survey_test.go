package gate_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/release/gate"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/ident"
)

const partitions = 32

func namespace(t *testing.T, name, content string) snapshot.Set {
	t.Helper()
	marshal := func(m proto.Message) []byte {
		data, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	record := marshal(&recordv1.NamespaceRecord{Author: "ann", Request: &configv1.NamespaceRequest{Namespace: name, Team: content}})
	return snapshot.Set{Name: "ns/" + name, Author: "ann", Record: record, Data: marshal(&configv1.NamespaceConfig{
		Namespace: name, StoragePrefix: content, RecordHash: ident.HashOf(record).Bytes()})}
}

// changed is a state after a change of namespaces under policies.
func changed(t *testing.T, s *release.State, policies release.Policies, sets ...snapshot.Set) *release.State {
	t.Helper()
	draft, _, err := s.Draft(start).With(release.Order{}, policies, sets)
	if err != nil {
		t.Fatal(err)
	}
	done, err := draft.Done()
	if err != nil {
		t.Fatal(err)
	}
	return done.State
}

// underWay is a state in which a change of a namespace has reached a wave, and the release's number.
func underWay(t *testing.T, wave int) (*release.State, uint64) {
	t.Helper()
	s := changed(t, release.Settled(snapshot.New(partitions)), release.Policies{}, namespace(t, "orders", "old"))
	s = changed(t, s, release.Policies{Scoped: &configv1.ReleasePolicy{}}, namespace(t, "orders", "given"))
	step, err := s.Apply(release.Step{Release: s.Head().Version(), Do: release.Wave, Wave: wave}, start)
	if err != nil {
		t.Fatal(err)
	}
	return step.State, s.Head().Version()
}

// fleet has three owners of every partition, one proxy that loads it, and a validator.
func fleet() *configv1.Assignment {
	a := &configv1.Assignment{}
	for i := range 4 {
		a.Members = append(a.Members, &configv1.Member{Id: fmt.Sprintf("proxy-%d", i)})
	}
	a.Members = append(a.Members, &configv1.Member{Id: "validator", Validator: true})
	for range partitions {
		a.Partitions = append(a.Partitions, &configv1.PartitionOwners{Owners: []uint32{2, 0, 1}, Loading: []uint32{3}})
	}
	return a
}

// members are the proxies of the fleet, but for some.
func members(but ...string) []*recordv1.MemberLease {
	var all []*recordv1.MemberLease
	for _, m := range fleet().GetMembers() {
		if !slices.Contains(but, m.GetId()) {
			all = append(all, &recordv1.MemberLease{Member: m})
		}
	}
	return all
}

func TestSurvey(t *testing.T) {
	type cell struct {
		proxy   string
		wave    int
		reached bool
	}
	for wave, want := range map[int][]cell{
		release.WaveValidators: {{"validator", 1, true}, {"proxy-2", 2, false}, {"proxy-0", 4, false}, {"proxy-1", 5, false}, {"proxy-3", 5, false}},
		release.WaveRank0:      {{"validator", 1, true}, {"proxy-2", 2, true}, {"proxy-0", 4, false}, {"proxy-1", 5, false}, {"proxy-3", 5, false}},
		release.WaveAll:        {{"validator", 1, true}, {"proxy-2", 2, true}, {"proxy-0", 4, true}, {"proxy-1", 5, true}, {"proxy-3", 5, true}},
	} {
		t.Run(release.WaveName(wave), func(t *testing.T) {
			s, snapshot := underWay(t, wave)
			newest := s.Head().Collection(ident.PartitionOf("orders", partitions)).Root()
			var got []cell
			for _, c := range gate.Survey(s, snapshot, fleet()) {
				got = append(got, cell{c.Proxy, c.Wave, c.Reached})
				if wants := len(c.Wants) == 1 && c.Wants[0].Partition == newest; wants != c.Reached {
					t.Errorf("%s wants %v", c.Proxy, c.Wants)
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("%v, want %v", got, want)
			}
		})
	}
}

func TestMissingTellsWhoIsGone(t *testing.T) {
	s, snapshot := underWay(t, release.WaveAll)
	cells := gate.Survey(s, snapshot, fleet())
	gate.Missing(cells, members("proxy-0"))
	for _, c := range cells {
		if c.Gone != (c.Proxy == "proxy-0") {
			t.Errorf("%s is gone: %v", c.Proxy, c.Gone)
		}
	}
}

func TestNextWave(t *testing.T) {
	s, snapshot := underWay(t, release.WaveValidators)
	cells := gate.Survey(s, snapshot, fleet())
	for reached, want := range map[int]int{0: 1, 1: 2, 2: 4, 3: 4, 4: 5} { // the first wave of owners is all of rank 0
		if got := gate.NextWave(cells, reached); got != want {
			t.Errorf("after wave %d comes %d, want %d", reached, got, want)
		}
	}
	if got := gate.NextWave(nil, 0); got != release.WaveAll {
		t.Errorf("without cells comes %d", got)
	}
}

func TestObserve(t *testing.T) {
	s, snapshot := underWay(t, release.WaveAll)
	pending := gate.Pending(s, snapshot)
	version, ok := pending("ns/orders")
	if _, other := pending("ns/carts"); !ok || other {
		t.Fatalf("orders is pending: %v, carts: %v", ok, other)
	}
	cells := gate.Survey(s, snapshot, fleet())
	c := &cells[0]
	wanted := c.Wants[0]
	state := &controlv1.CellState{
		SentRoot: wanted.Partition.Bytes(), AcceptedRoot: wanted.Partition.Bytes(), AcceptedSharedRoot: wanted.Shared.Bytes(),
		ServingRoot: wanted.Partition.Bytes(), ServingSharedRoot: wanted.Shared.Bytes(), SnapshotVersion: 1, Build: "v3", LastSeen: timestamppb.New(start),
		Unready: []*controlv1.Unready{{Namespace: "orders", Reason: "no pool"}},
		Traffic: &controlv1.Traffic{Calls: 5, Failed: 1, Took: durationpb.New(time.Second), Since: timestamppb.New(boot)},
		Rejections: []*configv1.Rejection{
			{Resource: "ns/orders", Version: version.String()}, {Resource: "ns/orders"}, {Resource: c.Partition.String()}, // those that concern it
			{Resource: "ns/orders", Version: "another"}, {Resource: "ns/carts"}, {Resource: "p/9999"},
		},
	}
	c.Observe(nil, pending)
	if c.Serves(snapshot) || !c.Seen.IsZero() {
		t.Errorf("nothing is known, and got %+v", c)
	}
	c.Observe(state, pending)
	if !c.Serves(snapshot) || !c.Has(c.Sent) || !c.Has(c.Accepted) || c.Build != "v3" || !c.Seen.Equal(start) {
		t.Errorf("got %+v", c)
	}
	if len(c.Rejections) != 3 || len(c.Unready) != 1 || c.Now == nil || *c.Now != (gate.Traffic{Calls: 5, Failed: 1, Took: time.Second, Since: boot}) {
		t.Errorf("got %+v", c)
	}
	another := ident.HashOf([]byte("another"))
	state.ServingSharedRoot = another.Bytes()
	c.Observe(state, pending)
	if c.Serves(snapshot) {
		t.Error("it serves it with another shared collection")
	}
	state.SnapshotVersion = snapshot
	c.Observe(state, pending)
	if !c.Serves(snapshot) {
		t.Error("it serves the snapshot, from which nothing is withheld")
	}
}
