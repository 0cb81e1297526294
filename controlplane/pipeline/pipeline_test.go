package pipeline_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"github.com/prism-gateway/prism/controlplane/pipeline"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
)

var now = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// tree holds backends.
func tree(t interface{ Fatal(...any) }, backends ...*configv1.Backend) *snapshot.Tree {
	var sets []snapshot.Set
	for _, b := range backends {
		data, err := pipeline.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		sets = append(sets, snapshot.Set{Name: snapshot.BackendPrefix + b.GetName(), Data: data})
	}
	next, _, err := snapshot.New(8).With(1, sets)
	if err != nil {
		t.Fatal(err)
	}
	return next
}

func redis(name string, reads uint32) *configv1.Backend {
	return &configv1.Backend{Name: name, Type: "redis", Endpoints: []string{name + ":6379"}, Capacity: &configv1.Capacity{ReadRps: reads}}
}

func request(name string, reads uint32) *configv1.NamespaceRequest {
	return &configv1.NamespaceRequest{
		Namespace: name, Team: "payments", Pattern: "keyvalue",
		Needs: &configv1.Needs{Durability: configv1.Durability_DURABILITY_RELAXED, ReadRps: reads},
	}
}

func TestPlanMakesWhatProxiesAndTeamsNeed(t *testing.T) {
	planner, err := pipeline.New(tree(t, redis("cache", 0), &configv1.Backend{Name: "scratch", Type: "memory"}), 36)
	if err != nil {
		t.Fatal(err)
	}
	req := request("orders", 5)
	req.Needs.Ttl, req.Needs.MaxValueSize = durationpb.New(time.Hour), "64KiB"
	req.Limits = &configv1.Limits{Rps: 10, DefaultDeadline: durationpb.New(time.Second)}
	p, err := planner.Plan(pipeline.Input{Request: req, Author: "alice", Now: now})
	if err != nil {
		t.Fatal(err)
	}
	want := &configv1.NamespaceConfig{
		Namespace: "orders", Team: "payments", StoragePrefix: "orders.10",
		Limits:       &configv1.Limits{Rps: 10, Concurrency: 1024, DefaultDeadline: durationpb.New(time.Second), MaxDeadline: durationpb.New(time.Minute)},
		RecordHash:   ident.HashOf(p.RecordData).Bytes(),
		Reservations: []*configv1.Reservation{{Backend: "cache", ReadRps: 5}},
		Patterns: []*configv1.PatternConfig{{
			Name: "keyvalue", Type: "keyvalue", Version: "1.0.0", Interfaces: []string{"keyvalue", "keyvalue.ttl"},
			Bindings:    []*configv1.Binding{{Slot: "storage-redis", Backend: "cache", BackendType: "redis"}},
			Consistency: configv1.Consistency_CONSISTENCY_STRONG, DefaultTtl: durationpb.New(time.Hour), MaxValueBytes: 64 << 10,
		}},
	}
	if diff := cmp.Diff(want, p.Config, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	stored := new(configv1.NamespaceConfig)
	if err := proto.Unmarshal(p.Data, stored); err != nil || !proto.Equal(stored, want) {
		t.Error(err, stored)
	}
	if p.Version() != ident.HashOf(p.Data).String() {
		t.Error(p.Version())
	}
	r := p.Record
	if !proto.Equal(r.Request, req) || r.Author != "alice" || r.SnapshotVersion != 36 || !proto.Equal(r.CreatedAt, timestamppb.New(now)) {
		t.Errorf("%v", r)
	}
	stages := map[string]bool{}
	for _, d := range r.Decisions {
		stages[d.Stage] = true
		if d.Rule == "" || d.Reason == "" || d.Choice == "" || d.Subject == "" {
			t.Errorf("%v", d)
		}
	}
	if !stages["validate"] || !stages["select"] || !stages["assign"] {
		t.Errorf("stages %v", stages)
	}
}

func TestAMemoryBackendGivesOneOwner(t *testing.T) {
	planner, err := pipeline.New(tree(t, &configv1.Backend{Name: "scratch", Type: "memory"}), 2)
	if err != nil {
		t.Fatal(err)
	}
	req := request("orders", 0)
	req.Needs.Durability = configv1.Durability_DURABILITY_NONE
	p, err := planner.Plan(pipeline.Input{Request: req, Now: now})
	if err != nil || !p.Config.SingleOwner {
		t.Error(p.Config, err)
	}
}

func TestUpdateKeepsTheLifeOfANamespace(t *testing.T) {
	base := tree(t, redis("a", 0), redis("b", 0))
	first := plan(t, base, 2, pipeline.Input{Request: request("orders", 5), Now: now})
	base = with(t, base, 2, first)
	later := plan(t, base, 9, pipeline.Input{Request: request("orders", 6), Present: first.Record, Now: now.Add(time.Hour)})
	if later.Config.StoragePrefix != first.Config.StoragePrefix || later.Config.Patterns[0].Bindings[0].Backend != "a" {
		t.Errorf("%v", later.Config)
	}
	if !proto.Equal(later.Record.CreatedAt, first.Record.CreatedAt) || !proto.Equal(later.Record.UpdatedAt, timestamppb.New(now.Add(time.Hour))) {
		t.Errorf("%v", later.Record)
	}
}

// A namespace gives back what it holds before it asks again, or an update could not grow on a full backend.
func TestWhatANamespaceHoldsIsItsToUseAgain(t *testing.T) {
	base := tree(t, redis("a", 100))
	first := plan(t, base, 2, pipeline.Input{Request: request("orders", 60), Now: now})
	base = with(t, base, 2, first)
	more := plan(t, base, 3, pipeline.Input{Request: request("orders", 100), Present: first.Record, Now: now})
	if more.Config.Reservations[0].ReadRps != 100 {
		t.Errorf("%v", more.Config.Reservations)
	}
	planner, err := pipeline.New(base, 3)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := planner.Plan(pipeline.Input{Request: request("bills", 41), Now: now}); !fault.Is(err, fault.NoBackend) {
		t.Errorf("another may use it too: %v", err)
	}
}

func plan(t *testing.T, base *snapshot.Tree, version uint64, in pipeline.Input) pipeline.Plan {
	t.Helper()
	planner, err := pipeline.New(base, version)
	if err != nil {
		t.Fatal(err)
	}
	p, err := planner.Plan(in)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func with(t interface{ Fatal(...any) }, base *snapshot.Tree, version uint64, plans ...pipeline.Plan) *snapshot.Tree {
	var sets []snapshot.Set
	for _, p := range plans {
		sets = append(sets, snapshot.Set{Name: snapshot.NamespacePrefix + p.Config.GetNamespace(), Data: p.Data, Record: p.RecordData})
	}
	next, _, err := base.With(version, sets)
	if err != nil {
		t.Fatal(err)
	}
	return next
}

// Several namespaces in one change reserve as much as they would one change after the other, and no capacity is exceeded
// by any order of creations and updates.
func TestSeveralAtOnceNeverExceedACapacity(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		base := tree(t, redis("a", 100), redis("b", 70))
		present := map[string]pipeline.Plan{}
		for step := range rapid.IntRange(1, 6).Draw(t, "changes") {
			version := uint64(step + 2)
			planner, err := pipeline.New(base, version)
			if err != nil {
				t.Fatal(err)
			}
			var plans []pipeline.Plan
			for i := range 4 {
				name := fmt.Sprintf("ns-%d", i)
				if !rapid.Bool().Draw(t, name) {
					continue
				}
				p, err := planner.Plan(pipeline.Input{Request: request(name, rapid.Uint32Range(0, 80).Draw(t, "reads")), Present: present[name].Record, Now: now})
				if fault.Is(err, fault.NoBackend) {
					continue
				} else if err != nil {
					t.Fatal(err)
				}
				present[name] = p
				plans = append(plans, p)
			}
			base = with(t, base, version, plans...)
			for name, most := range map[string]uint64{"a": 100, "b": 70} {
				if u := base.Usage(name); u.ReadRPS > most {
					t.Fatalf("%s: %d of %d", name, u.ReadRPS, most)
				}
			}
		}
	})
}

func BenchmarkPlanOneOf100Backends(b *testing.B) {
	var backends []*configv1.Backend
	for i := range 100 {
		backends = append(backends, redis(fmt.Sprintf("cache-%02d", i), 1_000_000))
	}
	base := tree(b, backends...)
	planner, err := pipeline.New(base, 2)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if _, err := planner.Plan(pipeline.Input{Request: request(fmt.Sprintf("ns-%d", i), 1), Now: now}); err != nil {
			b.Fatal(err)
		}
	}
}

func TestCallersCredentialsAndAuditAreWhatTheRequestSays(t *testing.T) {
	backend := redis("store", 0)
	backend.CredentialPath = "vault://database/creds/platform"
	for name, tc := range map[string]struct {
		change func(*configv1.NamespaceRequest)
		path   string
		scope  configv1.CredentialScope
		ttl    time.Duration
		idle   time.Duration
	}{
		"nothing: the backend's, for all callers": {
			change: func(*configv1.NamespaceRequest) {},
			path:   "vault://database/creds/platform", scope: configv1.CredentialScope_CREDENTIAL_SCOPE_NAMESPACE,
			ttl: time.Hour, idle: 30 * time.Minute, // since there are rules of access
		},
		"callers, and no path: the backend's, for all callers": {
			change: func(r *configv1.NamespaceRequest) { r.Auth = &configv1.Auth{Enabled: true} },
			path:   "vault://database/creds/platform", scope: configv1.CredentialScope_CREDENTIAL_SCOPE_NAMESPACE,
			ttl: time.Hour, idle: 30 * time.Minute,
		},
		"a path for callers: each principal's own": {
			change: func(r *configv1.NamespaceRequest) {
				r.Auth = &configv1.Auth{Enabled: true, Vault: &configv1.VaultAuth{Credentials: &configv1.CredentialSource{Path: "vault://database/creds/orders"}}, Session: &configv1.SessionPolicy{Ttl: durationpb.New(time.Minute)}}
			},
			path: "vault://database/creds/orders", scope: configv1.CredentialScope_CREDENTIAL_SCOPE_PRINCIPAL,
			ttl: time.Minute, idle: time.Minute,
		},
		"a path and a scope": {
			change: func(r *configv1.NamespaceRequest) {
				r.Auth = &configv1.Auth{Enabled: true, Vault: &configv1.VaultAuth{Credentials: &configv1.CredentialSource{
					Path: "vault-eu://database/creds/orders", Scope: configv1.CredentialScope_CREDENTIAL_SCOPE_SESSION,
				}}}
			},
			path: "vault-eu://database/creds/orders", scope: configv1.CredentialScope_CREDENTIAL_SCOPE_SESSION,
			ttl: time.Hour, idle: 30 * time.Minute,
		},
	} {
		t.Run(name, func(t *testing.T) {
			planner, err := pipeline.New(tree(t, backend), 36)
			if err != nil {
				t.Fatal(err)
			}
			req := request("orders", 5)
			req.Access = &configv1.Access{Readers: []*configv1.Principal{{Who: &configv1.Principal_Group{Group: "analytics"}}}}
			req.Policies = &configv1.Policies{Audit: configv1.AuditPolicy_AUDIT_POLICY_STRICT}
			tc.change(req)
			p, err := planner.Plan(pipeline.Input{Request: req, Author: "alice", Now: now})
			if err != nil {
				t.Fatal(err)
			}
			b := p.Config.GetPatterns()[0].GetBindings()[0]
			if b.GetCredentialPath() != tc.path || b.GetCredentialScope() != tc.scope {
				t.Errorf("the credential is at %q, shared by %s", b.GetCredentialPath(), b.GetCredentialScope())
			}
			session := p.Config.GetAuth().GetSession()
			if session.GetTtl().AsDuration() != tc.ttl || session.GetIdleTimeout().AsDuration() != tc.idle {
				t.Errorf("sessions live %v", session)
			}
			if len(p.Config.GetAccess().GetReaders()) != 1 || p.Config.GetAudit() != configv1.AuditPolicy_AUDIT_POLICY_STRICT {
				t.Errorf("access %v, audit %v", p.Config.GetAccess(), p.Config.GetAudit())
			}
		})
	}
}
