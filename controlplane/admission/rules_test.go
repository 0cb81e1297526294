package admission_test

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/prism-gateway/prism/controlplane/admission"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/constraint"
)

// The ids of rules are part of the API: programs may tell violations apart by them.
var ruleIDs = []string{
	"access.auth", "auth.credentials", "credential.path", "interface.known", "interface.pattern", "limits.deadlines", "needs.messages_only", "needs.size",
	"needs.values_only", "offered.encrypt", "offered.interface",
	"offered.owners", "offered.pattern", "offered.pii", "offered.profile", "offered.session_aware", "offered.slot_config",
	"offered.slot_type", "pattern.known", "pattern.name_unique", "pattern.type_once",
	"pattern.version", "principal.spiffe", "pubsub.consistency", "session_aware.auth", "session_aware.session_manager",
	"session_manager.auth", "session_policy.idle_within_ttl", "slot.config_credential", "slot.purpose", "slot.purpose_once",
	"slot.type",
}

func TestEveryRuleIsBrokenByAFile(t *testing.T) {
	files, err := filepath.Glob("testdata/broken/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	broken := map[string]bool{}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		docs, err := admission.ParseYAML(file, data)
		if err != nil {
			continue
		}
		for _, d := range docs {
			for _, v := range append(admission.Validate(d.Request), admission.NotOffered(d.Request)...) {
				broken[v.Rule] = true
			}
		}
	}
	var got []string
	for _, id := range slices.Sorted(maps.Keys(broken)) {
		if slices.Contains(ruleIDs, id) {
			got = append(got, id)
		}
	}
	if diff := cmp.Diff(ruleIDs, got); diff != "" {
		t.Error(diff)
	}
}

func TestEveryFormIsExplainedInWords(t *testing.T) {
	seen := 0
	var walk func(m protoreflect.MessageDescriptor)
	walked := map[protoreflect.FullName]bool{}
	walk = func(m protoreflect.MessageDescriptor) {
		if walked[m.FullName()] || !strings.HasPrefix(string(m.FullName()), "prism.") {
			return
		}
		walked[m.FullName()] = true
		for i := range m.Fields().Len() {
			fd := m.Fields().Get(i)
			if fd.Message() != nil && !fd.IsMap() {
				walk(fd.Message())
			}
		}
	}
	walk((*configv1.NamespaceRequest)(nil).ProtoReflect().Descriptor())
	walk((*configv1.Backend)(nil).ProtoReflect().Descriptor())
	for name, message := range map[string]interface {
		protoreflect.ProtoMessage
	}{
		"request": &configv1.NamespaceRequest{}, "needs": &configv1.Needs{}, "pattern": &configv1.Pattern{},
		"slot": &configv1.Slot{}, "preference": &configv1.Preference{}, "deployment": &configv1.Deployment{},
		"backend": &configv1.Backend{}, "capacity": &configv1.Capacity{},
	} {
		m := message.ProtoReflect()
		if !walked[m.Descriptor().FullName()] {
			t.Errorf("%s is not reached", name)
		}
		for i := range m.Descriptor().Fields().Len() {
			fd := m.Descriptor().Fields().Get(i)
			switch {
			case fd.Kind() != protoreflect.StringKind || fd.IsMap():
			case fd.IsList():
				m.Mutable(fd).List().Append(protoreflect.ValueOfString("!"))
			default:
				m.Set(fd, protoreflect.ValueOfString("!"))
			}
		}
		for _, v := range constraint.Check(message) {
			if strings.Contains(v.Text, "regex") {
				t.Errorf("%s.%s: %s", name, v.Field, v.Text)
			}
			seen++
		}
	}
	if seen < 15 {
		t.Errorf("only %d violations", seen)
	}
}

func TestWellFormedRequestsBreakNoRule(t *testing.T) {
	for name, req := range map[string]*configv1.NamespaceRequest{
		"the least": {Namespace: "orders", Team: "payments", Pattern: "keyvalue"},
		"a range of versions": {Namespace: "orders", Team: "payments", Patterns: []*configv1.Pattern{
			{Name: "state", Type: "keyvalue", Version: "1.x"}}},
		"two patterns": {Namespace: "orders", Team: "payments", Patterns: []*configv1.Pattern{
			{Name: "state", Type: "keyvalue"}, {Name: "events", Type: "producer"}}},
		"settings that are no credentials": {Namespace: "orders", Team: "payments", Patterns: []*configv1.Pattern{
			{Name: "state", Type: "keyvalue", Slots: []*configv1.Slot{{Name: "storage-redis", Config: map[string]string{"database": "3", "schema": "orders"}}}}}},
		"every place of credentials": {Namespace: "orders", Team: "payments", Patterns: []*configv1.Pattern{
			{Name: "state", Type: "keyvalue", Slots: []*configv1.Slot{{Name: "storage-redis", CredentialPath: "awssm://eu-west-1/orders"}}}}},
		"a whole segment of a path": {Namespace: "orders", Team: "payments", Pattern: "keyvalue", Access: &configv1.Access{
			Readers: []*configv1.Principal{{Who: &configv1.Principal_Spiffe{Spiffe: "spiffe://example.org/ns/*/sa/api"}}}}},
	} {
		t.Run(name, func(t *testing.T) {
			if v := admission.Validate(req); len(v) > 0 {
				t.Error(v)
			}
		})
	}
}

func TestBackends(t *testing.T) {
	redis := func(change func(*configv1.Backend)) *configv1.Backend {
		b := &configv1.Backend{Name: "cache", Type: "redis", Endpoints: []string{"cache:6379"}}
		change(b)
		return b
	}
	type want struct{ field, rule string }
	for name, tc := range map[string]struct {
		backend *configv1.Backend
		want    []want
	}{
		"well-formed":     {redis(func(*configv1.Backend) {}), nil},
		"IPv6":            {redis(func(b *configv1.Backend) { b.Endpoints = []string{"[::1]:6379"} }), nil},
		"unknown type":    {redis(func(b *configv1.Backend) { b.Type = "rediss" }), []want{{"type", "backend.type"}}},
		"no endpoint":     {redis(func(b *configv1.Backend) { b.Endpoints = nil }), []want{{"endpoints", "backend.endpoints"}}},
		"a URL":           {redis(func(b *configv1.Backend) { b.Endpoints = []string{"redis://u:p@cache:6379"} }), []want{{"endpoints[0]", "backend.endpoints"}}},
		"user in address": {redis(func(b *configv1.Backend) { b.Endpoints = []string{"u:p@cache:6379"} }), []want{{"endpoints[0]", "backend.endpoints"}}},
		"no port":         {redis(func(b *configv1.Backend) { b.Endpoints = []string{"cache"} }), []want{{"endpoints[0]", "backend.endpoints"}}},
		"port 0":          {redis(func(b *configv1.Backend) { b.Endpoints = []string{"cache:0"} }), []want{{"endpoints[0]", "backend.endpoints"}}},
		"port 99999":      {redis(func(b *configv1.Backend) { b.Endpoints = []string{"cache:99999"} }), []want{{"endpoints[0]", "backend.endpoints"}}},
		"unknown setting": {redis(func(b *configv1.Backend) { b.Config = map[string]string{"databse": "1"} }), []want{{`config["databse"]`, "backend.config"}}},
		"no number":       {redis(func(b *configv1.Backend) { b.Config = map[string]string{"database": "-1"} }), []want{{`config["database"]`, "backend.config"}}},
		"two endpoints":   {redis(func(b *configv1.Backend) { b.Endpoints = []string{"a:1", "b:1"} }), []want{{"endpoints", "backend.endpoints"}}},
		"no duration":     {&configv1.Backend{Name: "scratch", Type: "memory", Config: map[string]string{"sweep": "0s"}}, []want{{`config["sweep"]`, "backend.config"}}},
		"no such value":   {&configv1.Backend{Name: "disk", Type: "sqlite", Endpoints: []string{"a.db"}, Config: map[string]string{"synchronous": "off"}}, []want{{`config["synchronous"]`, "backend.config"}}},
		"a value":         {&configv1.Backend{Name: "disk", Type: "sqlite", Endpoints: []string{"a.db"}, Config: map[string]string{"synchronous": "normal"}}, nil},
		"a duration":      {&configv1.Backend{Name: "scratch", Type: "memory", Config: map[string]string{"sweep": "1m"}}, nil},
		"a password":      {redis(func(b *configv1.Backend) { b.Config = map[string]string{"Password": "x"} }), []want{{`config["Password"]`, "backend.config"}}},
		"static credential": {redis(func(b *configv1.Backend) { b.CredentialPath = "hunter2" }),
			[]want{{"credential_path", "backend.credential_path"}}},
		"too large":              {redis(func(b *configv1.Backend) { b.Capacity = &configv1.Capacity{DataSize: "999999999999999TiB"} }), []want{{"capacity.data_size", "backend.capacity"}}},
		"memory with endpoint":   {&configv1.Backend{Name: "scratch", Type: "memory", Endpoints: []string{"x:1"}}, []want{{"endpoints", "backend.endpoints"}}},
		"sqlite in a file":       {&configv1.Backend{Name: "disk", Type: "sqlite", Endpoints: []string{"/var/lib/prism/a.db"}}, nil},
		"sqlite in two":          {&configv1.Backend{Name: "disk", Type: "sqlite", Endpoints: []string{"a.db", "b.db"}}, []want{{"endpoints", "backend.endpoints"}}},
		"sqlite with parameters": {&configv1.Backend{Name: "disk", Type: "sqlite", Endpoints: []string{"a.db?mode=memory"}}, []want{{"endpoints[0]", "backend.endpoints"}}},
		"no driver":              {&configv1.Backend{Name: "log", Type: "kafka", Endpoints: []string{"log:9092"}}, []want{{"type", "offered.backend_type"}}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []want
			for _, v := range append(admission.ValidateBackend(tc.backend), admission.BackendNotOffered(tc.backend)...) {
				got = append(got, want{v.Field, v.Rule})
				if strings.Contains(v.Text, "hunter2") || strings.Contains(v.Text, "u:p") {
					t.Errorf("%s repeats a credential", v.Text)
				}
			}
			if diff := cmp.Diff(tc.want, got, cmp.AllowUnexported(want{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]uint64{"": 0, "0B": 0, "5B": 5, "3KiB": 3072, "20GiB": 20 << 30, "1048576TiB": 1 << 60} {
		if got, err := admission.ParseSize(text); got != want || err != nil {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"5", "GiB", "-1B", "1.5GiB", "20GB", "1048577TiB", "99999999999999999999B"} {
		if got, err := admission.ParseSize(text); err == nil {
			t.Errorf("%q: %d", text, got)
		}
	}
}

func TestVersions(t *testing.T) {
	versions := []string{"2.0.0", "1.10.0", "1.2.3"}
	for want, has := range map[string]string{
		"": "2.0.0", "1.x": "1.10.0", "1": "1.10.0", "1.2": "1.2.3", "1.2.x": "1.2.3", "1.2.3": "1.2.3", "3.x": "", "1.2.4": "",
	} {
		if got, ok := admission.ResolveVersion(versions, want); got != has || ok != (has != "") {
			t.Errorf("%q: %q, %v; want %q", want, got, ok, has)
		}
	}
}

func TestEverythingIsReportedAtOnce(t *testing.T) {
	v := admission.Validate(&configv1.NamespaceRequest{
		Namespace: "X", Team: "", Pattern: "keyvlaue", Needs: &configv1.Needs{DataSize: "lots", Interfaces: []string{"nope.x"}},
		Limits: &configv1.Limits{Rps: 1 << 31},
	})
	var fields []string
	for _, one := range v {
		fields = append(fields, one.Field)
		if one.Rule == "" || one.Text == "" {
			t.Errorf("%+v", one)
		}
	}
	want := []string{"namespace", "team", "needs.data_size", "limits.rps", "pattern", "needs.interfaces[0]"}
	if diff := cmp.Diff(want, fields); diff != "" {
		t.Error(diff)
	}
}
