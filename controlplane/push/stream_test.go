package push_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"

	"github.com/prism-gateway/prism/controlplane/push"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	"github.com/prism-gateway/prism/shared/ident"
)

type cellState = *controlv1.CellState

const partitions = 8

func TestFirstAnswerThenDifferences(t *testing.T) {
	s := newSource(partitions)
	ns := inPartition(3, partitions, 3)
	s.set(t, ns[0], "one", ns[1], "one", "backend/main", "localhost:1")
	r := start(t, s)
	p := connect(t, r)

	p.subscribe(push.NamespaceType, nil, "p/0003", "p/0004")
	first := p.next()
	if want := []string{ns[0], ns[1], "p/0003", "p/0004"}; !slices.Equal(names(first), want) {
		t.Fatalf("first %v, want %v", names(first), want)
	}
	for _, collection := range []string{"p/0003", "p/0004"} {
		e := p.ends[collection]
		if !e.GetFull() || e.GetSnapshotVersion() != 1 || e.GetCommittedAt().GetSeconds() != 1 || string(e.GetSharedRoot()) != string(s.Head().Shared().Root().Bytes()) || e.GetStoreRevision() != s.Revision() {
			t.Errorf("%s: sentinel %v", collection, e)
		}
	}

	s.set(t, ns[1], "two")
	if got, want := names(p.next()), []string{ns[1], "p/0003"}; !slices.Equal(got, want) {
		t.Errorf("after a change %v, want %v", got, want)
	}
	s.set(t, ns[0], "", ns[2], "one")
	removal := p.next()
	if got, want := names(removal), []string{ns[2], "p/0003"}; !slices.Equal(got, want) {
		t.Errorf("after a removal %v, want %v", got, want)
	}
	if got := removal.GetRemovedResources(); !slices.Equal(got, ns[:1]) {
		t.Errorf("removed %v, want %v", got, ns[:1])
	}
	if p.ends["p/0003"].GetFull() {
		t.Error("a difference says that it is everything")
	}
}

func TestSharedChangeReachesPartitionsAsSentinel(t *testing.T) {
	s := newSource(partitions)
	ns := inPartition(3, partitions, 1)
	s.set(t, ns[0], "one", "backend/main", "localhost:1")
	p := connect(t, start(t, s))
	p.subscribe(push.SharedType, nil, "shared")
	if got := p.next(); !slices.Equal(names(got), []string{"backend/main", "shared"}) || got.GetResources()[0].GetResource().GetTypeUrl() != "type.googleapis.com/prism.config.v1.Backend" {
		t.Fatalf("shared %v", got)
	}
	p.subscribe(push.NamespaceType, nil, "p/0003")
	p.next()

	tree := s.set(t, "backend/main", "localhost:2")
	first, second := p.next(), p.next()
	if first.GetTypeUrl() != push.SharedType || second.GetTypeUrl() != push.NamespaceType {
		t.Errorf("order %s, %s", first.GetTypeUrl(), second.GetTypeUrl())
	}
	if got := names(second); !slices.Equal(got, []string{"p/0003"}) {
		t.Errorf("the partition got %v, want its sentinel only", got)
	}
	if got := p.ends["p/0003"].GetSharedRoot(); string(got) != string(tree.Shared().Root().Bytes()) {
		t.Errorf("shared root %x", got)
	}
}

// What a busy stream missed of the shared set is not sent to it: after what is under way come the newest set and, once, the
// partitions that refer to it.
func TestNewestSharedSetReplacesThoseThatWait(t *testing.T) {
	s := newSource(partitions)
	s.set(t, "backend/main", "localhost:0")
	r := start(t, s)
	held := []string{"p/0003", "p/0004", "p/0005"}
	busy, quick := as(t, r, "busy", held...), as(t, r, "quick", held...)
	settle := func(p *proxy) {
		t.Helper()
		for want := string(s.Head().Shared().Root().Bytes()); string(p.ends["p/0005"].GetSharedRoot()) != want; {
			p.next()
		}
	}
	settle(busy)
	settle(quick)

	s.set(t, "backend/main", "localhost:1")
	set, cells := busy.receive(), busy.receive()
	for i := range 5 {
		s.set(t, "backend/main", fmt.Sprint("localhost:", i+2))
		settle(quick)
	}
	for _, underWay := range []*discoveryv3.DeltaDiscoveryResponse{set, cells} {
		busy.apply(underWay)
		busy.ack(underWay)
	}
	if got := names(busy.next()); !slices.Equal(got, []string{"backend/main", "shared"}) {
		t.Errorf("the set came as %v", got)
	}
	if got := names(busy.next()); !slices.Equal(got, held) {
		t.Errorf("the partitions came as %v", got)
	}
	for _, name := range append(held, "shared") {
		root := busy.ends[name].GetSharedRoot()
		if name == "shared" {
			root = busy.ends[name].GetRoot()
		}
		if string(root) != string(s.Head().Shared().Root().Bytes()) {
			t.Errorf("%s is not in the newest set", name)
		}
	}
}

func TestAssignment(t *testing.T) {
	s := newSource(partitions)
	r := start(t, s)
	p := connect(t, r)
	p.subscribe(push.AssignmentType, nil, "fleet")
	if got := p.next(); len(got.GetResources()) != 0 || len(got.GetRemovedResources()) != 0 {
		t.Fatalf("before there is one: %v", got)
	}
	s.moved(func() { s.assignment = &configv1.Assignment{Epoch: 7} })
	got := p.next()
	if !slices.Equal(names(got), []string{"fleet"}) {
		t.Fatalf("got %v", names(got))
	}
	version := got.GetResources()[0].GetVersion()
	p.cancel()

	p = connect(t, r)
	p.subscribe(push.AssignmentType, map[string]string{"fleet": version}, "fleet")
	if got := p.next(); len(got.GetResources()) != 0 {
		t.Errorf("sent again: %v", names(got))
	}
	s.moved(func() { s.assignment = &configv1.Assignment{Epoch: 8} })
	if got := p.next(); !slices.Equal(names(got), []string{"fleet"}) {
		t.Errorf("a new one: %v", names(got))
	}
}

func TestResume(t *testing.T) {
	s := newSource(partitions)
	ns := inPartition(3, partitions, 3)
	old := s.set(t, ns[0], "one", ns[1], "one", "backend/main", "localhost:1")
	oldShared := old.Shared().Root().String()
	oldRoot := old.Collection(3).Root().String()
	r := start(t, s)

	for name, tc := range map[string]struct {
		initial   map[string]string
		shared    map[string]string // what the proxy has of the shared collection; nil does not subscribe to it
		change    []string
		restart   bool
		forgetful bool
		want      []string // resources of the partition
		removed   []string
		full      bool
	}{
		"the newest root: nothing is sent": {
			initial: map[string]string{"p/0003": oldRoot}, shared: map[string]string{"shared": oldShared}, want: nil,
		},
		"the newest root, without the shared root: the sentinel": {
			initial: map[string]string{"p/0003": oldRoot}, want: []string{"p/0003"},
		},
		"the newest root with its shared root": {
			initial: map[string]string{"p/0003": oldRoot + "/" + oldShared}, want: nil,
		},
		"the newest root with an older shared root: the sentinel": {
			initial: map[string]string{"p/0003": oldRoot + "/" + strings.Repeat("ab", 32)}, shared: map[string]string{"shared": oldShared}, want: []string{"p/0003"},
		},
		"after the replica has started anew": {
			initial: map[string]string{"p/0003": oldRoot}, shared: map[string]string{"shared": oldShared}, restart: true, want: nil,
		},
		"an older root: the difference": {
			initial: map[string]string{"p/0003": oldRoot}, shared: map[string]string{"shared": oldShared},
			change: []string{ns[0], "", ns[1], "two"}, want: []string{ns[1], "p/0003"}, removed: ns[:1],
		},
		"an older root, from the store's past": {
			initial: map[string]string{"p/0003": oldRoot}, shared: map[string]string{"shared": oldShared}, restart: true,
			change: []string{ns[0], "", ns[1], "two"}, want: []string{ns[1], "p/0003"}, removed: ns[:1],
		},
		"a root that nobody knows: everything": {
			initial: map[string]string{"p/0003": strings.Repeat("ab", 32)}, want: []string{ns[0], ns[1], "p/0003"}, full: true,
		},
		"an older root that was swept: everything": {
			initial: map[string]string{"p/0003": oldRoot}, restart: true, forgetful: true,
			change: []string{ns[0], "", ns[2], "two"}, want: []string{ns[1], ns[2], "p/0003"}, full: true,
		},
		"single resources: their difference": {
			initial: map[string]string{ns[0]: ident.HashOf(object(t, ns[0], "one")).String(), ns[2]: strings.Repeat("ab", 32)},
			want:    []string{ns[1], "p/0003"}, removed: ns[2:],
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := r
			if len(tc.change) > 0 {
				s.set(t, tc.change...)
				defer s.show(old)
			}
			if tc.restart {
				s.moved(func() { s.forgetful = tc.forgetful })
				defer s.moved(func() { s.forgetful = false })
				r = start(t, s)
			}
			p := connect(t, r)
			if tc.shared != nil {
				p.subscribe(push.SharedType, tc.shared, "shared")
				if got := p.next(); len(got.GetResources()) != 0 {
					t.Errorf("of what all share: %v", names(got))
				}
			}
			p.subscribe(push.NamespaceType, tc.initial, "p/0003")
			var got *discoveryv3.DeltaDiscoveryResponse
			for { // a publication may come between, and is answered apart
				got = p.receive()
				p.ack(got)
				if len(got.GetResources()) > 0 || tc.want == nil {
					break
				}
			}
			if !slices.Equal(names(got), tc.want) || !slices.Equal(got.GetRemovedResources(), tc.removed) {
				t.Fatalf("got %v, removed %v; want %v, removed %v", names(got), got.GetRemovedResources(), tc.want, tc.removed)
			}
			if tc.want != nil {
				sentinel := &configv1.Sentinel{}
				if err := got.GetResources()[len(tc.want)-1].GetResource().UnmarshalTo(sentinel); err != nil {
					t.Fatal(err)
				}
				if sentinel.GetFull() != tc.full {
					t.Errorf("full %v, want %v", sentinel.GetFull(), tc.full)
				}
			}
		})
	}
}

func TestPages(t *testing.T) {
	s := newSource(partitions)
	ns := inPartition(3, partitions, 40)
	var sets []snapshot.Set
	big := func(name, content string) snapshot.Set {
		return snapshot.Set{Name: name, Data: object(t, name, strings.Repeat(content, 16<<10))}
	}
	for _, name := range ns {
		sets = append(sets, big(name, "x"))
	}
	s.edit(t, sets) // 640 KiB
	p := connect(t, start(t, s))
	p.subscribe(push.NamespaceType, nil, "p/0003", "p/0004")

	first := p.receive()
	p.apply(first)
	if n := len(first.GetResources()); n != 7 {
		t.Errorf("%d resources of 16 KiB in the first page of 128 KiB", n)
	}
	// While the first page is under way one member that was sent and one that was not change, and one of each go.
	tree := s.edit(t, []snapshot.Set{big(ns[0], "y"), big(ns[39], "y"), {Name: ns[1]}, {Name: ns[38]}})
	p.ack(first)
	if got := p.until("p/0003", tree.Collection(3).Root()); got > 7 {
		t.Errorf("%d more pages", got)
	}
	if p.ends["p/0003"].GetSnapshotVersion() != 2 || !p.ends["p/0003"].GetFull() {
		t.Errorf("the only sentinel is %v, want the newest state and full", p.ends["p/0003"])
	}
	for p.ends["p/0004"] == nil {
		p.next()
	}
}

func TestOneResourceLargerThanAPage(t *testing.T) {
	s := newSource(partitions)
	ns := inPartition(3, partitions, 2)
	tree := s.set(t, ns[0], strings.Repeat("x", 2<<20), ns[1], "small")
	p := connect(t, start(t, s))
	p.subscribe(push.NamespaceType, nil, "p/0003")
	p.until("p/0003", tree.Collection(3).Root())
}

func TestTrackerFollowsAStream(t *testing.T) {
	s := newSource(partitions)
	tree := s.set(t, inPartition(3, partitions, 1)[0], "one")
	r := start(t, s)
	p := connect(t, r)
	p.subscribe(push.NamespaceType, nil, "p/0003")
	response := p.receive()
	r.await(t, 3, "sent", func(cells map[string]cellState) bool {
		c := cells["proxy-1"]
		return string(c.GetSentRoot()) == string(tree.Collection(3).Root().Bytes()) && len(c.GetAcceptedRoot()) == 0 &&
			c.GetBuild() == "build-proxy-1" && c.GetLastSeen() != nil
	})
	p.ack(response)
	r.await(t, 3, "accepted", func(cells map[string]cellState) bool {
		return string(cells["proxy-1"].GetAcceptedRoot()) == string(tree.Collection(3).Root().Bytes())
	})
	p.request(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: push.NamespaceType, ResourceNamesUnsubscribe: []string{"p/0003"}})
	r.await(t, 3, "unsubscribed", func(cells map[string]cellState) bool { return len(cells) == 0 })
	p.subscribe(push.NamespaceType, nil, "p/0003")
	r.await(t, 3, "subscribed again", func(cells map[string]cellState) bool { return len(cells) == 1 })
	p.cancel()
	r.await(t, 3, "the stream is gone", func(cells map[string]cellState) bool { return len(cells) == 0 })
}

func TestUnsubscribedPartitionIsNotPushed(t *testing.T) {
	s := newSource(partitions)
	three, four := inPartition(3, partitions, 1)[0], inPartition(4, partitions, 1)[0]
	s.set(t, three, "one", four, "one")
	p := connect(t, start(t, s))
	p.subscribe(push.NamespaceType, nil, "p/0003", "p/0004")
	p.next()
	p.request(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: push.NamespaceType, ResourceNamesUnsubscribe: []string{"p/0003"}})
	p.subscribe("type.example/barrier", nil, "x") // answered after the request before it was taken
	p.next()
	s.set(t, three, "two", four, "two")
	if got, want := names(p.next()), []string{four, "p/0004"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	// Asked for again, it is sent whole.
	p.subscribe(push.NamespaceType, nil, "p/0003")
	if got, want := names(p.next()), []string{three, "p/0003"}; !slices.Equal(got, want) || !p.ends["p/0003"].GetFull() {
		t.Errorf("got %v, want %v", got, want)
	}
	// Also when it was never let go.
	p.subscribe(push.NamespaceType, nil, "p/0003")
	if got, want := names(p.next()), []string{three, "p/0003"}; !slices.Equal(got, want) || !p.ends["p/0003"].GetFull() {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestUnknownNamesAndTypesAreKnownToBeEmpty(t *testing.T) {
	s := newSource(partitions)
	p := connect(t, start(t, s))
	p.subscribe(push.NamespaceType, nil, "p/9999", "nonsense", "*")
	if got := p.next(); len(got.GetResources()) != 0 || len(got.GetRemovedResources()) != 3 {
		t.Errorf("unknown names: %v", got)
	}
	for i := range 60 {
		typeURL := fmt.Sprintf("type.example/of.a.later.version.%d", i)
		p.subscribe(typeURL, nil, "x")
		if got := p.next(); got.GetTypeUrl() != typeURL || !slices.Equal(got.GetRemovedResources(), []string{"x"}) {
			t.Fatalf("unknown type: %v", got)
		}
	}
	p.subscribe(push.SharedType, nil, "shared") // the stream goes on
	p.until("shared", ident.Hash{})
}

func TestTheUnknownIsBounded(t *testing.T) {
	for name, ask := range map[string]func(p *proxy, i int){
		"types": func(p *proxy, i int) {
			p.stream.Send(&discoveryv3.DeltaDiscoveryRequest{Node: node("proxy-1", 0), TypeUrl: fmt.Sprintf("type.example/%d", i)})
		},
		"names": func(p *proxy, i int) {
			var names []string
			for n := range 100 {
				names = append(names, fmt.Sprintf("p/%d-%d", i, n))
			}
			p.stream.Send(&discoveryv3.DeltaDiscoveryRequest{Node: node("proxy-1", 0), TypeUrl: push.NamespaceType, ResourceNamesSubscribe: names})
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSource(partitions)
			s.set(t)
			p := connect(t, start(t, s))
			for i := range 300 {
				ask(p, i)
			}
			if err := p.end(); status.Code(err) != codes.InvalidArgument {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestStateOfTheWorldIsForStandardClients(t *testing.T) {
	r := start(t, newSource(partitions))
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(dial(t, r.address)).StreamAggregatedResources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Unimplemented {
		t.Errorf("without a server of them: %v", err)
	}
}

func TestSlowReaderDelaysNobody(t *testing.T) {
	s := newSource(partitions)
	ns := inPartition(3, partitions, 8)
	content := func(i int) []string {
		var pairs []string
		for _, name := range ns {
			pairs = append(pairs, name, fmt.Sprint(i)+strings.Repeat("x", 12<<10))
		}
		return pairs
	}
	s.set(t, content(0)...)
	r := start(t, s)
	slow, quick := connect(t, r), connect(t, r)
	slow.request(&discoveryv3.DeltaDiscoveryRequest{Node: node("slow", 0), TypeUrl: push.NamespaceType, ResourceNamesSubscribe: []string{"p/0003"}})
	quick.subscribe(push.NamespaceType, nil, "p/0003")
	quick.next()
	r.await(t, 3, "the slow one is being sent to", func(cells map[string]cellState) bool { return len(cells["slow"].GetSentRoot()) > 0 })
	for i := range 30 {
		tree := s.set(t, content(i+1)...)
		quick.until("p/0003", tree.Collection(3).Root())
	}
	// What the slow one missed is not sent to it: after what is under way comes the newest.
	slow.next()
	if got := slow.until("p/0003", s.Head().Collection(3).Root()); got != 1 {
		t.Errorf("%d responses for the newest state, want 1", got)
	}
}

func TestOneResponseInFlight(t *testing.T) {
	s := newSource(partitions)
	three, four := inPartition(3, partitions, 1)[0], inPartition(4, partitions, 1)[0]
	s.set(t, three, "one", four, "one")
	p := connect(t, start(t, s))
	p.subscribe(push.NamespaceType, nil, "p/0003")
	first := p.receive()
	p.apply(first)
	p.subscribe(push.NamespaceType, nil, "p/0004") // waits for the acknowledgement
	p.subscribe("type.example/barrier", nil, "x")
	if got := p.receive(); got.GetTypeUrl() != "type.example/barrier" {
		t.Fatalf("a second response in flight: %v", names(got))
	}
	p.ack(first)
	if got, want := names(p.next()), []string{four, "p/0004"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestStreamsThatAreNotTaken(t *testing.T) {
	t.Run("nothing is loaded", func(t *testing.T) {
		s := newSource(partitions)
		s.tree = nil
		p := connect(t, start(t, s))
		unavailable(t, p.end())
	})
	t.Run("the proxy has seen more than this replica", func(t *testing.T) {
		s := newSource(partitions)
		p := connect(t, start(t, s, func(c *push.Config) { c.LagPatience = 50 * time.Millisecond }))
		p.request(&discoveryv3.DeltaDiscoveryRequest{Node: node("a", s.Revision()+1), TypeUrl: push.SharedType, ResourceNamesSubscribe: []string{"shared"}})
		unavailable(t, p.end())
	})
	t.Run("too many at once", func(t *testing.T) {
		s := newSource(partitions)
		r := start(t, s, func(c *push.Config) { c.StreamsPerSecond, c.StreamBurst = 0.001, 1 })
		first := connect(t, r)
		first.subscribe(push.SharedType, nil, "shared")
		first.next()
		unavailable(t, connect(t, r).end())
	})
	t.Run("without a name", func(t *testing.T) {
		s := newSource(partitions)
		p := connect(t, start(t, s))
		p.request(&discoveryv3.DeltaDiscoveryRequest{Node: node("", 0), TypeUrl: push.SharedType})
		if err := p.end(); status.Code(err) != codes.InvalidArgument {
			t.Errorf("error %v", err)
		}
	})
}

func TestReplicaThatCatchesUpTakesTheStream(t *testing.T) {
	s := newSource(partitions)
	ns := inPartition(3, partitions, 1)
	p := connect(t, start(t, s))
	p.request(&discoveryv3.DeltaDiscoveryRequest{
		Node: node("a", s.Revision()+1), TypeUrl: push.NamespaceType, ResourceNamesSubscribe: []string{"p/0003"},
	})
	tree := s.set(t, ns[0], "one")
	p.next()
	if got := p.root("p/0003"); got != tree.Collection(3).Root() {
		t.Errorf("the first answer is of older state")
	}
}

func TestStopEndsStreamsForAnotherReplica(t *testing.T) {
	s := newSource(partitions)
	r := start(t, s)
	p := connect(t, r)
	p.subscribe(push.SharedType, nil, "shared")
	p.next()
	go r.stop()
	if err := p.end(); status.Code(err) != codes.Unavailable {
		t.Errorf("error %v", err)
	}
	r.stop()
}

func TestStopEndsAStreamThatSaysNothing(t *testing.T) {
	s := newSource(partitions)
	s.set(t)
	taken := make(chan struct{}, 1)
	r := start(t, s, func(c *push.Config) { c.Store = doorkeeper{s, taken} })
	p := connect(t, r)
	<-taken
	r.quit()
	unavailable(t, p.end())
}

// doorkeeper tells when a stream has been taken, which is told of its installation.
type doorkeeper struct {
	*source
	taken chan struct{}
}

func (d doorkeeper) Installation() *recordv1.Installation {
	d.taken <- struct{}{}
	return d.source.Installation()
}

// unavailable checks that a stream is told to come back, and when.
func unavailable(t *testing.T, err error) {
	t.Helper()
	st := status.Convert(err)
	for _, d := range st.Details() {
		if retry, ok := d.(*errdetails.RetryInfo); ok && retry.GetRetryDelay().AsDuration() > 0 && st.Code() == codes.Unavailable {
			return
		}
	}
	t.Errorf("want UNAVAILABLE with a delay, got %v with %v", err, st.Details())
}
