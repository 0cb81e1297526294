package catalog_test

import (
	"slices"
	"strings"
	"testing"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/catalog"
)

func TestBackendTypes(t *testing.T) {
	var names []string
	for _, b := range catalog.Types() {
		names = append(names, b.Name)
		if got, ok := catalog.Type(b.Name); !ok || got.Name != b.Name {
			t.Errorf("%s is not found", b.Name)
		}
		if !slices.IsSorted(b.Interfaces) {
			t.Errorf("%s: interfaces are not sorted", b.Name)
		}
		for _, s := range b.Settings {
			if got, ok := b.Setting(s.Name); !ok || got.Text != s.Text || s.Text == "" || (s.Form == catalog.OneOf) != (len(s.Values) > 0) {
				t.Errorf("%s: setting %q", b.Name, s.Name)
			}
		}
		if _, ok := b.Setting("nope"); ok {
			t.Errorf("%s has a setting nope", b.Name)
		}
		if b.Offered != (len(b.Interfaces) > 0) || b.Offered != (b.MaxValueBytes > 0) {
			t.Errorf("%s: what is offered has interfaces and a largest value, what is not has none", b.Name)
		}
		if b.NeedsEndpoint != (b.Address != catalog.NoAddress) {
			t.Errorf("%s: an endpoint needs a form", b.Name)
		}
		if slices.Contains(b.Interfaces, "keyvalue.ttl") != (b.TTLGranularity > 0) {
			t.Errorf("%s: items that expire need a granularity", b.Name)
		}
		for _, name := range b.Interfaces {
			if _, ok := catalog.InterfaceByName(name); !ok {
				t.Errorf("%s offers %s, which is not known", b.Name, name)
			}
		}
	}
	if want := []string{"clickhouse", "kafka", "memory", "nats", "postgres", "redis", "s3", "sqlite"}; !slices.Equal(names, want) {
		t.Errorf("got %v, want %v", names, want)
	}
	if _, ok := catalog.Type("rediss"); ok {
		t.Error("rediss is found")
	}
}

func TestSettingsWeakenDurability(t *testing.T) {
	sqlite, _ := catalog.Type("sqlite")
	for value, want := range map[string]configv1.Durability{
		"": configv1.Durability_DURABILITY_STRONG, "full": configv1.Durability_DURABILITY_STRONG, "normal": configv1.Durability_DURABILITY_RELAXED,
	} {
		if got := sqlite.DurabilityWith(map[string]string{"synchronous": value}); got != want {
			t.Errorf("synchronous %q: %s, want %s", value, got, want)
		}
	}
}

func TestPatterns(t *testing.T) {
	var types, offered []string
	for _, p := range catalog.Patterns() {
		types = append(types, p.Type)
		if p.Offered {
			offered = append(offered, p.Type)
		}
		if len(p.Versions) == 0 || len(p.Slots) == 0 || p.Text == "" || p.Messages == p.Values {
			t.Errorf("%s is not whole", p.Type)
		}
		if !slices.IsSorted(p.Base) {
			t.Errorf("%s: base interfaces are not sorted", p.Type)
		}
		for _, name := range p.Base {
			f, ok := catalog.InterfaceByName(name)
			if !ok || !slices.Contains(f.Patterns, p.Type) {
				t.Errorf("%s is built on %s, which it cannot have", p.Type, name)
			}
			if p.Offered && !catalog.InterfaceOffered(name) {
				t.Errorf("%s is offered without a driver that has %s", p.Type, name)
			}
		}
	}
	if want := []string{"keyvalue", "producer", "consumer", "pubsub", "session-manager"}; !slices.Equal(types, want) {
		t.Errorf("got %v, want %v", types, want)
	}
	if want := []string{"keyvalue"}; !slices.Equal(offered, want) {
		t.Errorf("offered are %v, want %v", offered, want)
	}
	kv, _ := catalog.PatternByType("keyvalue")
	if s, ok := kv.SlotFor("storage"); !ok || s.Optional {
		t.Error("a keyvalue needs storage")
	}
	if _, ok := kv.SlotFor("broker"); ok {
		t.Error("a keyvalue has no broker")
	}
}

func TestInterfaces(t *testing.T) {
	var names []string
	for _, f := range catalog.Interfaces() {
		names = append(names, f.Name)
		if f.Text == "" || len(f.Patterns) == 0 {
			t.Errorf("%s is not whole", f.Name)
		}
		for _, p := range f.Patterns {
			known, ok := catalog.PatternByType(p)
			if !ok || known.Messages != strings.HasPrefix(f.Name, "stream.") {
				t.Errorf("%s is for %s", f.Name, p)
			}
		}
	}
	if !slices.IsSorted(names) {
		t.Errorf("not in order: %v", names)
	}
	for name, want := range map[string]bool{"keyvalue": true, "keyvalue.scan": true, "keyvalue.outbox": false, "keyvalue.watch": true, "stream.publish": false, "nope": false} {
		if got := catalog.InterfaceOffered(name); got != want {
			t.Errorf("%s is offered: %v, want %v", name, got, want)
		}
	}
}

func TestDefaultLimitsAreTheCallers(t *testing.T) {
	l := catalog.DefaultLimits()
	if l.Concurrency == 0 || l.DefaultDeadline.AsDuration() <= 0 || l.MaxDeadline.AsDuration() < l.DefaultDeadline.AsDuration() {
		t.Errorf("%v", l)
	}
	l.Concurrency = 1
	if catalog.DefaultLimits().Concurrency == 1 {
		t.Error("a caller changed them for all")
	}
}
