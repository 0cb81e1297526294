// Package statetest makes configuration states, as the subscription gives them, for tests and benches.
package statetest

import (
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/prism-gateway/prism/dataplane/subscribe"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/ident"
	"github.com/prism-gateway/prism/shared/manifest"
)

// Builder holds a configuration and gives states of it. It is used by one goroutine.
type Builder struct {
	t          fataler
	assignment *configv1.Assignment
	held       func(ident.Partition) bool
	members    map[ident.Partition]map[string]subscribe.Object
	shared     map[string]subscribe.Object
	sets       map[ident.Hash]map[string]subscribe.Object
	partitions map[ident.Partition]*subscribe.Partition
	changed    map[ident.Partition]bool
	snapshot   uint64
}

// fataler is the part of testing.TB that is needed.
type fataler interface {
	Helper()
	Fatalf(format string, args ...any)
}

// New begins a configuration whose partitions are all owned by all members, in the order given, and held.
func New(t fataler, partitions uint32, members ...*configv1.Member) *Builder {
	b := &Builder{
		t: t, held: func(ident.Partition) bool { return true }, members: map[ident.Partition]map[string]subscribe.Object{},
		shared: map[string]subscribe.Object{}, sets: map[ident.Hash]map[string]subscribe.Object{},
		partitions: map[ident.Partition]*subscribe.Partition{}, changed: map[ident.Partition]bool{},
	}
	all := make([]uint32, len(members))
	for i := range all {
		all[i] = uint32(i)
	}
	a := &configv1.Assignment{Epoch: 1, Members: members}
	for p := range partitions {
		a.Partitions = append(a.Partitions, &configv1.PartitionOwners{Owners: all})
		b.changed[ident.Partition(p)] = true
	}
	b.assignment = a
	return b
}

// Assign replaces the assignment by a changed copy.
func (b *Builder) Assign(change func(*configv1.Assignment)) {
	a := proto.CloneOf(b.assignment)
	a.Epoch++
	change(a)
	b.assignment = a
}

// Hold says which partitions are held; all that were or are to be held count as changed.
func (b *Builder) Hold(held func(ident.Partition) bool) {
	b.held = held
	for p := range b.assignment.GetPartitions() {
		b.changed[ident.Partition(p)] = true
	}
}

// Backend adds or replaces a backend.
func (b *Builder) Backend(m *configv1.Backend) { b.setShared("backend/"+m.GetName(), b.object(m)) }

// RawBackend adds a backend of any bytes.
func (b *Builder) RawBackend(name string, data []byte) {
	b.setShared("backend/"+name, subscribe.Object{Hash: ident.HashOf(data), Data: data})
}

func (b *Builder) setShared(name string, o subscribe.Object) {
	next := map[string]subscribe.Object{}
	for k, v := range b.shared {
		next[k] = v
	}
	next[name] = o
	if o.Data == nil {
		delete(next, name)
	}
	b.shared = next
	for p := range b.assignment.GetPartitions() {
		b.changed[ident.Partition(p)] = true
	}
}

// Namespace adds or replaces a namespace.
func (b *Builder) Namespace(m *configv1.NamespaceConfig) {
	b.set(m.GetNamespace(), b.object(m))
}

// Raw adds a namespace of any bytes.
func (b *Builder) Raw(name string, data []byte) {
	b.set(name, subscribe.Object{Hash: ident.HashOf(data), Data: data})
}

// Remove removes a namespace.
func (b *Builder) Remove(name string) { b.set(name, subscribe.Object{}) }

func (b *Builder) set(name string, o subscribe.Object) {
	p := ident.PartitionOf(name, uint32(len(b.assignment.GetPartitions())))
	next := map[string]subscribe.Object{}
	for k, v := range b.members[p] {
		next[k] = v
	}
	next["ns/"+name] = o
	if o.Data == nil {
		delete(next, "ns/"+name)
	}
	b.members[p] = next
	b.changed[p] = true
}

func (b *Builder) object(m proto.Message) subscribe.Object {
	b.t.Helper()
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		b.t.Fatalf("marshal: %v", err)
	}
	return subscribe.Object{Hash: ident.HashOf(data), Data: data}
}

// State is the configuration now, and what changed since the last State.
func (b *Builder) State() subscribe.State {
	b.t.Helper()
	b.snapshot++
	sharedRoot := b.root(b.shared)
	b.sets[sharedRoot] = b.shared
	s := subscribe.State{Assignment: b.assignment, Epoch: b.assignment.GetEpoch(), Partitions: map[ident.Partition]*subscribe.Partition{}, Shared: b.sets}
	for p := range b.changed {
		s.Changed = append(s.Changed, p)
		delete(b.partitions, p)
		if b.held(p) {
			b.partitions[p] = &subscribe.Partition{
				Root: b.root(b.members[p]), SharedRoot: sharedRoot, Snapshot: b.snapshot, CommittedAt: time.Unix(int64(b.snapshot), 0), Members: b.members[p],
			}
		}
	}
	slices.Sort(s.Changed)
	for p, state := range b.partitions {
		s.Partitions[p] = state
	}
	b.changed = map[ident.Partition]bool{}
	return s
}

func (b *Builder) root(members map[string]subscribe.Object) ident.Hash {
	var entries []manifest.Entry
	for name, o := range members {
		entries = append(entries, manifest.Entry{Name: name, Hash: o.Hash})
	}
	if len(entries) == 0 {
		return ident.Hash{}
	}
	m, err := manifest.New(entries)
	if err != nil {
		b.t.Fatalf("%v", err)
	}
	return m.Root()
}

// KeyValue is a namespace with all interfaces of this build, bound to one backend.
func KeyValue(name, backend, backendType string) *configv1.NamespaceConfig {
	return &configv1.NamespaceConfig{
		Namespace: name, StoragePrefix: name + ".1",
		Limits:      &configv1.Limits{Concurrency: 1024, DefaultDeadline: durationpb.New(5 * time.Second), MaxDeadline: durationpb.New(time.Minute)},
		SingleOwner: backendType == "memory",
		Patterns: []*configv1.PatternConfig{{
			Name: "data", Type: "keyvalue", Version: "1.0.0",
			Interfaces: []string{"keyvalue", "keyvalue.list", "keyvalue.scan", "keyvalue.ttl", "keyvalue.version"},
			Bindings:   []*configv1.Binding{{Slot: "storage-" + backendType, Backend: backend, BackendType: backendType}},
		}},
	}
}
