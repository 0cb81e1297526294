package assignment_test

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	"pgregory.net/rapid"

	"github.com/prism-gateway/prism/controlplane/admission"
	"github.com/prism-gateway/prism/controlplane/assignment"
	"github.com/prism-gateway/prism/controlplane/selection"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/fault"
)

var update = flag.Bool("update", false, "write the golden files")

// store is a short way to say a backend; change says what is special.
func store(name, kind string, change ...func(*assignment.Backend)) assignment.Backend {
	b := assignment.Backend{Backend: &configv1.Backend{Name: name, Type: kind, Capacity: &configv1.Capacity{}, Labels: map[string]string{}}}
	for _, c := range change {
		c(&b)
	}
	return b
}

func region(r string) func(*assignment.Backend) {
	return func(b *assignment.Backend) { b.Labels["region"] = r }
}

func capacity(reads, writes uint32, data string) func(*assignment.Backend) {
	return func(b *assignment.Backend) {
		b.Capacity = &configv1.Capacity{ReadRps: reads, WriteRps: writes, DataSize: data}
	}
}

func holding(namespaces, reads, writes, data uint64) func(*assignment.Backend) {
	return func(b *assignment.Backend) {
		b.Reserved = assignment.Reserved{Namespaces: namespaces, ReadRPS: reads, WriteRPS: writes, DataBytes: data}
	}
}

func maintenance(b *assignment.Backend) { b.Maintenance = true }

// one is a selection of one key-value pattern.
func one(change ...func(*selection.Pattern)) selection.Selection {
	p := selection.Pattern{
		Name: "keyvalue", Type: "keyvalue", Version: "1.0.0", Interfaces: []string{"keyvalue"},
		Durability: configv1.Durability_DURABILITY_RELAXED, Consistency: configv1.Consistency_CONSISTENCY_STRONG,
		Slots: []selection.Slot{{Purpose: "storage"}},
	}
	for _, c := range change {
		c(&p)
	}
	return selection.Selection{Patterns: []selection.Pattern{p}}
}

func slot(change func(*selection.Slot)) func(*selection.Pattern) {
	return func(p *selection.Pattern) { change(&p.Slots[0]) }
}

func on(backend string) assignment.Current {
	return assignment.Current{Bindings: map[string]string{"keyvalue/storage": backend}}
}

// cases are read together with testdata/cases.golden, which says what was chosen and why.
var cases = []struct {
	name      string
	selection selection.Selection
	backends  []assignment.Backend
	current   assignment.Current
}{
	{"no backend is registered", one(), nil, assignment.Current{}},
	{"the only one that fits", one(), []assignment.Backend{store("cache", "redis")}, assignment.Current{}},
	{
		"every reason to refuse",
		selection.Selection{Region: "eu", Patterns: one(func(p *selection.Pattern) {
			p.Interfaces = []string{"keyvalue", "keyvalue.scan"}
			p.ReadRPS, p.WriteRPS, p.DataBytes = 100, 10, 1<<30
			p.Slots[0].Labels = map[string]string{"tier": "gold"}
		}).Patterns},
		[]assignment.Backend{
			store("a-kafka", "kafka"), store("b-memory", "memory", region("eu")), store("c-elsewhere", "redis", region("us")),
			store("d-silver", "redis", region("eu"), func(b *assignment.Backend) { b.Labels["tier"] = "silver" }),
			store("e-maintained", "redis", region("eu"), gold, maintenance),
			store("f-reads", "redis", region("eu"), gold, capacity(1000, 1000, "1TiB"), holding(1, 950, 0, 0)),
			store("g-writes", "redis", region("eu"), gold, capacity(1000, 5, "1TiB")),
			store("h-data", "redis", region("eu"), gold, capacity(1000, 1000, "2GiB"), holding(1, 0, 0, 1<<30+1)),
		},
		assignment.Current{},
	},
	{"durability strong", one(func(p *selection.Pattern) { p.Durability = configv1.Durability_DURABILITY_STRONG }),
		[]assignment.Backend{store("cache", "redis"), store("disk", "sqlite"), store("scratch", "memory")}, assignment.Current{}},
	{"durability that settings weaken", one(func(p *selection.Pattern) { p.Durability = configv1.Durability_DURABILITY_STRONG }),
		[]assignment.Backend{store("fast", "sqlite", func(b *assignment.Backend) { b.Config = map[string]string{"synchronous": "normal"} }), store("safe", "sqlite")}, assignment.Current{}},
	{"an interface that none offers", one(func(p *selection.Pattern) { p.Interfaces = []string{"keyvalue", "keyvalue.outbox"} }),
		[]assignment.Backend{store("cache", "redis"), store("disk", "sqlite")}, assignment.Current{}},
	{"a value that is too large", one(func(p *selection.Pattern) { p.MaxValueBytes = 64 << 20 }),
		[]assignment.Backend{store("cache", "redis")}, assignment.Current{}},
	{"a slot that names the type", one(slot(func(s *selection.Slot) { s.Type = "sqlite" })),
		[]assignment.Backend{store("cache", "redis"), store("disk", "sqlite")}, assignment.Current{}},
	{"a slot that prefers a backend", one(slot(func(s *selection.Slot) { s.Backend = "cache-b" })),
		[]assignment.Backend{store("cache-a", "redis"), store("cache-b", "redis", holding(50, 0, 0, 0))}, assignment.Current{}},
	{"a preference that does not fit", one(slot(func(s *selection.Slot) { s.Backend = "cache-b" })),
		[]assignment.Backend{store("cache-a", "redis"), store("cache-b", "redis", maintenance)}, assignment.Current{}},
	{"most proxies reach it", one(func(p *selection.Pattern) { p.Durability = configv1.Durability_DURABILITY_NONE }),
		[]assignment.Backend{store("a-scratch", "memory"), store("b-disk", "sqlite"), store("c-cache", "redis")}, assignment.Current{}},
	{"a faster store", one(func(p *selection.Pattern) { p.Durability = configv1.Durability_DURABILITY_STRONG }),
		[]assignment.Backend{store("a-objects", "s3"), store("b-tables", "postgres", holding(9, 0, 0, 0))}, assignment.Current{}},
	{"most room", one(func(p *selection.Pattern) { p.ReadRPS = 10 }),
		[]assignment.Backend{store("a", "redis", capacity(1000, 0, ""), holding(1, 900, 0, 0)), store("b", "redis", capacity(1000, 0, ""), holding(9, 500, 0, 0))}, assignment.Current{}},
	{"fewest namespaces", one(), []assignment.Backend{store("a", "redis", holding(3, 0, 0, 0)), store("b", "redis", holding(2, 0, 0, 0))}, assignment.Current{}},
	{"the first name", one(), []assignment.Backend{store("b", "redis"), store("c", "redis"), store("a", "redis")}, assignment.Current{}},
	{"stays where it is", one(), []assignment.Backend{store("a", "redis"), store("b", "redis", holding(100, 0, 0, 0))}, on("b")},
	{"stays in maintenance", one(), []assignment.Backend{store("a", "redis"), store("b", "redis", maintenance)}, on("b")},
	{"stays when full and asking for no more", one(func(p *selection.Pattern) { p.ReadRPS = 100 }),
		[]assignment.Backend{store("a", "redis"), store("b", "redis", capacity(50, 0, ""))},
		assignment.Current{Bindings: map[string]string{"keyvalue/storage": "b"}, Held: map[string]assignment.Reserved{"b": {Namespaces: 1, ReadRPS: 100}}}},
	{"moves when full and asking for more", one(func(p *selection.Pattern) { p.ReadRPS = 101 }),
		[]assignment.Backend{store("a", "redis"), store("b", "redis", capacity(50, 0, ""))},
		assignment.Current{Bindings: map[string]string{"keyvalue/storage": "b"}, Held: map[string]assignment.Reserved{"b": {Namespaces: 1, ReadRPS: 100}}}},
	{"moves when it prefers another", one(slot(func(s *selection.Slot) { s.Backend = "a" })),
		[]assignment.Backend{store("a", "redis"), store("b", "redis")}, on("b")},
	{"two patterns share one capacity", selection.Selection{Patterns: []selection.Pattern{
		named("one", one(func(p *selection.Pattern) { p.ReadRPS = 60 })), named("two", one(func(p *selection.Pattern) { p.ReadRPS = 60 })),
	}}, []assignment.Backend{store("a", "redis", capacity(100, 0, "")), store("b", "redis", capacity(100, 0, ""))}, assignment.Current{}},
	{"two patterns on one backend reserve their sum", selection.Selection{Patterns: []selection.Pattern{
		named("one", one(func(p *selection.Pattern) { p.ReadRPS, p.DataBytes = 60, 1 })), named("two", one(func(p *selection.Pattern) { p.ReadRPS, p.WriteRPS = 60, 5 })),
	}}, []assignment.Backend{store("a", "redis", capacity(120, 0, ""))}, assignment.Current{}},
	{"a cache before the storage", one(func(p *selection.Pattern) {
		p.Durability, p.Interfaces = configv1.Durability_DURABILITY_STRONG, []string{"keyvalue", "keyvalue.scan"}
		p.Slots = append(p.Slots, selection.Slot{Purpose: "cache"})
	}), []assignment.Backend{store("a-disk", "sqlite"), store("b-cache", "redis"), store("c-scratch", "memory")}, assignment.Current{}},
	{"nothing is fast enough for a cache", one(func(p *selection.Pattern) {
		p.Durability = configv1.Durability_DURABILITY_STRONG
		p.Slots = append(p.Slots, selection.Slot{Purpose: "cache"})
	}), []assignment.Backend{store("disk", "sqlite")}, assignment.Current{}},
}

func gold(b *assignment.Backend) { b.Labels["tier"] = "gold" }

func named(name string, s selection.Selection) selection.Pattern {
	p := s.Patterns[0]
	p.Name = name
	return p
}

func TestCases(t *testing.T) {
	var got strings.Builder
	for _, tc := range cases {
		fmt.Fprintf(&got, "%s\n", tc.name)
		a, err := assignment.Assign(tc.selection, tc.backends, tc.current)
		if err != nil {
			f := fault.From(err)
			if f.Code != fault.FailedPrecondition || f.Reason != fault.NoBackend {
				t.Errorf("%s: %v", tc.name, err)
			}
			fmt.Fprintf(&got, "  refused: %s\n", strings.ReplaceAll(f.Text, "; ", "\n           "))
			continue
		}
		for i, p := range tc.selection.Patterns {
			for _, b := range a.Bindings[i] {
				fmt.Fprintf(&got, "  %s %s -> %s (%s)\n", p.Name, b.Slot, b.Backend, b.BackendType)
			}
		}
		for _, r := range a.Reservations {
			fmt.Fprintf(&got, "  reserved on %s: reads %d, writes %d, data %d\n", r.Backend, r.ReadRps, r.WriteRps, r.DataBytes)
		}
		if a.SingleOwner {
			got.WriteString("  one owner\n")
		}
		for _, d := range a.Decisions {
			fmt.Fprintf(&got, "  %s by %s: %s\n", d.Subject, d.Rule, d.Reason)
			for _, r := range d.Refusals {
				fmt.Fprintf(&got, "    not %s: %s\n", r.Name, r.Reason)
			}
		}
	}
	if *update {
		if err := os.WriteFile("testdata/cases.golden", []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("testdata/cases.golden")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Error(diff)
	}
}

func TestOnlySomeOfManyAreNamed(t *testing.T) {
	var many []assignment.Backend
	for i := range 150 {
		many = append(many, store(fmt.Sprintf("cache-%03d", i), "redis"))
	}
	a, err := assignment.Assign(one(), many, assignment.Current{})
	if err != nil {
		t.Fatal(err)
	}
	if r := a.Decisions[0].Refusals; len(r) != 21 || r[20].Reason != "129 more were not chosen" {
		t.Errorf("%d refusals, the last %v", len(r), r[len(r)-1])
	}
	_, err = assignment.Assign(one(func(p *selection.Pattern) { p.Interfaces = []string{"keyvalue.outbox"} }), many, assignment.Current{})
	if f := fault.From(err); strings.Count(f.Text, "cache-") != 100 || !strings.HasSuffix(f.Text, "and 50 more") {
		t.Error(f.Text)
	}
}

func TestCredentialPathsAreTheSlotsElseTheBackends(t *testing.T) {
	backends := []assignment.Backend{store("cache", "redis", func(b *assignment.Backend) { b.CredentialPath = "vault://kv/cache" })}
	for own, want := range map[string]string{"": "vault://kv/cache", "vault://kv/orders": "vault://kv/orders"} {
		a, err := assignment.Assign(one(slot(func(s *selection.Slot) { s.CredentialPath = own })), backends, assignment.Current{})
		if err != nil {
			t.Fatal(err)
		}
		if got := a.Bindings[0][0].CredentialPath; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestSizesAreWrittenAsTheyAreRead(t *testing.T) {
	for n, want := range map[uint64]string{0: "0B", 1: "1B", 1024: "1KiB", 1025: "1025B", 20 << 30: "20GiB", 3 << 40: "3TiB", 1 << 60: "1048576TiB"} {
		got := assignment.FormatSize(n)
		if back, err := admission.ParseSize(got); got != want || back != n || err != nil {
			t.Errorf("%d: %s, read back %d, %v; want %s", n, got, back, err, want)
		}
	}
}

// anyBackends draws backends of all kinds, some full, some in maintenance.
func anyBackends(t *rapid.T) []assignment.Backend {
	var out []assignment.Backend
	for i := range rapid.IntRange(0, 8).Draw(t, "backends") {
		at := fmt.Sprintf("b%d ", i)
		b := store(fmt.Sprintf("b-%d", i), rapid.SampledFrom([]string{"redis", "sqlite", "memory", "kafka"}).Draw(t, at+"type"))
		b.Capacity = &configv1.Capacity{
			ReadRps: rapid.Uint32Range(0, 200).Draw(t, at+"reads"), WriteRps: rapid.Uint32Range(0, 200).Draw(t, at+"writes"),
			DataSize: rapid.SampledFrom([]string{"", "0B", "100B", "1KiB"}).Draw(t, at+"data"),
		}
		b.Labels["region"] = rapid.SampledFrom([]string{"eu", "us"}).Draw(t, at+"region")
		b.Maintenance = rapid.Bool().Draw(t, at+"maintenance")
		b.Reserved = assignment.Reserved{
			Namespaces: rapid.Uint64Range(0, 5).Draw(t, at+"namespaces"), ReadRPS: rapid.Uint64Range(0, 250).Draw(t, at+"reads held"),
			WriteRPS: rapid.Uint64Range(0, 250).Draw(t, at+"writes held"), DataBytes: rapid.Uint64Range(0, 2000).Draw(t, at+"data held"),
		}
		out = append(out, b)
	}
	return out
}

func anySelection(t *rapid.T) selection.Selection {
	s := selection.Selection{Region: rapid.SampledFrom([]string{"", "eu"}).Draw(t, "region")}
	for i := range rapid.IntRange(1, 3).Draw(t, "patterns") {
		s.Patterns = append(s.Patterns, named(fmt.Sprintf("p-%d", i), one(func(p *selection.Pattern) {
			p.Durability = configv1.Durability(rapid.IntRange(1, 3).Draw(t, "durability"))
			p.ReadRPS = rapid.Uint32Range(0, 150).Draw(t, "read_rps")
			p.WriteRPS = rapid.Uint32Range(0, 150).Draw(t, "write_rps")
			p.DataBytes = rapid.Uint64Range(0, 600).Draw(t, "data")
			p.Slots[0].Type = rapid.SampledFrom([]string{"", "", "redis", "sqlite"}).Draw(t, "type")
		})))
	}
	return s
}

func TestTheOrderOfBackendsDoesNotMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		backends, s := anyBackends(t), anySelection(t)
		current := assignment.Current{Bindings: map[string]string{"p-0/storage": "b-1"}}
		first, err := assignment.Assign(s, backends, current)
		second, err2 := assignment.Assign(s, rapid.Permutation(backends).Draw(t, "order"), current)
		if fmt.Sprint(err) != fmt.Sprint(err2) {
			t.Fatalf("%v\n%v", err, err2)
		}
		if diff := cmp.Diff(first, second, protocmp.Transform()); diff != "" {
			t.Fatal(diff)
		}
	})
}

func TestCapacityIsNeverExceeded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		backends, s := anyBackends(t), anySelection(t)
		a, err := assignment.Assign(s, backends, assignment.Current{})
		if err != nil {
			return
		}
		var asked, held assignment.Reserved
		for _, p := range s.Patterns {
			asked = asked.Add(assignment.Reserved{ReadRPS: uint64(p.ReadRPS), WriteRPS: uint64(p.WriteRPS), DataBytes: p.DataBytes})
		}
		byName := map[string]assignment.Backend{}
		for _, b := range backends {
			byName[b.GetName()] = b
		}
		for _, r := range a.Reservations {
			b := byName[r.Backend]
			held = held.Add(assignment.Reserved{ReadRPS: uint64(r.ReadRps), WriteRPS: uint64(r.WriteRps), DataBytes: r.DataBytes})
			size, err := admission.ParseSize(b.Capacity.DataSize)
			if err != nil {
				t.Fatal(err)
			}
			for what, n := range map[string][3]uint64{
				"read_rps":  {uint64(r.ReadRps), b.Reserved.ReadRPS, uint64(b.Capacity.ReadRps)},
				"write_rps": {uint64(r.WriteRps), b.Reserved.WriteRPS, uint64(b.Capacity.WriteRps)},
				"data_size": {r.DataBytes, b.Reserved.DataBytes, size},
			} {
				if n[0] > 0 && n[2] > 0 && n[0]+n[1] > n[2] {
					t.Fatalf("%s of %s: %d on top of %d, of %d", what, r.Backend, n[0], n[1], n[2])
				}
			}
		}
		if asked != held {
			t.Fatalf("asked for %+v, reserved %+v", asked, held)
		}
	})
}

func TestWhatIsChosenIsKept(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		backends, s := anyBackends(t), anySelection(t)
		first, err := assignment.Assign(s, backends, assignment.Current{})
		if err != nil {
			return
		}
		current := assignment.Current{Bindings: map[string]string{}, Held: map[string]assignment.Reserved{}}
		for i, p := range s.Patterns {
			current.Bindings[assignment.SlotKey(p.Name, "storage")] = first.Bindings[i][0].Backend
		}
		for _, r := range first.Reservations {
			current.Held[r.Backend] = assignment.Reserved{Namespaces: 1, ReadRPS: uint64(r.ReadRps), WriteRPS: uint64(r.WriteRps), DataBytes: r.DataBytes}
		}
		for i := range backends {
			if slices.Contains(slices.Collect(maps.Keys(current.Held)), backends[i].GetName()) {
				backends[i].Maintenance = true // people begin to work on it
			}
		}
		again, err := assignment.Assign(s, backends, current)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(first.Bindings, again.Bindings, protocmp.Transform()); diff != "" {
			t.Fatal(diff)
		}
	})
}
