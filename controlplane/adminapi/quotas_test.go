package adminapi_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prism-gateway/prism/controlplane/adminapi"
	"github.com/prism-gateway/prism/controlplane/quota"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	"github.com/prism-gateway/prism/shared/fault"
)

// bounded gives the team of the tests' requests a quota.
func bounded(b quota.Bounds, change ...func(*adminapi.Config)) func(*adminapi.Config) {
	return func(cfg *adminapi.Config) {
		cfg.Quotas = quota.Quotas{Teams: map[string]quota.Bounds{"payments": b}}
		for _, c := range change {
			c(cfg)
		}
	}
}

func (r *replica) make(t *testing.T, req *configv1.NamespaceRequest) error {
	_, err := r.CreateNamespace(t.Context(), &controlv1.CreateNamespaceRequest{Request: req, Note: note("alice", "")})
	return err
}

// byQuota holds an error against the quota that it must name.
func byQuota(t *testing.T, err error, which string) *fault.Fault {
	t.Helper()
	f := refused(t, err, fault.Exhausted, fault.Quota)
	if f.Metadata["quota"] != which || f.Outcome != fault.NotApplied {
		t.Errorf("%v, outcome %s, want quota %s", f.Metadata, f.Outcome, which)
	}
	return f
}

func TestNamespaceQuota(t *testing.T) {
	r := seeded(t, bounded(quota.Bounds{Namespaces: 2}))
	for _, name := range []string{"one", "two"} {
		if err := r.make(t, request(name)); err != nil {
			t.Fatal(err)
		}
	}
	if f := byQuota(t, r.make(t, request("three")), "namespaces"); !strings.Contains(f.Text, "2 of 2") || !strings.Contains(f.Text, "payments") {
		t.Error(f.Text)
	}
	if err := r.make(t, request("one")); err != nil {
		t.Errorf("an identical retry: %v", err)
	}
	other := request("other")
	other.Team = "accounts"
	if err := r.make(t, other); err != nil {
		t.Errorf("another team: %v", err)
	}
	_, err := r.ApplyNamespaces(t.Context(), &controlv1.ApplyNamespacesRequest{Changes: []*controlv1.NamespaceChange{
		{Request: request("one", reads(5))}, {Request: request("four")},
	}})
	byQuota(t, err, "namespaces")
	if got := r.get(t, "one").Request.GetNeeds().GetReadRps(); got != 0 {
		t.Error("a change of which a part is refused was made in part")
	}
	if _, err := r.DeleteNamespace(t.Context(), &controlv1.DeleteNamespaceRequest{Namespace: "one"}); err != nil {
		t.Fatal(err)
	}
	if err := r.make(t, request("three")); err != nil {
		t.Errorf("after a deletion: %v", err)
	}
}

// TestQuotaHoldsWhateverTheReplica makes namespaces through two replicas at once.
func TestQuotaHoldsWhateverTheReplica(t *testing.T) {
	const limit = 7
	replicas := []*replica{seeded(t, bounded(quota.Bounds{Namespaces: limit})), start(t, bounded(quota.Bounds{Namespaces: limit}))}
	var made, full atomic.Int64
	var racing sync.WaitGroup
	for i := range 4 * limit {
		racing.Go(func() {
			switch err := replicas[i%2].make(t, request(fmt.Sprint("name-", i))); {
			case err == nil:
				made.Add(1)
			case strings.Contains(err.Error(), "7 of 7 namespaces"):
				full.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	racing.Wait()
	if made.Load() != limit || full.Load() != 3*limit {
		t.Errorf("made %d and refused %d, want %d and %d", made.Load(), full.Load(), limit, 3*limit)
	}
}

func TestChangeRate(t *testing.T) {
	var passed atomic.Int64
	clock := func(cfg *adminapi.Config) {
		cfg.Now = func() time.Time { return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(passed.Load())) }
	}
	limits := bounded(quota.Bounds{ChangesPerMinute: 18}, clock) // three at once
	r := seeded(t, limits)
	for i := range 3 {
		if err := r.make(t, request(fmt.Sprint("name-", i))); err != nil {
			t.Fatal(err)
		}
	}
	if f := byQuota(t, r.make(t, request("more")), "changes_per_minute"); f.RetryAfter < 3*time.Second || f.RetryAfter > 4*time.Second {
		t.Errorf("told to come back in %v, want 60 s / 18", f.RetryAfter)
	}
	if err := r.make(t, request("name-0")); err != nil {
		t.Errorf("an identical retry: %v", err)
	}
	if _, err := r.DeleteNamespace(t.Context(), &controlv1.DeleteNamespaceRequest{Namespace: "name-0"}); err != nil {
		t.Errorf("a deletion: %v", err)
	}
	passed.Store(int64(4 * time.Second))
	if err := r.make(t, request("more")); err != nil {
		t.Errorf("in time: %v", err)
	}
	byQuota(t, r.make(t, request("more-still")), "changes_per_minute")
}

// TestChangeRateCountsOtherReplicas lets a replica see what another recorded.
func TestChangeRateCountsOtherReplicas(t *testing.T) {
	fixed := func(cfg *adminapi.Config) { cfg.Now = func() time.Time { return time.Unix(1e9, 0) } }
	limits := bounded(quota.Bounds{ChangesPerMinute: 6}, fixed) // one at once
	r := seeded(t, limits)
	other := start(t, limits)
	if err := r.make(t, request("there")); err != nil {
		t.Fatal(err)
	}
	// The other counts it in a moment: until then it may let one through, which counts at the first.
	for i := 0; ; i++ {
		if err := other.make(t, request(fmt.Sprint("here-", i))); err != nil {
			byQuota(t, err, "changes_per_minute")
			if i > 1 {
				t.Errorf("%d were let through", i)
			}
			return
		}
	}
}

func TestPlanTellsHeadroom(t *testing.T) {
	r := seeded(t, bounded(quota.Bounds{Namespaces: 1000}))
	r.create(t, request("one"))
	plan, err := r.PlanNamespaces(t.Context(), &controlv1.PlanNamespacesRequest{Requests: []*configv1.NamespaceRequest{request("two"), request("three")}})
	if err != nil || !slices.Equal(plan.Headroom, []string{"team payments: 3 of 1,000 namespaces"}) {
		t.Errorf("%q, %v", plan.GetHeadroom(), err)
	}
}

func TestAPlanSaysThatTheChangeWouldBeRefused(t *testing.T) {
	r := seeded(t, bounded(quota.Bounds{Namespaces: 2}))
	r.create(t, request("one"))
	for _, tc := range []struct {
		plan []*configv1.NamespaceRequest
		want string
	}{
		{[]*configv1.NamespaceRequest{request("two")}, ""},
		{[]*configv1.NamespaceRequest{request("two"), request("three")}, "team payments"},
	} {
		plan, err := r.PlanNamespaces(t.Context(), &controlv1.PlanNamespacesRequest{Requests: tc.plan})
		if got := plan.GetRefusal(); err != nil || (got == "") != (tc.want == "") || !strings.Contains(got, tc.want) {
			t.Errorf("%d namespaces: refusal %q, %v, want %q", len(tc.plan), got, err, tc.want)
		}
	}
}
