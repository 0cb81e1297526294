package quota_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/prism-gateway/prism/controlplane/quota"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/fault"
)

// set is a namespace of a team whose configuration has about so many bytes.
func set(t testing.TB, name, team string, size int) snapshot.Set {
	t.Helper()
	data, err := proto.Marshal(&configv1.NamespaceConfig{Namespace: name, Team: team, StoragePrefix: strings.Repeat("x", size)})
	if err != nil {
		t.Fatal(err)
	}
	return snapshot.Set{Name: "ns/" + name, Data: data}
}

func tree(t testing.TB, sets ...snapshot.Set) *snapshot.Tree {
	t.Helper()
	next, _, err := snapshot.New(4).With(1, sets)
	if err != nil {
		t.Fatal(err)
	}
	return next
}

func none(string) []string { return nil }

// refused holds an error against the quota that it is to name.
func refused(t *testing.T, err error, which string) {
	t.Helper()
	if which == "" {
		if err != nil {
			t.Errorf("refused: %v", err)
		}
		return
	}
	f := fault.From(err)
	if err == nil || f.Code != fault.Exhausted || f.Reason != fault.Quota || f.Metadata["quota"] != which || f.Outcome != fault.NotApplied {
		t.Errorf("%v, metadata %v, want a refusal by %s", err, f.Metadata, which)
	}
}

func TestCheck(t *testing.T) {
	quotas := quota.Quotas{Default: quota.Bounds{Namespaces: 2}, Teams: map[string]quota.Bounds{"big": {}, "small": {Bytes: 300}}}
	base := tree(t, set(t, "one", "accounts", 1), set(t, "two", "accounts", 1), set(t, "pay", "payments", 1),
		set(t, "s-one", "small", 200), set(t, "x1", "many", 1), set(t, "x2", "many", 1), set(t, "x3", "many", 1))
	reserved := func(team string) []string {
		return map[string][]string{"payments": {"held", "pay"}}[team]
	}
	gone := func(name string) snapshot.Set { return snapshot.Set{Name: "ns/" + name} }
	for _, c := range []struct {
		name  string
		sets  []snapshot.Set
		which string
	}{
		{"a full team makes no more", []snapshot.Set{set(t, "three", "accounts", 1)}, "namespaces"},
		{"a full team changes what it has", []snapshot.Set{set(t, "two", "accounts", 9)}, ""},
		{"a full team replaces one by another", []snapshot.Set{set(t, "three", "accounts", 1), gone("one")}, ""},
		{"a reserved name counts", []snapshot.Set{set(t, "more", "payments", 1)}, "namespaces"},
		{"a reserved name that is used does not count twice", []snapshot.Set{set(t, "held", "payments", 1)}, ""},
		{"a team that is named has no default", []snapshot.Set{set(t, "b1", "big", 1), set(t, "b2", "big", 1), set(t, "b3", "big", 1)}, ""},
		{"bytes are counted", []snapshot.Set{set(t, "s-one", "small", 400)}, "config_bytes"},
		{"bytes may shrink", []snapshot.Set{set(t, "s-one", "small", 100)}, ""},
		{"a team above its quota may delete", []snapshot.Set{gone("x1")}, ""},
		{"a team above its quota may change", []snapshot.Set{set(t, "x1", "many", 20)}, ""},
		{"a namespace that goes to another team counts there", []snapshot.Set{set(t, "pay", "accounts", 1)}, "namespaces"},
		{"backends are nobody's", []snapshot.Set{{Name: "backend/b", Data: []byte{}}}, ""},
	} {
		t.Run(c.name, func(t *testing.T) { refused(t, quotas.Check(base, c.sets, reserved), c.which) })
	}
	t.Run("a refusal says how much there is", func(t *testing.T) {
		err := quotas.Check(base, []snapshot.Set{set(t, "three", "accounts", 1)}, none)
		if f := fault.From(err); !strings.Contains(f.Text, "2 of 2 namespaces") || f.Metadata["used"] != "2" || f.Metadata["limit"] != "2" {
			t.Error(f.Text, f.Metadata)
		}
	})
	t.Run("a reservation is bounded like a namespace", func(t *testing.T) {
		refused(t, quotas.CheckReservation(base, "payments", reserved), "namespaces")
		refused(t, quotas.CheckReservation(base, "payments", none), "")
	})
	t.Run("headroom says what would be left", func(t *testing.T) {
		wide := quota.Quotas{Default: quota.Bounds{Namespaces: 1000, Bytes: 10 << 20, ChangesPerMinute: 600}}
		got := wide.Headroom(base, []snapshot.Set{set(t, "three", "accounts", 1<<20)}, none)
		want := []string{"team accounts: 3 of 1,000 namespaces", "team accounts: 1 MiB of 10 MiB of configuration", "team accounts: 600 changes a minute, 100 of them at once"}
		if !slices.Equal(got, want) {
			t.Errorf("%q", got)
		}
	})
}

func TestRates(t *testing.T) {
	bounds := quota.Bounds{ChangesPerMinute: 60} // 10 at once
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	t.Run("ten seconds' worth comes at once, then one a second", func(t *testing.T) {
		var r quota.Rates
		for range 10 {
			refused(t, r.Take("a", bounds, 1, start), "")
		}
		err := r.Take("a", bounds, 1, start)
		refused(t, err, "changes_per_minute")
		wait := fault.From(err).RetryAfter
		if wait < time.Second || wait > time.Second+10*time.Millisecond {
			t.Errorf("told to wait %v", wait)
		}
		refused(t, r.Take("b", bounds, 1, start), "")
		refused(t, r.Take("a", bounds, 1, start.Add(wait)), "")
		refused(t, r.Take("a", bounds, 1, start.Add(wait)), "changes_per_minute")
	})
	t.Run("a large change passes when nothing is counted, and is waited for", func(t *testing.T) {
		var r quota.Rates
		refused(t, r.Take("a", bounds, 40, start), "")
		refused(t, r.Take("a", bounds, 1, start.Add(30*time.Second)), "changes_per_minute")
		refused(t, r.Take("a", bounds, 1, start.Add(32*time.Second)), "")
		refused(t, r.Take("a", bounds, 40, start.Add(32*time.Second)), "changes_per_minute")
	})
	t.Run("what came to nothing is given back", func(t *testing.T) {
		var r quota.Rates
		refused(t, r.Take("a", bounds, 10, start), "")
		r.Count("a", bounds, -10, start)
		refused(t, r.Take("a", bounds, 10, start), "")
	})
	t.Run("what other replicas let in counts", func(t *testing.T) {
		var r quota.Rates
		r.Count("a", bounds, 10, start)
		refused(t, r.Take("a", bounds, 1, start), "changes_per_minute")
	})
	t.Run("a clock that is set back stops nobody for long", func(t *testing.T) {
		var r quota.Rates
		refused(t, r.Take("a", bounds, 10, start), "")
		back := start.Add(-time.Hour)
		refused(t, r.Take("a", bounds, 1, back), "changes_per_minute")
		refused(t, r.Take("a", bounds, 1, back.Add(2*time.Second)), "")
	})
	t.Run("without a bound nothing is counted", func(t *testing.T) {
		var r quota.Rates
		refused(t, r.Take("a", quota.Bounds{}, 1_000_000, start), "")
	})
	t.Run("over an hour it is the rate", func(t *testing.T) {
		var r quota.Rates
		passed := 0
		for i := range 36_000 {
			if r.Take("a", bounds, 1, start.Add(time.Duration(i)*100*time.Millisecond)) == nil {
				passed++
			}
		}
		if passed < 3600 || passed > 3610 {
			t.Errorf("%d passed, want 60 a minute and the 10 at once", passed)
		}
	})
}

func TestCheckSizes(t *testing.T) {
	var many []snapshot.Set
	for i := range 70 {
		many = append(many, set(t, fmt.Sprint("n", i), "a", 1<<20-100))
	}
	full, _, err := snapshot.New(1).With(1, many[:60])
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		base *snapshot.Tree
		sets []snapshot.Set
		want string
	}{
		{"a namespace that is too large", full, []snapshot.Set{set(t, "x", "a", 1<<20)}, "namespace"},
		{"a partition that becomes too large", full, many[60:], "partition"},
		{"a partition with room", full, many[60:62], ""},
		{"a partition that shrinks", full, []snapshot.Set{{Name: many[0].Name}}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := quota.CheckSizes(c.base, c.sets)
			if c.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if f := fault.From(err); err == nil || f.Reason != fault.TooLarge || f.Metadata["budget"] != c.want {
				t.Errorf("%v %v", err, f.Metadata)
			}
		})
	}
	t.Run("headroom names what is half full", func(t *testing.T) {
		if got := quota.SizeHeadroom(full, many[60:61]); len(got) != 2 || !strings.HasPrefix(got[0], "the configuration of namespace n60: 1") ||
			got[1] != "the configuration of partition 0: 61 MiB of 64 MiB" {
			t.Errorf("%q", got)
		}
		if got := quota.SizeHeadroom(snapshot.New(1), []snapshot.Set{set(t, "x", "a", 10)}); len(got) != 0 {
			t.Errorf("%q", got)
		}
	})
}
