package push_test

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"pgregory.net/rapid"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"

	"github.com/prism-gateway/prism/controlplane/push"
	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	"github.com/prism-gateway/prism/shared/ident"
)

// interleaving is a fleet of one proxy that is changed at random: snapshots, waves, ways back, who owns what, what is
// subscribed, which replica it comes to.
type interleaving struct {
	t       *testing.T
	rt      *rapid.T
	s       *source
	conns   []*grpc.ClientConn
	name    string
	p       *proxy
	wanted  map[string]bool
	allowed map[string]map[string]bool // the roots that any cell was to have, by collection
	epoch   uint64
}

const few = 4 // partitions

var ranks = []release.Rank{release.Validator, 0, 1, 2, release.Other}

// allow notes what cells are to have now.
func (in *interleaving) allow() {
	state := in.s.Released()
	for p := range ident.Partition(few) {
		for _, rank := range ranks {
			view := state.View(p, rank)
			for name, c := range map[string]*snapshot.Collection{p.String(): view.Partition, "shared": view.Shared} {
				if in.allowed[name] == nil {
					in.allowed[name] = map[string]bool{}
				}
				in.allowed[name][string(c.Root().Bytes())] = true
			}
		}
	}
}

// check is called with each sentinel: it is of a state that some cell was to have, and refers to a shared set that the
// proxy still has.
func (in *interleaving) check(collection string, sentinel *configv1.Sentinel) {
	if !in.allowed[collection][string(sentinel.GetRoot())] {
		in.rt.Fatalf("%s: root %x is in no view that there was", collection, sentinel.GetRoot())
	}
	if shared := string(sentinel.GetSharedRoot()); collection != "shared" && shared != "" && !slices.Contains(in.p.sets, shared) {
		for other, end := range in.p.ends {
			if other != "shared" && string(end.GetSharedRoot()) == shared {
				return
			}
		}
		in.rt.Fatalf("%s refers to the shared set %x, which the proxy does not have", collection, shared)
	}
}

// own gives the proxy a rank in every partition.
func (in *interleaving) own(rank int) {
	in.epoch++
	members := []*configv1.Member{{Id: "a"}, {Id: "b"}, {Id: in.name, Validator: rank < 0}}
	owners := []uint32{0, 1}
	if rank >= 0 && rank <= 2 {
		owners = slices.Insert(owners, rank, 2)
	}
	in.s.moved(func() { in.s.assignment = owned(in.epoch, few, members, owners...) })
}

func (in *interleaving) reconnect() {
	rt, former := in.rt, in.p
	p := connectVia(in.t, in.conns[rapid.IntRange(0, 1).Draw(rt, "replica")])
	in.p = p
	initial, shared := map[string]string{}, map[string]string{}
	if former != nil {
		former.cancel()
		p.state, p.ends, p.sets = former.state, former.ends, former.sets
		for collection, sentinel := range p.ends {
			root := p.root(collection).String()
			if collection == "shared" {
				shared[collection] = root
				continue
			}
			if !in.wanted[collection] {
				delete(p.state, collection)
				delete(p.ends, collection)
				continue
			}
			if rapid.Bool().Draw(rt, "single resources") {
				maps.Copy(initial, p.state[collection])
				continue
			}
			with, _ := ident.HashFrom(sentinel.GetSharedRoot())
			initial[collection] = root + "/" + with.String()
		}
	}
	p.check = in.check
	me := node(in.name, 0)
	p.request(&discoveryv3.DeltaDiscoveryRequest{Node: me, TypeUrl: push.SharedType, ResourceNamesSubscribe: []string{"shared"}, InitialResourceVersions: shared})
	p.request(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: push.NamespaceType, ResourceNamesSubscribe: slices.Sorted(maps.Keys(in.wanted)), InitialResourceVersions: initial})
	for range rapid.IntRange(0, 1).Draw(rt, "answers") { // the first request of a type is always answered
		r := p.receive()
		p.apply(r)
		if rapid.Bool().Draw(rt, "refuse") {
			p.nack(r, "refused")
		} else {
			p.ack(r)
		}
	}
}

// change records a snapshot, in waves or at once. One that cannot be is left out.
func (in *interleaving) change() {
	var sets []snapshot.Set
	for i := range 8 {
		name := fmt.Sprintf("ns/team-%d", i)
		if i > 5 {
			name = fmt.Sprintf("backend/main-%d", i)
		}
		switch rapid.IntRange(0, 3).Draw(in.rt, "what") {
		case 0:
			sets = append(sets, snapshot.Set{Name: name, Data: object(in.t, name, fmt.Sprint(rapid.IntRange(1, 3).Draw(in.rt, "content")))})
		case 1:
			sets = append(sets, snapshot.Set{Name: name})
		}
	}
	policies := inWaves()
	if rapid.Bool().Draw(in.rt, "at once") {
		policies = release.Policies{}
	}
	_, _ = in.s.release(policies, release.Order{}, sets)
}

// step makes a step of a release under way. One that makes no sense is left out.
func (in *interleaving) step() {
	active := in.s.Released().Active()
	if len(active) == 0 {
		return
	}
	r := rapid.SampledFrom(active).Draw(in.rt, "release")
	step := release.Step{Release: r.GetSnapshot(), Do: rapid.SampledFrom([]release.Action{
		release.Wave, release.Wave, release.Wave, release.Promote, release.TakeBack, release.Push, release.Eject,
	}).Draw(in.rt, "action")}
	switch step.Do {
	case release.Wave:
		step.Wave = int(r.GetWave()) + 1
	case release.Eject:
		pending := in.s.Released().Pending(r.GetSnapshot())
		step.Objects = []release.Ejected{{Name: rapid.SampledFrom(pending).Draw(in.rt, "object").Name}}
	}
	_ = in.s.step(step)
}

// settle goes on until the proxy has what it is to have.
func (in *interleaving) settle() {
	behind := func() bool {
		for name := range in.wanted {
			partition, _ := ident.ParsePartition(name)
			view := in.view(partition)
			end := in.p.ends[name]
			if end == nil || in.p.root(name) != view.Partition.Root() || string(end.GetSharedRoot()) != string(view.Shared.Root().Bytes()) {
				return true
			}
		}
		return false
	}
	for behind() {
		in.p.next()
	}
}

// view is what the proxy is to have of a partition.
func (in *interleaving) view(p ident.Partition) release.View {
	rank := release.Other
	a := in.s.Assignment()
	if i := slices.Index(a.GetPartitions()[p].GetOwners(), 2); i >= 0 {
		rank = release.Rank(i)
	}
	if a.GetMembers()[2].GetValidator() {
		rank = release.Validator
	}
	return in.s.Released().View(p, rank)
}

// What a proxy is told of a collection always has the root that the sentinel says (proxy.complete checks each) and is
// what some cell was to have. When all is quiet it is the view of its cell, whatever changed, went in waves, was
// subscribed, was cut or was refused before; and when all releases are taken back it is what is stable.
func TestProxyComesToItsView(t *testing.T) {
	s := newSource(few)
	s.assignment = owned(1, few, []*configv1.Member{{Id: "a"}}, 0)
	replicas := []*replica{start(t, s), start(t, s)}
	conns := []*grpc.ClientConn{dial(t, replicas[0].address), dial(t, replicas[1].address)}
	number := 0
	rapid.Check(t, func(rt *rapid.T) {
		s.moved(func() {
			s.forgetful = rapid.Bool().Draw(rt, "forgetful")
			s.tree, s.released = snapshot.New(few), nil
			s.revision++
		})
		number++
		in := &interleaving{
			t: t, rt: rt, s: s, conns: conns, name: fmt.Sprintf("proxy-%d", number),
			wanted: map[string]bool{}, allowed: map[string]map[string]bool{}, epoch: uint64(number) * 1000,
		}
		in.own(0)
		in.allow()
		in.reconnect()
		partition := func() string {
			return ident.Partition(rapid.IntRange(0, few-1).Draw(rt, "partition")).String()
		}
		rt.Repeat(map[string]func(*rapid.T){
			"change":           func(*rapid.T) { in.change() },
			"change and hear":  func(*rapid.T) { in.change(); in.allow(); in.settle() },
			"step":             func(*rapid.T) { in.step() },
			"step and hear":    func(*rapid.T) { in.step(); in.allow(); in.settle() },
			"another and hear": func(*rapid.T) { in.step(); in.allow(); in.settle() },
			"own":              func(rt *rapid.T) { in.own(rapid.IntRange(-1, 3).Draw(rt, "rank")) },
			"hear":             func(*rapid.T) { in.settle() },
			"subscribe": func(*rapid.T) {
				name := partition()
				in.wanted[name] = true
				delete(in.p.staged, name)
				in.p.request(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: push.NamespaceType, ResourceNamesSubscribe: []string{name}})
			},
			"unsubscribe": func(*rapid.T) {
				name := partition()
				if in.wanted[name] {
					delete(in.wanted, name)
					in.p.request(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: push.NamespaceType, ResourceNamesUnsubscribe: []string{name}})
				}
			},
			"reconnect": func(*rapid.T) { in.reconnect() },
			"":          func(*rapid.T) { in.allow() },
		})
		in.settle()
		stable := s.Released().Stable().Root()
		for len(s.Released().Active()) > 0 {
			if err := s.step(release.Step{Release: s.Released().Active()[0].GetSnapshot(), Do: release.TakeBack}); err != nil {
				rt.Fatal(err)
			}
			in.allow()
		}
		if got := s.Head().Root(); got != stable {
			rt.Fatalf("taken back, the head is %s, and stable was %s", got, stable)
		}
		in.settle()
		in.p.cancel()
	})
}
