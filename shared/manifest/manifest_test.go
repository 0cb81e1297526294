package manifest_test

import (
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/prism-gateway/prism/shared/ident"
	"github.com/prism-gateway/prism/shared/manifest"
)

func h(s string) ident.Hash { return ident.HashOf([]byte(s)) }

func build(t rapid.TB, members map[string]ident.Hash) *manifest.Manifest {
	var entries []manifest.Entry
	for name, hash := range members {
		entries = append(entries, manifest.Entry{Name: name, Hash: hash})
	}
	m, err := manifest.New(entries)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func members(m *manifest.Manifest) map[string]ident.Hash {
	out := map[string]ident.Hash{}
	for _, e := range m.Entries() {
		out[e.Name] = e.Hash
	}
	return out
}

func TestRootDoesNotDependOnOrder(t *testing.T) {
	a, err := manifest.New([]manifest.Entry{{"ns/a", h("1")}, {"ns/b", h("2")}})
	if err != nil {
		t.Fatal(err)
	}
	b, err := manifest.New([]manifest.Entry{{"ns/b", h("2")}, {"ns/a", h("1")}})
	if err != nil {
		t.Fatal(err)
	}
	if a.Root() != b.Root() || a.Root().IsZero() {
		t.Fatalf("roots %v and %v", a.Root(), b.Root())
	}
}

func TestNewRefuses(t *testing.T) {
	for name, entries := range map[string][]manifest.Entry{
		"a name twice": {{"a", h("1")}, {"a", h("2")}},
		"no name":      {{"", h("1")}},
		"no hash":      {{"a", ident.Hash{}}},
	} {
		if _, err := manifest.New(entries); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestDecodeRefusesDamage(t *testing.T) {
	good := build(t, map[string]ident.Hash{"ns/a": h("1"), "ns/b": h("2")}).Encode()
	for name, data := range map[string][]byte{
		"cut":                good[:len(good)-1],
		"a byte more":        append(slices.Clone(good), 0),
		"out of order":       append(slices.Clone(good[len(good)/2:]), good[:len(good)/2]...),
		"length too large":   {0xff, 0xff, 0xff, 0xff, 0x0f},
		"length not minimal": append([]byte{0x84, 0x00}, good[1:]...),
	} {
		if _, err := manifest.Decode(data); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestDiffAppliedGivesTheOther(t *testing.T) {
	names := rapid.SampledFrom([]string{"a", "b", "c", "d", "e", "f"})
	hashes := rapid.Map(rapid.SampledFrom([]string{"1", "2", "3"}), h)
	rapid.Check(t, func(t *rapid.T) {
		from := rapid.MapOf(names, hashes).Draw(t, "from")
		to := rapid.MapOf(names, hashes).Draw(t, "to")
		a, b := build(t, from), build(t, to)
		set, removed := manifest.Diff(a, b)
		changes := map[string]ident.Hash{}
		for _, e := range set {
			changes[e.Name] = e.Hash
		}
		for _, name := range removed {
			changes[name] = ident.Hash{}
		}
		got, err := a.With(changes)
		if err != nil {
			t.Fatal(err)
		}
		if got.Root() != b.Root() || !maps.Equal(members(got), to) {
			t.Fatalf("got %v, want %v", members(got), to)
		}
		back, err := manifest.Decode(b.Encode())
		if err != nil || back.Root() != b.Root() || back.Len() != len(to) {
			t.Fatalf("decoded %v, %v", back, err)
		}
	})
}

func TestGet(t *testing.T) {
	m := build(t, map[string]ident.Hash{"a": h("1"), "c": h("2")})
	if got, ok := m.Get("c"); !ok || got != h("2") {
		t.Errorf("c: %v, %v", got, ok)
	}
	if _, ok := m.Get("b"); ok {
		t.Error("b is there")
	}
	if !manifest.Empty.Root().IsZero() {
		t.Error("the empty manifest has a root")
	}
}
