package assembly_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/prism-gateway/prism/dataplane/assembly"
	"github.com/prism-gateway/prism/dataplane/assembly/statetest"
	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/dataplane/driver/memory"
	"github.com/prism-gateway/prism/dataplane/pool"
	"github.com/prism-gateway/prism/dataplane/routing"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/ident"
)

type bench struct {
	routes *routing.Routes
	pools  *pool.Set
	*assembly.Assembler
}

// bare is a driver that offers little. No test opens it.
type bare struct{}

func (bare) Type() string                                { return "bare" }
func (bare) Interfaces() []string                        { return []string{"keyvalue"} }
func (bare) Open(driver.Config) (driver.Instance, error) { return nil, errors.New("opened") }

func start(t testing.TB) bench { return startLogging(t, &bytes.Buffer{}) }

func startLogging(t testing.TB, log io.Writer) bench {
	t.Helper()
	pools, err := pool.New(pool.Config{Drivers: []driver.Driver{memory.Driver(), bare{}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pools.Close)
	routes := routing.New(nil)
	a, err := assembly.New(assembly.Config{Self: "self", Routes: routes, Pools: pools, Logger: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	return bench{routes, pools, a}
}

func (b bench) route(t testing.TB, name string) *routing.Route {
	t.Helper()
	r, _, _ := b.routes.Current().Lookup(name)
	return r
}

var (
	self = &configv1.Member{Id: "self", Address: "127.0.0.1:1"}
	main = &configv1.Backend{Name: "memory-main", Type: "memory"}
)

func keyvalue(name string) *configv1.NamespaceConfig {
	return statetest.KeyValue(name, "memory-main", "memory")
}

// TestWhatCannotBeMadeIsRefusedWithItsPlace has one bad namespace beside a good one.
func TestWhatCannotBeMadeIsRefusedWithItsPlace(t *testing.T) {
	with := func(change func(*configv1.NamespaceConfig)) func(*statetest.Builder) {
		return func(s *statetest.Builder) {
			m := keyvalue("orders")
			change(m)
			s.Namespace(m)
		}
	}
	for _, c := range []struct {
		name          string
		break_        func(*statetest.Builder)
		field, reason string
	}{
		{"an unknown backend", with(func(m *configv1.NamespaceConfig) { m.Patterns[0].Bindings[0].Backend = "nowhere" }), "patterns[0].bindings[0].backend", `no backend "nowhere"`},
		{"a type without driver", func(s *statetest.Builder) {
			s.Backend(&configv1.Backend{Name: "kafka-main", Type: "kafka", Endpoints: []string{"127.0.0.1:9"}})
			with(func(m *configv1.NamespaceConfig) { m.Patterns[0].Bindings[0].Backend = "kafka-main" })(s)
		}, "patterns[0].bindings[0].backend", "no driver for kafka in this build"},
		{"an interface that the driver lacks", with(func(m *configv1.NamespaceConfig) {
			m.Patterns[0].Interfaces = append(m.Patterns[0].Interfaces, "keyvalue.outbox")
		}), "patterns[0].interfaces[5]", "does not offer keyvalue.outbox"},
		{"an interface that a cache's driver lacks", func(s *statetest.Builder) {
			s.Backend(&configv1.Backend{Name: "bare-main", Type: "bare"})
			with(func(m *configv1.NamespaceConfig) {
				m.Patterns[0].Bindings = append(m.Patterns[0].Bindings, &configv1.Binding{Slot: "cache-bare", Backend: "bare-main", BackendType: "bare"})
			})(s)
		}, "patterns[0].bindings[1].backend", "the driver for bare does not offer keyvalue."},
		{"a bad setting", func(s *statetest.Builder) {
			s.Backend(&configv1.Backend{Name: "odd", Type: "memory", Config: map[string]string{"colour": "red"}})
			with(func(m *configv1.NamespaceConfig) { m.Patterns[0].Bindings[0].Backend = "odd" })(s)
		}, "patterns[0].bindings[0].backend", `unknown setting "colour"`},
		{"an unknown pattern", with(func(m *configv1.NamespaceConfig) { m.Patterns[0].Type = "outbox" }), "patterns[0].type", `"outbox"`},
		{"an unknown version", with(func(m *configv1.NamespaceConfig) { m.Patterns[0].Version = "9.0.0" }), "patterns[0].version", `"9.0.0"`},
		{"bytes that are no message", func(s *statetest.Builder) { s.Raw("orders", []byte{0xff}) }, "", "not a NamespaceConfig"},
		{"another name than its resource", func(s *statetest.Builder) {
			data, err := proto.Marshal(keyvalue("invoices"))
			if err != nil {
				t.Fatal(err)
			}
			s.Raw("orders", data)
		}, "namespace", `"invoices"`},
		{"no storage prefix", with(func(m *configv1.NamespaceConfig) { m.StoragePrefix = "" }), "storage_prefix", "empty"},
		{"no pattern", with(func(m *configv1.NamespaceConfig) { m.Patterns = nil }), "patterns", "empty"},
		{"no binding", with(func(m *configv1.NamespaceConfig) { m.Patterns[0].Bindings = nil }), "patterns[0].bindings", "no backend is bound for storage"},
		{"two key-value patterns", with(func(m *configv1.NamespaceConfig) { m.Patterns = append(m.Patterns, m.Patterns[0]) }), "patterns[1].type", "second"},
		{"a credential that nobody brings", with(func(m *configv1.NamespaceConfig) {
			m.Patterns[0].Bindings[0].CredentialPath = "vault://database/creds/orders"
		}), "patterns[0].bindings[0].credential_path", "no provider of credentials that is named vault"},
		{"a default life without keyvalue.ttl", with(func(m *configv1.NamespaceConfig) {
			m.Patterns[0].DefaultTtl, m.Patterns[0].Interfaces = durationpb.New(1e9), []string{"keyvalue"}
		}), "patterns[0]", "keyvalue.ttl"},
		{"a backend of bytes that are none", func(s *statetest.Builder) {
			s.RawBackend("broken", []byte{0xff})
			with(func(m *configv1.NamespaceConfig) { m.Patterns[0].Bindings[0].Backend = "broken" })(s)
		}, "patterns[0].bindings[0].backend", "not a Backend"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, s := start(t), statetest.New(t, 4, self)
			s.Backend(main)
			s.Namespace(keyvalue("orders"))
			if refused := b.Apply(t.Context(), s.State()); refused != nil {
				t.Fatalf("a good state is refused: %v", refused)
			}
			before := b.route(t, "orders")
			c.break_(s)
			s.Namespace(keyvalue("profiles"))
			refused := b.Apply(t.Context(), s.State())
			if len(refused) != 1 || refused[0].GetResource() != "ns/orders" || refused[0].GetField() != c.field || !strings.Contains(refused[0].GetReason(), c.reason) {
				t.Fatalf("refused %v, want ns/orders at %q for %q", refused, c.field, c.reason)
			}
			if got := b.route(t, "orders"); got != before {
				t.Error("the refused namespace lost its last good route")
			}
			if b.route(t, "profiles") == nil {
				t.Error("a good namespace waits for a bad one")
			}
			s.Namespace(keyvalue("orders")) // mended
			if refused := b.Apply(t.Context(), s.State()); refused != nil || b.route(t, "orders") == nil {
				t.Errorf("after mending: %v", refused)
			}
		})
	}
}

func TestOnlyWhatChangedIsMadeAnew(t *testing.T) {
	b, s := start(t), statetest.New(t, 64, self)
	s.Backend(main)
	for i := range 100 {
		s.Namespace(keyvalue(fmt.Sprintf("namespace-%d", i)))
	}
	b.Apply(t.Context(), s.State())
	before := b.routes.Current()
	changed := keyvalue("namespace-7")
	changed.Limits.Concurrency = 7
	s.Namespace(changed)
	b.Apply(t.Context(), s.State())
	after := b.routes.Current()
	p := ident.PartitionOf("namespace-7", 64)
	for n := range ident.Partition(64) {
		if same := before.Partition(n) == after.Partition(n); same == (n == p) {
			t.Errorf("partition %v: the same %v", n, same)
		}
	}
	for name, r := range after.Partition(p).Routes {
		if same := before.Partition(p).Routes[name] == r; same == (name == "namespace-7") {
			t.Errorf("%s: the same route %v", name, same)
		}
	}
	if b.route(t, "namespace-7").Limits != before.Partition(p).Routes["namespace-7"].Limits {
		t.Error("a change gives a namespace a fresh allowance")
	}
}

func TestPoolsFollowWhatOpensThem(t *testing.T) {
	open := func(b bench) []string {
		var names []string
		for _, p := range b.pools.Snapshot() {
			names = append(names, fmt.Sprintf("%s/%d", p.Backend, p.Routes))
		}
		return names
	}
	b, s := start(t), statetest.New(t, 4, self)
	s.Backend(main)
	s.Namespace(keyvalue("orders"))
	s.Namespace(keyvalue("profiles"))
	b.Apply(t.Context(), s.State())
	first := b.route(t, "orders").Uses[0]
	if got := open(b); fmt.Sprint(got) != "[memory-main/2]" {
		t.Errorf("pools %v, want one for both", got)
	}
	s.Backend(&configv1.Backend{Name: "memory-main", Type: "memory", Labels: map[string]string{"zone": "a"}, Maintenance: true})
	b.Apply(t.Context(), s.State())
	if got := b.route(t, "orders").Uses[0]; got != first {
		t.Error("a change of labels opened another pool")
	}
	pin := b.routes.Acquire()
	s.Backend(&configv1.Backend{Name: "memory-main", Type: "memory", Config: map[string]string{"sweep": "1s"}})
	b.Apply(t.Context(), s.State())
	if got := open(b); len(got) != 2 {
		t.Errorf("pools %v, want the old one while a call may use it, and the new", got)
	}
	b.routes.Release(pin)
	if got := open(b); fmt.Sprint(got) != "[memory-main/2]" {
		t.Errorf("pools %v, want only the new one", got)
	}
	s.Remove("orders")
	s.Remove("profiles")
	b.Apply(t.Context(), s.State())
	if got := open(b); len(got) != 0 {
		t.Errorf("pools %v after the last namespace, want none", got)
	}
}

func TestAPartitionThatIsDroppedIsGone(t *testing.T) {
	b, s := start(t), statetest.New(t, 4, self)
	s.Backend(main)
	s.Namespace(keyvalue("orders"))
	b.Apply(t.Context(), s.State())
	p := ident.PartitionOf("orders", 4)
	s.Hold(func(n ident.Partition) bool { return n != p })
	b.Apply(t.Context(), s.State())
	if _, _, answer := b.routes.Current().Lookup("orders"); answer != routing.NotOwned {
		t.Errorf("answer %d, want not owned", answer)
	}
	if got := b.pools.Snapshot(); len(got) != 0 {
		t.Errorf("pools %v, want none", got)
	}
}

// TestAnotherNumberOfPartitionsLeavesNothingBehind has the proxy taken over by an installation with fewer partitions.
func TestAnotherNumberOfPartitionsLeavesNothingBehind(t *testing.T) {
	b, before := start(t), statetest.New(t, 16, self)
	before.Backend(main)
	for n := range 50 {
		before.Namespace(keyvalue(fmt.Sprint("old-", n)))
	}
	b.Apply(t.Context(), before.State())
	b.Apply(t.Context(), statetest.New(t, 2, self).State())
	if got := b.pools.Snapshot(); len(got) != 0 {
		t.Errorf("pools %v, want none", got)
	}
	stray := statetest.New(t, 2, self).State() // what Changed names beyond the number is passed over
	stray.Changed = []ident.Partition{1, 7}
	b.Apply(t.Context(), stray)
	if got := b.routes.Current().Count(); got != 2 {
		t.Errorf("%d partitions, want 2", got)
	}
}

// writer is a log that a test looks into while it is written.
type writer func(line []byte)

func (w writer) Write(line []byte) (int, error) {
	w(line)
	return len(line), nil
}

// TestLimitsChangeWithTheTable looks at them when the next table is made and not yet in effect: while a refusal is logged.
func TestLimitsChangeWithTheTable(t *testing.T) {
	var b bench
	var before *routing.Route
	admitted := func(r *routing.Route) (n int) {
		for n < 10 && r.Limits.Begin() == nil {
			n++
		}
		for range n {
			r.Limits.End()
		}
		return n
	}
	looked := 0
	b = startLogging(t, writer(func([]byte) {
		if looked++; admitted(before) != 2 {
			t.Errorf("%d calls at once before the table is in effect, want 2 as before", admitted(before))
		}
	}))
	s := statetest.New(t, 2, self)
	s.Backend(main)
	var first, second string // a namespace of each partition: the first is made anew before the second is refused
	for i := 0; first == "" || second == ""; i++ {
		name := fmt.Sprintf("orders-%d", i)
		if ident.PartitionOf(name, 2) == 0 {
			first = name
		} else {
			second = name
		}
	}
	m := keyvalue(first)
	m.Limits.Concurrency = 2
	s.Namespace(m)
	b.Apply(t.Context(), s.State())
	before = b.route(t, first)
	m.Limits.Concurrency = 4
	s.Namespace(m)
	s.Raw(second, []byte{0xff})
	if refused := b.Apply(t.Context(), s.State()); len(refused) != 1 || looked != 1 {
		t.Fatalf("refused %v, looked %d times: the test proves nothing", refused, looked)
	}
	if n := admitted(b.route(t, first)); n != 4 {
		t.Errorf("%d calls at once, want 4", n)
	}
}

func TestEachOwnerEnforcesItsShare(t *testing.T) {
	b, s := start(t), statetest.New(t, 4, self, &configv1.Member{Id: "other", Address: "127.0.0.1:2"})
	s.Backend(main)
	m := keyvalue("orders")
	m.Limits.Rps, m.SingleOwner = 4, false
	s.Namespace(m)
	b.Apply(t.Context(), s.State())
	admitted := func() (n int) {
		r := b.route(t, "orders")
		for r.Limits.Begin() == nil {
			r.Limits.End()
			n++
		}
		return n
	}
	if n := admitted(); n != 2 {
		t.Errorf("%d calls admitted at once, want 2: half of 4 a second", n)
	}
}

func BenchmarkSwapOneOfTenThousand(b *testing.B) {
	x, s := start(b), statetest.New(b, 1024, self)
	s.Backend(main)
	for i := range 10000 {
		s.Namespace(keyvalue(fmt.Sprintf("namespace-%05d", i)))
	}
	x.Apply(b.Context(), s.State())
	n := 0
	for b.Loop() {
		b.StopTimer()
		m := keyvalue("namespace-00042")
		n++
		m.Limits.Concurrency = uint32(1 + n%1000)
		s.Namespace(m)
		state := s.State()
		b.StartTimer()
		if refused := x.Apply(b.Context(), state); refused != nil {
			b.Fatal(refused)
		}
	}
}
