package push_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"

	"github.com/prism-gateway/prism/controlplane/push"
	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	"github.com/prism-gateway/prism/shared/ident"
)

// as opens a stream of a named proxy and subscribes to names, and takes in the first answers.
func as(t *testing.T, r *replica, id string, names ...string) *proxy {
	t.Helper()
	p := connect(t, r)
	request := func(typeURL string, names ...string) {
		p.request(&request{Node: node(id, 0), TypeUrl: typeURL, ResourceNamesSubscribe: names})
		p.next()
	}
	request(push.SharedType, "shared")
	request(push.NamespaceType, names...)
	return p
}

func (p *proxy) has(collection string, c *snapshot.Collection) bool {
	return p.root(collection) == c.Root()
}

// A change goes from rank to rank, and each wave is a push to those that it reaches and to nobody else.
func TestWavesReachCellsByRank(t *testing.T) {
	s := newSource(partitions)
	ns := inPartition(3, partitions, 1)
	s.assignment = owned(1, partitions, []*configv1.Member{{Id: "v", Validator: true}, {Id: "zero"}, {Id: "one"}, {Id: "two"}}, 1, 2, 3)
	before := s.set(t, ns[0], "old")
	registry := prometheus.NewRegistry()
	r := start(t, s, func(c *push.Config) { c.Registerer = registry })
	proxies := map[string]*proxy{}
	for _, id := range []string{"v", "zero", "one", "two", "stranger"} {
		proxies[id] = as(t, r, id, "p/0003")
	}
	responses := counter(t, registry, "prism_push_responses_total")

	number, err := s.release(inWaves(), release.Order{}, []snapshot.Set{{Name: ns[0], Data: object(t, ns[0], "new"), TraceParent: "00-trace"}})
	if err != nil {
		t.Fatal(err)
	}
	after := s.Head()
	for wave, reached := range [][]string{nil, {"v"}, {"zero"}, nil, {"one"}, {"two", "stranger"}} {
		if wave > 0 {
			if err := s.step(release.Step{Release: number, Do: release.Wave, Wave: wave}); err != nil {
				t.Fatal(err)
			}
		}
		for _, id := range reached {
			p := proxies[id]
			p.next()
			end := p.ends["p/0003"]
			if !p.has("p/0003", after.Collection(3)) || end.GetSnapshotVersion() != number {
				t.Errorf("wave %d: %s has %v", wave, id, p.state["p/0003"])
			}
			if end.GetCommittedAt() != nil || end.GetTraceParent() != "00-trace" {
				t.Errorf("wave %d: %s was told %v", wave, id, end)
			}
		}
	}
	if got := counter(t, registry, "prism_push_responses_total") - responses; got != 5 {
		t.Errorf("%v responses for 5 proxies", got)
	}
	// Who joins is shown what its rank has.
	if p := as(t, r, "late", "p/0003"); !p.has("p/0003", after.Collection(3)) {
		t.Error("in the last wave a newcomer has the old state")
	}
	if err := s.step(release.Step{Release: number, Do: release.TakeBack, Reason: "test"}); err != nil {
		t.Fatal(err)
	}
	for id, p := range proxies {
		p.next()
		if !p.has("p/0003", before.Collection(3)) {
			t.Errorf("%s: taken back, it has %v", id, p.state["p/0003"])
		}
	}
}

// With a new assignment a proxy is shown what its new rank has, while a release is under way.
func TestRankMovesWithTheAssignment(t *testing.T) {
	s := newSource(partitions)
	ns := inPartition(3, partitions, 1)
	members := []*configv1.Member{{Id: "a"}, {Id: "b"}}
	s.assignment = owned(1, partitions, members, 0, 1)
	old := s.set(t, ns[0], "old")
	r := start(t, s)
	a, b := as(t, r, "a", "p/0003"), as(t, r, "b", "p/0003")
	number, err := s.release(inWaves(), release.Order{}, []snapshot.Set{{Name: ns[0], Data: object(t, ns[0], "new")}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.step(release.Step{Release: number, Do: release.Wave, Wave: release.WaveRank0}); err != nil {
		t.Fatal(err)
	}
	a.next()
	s.moved(func() { s.assignment = owned(2, partitions, members, 1, 0) })
	b.next()
	a.next()
	if !b.has("p/0003", s.Head().Collection(3)) || !a.has("p/0003", old.Collection(3)) {
		t.Errorf("a has %v, b has %v", a.state, b.state)
	}
}

// A stream is not taken while releases are under way and nobody's rank is known.
func TestNoStreamWithoutRanks(t *testing.T) {
	s := newSource(partitions)
	if _, err := s.release(inWaves(), release.Order{}, []snapshot.Set{{Name: "ns/new", Data: object(t, "ns/new", "one")}}); err != nil {
		t.Fatal(err)
	}
	unavailable(t, connect(t, start(t, s)).end())
}

// Where one partition resolves in another shared set than its neighbour, each set comes before who refers to it.
func TestSharedSetsComeBeforeWhatRefersToThem(t *testing.T) {
	s := newSource(partitions)
	three, four := inPartition(3, partitions, 1)[0], inPartition(4, partitions, 1)[0]
	members := []*configv1.Member{{Id: "a"}, {Id: "b"}}
	s.assignment = owned(1, partitions, members, 0, 1)
	s.assignment.Partitions[4].Owners = []uint32{1, 0}
	s.set(t, three, "one", four, "one", "backend/main", "localhost:1")
	r := start(t, s)
	a := as(t, r, "a", "p/0003", "p/0004")
	a.check = func(collection string, end *configv1.Sentinel) {
		if shared := string(end.GetSharedRoot()); collection != "shared" && !slices.Contains(a.sets, shared) {
			t.Errorf("%s refers to a shared set that was not sent", collection)
		}
	}
	number, err := s.release(inWaves(), release.Order{}, []snapshot.Set{{Name: "backend/main", Data: object(t, "backend/main", "localhost:2")}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.step(release.Step{Release: number, Do: release.Wave, Wave: release.WaveRank0}); err != nil {
		t.Fatal(err)
	}
	// p/0003, where a is rank 0, resolves in the new set; p/0004 in the old one.
	a.until("p/0003", s.Head().Collection(3).Root())
	for string(a.ends["p/0003"].GetSharedRoot()) != string(s.Head().Shared().Root().Bytes()) {
		a.next()
	}
	for i := range 6 { // other sets come; the old one is asked for again only when it is needed
		if _, err := s.release(release.Policies{}, release.Order{}, []snapshot.Set{{Name: "backend/other", Data: object(t, "backend/other", fmt.Sprint(i))}}); err != nil {
			t.Fatal(err)
		}
		state := s.Released()
		zero, one := state.View(3, 0), state.View(4, 1)
		for string(a.ends["p/0003"].GetSharedRoot()) != string(zero.Shared.Root().Bytes()) ||
			string(a.ends["p/0004"].GetSharedRoot()) != string(one.Shared.Root().Bytes()) {
			a.next()
		}
	}
	// A way back goes to the set that stable has.
	if err := s.step(release.Step{Release: number, Do: release.TakeBack}); err != nil {
		t.Fatal(err)
	}
	for string(a.ends["p/0003"].GetSharedRoot()) != string(s.Head().Shared().Root().Bytes()) {
		a.next()
	}
}

func TestRefusalsArePassedOn(t *testing.T) {
	type told struct {
		node, build, resources, whole string
		p                             ident.Partition
	}
	s := newSource(partitions)
	three, four := inPartition(3, partitions, 2), inPartition(4, partitions, 1)
	s.set(t, three[0], "one", three[1], "one", four[0], "one", "backend/main", "one")
	heard := make(chan told, 100)
	r := start(t, s, func(c *push.Config) {
		c.Refused = func(node, build string, rejections []*configv1.Rejection, whole string, p ident.Partition) {
			var resources []string
			for _, r := range rejections {
				resources = append(resources, r.GetResource())
			}
			heard <- told{node, build, strings.Join(resources, " "), whole, p}
		}
	})
	p := as(t, r, "proxy-1", "p/0003", "p/0004")
	expect := func(what string, want ...told) {
		t.Helper()
		for _, w := range want {
			w.node, w.build = "proxy-1", "build-proxy-1"
			select {
			case got := <-heard:
				if got != w {
					t.Errorf("%s: told %+v, want %+v", what, got, w)
				}
			case <-time.After(patience):
				t.Fatalf("%s: nothing is told", what)
			}
		}
	}
	s.set(t, three[0], "two", three[1], "two", four[0], "two")
	p.nack(p.receive(), "3 refused", &configv1.Rejection{Resource: four[0]}, &configv1.Rejection{Resource: three[0]}, &configv1.Rejection{Resource: "backend/main"})
	expect("by name, each once", told{resources: three[0] + " backend/main", p: 3}, told{resources: four[0], p: 4})
	s.set(t, three[0], "three", four[0], "three")
	p.nack(p.receive(), "out of memory")
	expect("the whole response", told{whole: "out of memory", p: 3}, told{whole: "out of memory", p: 4})
	s.set(t, three[0], "four")
	p.nack(p.receive(), "1 refused", &configv1.Rejection{Resource: "p/0003", Field: "root", Reason: "it does not hold"})
	expect("a partition by its name", told{whole: "root: it does not hold", p: 3})
	s.set(t, "backend/main", "two")
	p.nack(p.receive(), "no")
	expect("what is shared", told{whole: "no", p: 3}, told{whole: "no", p: 4})
}

// A stream is not held up by what is made of its refusals.
func TestSlowListenerToRefusalsDelaysNobody(t *testing.T) {
	s := newSource(partitions)
	ns := inPartition(3, partitions, 1)
	s.set(t, ns[0], "one")
	release := make(chan struct{})
	r := start(t, s, func(c *push.Config) {
		c.Refused = func(string, string, []*configv1.Rejection, string, ident.Partition) { <-release }
	})
	defer close(release)
	p := as(t, r, "proxy-1", "p/0003")
	for i := range 1100 { // more than can wait
		tree := s.set(t, ns[0], fmt.Sprint("content-", i))
		response := p.receive()
		p.apply(response)
		if !p.has("p/0003", tree.Collection(3)) {
			t.Fatal("it was sent something else")
		}
		p.nack(response, "no")
	}
}

// Clients that do not read hold little memory, hold up nobody, and do not keep the server from stopping gracefully.
func TestClientsThatDoNotRead(t *testing.T) {
	const streams, most = 32, 256 << 10 // bytes for each, on both ends
	s := newSource(partitions)
	var sets []snapshot.Set
	for p := range ident.Partition(partitions - 1) { // the first stays empty, and is told of in the first page
		for _, name := range inPartition(p+1, partitions, 200) {
			sets = append(sets, snapshot.Set{Name: name, Data: object(t, name, strings.Repeat("x", 4<<10))})
		}
	}
	s.edit(t, sets) // 6 MiB
	r := start(t, s)
	all := make([]string, partitions)
	for p := range all {
		all[p] = ident.Partition(p).String()
	}
	signal := r.listen(0)
	deaf := func(id string) {
		p := connectVia(t, dial(t, r.address, grpc.WithStaticStreamWindowSize(64<<10), grpc.WithStaticConnWindowSize(64<<10)))
		p.request(&request{Node: node(id, 0), TypeUrl: push.NamespaceType, ResourceNamesSubscribe: all})
		for !slices.ContainsFunc(r.tracker.Cells(0), func(c cellState) bool { return c.GetProxy() == id }) {
			<-signal
		}
	}
	deaf("first") // what the first needs is computed once
	before := memory().HeapAlloc
	for i := range streams {
		deaf(fmt.Sprint("deaf-", i))
	}
	if got := (memory().HeapAlloc - before) / streams; got > most {
		t.Errorf("a stream that is not read holds %d bytes, more than %d", got, most)
	} else {
		t.Logf("a stream that is not read holds %d KiB", got>>10)
	}
	quick := as(t, r, "quick", "p/0003")
	name := inPartition(3, partitions, 1)[0]
	tree := s.set(t, name, "changed")
	quick.until("p/0003", tree.Collection(3).Root())

	gone := make(chan struct{})
	r.quit()
	go func() {
		defer close(gone)
		r.graceful()
	}()
	select {
	case <-gone:
	case <-time.After(patience):
		t.Fatal("the server does not stop")
	}
}

func counter(t *testing.T, registry *prometheus.Registry, name string) (sum float64) {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}
