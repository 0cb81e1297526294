package snapshot_test

import (
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/prism-gateway/prism/controlplane/snapshot"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/ident"
	"github.com/prism-gateway/prism/shared/manifest"
)

const partitions = 50 // no multiple of the number of groups

func marshal(t testing.TB, m proto.Message) []byte {
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// config is a namespace's configuration that reserves writes on a backend; content makes two of them differ.
func config(t testing.TB, name, backend string, writes uint32, content string) []byte {
	return marshal(t, &configv1.NamespaceConfig{
		Namespace:     name,
		StoragePrefix: content,
		Patterns:      []*configv1.PatternConfig{{Name: "main", Bindings: []*configv1.Binding{{Slot: "storage-redis", Backend: backend}}}},
		Reservations:  []*configv1.Reservation{{Backend: backend, WriteRps: writes, ReadRps: 2 * writes, DataBytes: 1 << 20}},
	})
}

func with(t testing.TB, tree *snapshot.Tree, sets ...snapshot.Set) *snapshot.Tree {
	next, _, err := tree.With(tree.Version()+1, sets)
	if err != nil {
		t.Fatal(err)
	}
	return next
}

// content is all that a tree holds, by whole name.
func content(tree *snapshot.Tree) map[string]string {
	all := map[string]string{}
	for o := range tree.Namespaces("", "") {
		all[o.Name] = string(o.Data)
	}
	for _, o := range append(tree.Backends(), tree.Profiles()...) {
		all[o.Name] = string(o.Data)
	}
	return all
}

// usageOf counts anew what Usage keeps as it goes.
func usageOf(t *rapid.T, tree *snapshot.Tree) map[string]snapshot.Usage {
	sum := map[string]snapshot.Usage{}
	for o := range tree.Namespaces("", "") {
		var cfg configv1.NamespaceConfig
		if err := proto.Unmarshal(o.Data, &cfg); err != nil {
			t.Fatal(err)
		}
		r := cfg.Reservations[0]
		u := sum[r.Backend]
		u.Namespaces++
		u.ReadRPS += uint64(r.ReadRps)
		u.WriteRPS += uint64(r.WriteRps)
		u.DataBytes += r.DataBytes
		sum[r.Backend] = u
	}
	return sum
}

type setter interface {
	Draw(t *rapid.T, label string) snapshot.Set
}

func sets(tb testing.TB) setter {
	return rapid.Custom(func(t *rapid.T) snapshot.Set {
		kind := rapid.SampledFrom([]string{"ns/", "ns/", "ns/", "backend/", "profile/"}).Draw(t, "kind")
		name := rapid.StringMatching("name-[a-c]").Draw(t, "name")
		set := snapshot.Set{Name: kind + name, Author: "ann", Message: "because"}
		if rapid.IntRange(0, 3).Draw(t, "deletes") == 0 {
			return set
		}
		text := rapid.SampledFrom([]string{"1", "2"}).Draw(t, "content")
		if kind == "ns/" {
			backend := rapid.SampledFrom([]string{"redis-a", "redis-b"}).Draw(t, "backend")
			set.Data = config(tb, name, backend, rapid.Uint32Range(0, 3).Draw(t, "writes"), text)
		} else {
			set.Data = marshal(tb, &configv1.Backend{Name: name, Type: "t" + text})
		}
		return set
	})
}

// TestEditsAgainstAModel makes random changes and rollbacks and holds the tree against a map.
func TestEditsAgainstAModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		generator := sets(t)
		trees := []*snapshot.Tree{snapshot.New(partitions)}
		models := []map[string]string{{}}
		for version := uint64(1); version <= uint64(rapid.IntRange(1, 12).Draw(rt, "edits")); version++ {
			base, model := trees[len(trees)-1], maps.Clone(models[len(models)-1])
			var next *snapshot.Tree
			var changes []*recordv1.Change
			var err error
			if rapid.IntRange(0, 4).Draw(rt, "rollback") == 0 {
				to := rapid.IntRange(0, len(trees)-1).Draw(rt, "to")
				next, changes, err = base.RollbackTo(trees[to], version, snapshot.Note{Author: "ann"})
				model = maps.Clone(models[to])
				if err == nil && next.Root() != trees[to].Root() {
					rt.Fatalf("rolled back to root %s, want %s", next.Root(), trees[to].Root())
				}
			} else {
				var edit []snapshot.Set
				for range rapid.IntRange(1, 4).Draw(rt, "sets") {
					set := generator.Draw(rt, "set")
					if slices.ContainsFunc(edit, func(s snapshot.Set) bool { return s.Name == set.Name }) {
						continue
					}
					edit = append(edit, set)
					if set.Data == nil {
						delete(model, set.Name)
					} else {
						model[set.Name] = string(set.Data)
					}
				}
				next, changes, err = base.With(version, edit)
			}
			if err != nil {
				rt.Fatal(err)
			}
			if same := maps.Equal(models[len(models)-1], model); same != (next == base) || same != (len(changes) == 0) {
				rt.Fatalf("content unchanged: %v, tree unchanged: %v, changes: %v", same, next == base, changes)
			}
			trees, models = append(trees, next), append(models, model)
		}
		a, b := rapid.IntRange(0, len(trees)-1).Draw(rt, "a"), rapid.IntRange(0, len(trees)-1).Draw(rt, "b")
		check(rt, trees[a], models[a])
		if (trees[a].Root() == trees[b].Root()) != maps.Equal(models[a], models[b]) {
			rt.Fatalf("roots %s and %s of %v and %v", trees[a].Root(), trees[b].Root(), models[a], models[b])
		}
		checkDiff(rt, trees[a], trees[b])
		checkSharing(rt, trees[a], trees[b])
		checkMissing(rt, trees[a], trees[b])
	})
}

func check(t *rapid.T, tree *snapshot.Tree, model map[string]string) {
	if got := content(tree); !maps.Equal(got, model) {
		t.Fatalf("holds %v, want %v", got, model)
	}
	for name, data := range model {
		if o, ok := tree.Object(name); !ok || string(o.Data) != data || o.Hash != ident.HashOf(o.Data) || o.Name != name {
			t.Fatalf("%s: %v, %v", name, o, ok)
		}
	}
	for backend, want := range usageOf(t, tree) {
		if got := tree.Usage(backend); got != want {
			t.Fatalf("usage of %s: %+v, want %+v", backend, got, want)
		}
	}
	namespaces := 0
	for name := range model {
		if strings.HasPrefix(name, "ns/") {
			namespaces++
		}
	}
	if tree.Len() != namespaces {
		t.Fatalf("%d namespaces, want %d", tree.Len(), namespaces)
	}
}

func checkDiff(t *rapid.T, a, b *snapshot.Tree) {
	got := content(a)
	for _, d := range snapshot.Diff(a, b) {
		if d.After.Hash.IsZero() {
			delete(got, d.Name)
		} else {
			got[d.Name] = string(d.After.Data)
		}
		if before, _ := a.Object(d.Name); before.Hash != d.Before.Hash || d.Before.Hash == d.After.Hash {
			t.Fatalf("difference %+v", d)
		}
	}
	if !maps.Equal(got, content(b)) {
		t.Fatalf("a with the differences is %v, want %v", got, content(b))
	}
}

// checkSharing builds b anew on a, the way a replica does, and finds that what is alike is not copied.
func checkSharing(t *rapid.T, a, b *snapshot.Tree) {
	replaced := map[ident.Partition]*snapshot.Collection{}
	next := func(from, to *snapshot.Collection) *snapshot.Collection {
		asked := map[string]bool{}
		m, err := manifest.Decode(to.Manifest().Encode())
		if err != nil {
			t.Fatal(err)
		}
		c, err := from.Next(m, func(e manifest.Entry) ([]byte, error) {
			asked[e.Name] = true
			o, _ := to.Object(e.Name)
			return o.Data, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if (c == from) != (from.Root() == to.Root()) {
			t.Fatalf("collection copied: %v, roots %s and %s", c != from, from.Root(), to.Root())
		}
		for i := range c.Len() {
			o := c.At(i)
			if had, ok := from.Object(o.Name); ok && had.Hash == o.Hash && (asked[o.Name] || &had.Data[0] != &o.Data[0]) {
				t.Fatalf("%s was asked for or copied", o.Name)
			}
		}
		return c
	}
	for p := range ident.Partition(partitions) {
		replaced[p] = next(a.Collection(p), b.Collection(p))
	}
	built := a.Replace(b.Version(), replaced, next(a.Shared(), b.Shared()))
	if built.Root() != b.Root() || !maps.Equal(content(built), content(b)) {
		t.Fatal("the tree built on another is not the one it was built after")
	}
	for backend, want := range usageOf(t, b) {
		if got := built.Usage(backend); got != want {
			t.Fatalf("usage of %s: %+v, want %+v", backend, got, want)
		}
	}
}

// checkMissing stores all of a and what is missing of b, and finds all of b by hash.
func checkMissing(t *rapid.T, a, b *snapshot.Tree) {
	stored := map[string][]byte{}
	for _, n := range append(a.Missing(), b.Missing(a)...) {
		if n.Hash != ident.HashOf(n.Data) {
			t.Fatalf("node %c/%s does not have its hash", n.Kind, n.Hash)
		}
		stored[string(n.Kind)+n.Hash.String()] = n.Data
	}
	has := func(kind string, h ident.Hash) []byte {
		data, ok := stored[kind+h.String()]
		if !ok && !h.IsZero() {
			t.Fatalf("%s/%s is not stored", kind, h)
		}
		return data
	}
	members := func(root ident.Hash) {
		m, err := manifest.Decode(has("m", root))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range m.Entries() {
			has("o", e.Hash)
		}
	}
	rec := b.Record(0, nil)
	for n, raw := range rec.Groups {
		h, err := ident.HashFrom(raw)
		if err != nil || h != b.GroupHash(n) {
			t.Fatalf("group %d of the record: %s, %v", n, h, err)
		}
		first, count := b.GroupPartitions(n)
		manifests, err := snapshot.DecodeGroup(has("g", h), count)
		if err != nil {
			t.Fatal(err)
		}
		for i, root := range manifests {
			if root != b.Collection(first+ident.Partition(i)).Root() {
				t.Fatalf("group %d names another manifest for its partition %d", n, i)
			}
			members(root)
		}
	}
	members(b.Shared().Root())
	if left := b.Missing(a, b); len(left) != 0 {
		t.Fatalf("missing although stored: %v", left)
	}
}

func TestOneChangeCopiesOnlyItsPath(t *testing.T) {
	tree := snapshot.New(partitions)
	for i := range 200 {
		name := fmt.Sprintf("name-%d", i)
		tree = with(t, tree, snapshot.Set{Name: "ns/" + name, Data: config(t, name, "redis-a", 1, "")})
	}
	next := with(t, tree, snapshot.Set{Name: "ns/name-7", Data: config(t, "name-7", "redis-a", 1, "new")})
	own := ident.PartitionOf("name-7", partitions)
	for p := range ident.Partition(partitions) {
		if changed := next.Collection(p) != tree.Collection(p); changed != (p == own) {
			t.Errorf("%s copied: %v", p, changed)
		}
	}
	kinds := ""
	for _, n := range next.Missing(tree) {
		kinds += string(n.Kind)
	}
	if kinds != "omg" {
		t.Errorf("to store: %q, want one object, one manifest, one group", kinds)
	}
}

func TestWithRefuses(t *testing.T) {
	record := marshal(t, &recordv1.NamespaceRecord{Author: "ann"})
	hash := ident.HashOf(record)
	recorded := marshal(t, &configv1.NamespaceConfig{Namespace: "abc", RecordHash: hash.Bytes()})
	tree := with(t, snapshot.New(partitions), snapshot.Set{Name: "ns/abc", Data: recorded, Record: record})
	other := marshal(t, &configv1.NamespaceConfig{Namespace: "abc", RecordHash: ident.HashOf([]byte("x")).Bytes()})
	for name, edit := range map[string][]snapshot.Set{
		"a name twice":                      {{Name: "backend/a", Data: []byte{}}, {Name: "backend/a"}},
		"a name of no kind":                 {{Name: "table/a", Data: []byte{}}},
		"a configuration of another name":   {{Name: "ns/abd", Data: config(t, "abc", "redis-a", 1, "")}},
		"a configuration that is none":      {{Name: "ns/abc", Data: []byte{0xff}}},
		"a new record that is not given":    {{Name: "ns/abc", Data: other}},
		"a record that is not the named":    {{Name: "ns/abc", Data: other, Record: record}},
		"a created namespace lacks records": {{Name: "ns/abd", Data: marshal(t, &configv1.NamespaceConfig{Namespace: "abd", RecordHash: hash.Bytes()})}},
	} {
		if next, _, err := tree.With(2, edit); err == nil {
			t.Errorf("%s: no error, tree %v", name, next.Root())
		}
	}
	draining := marshal(t, &configv1.NamespaceConfig{Namespace: "abc", RecordHash: hash.Bytes(), Draining: true})
	if _, _, err := tree.With(2, []snapshot.Set{{Name: "ns/abc", Data: draining}}); err != nil {
		t.Errorf("the record that is there already need not be given: %v", err)
	}
}

func TestPutTakesObjectsAsTheyAre(t *testing.T) {
	tree := with(t, snapshot.New(partitions), snapshot.Set{Name: "backend/a", Data: []byte("1")}, snapshot.Set{Name: "ns/abc", Data: config(t, "abc", "a", 1, "")})
	other := with(t, tree, snapshot.Set{Name: "backend/a"}, snapshot.Set{Name: "backend/b", Data: []byte("1")}, snapshot.Set{Name: "ns/abc", Data: config(t, "abc", "b", 1, "")},
		snapshot.Set{Name: "ns/abd", Data: config(t, "abd", "b", 1, "")})
	var there, back []snapshot.Object
	for _, d := range snapshot.Diff(tree, other) {
		d.Before.Name, d.After.Name = d.Name, d.Name
		there, back = append(there, d.After), append(back, d.Before)
	}
	next, err := tree.Put(7, there)
	if err != nil || next.Root() != other.Root() || next.Version() != 7 || next.Usage("b").Namespaces != 2 || next.Usage("a").Namespaces != 0 {
		t.Fatalf("%v, %v", next, err)
	}
	if next, err = next.Put(8, back); err != nil || next.Root() != tree.Root() || next.Len() != 1 {
		t.Fatalf("%v, %v", next, err)
	}
	if same, err := tree.Put(9, nil); err != nil || same.Root() != tree.Root() || same.Shared() != tree.Shared() {
		t.Errorf("nothing put: %v, %v", same, err)
	}
	if n := tree.Numbered(9); n.Version() != 9 || n.Root() != tree.Root() || tree.Numbered(tree.Version()) != tree {
		t.Errorf("numbered: %v", n)
	}
	if _, err := tree.Put(9, []snapshot.Object{{Name: "table/a"}}); err == nil {
		t.Error("a name of no kind is taken")
	}
}

func TestWhatANamespaceIsBoundTo(t *testing.T) {
	tree := with(t, snapshot.New(1), snapshot.Set{Name: "backend/b", Data: []byte("1")}, snapshot.Set{Name: "ns/abc", Data: config(t, "abc", "b", 1, "")},
		snapshot.Set{Name: "ns/abd", Data: config(t, "abd", "a", 1, "")})
	for name, want := range map[string][]string{"ns/abc": {"b"}, "backend/b": nil, "ns/none": nil} {
		o, _ := tree.Object(name)
		if got, err := o.Bound(); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s is bound to %v, %v", name, got, err)
		}
	}
	if got := slices.Collect(tree.Collection(0).Backends()); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("the partition is bound to %v", got)
	}
	if _, err := (snapshot.Object{Name: "ns/abc", Hash: ident.HashOf(nil), Data: []byte{0xff}}).Bound(); err == nil {
		t.Error("what cannot be read is bound to something")
	}
}

func TestChangesTellWhatWasDone(t *testing.T) {
	tree := with(t, snapshot.New(partitions), snapshot.Set{Name: "backend/old", Data: []byte("1")}, snapshot.Set{Name: "backend/gone", Data: []byte("1")})
	_, changes, err := tree.With(2, []snapshot.Set{
		{Name: "backend/new", Data: []byte("2"), Author: "ann", Message: "why", RequestID: "r1"},
		{Name: "backend/old", Data: []byte("2")},
		{Name: "backend/gone"},
		{Name: "backend/never-there"},
		{Name: "profile/back", Data: []byte("2"), Kind: recordv1.ChangeKind_CHANGE_KIND_ROLLBACK, ToVersion: 1},
	})
	if err != nil {
		t.Fatal(err)
	}
	one, two := ident.HashOf([]byte("1")).Bytes(), ident.HashOf([]byte("2")).Bytes()
	want := []*recordv1.Change{
		{Kind: recordv1.ChangeKind_CHANGE_KIND_CREATE, Name: "backend/new", After: two, Author: "ann", Message: "why", RequestId: "r1"},
		{Kind: recordv1.ChangeKind_CHANGE_KIND_UPDATE, Name: "backend/old", Before: one, After: two},
		{Kind: recordv1.ChangeKind_CHANGE_KIND_DELETE, Name: "backend/gone", Before: one},
		{Kind: recordv1.ChangeKind_CHANGE_KIND_ROLLBACK, Name: "profile/back", After: two, ToVersion: 1},
	}
	if !slices.EqualFunc(changes, want, func(a, b *recordv1.Change) bool { return proto.Equal(a, b) }) {
		t.Errorf("got %v, want %v", changes, want)
	}
}

func TestNamesPageInOrder(t *testing.T) {
	tree := snapshot.New(partitions)
	var all []string
	for i := range 300 {
		name := fmt.Sprintf("%s-%03d", []string{"red", "green"}[i%2], i)
		all = append(all, name)
		tree = with(t, tree, snapshot.Set{Name: "ns/" + name, Data: config(t, name, "redis-a", 1, "")})
	}
	slices.Sort(all)
	for _, prefix := range []string{"", "red-", "green-1", "blue"} {
		var want, got []string
		for _, name := range all {
			if strings.HasPrefix(name, prefix) {
				want = append(want, name)
			}
		}
		for after := ""; ; after = got[len(got)-1] {
			page := tree.Names(prefix, after, 7)
			got = append(got, page...)
			if len(page) < 7 {
				break
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("prefix %q: %v, want %v", prefix, got, want)
		}
	}
	if got := tree.Names("", "", 0); got != nil {
		t.Errorf("a page of none: %v", got)
	}
}

func TestNextRefusesOtherBytes(t *testing.T) {
	m, err := manifest.New([]manifest.Entry{{Name: "backend/a", Hash: ident.HashOf([]byte("a"))}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = snapshot.New(partitions).Shared().Next(m, func(manifest.Entry) ([]byte, error) { return []byte("b"), nil })
	if err == nil || !strings.Contains(err.Error(), "backend/a") {
		t.Fatalf("error %v does not name the object", err)
	}
}

func TestDecodeGroupRefusesDamage(t *testing.T) {
	good := marshal(t, &recordv1.Group{Manifests: [][]byte{ident.HashOf(nil).Bytes(), nil}})
	if got, err := snapshot.DecodeGroup(good, 2); err != nil || got[0] != ident.HashOf(nil) || !got[1].IsZero() {
		t.Fatalf("%v, %v", got, err)
	}
	for name, data := range map[string][]byte{
		"cut":        good[:len(good)-3],
		"short hash": marshal(t, &recordv1.Group{Manifests: [][]byte{{1}, nil}}),
		"too many":   marshal(t, &recordv1.Group{Manifests: [][]byte{nil, nil, nil}}),
	} {
		if got, err := snapshot.DecodeGroup(data, 2); err == nil {
			t.Errorf("%s: no error but %v", name, got)
		}
	}
}

// large builds a tree of n namespaces with configurations of 1.4 KiB over 1,024 partitions.
func large(t testing.TB, n int) *snapshot.Tree {
	tree := snapshot.New(1024)
	var edit []snapshot.Set
	for i := range n {
		name := fmt.Sprintf("namespace-%06d", i)
		edit = append(edit, snapshot.Set{Name: "ns/" + name, Data: config(t, name, fmt.Sprintf("redis-%d", i%20), 5, strings.Repeat("x", 1330))})
	}
	return with(t, tree, edit...)
}

func BenchmarkWith(b *testing.B) {
	tree := large(b, 100_000)
	data := [][]byte{config(b, "namespace-000007", "redis-7", 6, strings.Repeat("y", 1330)), config(b, "namespace-000007", "redis-7", 6, strings.Repeat("z", 1330))}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		tree = with(b, tree, snapshot.Set{Name: "ns/namespace-000007", Data: data[i%2]})
	}
}

func BenchmarkNames(b *testing.B) {
	tree := large(b, 100_000)
	b.ReportAllocs()
	for b.Loop() {
		if got := tree.Names("", "namespace-050000", 1000); len(got) != 1000 {
			b.Fatal(len(got))
		}
	}
}

func BenchmarkMemory(b *testing.B) {
	for b.Loop() {
		before := heap()
		tree := large(b, 100_000)
		b.ReportMetric(float64(heap()-before)/100_000/1024, "KiB/namespace")
		o, _ := tree.Namespace("namespace-000001")
		b.ReportMetric(float64(len(o.Data))/1024, "KiB/config")
		runtime.KeepAlive(tree)
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
