package controller_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/prism-gateway/prism/controlplane/controller"
	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
)

const partitions = 32

// inWaves is the policy of all classes in these tests.
func inWaves() release.Policies {
	p := &configv1.ReleasePolicy{FirstPercent: 5, Soak: durationpb.New(30 * time.Second), Silence: durationpb.New(20 * time.Second)}
	return release.Policies{Additive: p, Scoped: p, Shared: p, Rollback: p}
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func marshal(t testing.TB, m proto.Message) []byte {
	t.Helper()
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// namespace is a change of a namespace that is bound to a backend, if one is named.
func namespace(t testing.TB, name, content, backend string) snapshot.Set {
	t.Helper()
	record := marshal(t, &recordv1.NamespaceRecord{Author: "ann", Request: &configv1.NamespaceRequest{Namespace: name, Team: content}})
	config := &configv1.NamespaceConfig{Namespace: name, StoragePrefix: content, RecordHash: ident.HashOf(record).Bytes()}
	if backend != "" {
		config.Patterns = []*configv1.PatternConfig{{Name: "kv", Type: "keyvalue", Bindings: []*configv1.Binding{{Slot: "storage-memory", Backend: backend, BackendType: "memory"}}}}
	}
	return snapshot.Set{Name: "ns/" + name, Author: "ann", Record: record, Data: marshal(t, config)}
}

func backend(t testing.TB, name, label string) snapshot.Set {
	t.Helper()
	return snapshot.Set{Name: "backend/" + name, Author: "ann", Data: marshal(t, &configv1.Backend{Name: name, Type: "memory", Labels: map[string]string{"label": label}})}
}

// kept keeps snapshots and releases in memory, so that time can be virtual.
type kept struct {
	mu       sync.Mutex // guards all below
	state    *release.State
	ended    []*recordv1.Release
	members  []*recordv1.MemberLease
	watchers map[chan struct{}]bool
	steps    []release.Step // that changed something
	trouble  error          // what a step comes to
	removed  []*recordv1.Change
}

func newKept() *kept {
	return &kept{state: release.Settled(snapshot.New(partitions)), watchers: map[chan struct{}]bool{}}
}

// commit records a change under policies and returns the number of its snapshot.
func (k *kept) commit(t testing.TB, order release.Order, policies release.Policies, sets ...snapshot.Set) uint64 {
	t.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	draft, _, err := k.state.Draft(time.Now()).With(order, policies, sets)
	if err != nil {
		t.Fatal(err)
	}
	done, err := draft.Done()
	if err != nil {
		t.Fatal(err)
	}
	k.moveLocked(done)
	return draft.Version()
}

func (k *kept) moveLocked(done release.Transition) {
	k.state = done.State
	for _, r := range done.Ended {
		k.ended = slices.Insert(k.ended, 0, r)
	}
	for c := range k.watchers {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

func (k *kept) Released() *release.State {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.state
}

func (k *kept) Ended() []*recordv1.Release {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.ended
}

func (k *kept) Members() []*recordv1.MemberLease {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.members
}

func (k *kept) Watch() (<-chan struct{}, func()) {
	c := make(chan struct{}, 1)
	c <- struct{}{}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.watchers[c] = true
	return c, func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.watchers, c)
	}
}

func (k *kept) Step(ctx context.Context, choose func(*release.State) (release.Step, error)) (release.Result, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.trouble != nil {
		return release.Result{}, k.trouble
	}
	if ctx.Err() != nil {
		return release.Result{}, fault.From(ctx.Err())
	}
	step, err := choose(k.state)
	if err != nil || step.Do == 0 {
		return release.Result{State: k.state}, err
	}
	done, err := k.state.Apply(step, time.Now())
	if err != nil {
		return release.Result{}, err
	}
	result := release.Result{State: done.State, Changed: done.State != k.state}
	if r, ok := done.State.Release(step.Release); ok {
		result.Release = r
	}
	for _, r := range done.Ended {
		if r.GetSnapshot() == step.Release {
			result.Release = r
		}
	}
	if len(done.Changes) > 0 {
		result.Snapshot = done.State.Head().Record(k.state.Head().Version(), done.Changes)
	}
	if result.Changed {
		k.steps = append(k.steps, step)
		k.moveLocked(done)
	}
	return result, nil
}

// Commit records a change under no policies.
func (k *kept) Commit(_ context.Context, order release.Order, edit snapshot.Edit) (snapshot.Commit, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	sets, err := edit(k.state.Head(), k.state.Head().Version()+1)
	if err != nil || len(sets) == 0 {
		return snapshot.Commit{Tree: k.state.Head()}, err
	}
	draft, changes, err := k.state.Draft(time.Now()).With(order, inWaves(), sets)
	if err != nil {
		return snapshot.Commit{}, err
	}
	done, err := draft.Done()
	if err != nil {
		return snapshot.Commit{}, err
	}
	k.removed = append(k.removed, changes...)
	k.moveLocked(done)
	return snapshot.Commit{Tree: done.State.Head(), Changed: true}, nil
}

// release is one, under way or ended.
func (k *kept) release(t testing.TB, snapshot uint64) *recordv1.Release {
	t.Helper()
	if r, ok := k.Released().Release(snapshot); ok {
		return r
	}
	for _, r := range k.Ended() {
		if r.GetSnapshot() == snapshot {
			return r
		}
	}
	t.Fatalf("there is no release %d", snapshot)
	return nil
}

// content is what a namespace was set to; empty when it is not there.
func (k *kept) content(t testing.TB, name string) string {
	return contentOf(t, k.Released().Head(), name)
}

func contentOf(t testing.TB, tree *snapshot.Tree, name string) string {
	t.Helper()
	o, ok := tree.Namespace(name)
	if !ok {
		return ""
	}
	config := &configv1.NamespaceConfig{}
	if err := proto.Unmarshal(o.Data, config); err != nil {
		t.Fatal(err)
	}
	return config.GetStoragePrefix()
}

// watched is what a scripted fleet follows.
type watched interface {
	Released() *release.State
	Watch() (<-chan struct{}, func())
}

// script is a fleet in which every proxy serves what it ought to at once, but for what a test says of it.
type script struct {
	store watched

	mu         sync.Mutex // guards all below
	assignment *configv1.Assignment
	changes    map[string]func(c *controlv1.CellState, v release.View) // by proxy
	watchers   map[chan struct{}]bool
}

// newScript makes a fleet of validators, and of proxies of which each owns every partition, in turns of rank.
func newScript(store watched, validators, proxies int) *script {
	s := &script{store: store, changes: map[string]func(*controlv1.CellState, release.View){}, watchers: map[chan struct{}]bool{}}
	a := &configv1.Assignment{Epoch: 1}
	for i := range proxies {
		a.Members = append(a.Members, &configv1.Member{Id: fmt.Sprintf("proxy-%d", i)})
	}
	for i := range validators {
		a.Members = append(a.Members, &configv1.Member{Id: fmt.Sprintf("validator-%d", i), Validator: true})
	}
	for p := range partitions {
		owners := &configv1.PartitionOwners{}
		for rank := range proxies {
			owners.Owners = append(owners.Owners, uint32((p+rank)%proxies))
		}
		a.Partitions = append(a.Partitions, owners)
	}
	s.assignment = a
	return s
}

func (s *script) leases() []*recordv1.MemberLease {
	var all []*recordv1.MemberLease
	for _, m := range s.Assignment().GetMembers() {
		all = append(all, &recordv1.MemberLease{Member: m})
	}
	return all
}

func (s *script) Assignment() *configv1.Assignment {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.assignment
}

func (s *script) WatchAssignment() (<-chan struct{}, func()) { return s.watch() }

// WatchStatus tells the version of a namespace that each owner has.
func (s *script) WatchStatus(ctx context.Context, namespace string, told func(*configv1.NamespaceStatus) bool) error {
	p := ident.PartitionOf(namespace, partitions)
	seen := s.observe(p)
	defer seen.Close()
	for {
		o, ok := s.store.Released().Head().Namespace(namespace)
		if !ok {
			return fault.New(fault.NotFound, fault.Namespace, "no such namespace")
		}
		st := &configv1.NamespaceStatus{Version: o.Hash.String()}
		cells := seen.Cells(p)
		for _, i := range s.Assignment().GetPartitions()[p].GetOwners() {
			owner := &configv1.OwnerStatus{Stage: configv1.Stage_STAGE_ACCEPTED}
			if c := cells[s.Assignment().GetMembers()[i].GetId()]; len(c.GetUnready()) > 0 { // what a test says of it
				owner.Stage = configv1.Stage_STAGE_PENDING
			}
			st.Owners = append(st.Owners, owner)
		}
		if told(st) {
			return nil
		}
		select {
		case <-seen.Changed():
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *script) watch() (<-chan struct{}, func()) {
	c := make(chan struct{}, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watchers[c] = true
	return c, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.watchers, c)
	}
}

// change makes a proxy another than it ought to be, from now on.
func (s *script) change(proxy string, how func(c *controlv1.CellState, v release.View)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changes[proxy] = how
	for c := range s.watchers {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

func (s *script) observe(...ident.Partition) controller.Observation {
	moved, stopMoved := s.store.Watch()
	changed, stopChanged := s.watch()
	o := &scripted{script: s, changed: make(chan struct{}, 1), done: make(chan struct{})}
	o.running.Go(func() {
		defer stopMoved()
		defer stopChanged()
		for {
			select {
			case <-moved:
			case <-changed:
			case <-o.done:
				return
			}
			o.moved.Store(true)
			select {
			case o.changed <- struct{}{}:
			default:
			}
		}
	})
	return o
}

// scripted is an observation of a script.
type scripted struct {
	script  *script
	changed chan struct{}
	moved   atomic.Bool
	done    chan struct{}
	running sync.WaitGroup
}

func (o *scripted) Moved() []ident.Partition {
	if !o.moved.Swap(false) {
		return nil
	}
	var all []ident.Partition
	for p := range ident.Partition(partitions) {
		all = append(all, p)
	}
	return all
}

func (o *scripted) Changed() <-chan struct{} { return o.changed }

func (o *scripted) Complete() bool { return true }

func (o *scripted) Close() {
	close(o.done)
	o.running.Wait()
}

func (o *scripted) Cells(p ident.Partition) map[string]*controlv1.CellState {
	a, state := o.script.Assignment(), o.script.store.Released()
	o.script.mu.Lock()
	defer o.script.mu.Unlock()
	cells := map[string]*controlv1.CellState{}
	add := func(m *configv1.Member, rank release.Rank) {
		v := state.View(p, rank)
		root, shared := v.Partition.Root().Bytes(), v.Shared.Root().Bytes()
		c := &controlv1.CellState{
			Proxy: m.GetId(), Partition: uint32(p), Build: "v3", LastSeen: timestamppb.Now(), SnapshotVersion: v.Snapshot,
			SentRoot: root, AcceptedRoot: root, AcceptedSharedRoot: shared, ServingRoot: root, ServingSharedRoot: shared,
		}
		if how := o.script.changes[m.GetId()]; how != nil {
			how(c, v)
		}
		cells[m.GetId()] = c
	}
	for _, m := range a.GetMembers() {
		if m.GetValidator() {
			add(m, release.Validator)
		}
	}
	for rank, i := range a.GetPartitions()[p].GetOwners() {
		add(a.GetMembers()[i], release.Rank(rank))
	}
	return cells
}

// lead runs a controller until the function is called.
func lead(t testing.TB, k *kept, s *script) (stop func()) {
	t.Helper()
	k.mu.Lock()
	k.members = s.leases()
	k.mu.Unlock()
	c, err := controller.New(controller.Config{Store: k, Fleet: s, Observe: s.observe, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
