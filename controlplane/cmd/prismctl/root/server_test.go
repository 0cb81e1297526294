package root_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/fault/faultgrpc"
)

var moment = timestamppb.New(time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC))

// peer is a Prism whose answers are written down; what it is asked for it keeps.
type peer struct {
	controlv1.UnimplementedControlPlaneServer
	adminv1.UnimplementedAdminServiceServer
	datav1.UnimplementedKeyValueServer

	address string
	asked   []proto.Message // by a single caller, so no lock
	items   map[string]*datav1.Item
	streams atomic.Int32 // of at-one-that-stops
}

// serve runs the peer on a loopback port until the test ends.
func serve(t *testing.T) *peer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{address: l.Addr().String(), items: map[string]*datav1.Item{
		"alice/name":  {Id: []byte("alice"), Key: []byte("name"), Value: []byte("Alice"), Version: []byte{0, 1}, ModifiedAt: moment},
		"alice/photo": {Id: []byte("alice"), Key: []byte("photo"), Value: []byte{0xff, 0xd8, 0}, Version: []byte{0, 2}, ModifiedAt: moment, ExpireAt: moment},
	}}
	log := slog.New(slog.DiscardHandler)
	s := grpc.NewServer(grpc.UnaryInterceptor(faultgrpc.Unary(log)), grpc.StreamInterceptor(faultgrpc.Stream(log)))
	controlv1.RegisterControlPlaneServer(s, p)
	adminv1.RegisterAdminServiceServer(s, p)
	datav1.RegisterKeyValueServer(s, p)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil && !errors.Is(err, grpc.ErrServerStopped) { // stopped before it served
			t.Error(err)
		}
	})
	return p
}

func (p *peer) note(m proto.Message) { p.asked = append(p.asked, proto.Clone(m)) }

func profiles() *configv1.NamespaceResponse {
	return &configv1.NamespaceResponse{
		Namespace: "user-profiles", Version: "0123456789abcdef0123", SnapshotVersion: 7, Partition: 42, CreatedAt: moment, UpdatedAt: moment,
		Request: &configv1.NamespaceRequest{Namespace: "user-profiles", Team: "accounts", Pattern: "keyvalue",
			Needs: &configv1.Needs{Durability: configv1.Durability_DURABILITY_STRONG, Ttl: durationpb.New(24 * time.Hour)}},
		Patterns: []*configv1.AssignedPattern{{Name: "keyvalue", Type: "keyvalue", Version: "1.0.0", Interfaces: []string{"keyvalue", "keyvalue.ttl"},
			Bindings: []*configv1.Binding{{Slot: "storage-sqlite", Backend: "local-sqlite", BackendType: "sqlite"}}}},
		Decisions: []*configv1.Decision{{Stage: "assign", Subject: "storage", Choice: "local-sqlite", Rule: "assign.only", Reason: "it is the only one that fits",
			Refusals: []*configv1.Refusal{{Name: "local-memory", Reason: "its data dies with the proxy\x1b[2J"}}}},
	}
}

func liveness(serving int) *configv1.NamespaceStatus {
	s := &configv1.NamespaceStatus{Namespace: "user-profiles", SnapshotVersion: 7, Live: serving == 2}
	for rank, id := range []string{"proxy-1", "proxy-2"} {
		o := &configv1.OwnerStatus{Proxy: id, Address: "127.0.0.1:8980", Rank: uint32(rank), Stage: configv1.Stage_STAGE_SERVING, LastSeen: moment}
		if rank >= serving {
			o.Stage, o.Reason = configv1.Stage_STAGE_SENT, "not acknowledged yet"
			s.Summary = id + " has not acknowledged it"
		}
		s.Owners = append(s.Owners, o)
	}
	return s
}

func (p *peer) PlanNamespaces(_ context.Context, req *controlv1.PlanNamespacesRequest) (*controlv1.PlanNamespacesResponse, error) {
	p.note(req)
	refusal := ""
	if req.GetRequests()[0].GetNamespace() == "one-too-many" {
		refusal = "team accounts has 3 of 3 namespaces, and this makes 1 more"
	}
	return &controlv1.PlanNamespacesResponse{Refusal: refusal, Plans: []*controlv1.NamespacePlan{{
		Action: controlv1.PlanAction_PLAN_ACTION_UPDATE, Namespace: profiles(), Differences: []string{"needs.ttl: 1h -> 24h"}}},
		Class: configv1.ReleaseClass_RELEASE_CLASS_SCOPED, Policy: waves(), Headroom: []string{"team accounts: 3 namespaces left"}}, nil
}

func (p *peer) ApplyNamespaces(_ context.Context, req *controlv1.ApplyNamespacesRequest) (*controlv1.ApplyNamespacesResponse, error) {
	p.note(req)
	if req.GetChanges()[0].GetRequest().GetNamespace() == "no-backend" {
		return nil, fault.New(fault.FailedPrecondition, fault.NoBackend, "no backend fits").WithViolations([]fault.Violation{
			{Field: "changes[0].request.needs.write_rps", Rule: "assign.capacity", Text: "local-sqlite has 10 writes/s left"}})
	}
	switch req.GetChanges()[0].GetRequest().GetNamespace() {
	case "shrinks":
		return nil, fault.New(fault.FailedPrecondition, fault.CheckFailed, "this change removes 2 of 3 namespaces: more than half, which must be allowed by itself").With("guard", "allow_shrink")
	case "kept-for-others":
		return nil, fault.New(fault.Conflict, fault.Reserved, `the name "kept-for-others" is reserved, until 2026-11-23T05:23:41Z unless its holder renews it; its holder gives the token of the reservation`)
	case "too-fast":
		return nil, fault.New(fault.Exhausted, fault.Quota, "team accounts may change 60 namespaces a minute: try again in 1.5s").WithRetry(1500 * time.Millisecond)
	}
	if resp, ok := inWaves(req.GetChanges()[0].GetRequest().GetNamespace()); ok {
		return resp, nil
	}
	return &controlv1.ApplyNamespacesResponse{SnapshotVersion: 7, Results: []*controlv1.NamespacePlan{{
		Action: controlv1.PlanAction_PLAN_ACTION_CREATE, Namespace: profiles()}}}, nil
}

func (p *peer) GetNamespace(_ context.Context, req *controlv1.GetNamespaceRequest) (*controlv1.GetNamespaceResponse, error) {
	p.note(req)
	switch req.GetNamespace() {
	case "nobody":
		return nil, fault.New(fault.NotFound, fault.Namespace, `there is no namespace "nobody"`)
	case "not-loaded":
		return nil, fault.New(fault.Unavailable, fault.NotLoaded, "this replica has not loaded its configuration yet").WithRetry(time.Millisecond)
	case "broken":
		panic("secret state")
	}
	n := profiles()
	if req.GetWithStatus() {
		n.Status = liveness(1)
	}
	return &controlv1.GetNamespaceResponse{Namespace: n}, nil
}

// ListNamespaces has two pages.
func (p *peer) ListNamespaces(_ context.Context, req *controlv1.ListNamespacesRequest) (*controlv1.ListNamespacesResponse, error) {
	p.note(req)
	n := &controlv1.NamespaceSummary{Namespace: "orders", Team: "payments", Patterns: []string{"keyvalue"}, Backends: []string{"pg-main"}, Partition: 7, Version: "ffff"}
	if req.GetPageToken() == "" {
		return &controlv1.ListNamespacesResponse{Namespaces: []*controlv1.NamespaceSummary{n}, NextPageToken: "2", TotalCount: 2}, nil
	}
	n = proto.CloneOf(n)
	n.Namespace, n.Draining = "user-profiles", true
	return &controlv1.ListNamespacesResponse{Namespaces: []*controlv1.NamespaceSummary{n}, TotalCount: 2}, nil
}

func (p *peer) DeleteNamespace(_ context.Context, req *controlv1.DeleteNamespaceRequest) (*controlv1.DeleteNamespaceResponse, error) {
	p.note(req)
	if req.GetNamespace() == "slowly-drained" {
		return &controlv1.DeleteNamespaceResponse{SnapshotVersion: 9, Release: 9, DataRemainsOn: []string{"local-sqlite"}}, nil
	}
	return &controlv1.DeleteNamespaceResponse{SnapshotVersion: 8, DataRemainsOn: []string{"local-sqlite"}, Drained: true}, nil
}

func (p *peer) WatchNamespaceStatus(req *controlv1.WatchNamespaceStatusRequest, stream grpc.ServerStreamingServer[controlv1.WatchNamespaceStatusResponse]) error {
	told, err := watchInWaves(req.GetNamespace(), func(s *configv1.NamespaceStatus) error {
		return stream.Send(&controlv1.WatchNamespaceStatusResponse{Status: s})
	})
	if told {
		return err
	}
	from := 0
	if req.GetNamespace() == "at-one-that-stops" {
		if from = int(p.streams.Add(1)); from == 1 {
			if err := stream.Send(&controlv1.WatchNamespaceStatusResponse{Status: liveness(from)}); err != nil {
				return err
			}
			return fault.New(fault.Unavailable, fault.Draining, "this replica is stopping")
		}
	}
	for serving := from; serving < 3; serving++ {
		if err := stream.Send(&controlv1.WatchNamespaceStatusResponse{Status: liveness(serving)}); err != nil {
			return err
		}
	}
	return nil
}

func snapshot(version uint64) *adminv1.Snapshot {
	return &adminv1.Snapshot{Version: version, Root: "abcdef", Parent: version - 1, RecordedAt: moment, Namespaces: 3, Head: true, Changes: []*adminv1.SnapshotChange{
		{Kind: "update", Name: "ns/user-profiles", Author: "ada", Message: "keep a day", RequestId: "r-1", Before: "aaaa", After: "bbbb"}}}
}

func (p *peer) ListSnapshots(_ context.Context, req *adminv1.ListSnapshotsRequest) (*adminv1.ListSnapshotsResponse, error) {
	p.note(req)
	return &adminv1.ListSnapshotsResponse{Snapshots: []*adminv1.Snapshot{snapshot(7)}, TotalCount: 1}, nil
}

func (p *peer) GetSnapshot(_ context.Context, req *adminv1.GetSnapshotRequest) (*adminv1.GetSnapshotResponse, error) {
	p.note(req)
	return &adminv1.GetSnapshotResponse{Snapshot: snapshot(7)}, nil
}

func (p *peer) NamespaceHistory(_ context.Context, req *adminv1.NamespaceHistoryRequest) (*adminv1.NamespaceHistoryResponse, error) {
	p.note(req)
	if req.GetNamespace() == "nobody" {
		return &adminv1.NamespaceHistoryResponse{}, nil
	}
	return &adminv1.NamespaceHistoryResponse{Snapshots: []*adminv1.Snapshot{snapshot(7)}}, nil
}

func (p *peer) DiffSnapshots(_ context.Context, req *adminv1.DiffSnapshotsRequest) (*adminv1.DiffSnapshotsResponse, error) {
	p.note(req)
	return &adminv1.DiffSnapshotsResponse{Differences: []*adminv1.Difference{
		{Kind: "create", Name: "ns/orders"}, {Kind: "update", Name: "ns/user-profiles", Fields: []string{"needs.ttl: 1h -> 24h"}}, {Kind: "delete", Name: "backend/old"}}}, nil
}

func (p *peer) RollbackSnapshot(_ context.Context, req *adminv1.RollbackSnapshotRequest) (*adminv1.RollbackSnapshotResponse, error) {
	p.note(req)
	return &adminv1.RollbackSnapshotResponse{Snapshot: snapshot(7), Changed: 2}, nil
}

func sqlite() *adminv1.BackendView {
	return &adminv1.BackendView{
		Backend: &configv1.Backend{Name: "local-sqlite", Type: "sqlite", Endpoints: []string{"data.db"}, Labels: map[string]string{"zone": "a", "region": "eu"},
			Capacity: &configv1.Capacity{WriteRps: 1000, DataSize: "1GiB"}},
		Version: "cafe", Reserved: &configv1.Reservation{WriteRps: 10, DataBytes: 20 << 20}, Namespaces: 2, Interfaces: []string{"keyvalue"},
	}
}

func (p *peer) ListBackends(_ context.Context, req *adminv1.ListBackendsRequest) (*adminv1.ListBackendsResponse, error) {
	p.note(req)
	return &adminv1.ListBackendsResponse{Backends: []*adminv1.BackendView{sqlite()}, TotalCount: 1}, nil
}

func (p *peer) GetBackend(_ context.Context, req *adminv1.GetBackendRequest) (*adminv1.GetBackendResponse, error) {
	p.note(req)
	b := sqlite()
	if req.GetName() == "redis-main" {
		b.TakenBack = &configv1.TakenBack{Snapshot: 42, BySnapshot: 43, Reason: "wave 3 (rank 0): namespace orders not ready at proxy-1"}
	}
	return &adminv1.GetBackendResponse{Backend: b}, nil
}

func (p *peer) ApplyBackends(_ context.Context, req *adminv1.ApplyBackendsRequest) (*adminv1.ApplyBackendsResponse, error) {
	p.note(req)
	return &adminv1.ApplyBackendsResponse{Backends: []*adminv1.BackendView{sqlite()}, SnapshotVersion: 9}, nil
}

func (p *peer) DeleteBackend(_ context.Context, req *adminv1.DeleteBackendRequest) (*adminv1.DeleteBackendResponse, error) {
	p.note(req)
	return nil, fault.New(fault.FailedPrecondition, fault.InUse, "2 namespaces are bound to local-sqlite: orders, user-profiles")
}

func proxyOne() *adminv1.Proxy {
	return &adminv1.Proxy{Member: &configv1.Member{Id: "proxy-1", Address: "127.0.0.1:8980"}, Build: "v1 go1.26", Replica: "admin-1", Ready: true,
		Owned: 3, Current: 2, Loading: 1, LastSeen: moment, CallsPerSecond: 12.34, Stale: durationpb.New(90 * time.Second), Drifted: []string{"ns/user-profiles"},
		Load: &controlv1.Load{CallsInFlight: 2, Connections: 30, Sessions: 4, MemoryBytes: 64 << 20, Cpu: durationpb.New(90 * time.Second)}}
}

func (p *peer) ListProxies(_ context.Context, req *adminv1.ListProxiesRequest) (*adminv1.ListProxiesResponse, error) {
	p.note(req)
	return &adminv1.ListProxiesResponse{Proxies: []*adminv1.Proxy{proxyOne(), {Member: &configv1.Member{Id: "validator-1", Validator: true}, Current: 8}}, TotalCount: 2, Epoch: 5, Moving: true}, nil
}

func (p *peer) GetProxy(_ context.Context, req *adminv1.GetProxyRequest) (*adminv1.GetProxyResponse, error) {
	p.note(req)
	if req.GetAt() != nil {
		served := &adminv1.ServedPartition{Partition: 2, Root: "aa", SharedRoot: "ff", SnapshotVersion: 7, Since: moment}
		switch req.GetNamespace() {
		case "user-profiles":
			served.NamespaceVersion = "1234567890abcdef"
		case "orders":
			served.Unknown = "its partition's state of then is no longer kept"
		}
		return &adminv1.GetProxyResponse{Served: []*adminv1.ServedPartition{served}}, nil
	}
	return &adminv1.GetProxyResponse{Proxy: proxyOne(), Partitions: []*adminv1.ProxyPartition{
		{Partition: 1}, {Partition: 2, WantRoot: "aa", WantSnapshot: 7, AcceptedRoot: "aa", ServingRoot: "aa", Drifted: []string{"ns/user-profiles"}}, {Partition: 3, Loading: true, WantRoot: "bb",
			Rejections: []*configv1.Rejection{{Resource: "ns/orders", Reason: "no driver"}}}}}, nil
}

func (p *peer) GetOwners(_ context.Context, req *adminv1.GetOwnersRequest) (*adminv1.GetOwnersResponse, error) {
	p.note(req)
	return &adminv1.GetOwnersResponse{Partition: 42, Epoch: 5, Owners: []*configv1.Member{{Id: "proxy-1", Address: "127.0.0.1:8980"}}, Loading: []*configv1.Member{{Id: "proxy-2"}}}, nil
}

func (p *peer) Get(_ context.Context, req *datav1.GetRequest) (*datav1.GetResponse, error) {
	p.note(req)
	return &datav1.GetResponse{Item: p.items[string(req.GetId())+"/"+string(req.GetKey())]}, nil
}

func (p *peer) Put(_ context.Context, req *datav1.PutRequest) (*datav1.PutResponse, error) {
	p.note(req)
	if req.GetNamespace() == "slow" {
		return nil, fault.New(fault.Unavailable, fault.BackendDown, "the backend did not answer").WithOutcome(fault.OutcomeUnknown).WithRetry(time.Second)
	}
	return &datav1.PutResponse{Version: []byte{0, 3}, ExpireAt: moment}, nil
}

func (p *peer) Delete(_ context.Context, req *datav1.DeleteRequest) (*datav1.DeleteResponse, error) {
	p.note(req)
	return &datav1.DeleteResponse{Existed: true}, nil
}

// DeleteRange has two pages.
func (p *peer) DeleteRange(_ context.Context, req *datav1.DeleteRangeRequest) (*datav1.DeleteRangeResponse, error) {
	p.note(req)
	if len(req.GetPageToken()) == 0 {
		return &datav1.DeleteRangeResponse{Deleted: 1000, NextPageToken: []byte("2")}, nil
	}
	return &datav1.DeleteRangeResponse{Deleted: 5}, nil
}

// Scan has two pages of one item.
func (p *peer) Scan(_ context.Context, req *datav1.ScanRequest) (*datav1.ScanResponse, error) {
	p.note(req)
	if len(req.GetPageToken()) == 0 {
		return &datav1.ScanResponse{Items: []*datav1.Item{p.items["alice/name"]}, NextPageToken: []byte("2")}, nil
	}
	return &datav1.ScanResponse{Items: []*datav1.Item{p.items["alice/photo"]}}, nil
}

func (p *peer) ListIds(_ context.Context, req *datav1.ListIdsRequest) (*datav1.ListIdsResponse, error) {
	p.note(req)
	return &datav1.ListIdsResponse{Ids: [][]byte{[]byte("alice"), {0xff}}}, nil
}

func (p *peer) Touch(_ context.Context, req *datav1.TouchRequest) (*datav1.TouchResponse, error) {
	p.note(req)
	return nil, status.Error(codes.Unimplemented, "unknown method")
}

func (p *peer) Describe(_ context.Context, req *datav1.DescribeRequest) (*datav1.DescribeResponse, error) {
	p.note(req)
	return &datav1.DescribeResponse{Namespace: "user-profiles", ConfigVersion: "0123456789abcdef", Interfaces: []string{"keyvalue"}, MaxIdBytes: 1024, MaxKeyBytes: 1024,
		MaxValueBytes: 1 << 20, MaxBatchEntries: 1000, MaxRequestBytes: 4 << 20, ConsistencyLevels: []datav1.Consistency{datav1.Consistency_CONSISTENCY_EVENTUAL, datav1.Consistency_CONSISTENCY_STRONG},
		DefaultDeadline: durationpb.New(5 * time.Second), MaxDeadline: durationpb.New(time.Minute), Durability: "strong", Notes: []string{"one machine"}}, nil
}
