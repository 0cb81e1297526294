package adminapi_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/prism-gateway/prism/controlplane/adminapi"
	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
)

func TestCreate(t *testing.T) {
	r := seeded(t)
	made := r.create(t, request("orders", reads(100)))
	if made.Version == "" || made.SnapshotVersion != 2 || made.Patterns[0].Version != "1.0.0" ||
		made.Patterns[0].Bindings[0].Backend != "cache-a" || made.Limits.Concurrency != 1024 || len(made.Decisions) == 0 {
		t.Errorf("made %v", made)
	}
	if c := r.config(t, "orders"); c.StoragePrefix != "orders.2" || c.Team != "payments" {
		t.Errorf("stored %v", c)
	}
	t.Run("is repeated safely", func(t *testing.T) {
		if again := r.create(t, request("orders", reads(100))); !proto.Equal(made, again) {
			t.Error(cmp.Diff(made.String(), again.String()))
		}
		if v := r.store.Head().Version(); v != 2 {
			t.Errorf("a second snapshot was made: %d", v)
		}
	})
	t.Run("refuses another request of the name", func(t *testing.T) {
		_, err := r.CreateNamespace(t.Context(), &controlv1.CreateNamespaceRequest{Request: request("orders", reads(101))})
		refused(t, err, fault.Exists, fault.AlreadyThere)
	})
	t.Run("tells every violation at once", func(t *testing.T) {
		bad := request("Orders")
		bad.Needs.DataSize, bad.Needs.Interfaces = "lots", []string{"keyvalue.scam"}
		_, err := r.CreateNamespace(t.Context(), &controlv1.CreateNamespaceRequest{Request: bad})
		f := refused(t, err, fault.Invalid, fault.Field)
		want := []string{"request.namespace", "request.needs.data_size", "request.needs.interfaces[0]"}
		if diff := cmp.Diff(want, fields(f)); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("refuses rules between fields once each", func(t *testing.T) {
		bad := request("orders")
		bad.Pattern = ""
		_, err := r.CreateNamespace(t.Context(), &controlv1.CreateNamespaceRequest{Request: bad})
		if diff := cmp.Diff([]string{"request", "request"}, fields(refused(t, err, fault.Invalid, fault.Field))); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("refuses nothing at all", func(t *testing.T) {
		_, err := r.CreateNamespace(t.Context(), &controlv1.CreateNamespaceRequest{})
		if diff := cmp.Diff([]string{"request"}, fields(refused(t, err, fault.Invalid, fault.Field))); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("refuses what is not offered, all of it", func(t *testing.T) {
		bad := request("bills")
		bad.Profile, bad.Policies = "gold", &configv1.Policies{Encrypt: true}
		_, err := r.CreateNamespace(t.Context(), &controlv1.CreateNamespaceRequest{Request: bad})
		f := refused(t, err, fault.FailedPrecondition, fault.NotOffered)
		if diff := cmp.Diff([]string{"request.policies.encrypt", "request.profile"}, fields(f)); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("names every backend when none fits", func(t *testing.T) {
		_, err := r.CreateNamespace(t.Context(), &controlv1.CreateNamespaceRequest{Request: request("bills", reads(5000), func(n *configv1.Needs) {
			n.MaxValueSize = "1GiB"
		})})
		f := refused(t, err, fault.FailedPrecondition, fault.NoBackend)
		for _, name := range []string{"cache-a", "cache-b", "disk", "scratch"} {
			if !strings.Contains(f.Text, name+": ") {
				t.Errorf("%s is not named in %s", name, f.Text)
			}
		}
	})
}

func TestAnotherReplicaTellsTheSame(t *testing.T) {
	one := seeded(t)
	made := one.create(t, request("orders"))
	if got := start(t).get(t, "orders"); !proto.Equal(made, got) {
		t.Error(cmp.Diff(made.String(), got.String()))
	}
}

func TestUpdate(t *testing.T) {
	r := seeded(t)
	made := r.create(t, request("orders"))
	changed := r.update(t, request("orders", reads(10)), made.Version)
	if changed.Version == made.Version || changed.SnapshotVersion != 3 || !proto.Equal(changed.CreatedAt, made.CreatedAt) {
		t.Errorf("changed %v", changed)
	}
	if c := r.config(t, "orders"); c.StoragePrefix != "orders.2" || c.Reservations[0].ReadRps != 10 {
		t.Errorf("stored %v", c)
	}
	t.Run("is refused when it was read before another change", func(t *testing.T) {
		_, err := r.UpdateNamespace(t.Context(), &controlv1.UpdateNamespaceRequest{Request: request("orders", reads(11)), Version: made.Version})
		if f := refused(t, err, fault.Conflict, fault.Changed); f.Metadata["version"] != changed.Version {
			t.Errorf("the present version is not told: %v", f.Metadata)
		}
	})
	t.Run("is repeated safely with the old version", func(t *testing.T) {
		if again := r.update(t, request("orders", reads(10)), made.Version); again.Version != changed.Version || r.store.Head().Version() != 3 {
			t.Errorf("again %v", again)
		}
	})
	t.Run("needs a namespace", func(t *testing.T) {
		_, err := r.UpdateNamespace(t.Context(), &controlv1.UpdateNamespaceRequest{Request: request("bills"), Version: made.Version})
		refused(t, err, fault.NotFound, fault.Namespace)
	})
	t.Run("needs a version", func(t *testing.T) {
		_, err := r.UpdateNamespace(t.Context(), &controlv1.UpdateNamespaceRequest{Request: request("orders")})
		if f := refused(t, err, fault.Invalid, fault.Field); !slices.Equal(fields(f), []string{"version"}) {
			t.Error(f.Violations)
		}
	})
}

func TestOneOfManyUpdatesWins(t *testing.T) {
	r := seeded(t)
	made := r.create(t, request("orders"))
	var won, lost atomic.Int64
	var calls sync.WaitGroup
	for i := range 20 {
		calls.Go(func() {
			_, err := r.UpdateNamespace(t.Context(), &controlv1.UpdateNamespaceRequest{Request: request("orders", reads(uint32(1+i))), Version: made.Version})
			if err == nil {
				won.Add(1)
			} else if strings.Contains(err.Error(), "changed since you read it") {
				lost.Add(1)
			} else {
				t.Error(err)
			}
		})
	}
	calls.Wait()
	if won.Load() != 1 || lost.Load() != 19 {
		t.Errorf("%d won, %d lost", won.Load(), lost.Load())
	}
}

func TestApply(t *testing.T) {
	r := seeded(t)
	r.create(t, request("orders"))
	same := r.get(t, "orders")
	apply := func(requests ...*configv1.NamespaceRequest) (*controlv1.ApplyNamespacesResponse, error) {
		in := &controlv1.ApplyNamespacesRequest{}
		for _, req := range requests {
			in.Changes = append(in.Changes, &controlv1.NamespaceChange{Request: req})
		}
		return r.ApplyNamespaces(t.Context(), in)
	}
	t.Run("is one snapshot", func(t *testing.T) {
		out, err := apply(request("orders"), request("bills", reads(700)), request("carts", reads(700)))
		if err != nil {
			t.Fatal(err)
		}
		var actions []controlv1.PlanAction
		var on []string
		for _, p := range out.Results {
			actions = append(actions, p.Action)
			on = append(on, p.Namespace.Patterns[0].Bindings[0].Backend)
		}
		none, create := controlv1.PlanAction_PLAN_ACTION_NONE, controlv1.PlanAction_PLAN_ACTION_CREATE
		if diff := cmp.Diff([]controlv1.PlanAction{none, create, create}, actions); diff != "" {
			t.Error(diff)
		}
		// What the second reserves, the third no longer finds.
		if diff := cmp.Diff([]string{"cache-a", "cache-b", "cache-a"}, on); diff != "" && !slices.Equal(on, []string{"cache-a", "cache-a", "cache-b"}) {
			t.Error(diff)
		}
		if out.SnapshotVersion != 3 || out.Results[0].Namespace.Version != same.Version {
			t.Errorf("snapshot %d", out.SnapshotVersion)
		}
	})
	t.Run("is all or nothing", func(t *testing.T) {
		_, err := apply(request("stock"), request("prices", func(n *configv1.Needs) { n.MaxValueSize = "1GiB" }))
		f := refused(t, err, fault.FailedPrecondition, fault.NoBackend)
		if !strings.HasPrefix(f.Text, "prices: ") || f.Metadata["namespace"] != "prices" {
			t.Errorf("the namespace at fault is not named: %s", f.Text)
		}
		if _, ok := r.store.Head().Namespace("stock"); ok || r.store.Head().Version() != 3 {
			t.Error("a part was applied")
		}
	})
	t.Run("holds to the version that was read", func(t *testing.T) {
		for name, tc := range map[string]struct {
			request *configv1.NamespaceRequest
			version string
		}{
			"of another content":   {request("orders", reads(1)), strings.Repeat("0", 64)},
			"of what is not there": {request("stock"), same.Version},
		} {
			_, err := r.ApplyNamespaces(t.Context(), &controlv1.ApplyNamespacesRequest{Changes: []*controlv1.NamespaceChange{{Request: tc.request, Version: tc.version}}})
			if f := refused(t, err, fault.Conflict, fault.Changed); f.Outcome != fault.NotApplied {
				t.Errorf("%s: %v", name, f)
			}
		}
	})
	t.Run("takes each namespace once", func(t *testing.T) {
		_, err := apply(request("stock"), request("stock"))
		if f := refused(t, err, fault.Invalid, fault.Field); !slices.Equal(fields(f), []string{"changes[1].request.namespace"}) {
			t.Error(f.Violations)
		}
	})
	t.Run("tells the violations of all", func(t *testing.T) {
		_, err := apply(request("X"), request("stock"), request("Y"))
		want := []string{"changes[0].request.namespace", "changes[2].request.namespace"}
		if diff := cmp.Diff(want, fields(refused(t, err, fault.Invalid, fault.Field))); diff != "" {
			t.Error(diff)
		}
	})
}

func TestManyAreAnsweredBriefly(t *testing.T) {
	r := seeded(t)
	in := &controlv1.PlanNamespacesRequest{}
	for i := range 2000 {
		req := request(fmt.Sprintf("many-%04d", i))
		req.Description = strings.Repeat("x", 1000)
		in.Requests = append(in.Requests, req)
	}
	out, err := r.PlanNamespaces(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	first, last := out.Plans[0].Namespace, out.Plans[len(out.Plans)-1].Namespace
	if len(out.Plans) != 2000 || first.Request == nil || last.Namespace != "many-1999" || last.Version == "" || last.Request != nil {
		t.Errorf("%d plans, the first %v, the last %v", len(out.Plans), first, last)
	}
}

func TestApplyOfAsManyAsAreAllowed(t *testing.T) {
	const many = 10_000
	r := seeded(t)
	in := &controlv1.ApplyNamespacesRequest{Note: note("alice", strings.Repeat("w", 4096))}
	for i := range many {
		in.Changes = append(in.Changes, &controlv1.NamespaceChange{Request: request(fmt.Sprintf("many-%05d-%s", i, strings.Repeat("x", 50)))})
	}
	out, err := r.ApplyNamespaces(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(out.Results); n != many || out.Results[many-1].Action != controlv1.PlanAction_PLAN_ACTION_CREATE {
		t.Errorf("%d results, the last %v", n, out.Results[n-1])
	}
	got, err := r.GetSnapshot(t.Context(), &adminv1.GetSnapshotRequest{Version: out.SnapshotVersion})
	if err != nil {
		t.Fatal(err)
	}
	changes := got.Snapshot.Changes
	if len(changes) != many {
		t.Fatalf("%d changes are told", len(changes))
	}
	first, last := changes[0], changes[many-1]
	if first.Author != "alice" || first.Message != in.Note.Message || last.Kind != "create" || last.Name == "" || last.After == "" || last.Message != "" {
		t.Errorf("the first change is %v, the last %v", first, last)
	}
}

func TestPlan(t *testing.T) {
	r := seeded(t)
	r.create(t, request("orders", reads(10)))
	next := request("orders", reads(2000), func(n *configv1.Needs) {
		n.Ttl = durationpb.New(24 * time.Hour)
		n.Durability = configv1.Durability_DURABILITY_STRONG
	})
	next.Description = "all orders"
	out, err := r.PlanNamespaces(t.Context(), &controlv1.PlanNamespacesRequest{Requests: []*configv1.NamespaceRequest{
		next, request("bills"), request("orders-2", reads(10)),
	}})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"description: (none) -> all orders",
		"needs.durability: relaxed -> strong",
		"needs.read_rps: 10 -> 2000",
		"needs.ttl: (none) -> 24h",
		"assigned.patterns[0].interfaces[1]: (none) -> keyvalue.ttl",
		"assigned.patterns[0].bindings[0].slot: storage-redis -> storage-sqlite",
		"assigned.patterns[0].bindings[0].backend: cache-a -> disk",
		"assigned.patterns[0].bindings[0].backend_type: redis -> sqlite",
		"assigned.patterns[0].default_ttl: (none) -> 24h",
	}
	if diff := cmp.Diff(want, out.Plans[0].Differences); diff != "" {
		t.Error(diff)
	}
	if out.Plans[0].Action != controlv1.PlanAction_PLAN_ACTION_UPDATE || out.Plans[1].Action != controlv1.PlanAction_PLAN_ACTION_CREATE {
		t.Errorf("%v", out.Plans)
	}
	last := out.Plans[0].Namespace.Decisions[len(out.Plans[0].Namespace.Decisions)-1]
	if !strings.Contains(last.Reason, "its data stays on cache-a") {
		t.Errorf("a move of data is not told: %v", last)
	}
	if v := r.store.Head().Version(); v != 2 {
		t.Errorf("a plan was recorded: snapshot %d", v)
	}
}

func TestGetOlder(t *testing.T) {
	r := seeded(t)
	made := r.create(t, request("orders"))
	r.update(t, request("orders", reads(10)), made.Version)
	out, err := r.GetNamespace(t.Context(), &controlv1.GetNamespaceRequest{Namespace: "orders", SnapshotVersion: 2})
	if err != nil || !proto.Equal(out.Namespace, made) {
		t.Error(err, cmp.Diff(made.String(), out.GetNamespace().String()))
	}
	_, err = r.GetNamespace(t.Context(), &controlv1.GetNamespaceRequest{Namespace: "orders", SnapshotVersion: 1})
	refused(t, err, fault.NotFound, fault.Namespace)
	_, err = r.GetNamespace(t.Context(), &controlv1.GetNamespaceRequest{Namespace: "orders", SnapshotVersion: 99})
	refused(t, err, fault.NotFound, fault.Snapshot)
	_, err = r.GetNamespace(t.Context(), &controlv1.GetNamespaceRequest{Namespace: "bills"})
	refused(t, err, fault.NotFound, fault.Namespace)
}

func TestList(t *testing.T) {
	r := seeded(t)
	for i := range 7 {
		req := request(fmt.Sprintf("ns-%d", i))
		if i%2 == 1 {
			req.Team = "accounts"
		}
		r.create(t, req)
	}
	list := func(in *controlv1.ListNamespacesRequest) *controlv1.ListNamespacesResponse {
		t.Helper()
		out, err := r.ListNamespaces(t.Context(), in)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	names := func(out *controlv1.ListNamespacesResponse) (names []string) {
		for _, n := range out.Namespaces {
			names = append(names, n.Namespace)
		}
		return names
	}
	first := list(&controlv1.ListNamespacesRequest{PageSize: 3})
	if diff := cmp.Diff([]string{"ns-0", "ns-1", "ns-2"}, names(first)); diff != "" || first.TotalCount != 7 {
		t.Error(diff, first.TotalCount)
	}
	r.create(t, request("ns-0-between")) // before the place where the list goes on
	r.create(t, request("ns-3-between"))
	second := list(&controlv1.ListNamespacesRequest{PageSize: 3, PageToken: first.NextPageToken})
	if diff := cmp.Diff([]string{"ns-3", "ns-3-between", "ns-4"}, names(second)); diff != "" {
		t.Error(diff)
	}
	last := list(&controlv1.ListNamespacesRequest{PageSize: 3, PageToken: second.NextPageToken})
	if diff := cmp.Diff([]string{"ns-5", "ns-6"}, names(last)); diff != "" || last.NextPageToken != "" {
		t.Error(diff, last.NextPageToken)
	}
	team := list(&controlv1.ListNamespacesRequest{Team: "accounts", PageSize: 2})
	if diff := cmp.Diff([]string{"ns-1", "ns-3"}, names(team)); diff != "" || team.TotalCount != 3 || team.NextPageToken == "" {
		t.Error(diff, team)
	}
	if s := team.Namespaces[0]; s.Team != "accounts" || !slices.Equal(s.Patterns, []string{"keyvalue"}) || len(s.Backends) != 1 || s.Version != r.get(t, "ns-1").Version {
		t.Errorf("%v", s)
	}
	if got := list(&controlv1.ListNamespacesRequest{Prefix: "ns-3"}); !slices.Equal(names(got), []string{"ns-3", "ns-3-between"}) || got.TotalCount != 2 {
		t.Errorf("%v", got)
	}
	for name, token := range map[string]string{"of other filters": team.NextPageToken, "of no list": "bm90aGluZw", "not even that": "!"} {
		_, err := r.ListNamespaces(t.Context(), &controlv1.ListNamespacesRequest{PageToken: token})
		if f := refused(t, err, fault.Invalid, fault.PageToken); f.Text == "" {
			t.Error(name)
		}
	}
}

func TestDelete(t *testing.T) {
	r := seeded(t)
	made := r.create(t, request("orders"))
	remove := func(in *controlv1.DeleteNamespaceRequest) (*controlv1.DeleteNamespaceResponse, error) {
		return r.DeleteNamespace(t.Context(), in)
	}
	_, err := remove(&controlv1.DeleteNamespaceRequest{Namespace: "orders", Purge: true})
	refused(t, err, fault.FailedPrecondition, fault.NotOffered)
	_, err = remove(&controlv1.DeleteNamespaceRequest{Namespace: "orders", Version: strings.Repeat("0", 64)})
	refused(t, err, fault.Conflict, fault.Changed)
	_, err = remove(&controlv1.DeleteNamespaceRequest{Namespace: "bills"})
	refused(t, err, fault.NotFound, fault.Namespace)

	out, err := remove(&controlv1.DeleteNamespaceRequest{Namespace: "orders", Version: made.Version, Note: note("bob", "over")})
	if err != nil {
		t.Fatal(err)
	}
	if !out.Drained || out.SnapshotVersion != 4 || !slices.Equal(out.DataRemainsOn, []string{"cache-a"}) {
		t.Errorf("deleted %v", out)
	}
	_, err = r.GetNamespace(t.Context(), &controlv1.GetNamespaceRequest{Namespace: "orders"})
	refused(t, err, fault.NotFound, fault.Namespace)
	list, err := r.ListSnapshots(t.Context(), &adminv1.ListSnapshotsRequest{PageSize: 2})
	if err != nil || list.Snapshots[0].Changes[0].Kind != "delete" || list.Snapshots[1].Changes[0].Kind != "drain" {
		t.Errorf("a deletion is told as %v, %v", list, err)
	}

	again := r.create(t, request("orders"))
	if c := r.config(t, "orders"); c.StoragePrefix != "orders.5" {
		t.Errorf("a new life of the name sees the data of the former: %s", c.StoragePrefix)
	}
	if again.Version == made.Version {
		t.Error("a new life has the version of the former")
	}
}

func TestDeleteWaitsForTheOwners(t *testing.T) {
	r := seeded(t, func(c *adminapi.Config) { c.DrainTimeout = patience })
	r.create(t, request("orders"))
	p := r.join(t, "proxy-1")
	p.serve(r.store.Head())
	deleted := make(chan *controlv1.DeleteNamespaceResponse, 1)
	go func() {
		out, err := r.DeleteNamespace(t.Context(), &controlv1.DeleteNamespaceRequest{Namespace: "orders"})
		if err != nil {
			t.Error(err)
		}
		deleted <- out
	}()
	moved, stop := r.store.Watch()
	defer stop()
	for !r.get(t, "orders").Draining {
		<-moved
	}
	_, err := r.UpdateNamespace(t.Context(), &controlv1.UpdateNamespaceRequest{Request: request("orders", reads(1)), Version: r.get(t, "orders").Version})
	refused(t, err, fault.FailedPrecondition, fault.NamespaceDraining)
	_, err = r.CreateNamespace(t.Context(), &controlv1.CreateNamespaceRequest{Request: request("orders")})
	refused(t, err, fault.FailedPrecondition, fault.NamespaceDraining)
	select {
	case out := <-deleted:
		t.Fatalf("deleted while an owner still serves it: %v", out)
	default:
	}
	p.serve(r.store.Head())
	select {
	case out := <-deleted:
		if !out.GetDrained() {
			t.Errorf("%v", out)
		}
	case <-time.After(patience):
		t.Fatal("never deleted")
	}
}

func TestDeleteGoesOnWithoutAnOwnerThatIsSilent(t *testing.T) {
	r := seeded(t, func(c *adminapi.Config) { c.DrainTimeout = 50 * time.Millisecond })
	r.create(t, request("orders"))
	r.join(t, "proxy-1").serve(r.store.Head())
	out, err := r.DeleteNamespace(t.Context(), &controlv1.DeleteNamespaceRequest{Namespace: "orders"})
	if err != nil || out.Drained {
		t.Errorf("%v, %v", out, err)
	}
}

func TestDeleteThatWasCutShortCanBeRepeated(t *testing.T) {
	r := seeded(t, func(c *adminapi.Config) { c.DrainTimeout = patience })
	r.create(t, request("orders"))
	p := r.join(t, "proxy-1")
	p.serve(r.store.Head())
	ctx, cancel := context.WithCancel(t.Context())
	cut := make(chan error, 1)
	go func() {
		_, err := r.DeleteNamespace(ctx, &controlv1.DeleteNamespaceRequest{Namespace: "orders"})
		cut <- err
	}()
	moved, stop := r.store.Watch()
	defer stop()
	for !r.get(t, "orders").Draining {
		<-moved
	}
	cancel()
	if err := <-cut; err == nil {
		t.Error("a call that was given up succeeded")
	}
	p.serve(r.store.Head())
	if out, err := r.DeleteNamespace(t.Context(), &controlv1.DeleteNamespaceRequest{Namespace: "orders", Version: "as-read-long-ago"}); err != nil || !out.Drained {
		t.Errorf("%v, %v", out, err)
	}
}

func TestWatchStatusUntilLive(t *testing.T) {
	r := seeded(t)
	p := r.join(t, "proxy-1")
	p.follow(r.store)
	made := r.create(t, request("orders"))
	stream, err := r.WatchNamespaceStatus(t.Context(), &controlv1.WatchNamespaceStatusRequest{Namespace: "orders", UntilSnapshot: made.SnapshotVersion})
	if err != nil {
		t.Fatal(err)
	}
	var last *configv1.NamespaceStatus
	for {
		m, err := stream.Recv()
		if err != nil {
			break
		}
		last = m.Status
	}
	if !last.GetLive() || last.Version != made.Version || last.Owners[0].Proxy != "proxy-1" {
		t.Errorf("the stream ended with %v", last)
	}
	got, err := r.GetNamespace(t.Context(), &controlv1.GetNamespaceRequest{Namespace: "orders", WithStatus: true})
	if err != nil || !got.Namespace.Status.GetLive() {
		t.Errorf("%v, %v", got, err)
	}
	none, err := r.WatchNamespaceStatus(t.Context(), &controlv1.WatchNamespaceStatusRequest{Namespace: "bills"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = none.Recv()
	refused(t, err, fault.NotFound, fault.Namespace)

	proxies, err := r.ListProxies(t.Context(), &adminv1.ListProxiesRequest{})
	if err != nil || proxies.TotalCount != 1 || proxies.Proxies[0].Owned != partitions || proxies.Moving {
		t.Errorf("%v, %v", proxies, err)
	}
	one, err := r.GetProxy(t.Context(), &adminv1.GetProxyRequest{Id: "proxy-1"})
	if err != nil || len(one.Partitions) != partitions {
		t.Errorf("%v, %v", one, err)
	}
	one, err = r.GetProxy(t.Context(), &adminv1.GetProxyRequest{Id: "proxy-1", Namespace: "orders"})
	if want := uint32(ident.PartitionOf("orders", partitions)); err != nil || len(one.Partitions) != 1 || one.Partitions[0].Partition != want {
		t.Errorf("%v, %v, want only partition %d", one, err, want)
	}
	_, err = r.GetProxy(t.Context(), &adminv1.GetProxyRequest{Id: "proxy-2"})
	refused(t, err, fault.NotFound, fault.Object)
}

func TestTheHistoryTellsWhoAndWhy(t *testing.T) {
	r := seeded(t)
	ctx := metadata.AppendToOutgoingContext(t.Context(), "prism-request-id", "req-42")
	if _, err := r.CreateNamespace(ctx, &controlv1.CreateNamespaceRequest{Request: request("orders"), Note: note("alice", "for the shop")}); err != nil {
		t.Fatal(err)
	}
	made := r.get(t, "orders")
	r.create(t, request("bills"))
	r.update(t, request("orders", reads(5)), made.Version)
	if _, err := r.RollbackSnapshot(t.Context(), &adminv1.RollbackSnapshotRequest{ToVersion: 2}); err != nil {
		t.Fatal(err)
	}
	var got []string
	token := ""
	for {
		out, err := r.NamespaceHistory(t.Context(), &adminv1.NamespaceHistoryRequest{Namespace: "orders", PageSize: 2, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range out.Snapshots {
			for _, c := range s.Changes {
				got = append(got, fmt.Sprintf("%d %s %s by %q: %q %s", s.Version, c.Kind, c.Name, c.Author, c.Message, c.RequestId))
			}
		}
		if token = out.NextPageToken; token == "" {
			break
		}
	}
	for i := range got { // ids of requests that brought none are random
		if !strings.HasSuffix(got[i], "req-42") {
			got[i] = got[i][:strings.LastIndexByte(got[i], ' ')]
		}
	}
	want := []string{
		`5 rollback ns/orders by "": ""`,
		`4 update ns/orders by "": ""`,
		`2 create ns/orders by "alice": "for the shop" req-42`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
