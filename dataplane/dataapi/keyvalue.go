package dataapi

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/dataplane/frame"
	"github.com/prism-gateway/prism/dataplane/pattern/keyvalue"
	"github.com/prism-gateway/prism/dataplane/routing"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/fault/faultgrpc"
)

// Register adds the data services to a server, which must use frame.Codec.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	service := datav1.KeyValue_ServiceDesc.ServiceName
	r.RegisterService(&grpc.ServiceDesc{
		ServiceName: service,
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{
			unary(s, service, "Get", false, get),
			unary(s, service, "Put", true, put),
			unary(s, service, "Delete", true, remove),
			unary(s, service, "BatchGet", false, batchGet),
			unary(s, service, "BatchWrite", true, batchWrite),
			unary(s, service, "Touch", true, touch),
			unary(s, service, "Scan", false, scan),
			unary(s, service, "ListIds", false, listIDs),
			unary(s, service, "DeleteRange", true, deleteRange),
			unary(s, service, "Increment", true, increment),
			unary(s, service, "Transact", true, transact),
			unary(s, service, "Describe", false, describe),
		},
		Streams: []grpc.StreamDesc{
			s.streaming(service, "Watch", false, grpc.StreamDesc{ServerStreams: true}, "namespace", (*frame.Frame).Namespace, watch),
			s.streaming(service, "ReadValue", false, grpc.StreamDesc{ServerStreams: true}, "namespace", (*frame.Frame).Namespace, readValue),
			// The first message of a WriteValue has the write in it, and that has the namespace.
			s.streaming(service, "WriteValue", true, grpc.StreamDesc{ClientStreams: true}, "put.namespace", (*frame.Frame).NestedNamespace, writeValue),
		},
		Metadata: datav1.KeyValue_ServiceDesc.Metadata,
	}, s)
	service = datav1.SessionManager_ServiceDesc.ServiceName
	r.RegisterService(&grpc.ServiceDesc{
		ServiceName: service,
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{
			unary(s, service, "CreateSession", false, s.createSession),
			unary(s, service, "GetSession", false, s.getSession),
			unary(s, service, "ListSessions", false, s.listSessions),
			unary(s, service, "RefreshSession", false, s.refreshSession),
			unary(s, service, "CloseSession", false, s.closeSession),
		},
		Streams: []grpc.StreamDesc{
			s.streaming(service, "WatchSession", false, grpc.StreamDesc{ServerStreams: true}, "namespace", (*frame.Frame).Namespace, watchSession),
		},
		Metadata: datav1.SessionManager_ServiceDesc.Metadata,
	}, s)
}

// store is the route's key-value pattern.
func store(r *routing.Route) (*keyvalue.Store, error) {
	if r.KeyValue == nil {
		return nil, keyvalue.Missing(keyvalue.Base)
	}
	return r.KeyValue, nil
}

func get(ctx context.Context, r *routing.Route, in *datav1.GetRequest) (*datav1.GetResponse, error) {
	kv, err := store(r)
	if err != nil {
		return nil, err
	}
	read, err := readOf(in.GetConsistency(), in.GetAtLeast(), in.GetHeadOnly())
	if err != nil {
		return nil, err
	}
	item, err := kv.Get(ctx, driver.Name{ID: in.GetId(), Key: in.GetKey()}, read)
	if err != nil {
		return nil, err
	}
	return &datav1.GetResponse{Item: itemOf(item)}, nil
}

func put(ctx context.Context, r *routing.Route, in *datav1.PutRequest) (*datav1.PutResponse, error) {
	w, err := writeOf(r, driver.Put, driver.Name{ID: in.GetId(), Key: in.GetKey()}, in.GetCondition(), in.GetExpiry(), in.GetToken(), "")
	if err != nil {
		return nil, err
	}
	w.Value, w.ContentType, w.Metadata, w.Previous = in.GetValue(), in.GetContentType(), in.GetMetadata(), in.GetReturnPrevious()
	done, err := r.KeyValue.Write(ctx, w)
	if err != nil {
		return nil, err
	}
	return &datav1.PutResponse{
		Version: done.Version, ExpireAt: timeOf(done.ExpireAt), Previous: itemOf(done.Previous), Duplicate: done.Duplicate,
		CommitToken: r.KeyValue.CommitToken(),
	}, nil
}

func remove(ctx context.Context, r *routing.Route, in *datav1.DeleteRequest) (*datav1.DeleteResponse, error) {
	w, err := writeOf(r, driver.Delete, driver.Name{ID: in.GetId(), Key: in.GetKey()}, in.GetCondition(), nil, in.GetToken(), "")
	if err != nil {
		return nil, err
	}
	w.Previous = in.GetReturnPrevious()
	done, err := r.KeyValue.Write(ctx, w)
	if err != nil {
		return nil, err
	}
	return &datav1.DeleteResponse{
		Existed: done.Existed, Previous: itemOf(done.Previous), Duplicate: done.Duplicate, CommitToken: r.KeyValue.CommitToken(),
	}, nil
}

func touch(ctx context.Context, r *routing.Route, in *datav1.TouchRequest) (*datav1.TouchResponse, error) {
	w, err := writeOf(r, driver.Touch, driver.Name{ID: in.GetId(), Key: in.GetKey()}, in.GetCondition(), in.GetExpiry(), nil, "")
	if err != nil {
		return nil, err
	}
	if in.GetExpiry() == nil {
		return nil, keyvalue.Invalid(fault.Violation{Field: "expiry", Rule: "required", Text: "is missing"})
	}
	done, err := r.KeyValue.Write(ctx, w)
	if err != nil {
		return nil, err
	}
	return &datav1.TouchResponse{Version: done.Version, ExpireAt: timeOf(done.ExpireAt)}, nil
}

func batchGet(ctx context.Context, r *routing.Route, in *datav1.BatchGetRequest) (*datav1.BatchGetResponse, error) {
	kv, err := store(r)
	if err != nil {
		return nil, err
	}
	read, err := readOf(in.GetConsistency(), in.GetAtLeast(), in.GetHeadOnly())
	if err != nil {
		return nil, err
	}
	names := make([]driver.Name, len(in.GetNames()))
	for i, n := range in.GetNames() {
		names[i] = driver.Name{ID: n.GetId(), Key: n.GetKey()}
	}
	results, unprocessed, err := kv.BatchGet(ctx, names, read)
	if err != nil {
		return nil, err
	}
	out := &datav1.BatchGetResponse{Results: make([]*datav1.BatchGetResult, len(results)), Unprocessed: unprocessed}
	id := ""
	made, items := make([]datav1.BatchGetResult, len(results)), newItems(len(results))
	for i, one := range results {
		out.Results[i] = &made[i]
		made[i].Item = items.of(one.Item)
		if one.Err != nil {
			id = requestID(ctx, id)
			out.Results[i].Status = faultgrpc.Status(fault.From(one.Err), id).Proto()
		}
	}
	return out, nil
}

func batchWrite(ctx context.Context, r *routing.Route, in *datav1.BatchWriteRequest) (*datav1.BatchWriteResponse, error) {
	if _, err := store(r); err != nil {
		return nil, err
	}
	token, err := tokenOf(in.GetToken())
	if err != nil {
		return nil, err
	}
	writes, err := writesOf(r, in.GetWrites())
	if err != nil {
		return nil, err
	}
	results, err := r.KeyValue.BatchWrite(ctx, writes, token)
	if err != nil {
		return nil, err
	}
	out := &datav1.BatchWriteResponse{Results: make([]*datav1.WriteResult, len(results)), Duplicate: token != nil, CommitToken: r.KeyValue.CommitToken()}
	id := ""
	for i, one := range results {
		out.Duplicate = out.Duplicate && one.Duplicate
		out.Results[i] = &datav1.WriteResult{Version: one.Version, ExpireAt: timeOf(one.ExpireAt), Existed: writes[i].Op == driver.Delete && one.Existed}
		if one.Err != nil {
			id = requestID(ctx, id)
			out.Results[i] = &datav1.WriteResult{Status: faultgrpc.Status(fault.From(one.Err), id).Proto()}
		}
	}
	return out, nil
}

func increment(ctx context.Context, r *routing.Route, in *datav1.IncrementRequest) (*datav1.IncrementResponse, error) {
	w, err := writeOf(r, driver.Put, driver.Name{ID: in.GetId(), Key: in.GetKey()}, nil, in.GetExpiry(), in.GetToken(), "")
	if err != nil {
		return nil, err
	}
	done, err := r.KeyValue.Increment(ctx, keyvalue.Increment{Name: w.Name, Delta: in.GetDelta(), Initial: in.GetInitial(), Expiry: w.Expiry, Token: w.Token})
	if err != nil {
		return nil, err
	}
	return &datav1.IncrementResponse{Value: done.Value, Version: done.Version, Duplicate: done.Duplicate, CommitToken: r.KeyValue.CommitToken()}, nil
}

func transact(ctx context.Context, r *routing.Route, in *datav1.TransactRequest) (*datav1.TransactResponse, error) {
	if _, err := store(r); err != nil {
		return nil, err
	}
	t := keyvalue.Transaction{ID: in.GetId(), Checks: make([]driver.Check, len(in.GetChecks()))}
	for i, c := range in.GetChecks() {
		var err error
		if t.Checks[i].Condition, t.Checks[i].Version, err = conditionOf(c.GetCondition(), fmt.Sprintf("checks[%d].", i)); err != nil {
			return nil, err
		}
		t.Checks[i].Key = c.GetKey()
	}
	var err error
	if t.Token, err = tokenOf(in.GetToken()); err != nil {
		return nil, err
	}
	if t.Writes, err = writesOf(r, in.GetWrites()); err != nil {
		return nil, err
	}
	done, err := r.KeyValue.Transact(ctx, t)
	if err != nil {
		return nil, err
	}
	out := &datav1.TransactResponse{Results: make([]*datav1.WriteResult, len(done.Results)), Duplicate: done.Duplicate, CommitToken: r.KeyValue.CommitToken()}
	for i, one := range done.Results {
		out.Results[i] = &datav1.WriteResult{Version: one.Version, ExpireAt: timeOf(one.ExpireAt), Existed: t.Writes[i].Op == driver.Delete && one.Existed}
	}
	return out, nil
}

func scan(ctx context.Context, r *routing.Route, in *datav1.ScanRequest) (*datav1.ScanResponse, error) {
	kv, err := store(r)
	if err != nil {
		return nil, err
	}
	page, err := kv.Scan(ctx, keyvalue.Scan{
		ID: in.GetId(), Prefix: in.GetPrefix(), Start: in.GetStart(), End: in.GetEnd(), Reverse: in.GetReverse(), KeysOnly: in.GetKeysOnly(),
		Limit: int(in.GetLimit()), MaxBytes: int(in.GetMaxBytes()), Token: in.GetPageToken(),
	})
	if err != nil {
		return nil, err
	}
	out := &datav1.ScanResponse{Items: make([]*datav1.Item, len(page.Items)), NextPageToken: page.Next, CutByDeadline: page.Cut}
	items := newItems(len(page.Items))
	for i := range page.Items {
		out.Items[i] = items.of(&page.Items[i])
	}
	return out, nil
}

func deleteRange(ctx context.Context, r *routing.Route, in *datav1.DeleteRangeRequest) (*datav1.DeleteRangeResponse, error) {
	kv, err := store(r)
	if err != nil {
		return nil, err
	}
	deleted, next, err := kv.DeleteRange(ctx, keyvalue.DeleteRange{
		ID: in.GetId(), Prefix: in.GetPrefix(), Start: in.GetStart(), End: in.GetEnd(), All: in.GetAll(), Token: in.GetPageToken(),
	})
	if err != nil {
		return nil, err
	}
	return &datav1.DeleteRangeResponse{Deleted: deleted, NextPageToken: next}, nil
}

func listIDs(ctx context.Context, r *routing.Route, in *datav1.ListIdsRequest) (*datav1.ListIdsResponse, error) {
	kv, err := store(r)
	if err != nil {
		return nil, err
	}
	ids, next, err := kv.ListIDs(ctx, int(in.GetLimit()), in.GetPageToken())
	if err != nil {
		return nil, err
	}
	return &datav1.ListIdsResponse{Ids: ids, NextPageToken: next}, nil
}

func describe(_ context.Context, r *routing.Route, _ *datav1.DescribeRequest) (*datav1.DescribeResponse, error) {
	out := &datav1.DescribeResponse{
		Namespace: r.Namespace, ConfigVersion: r.Version, MaxRequestBytes: MaxRequestBytes,
		Durability: r.Traits.Durability, Notes: r.Traits.Notes,
	}
	if r.DefaultDeadline > 0 {
		out.DefaultDeadline = durationpb.New(r.DefaultDeadline)
	}
	if r.MaxDeadline > 0 {
		out.MaxDeadline = durationpb.New(r.MaxDeadline)
	}
	kv := r.KeyValue
	if kv == nil {
		return out, nil
	}
	out.Interfaces, out.MaxValueBytes = kv.Interfaces(), kv.MaxValueBytes()
	out.MaxIdBytes, out.MaxKeyBytes, out.MaxBatchEntries = keyvalue.MaxIDBytes, keyvalue.MaxKeyBytes, keyvalue.MaxBatch
	if kv.Offers(keyvalue.Idempotency) {
		out.IdempotencyWindow = durationpb.New(keyvalue.TokenWindow)
	}
	if old := kv.MaxStaleness(); old > 0 {
		out.MaxStaleness = durationpb.New(old)
	}
	if kv.Offers(keyvalue.Large) {
		out.MaxLargeValueBytes = driver.MaxLarge
	}
	if kv.Offers(keyvalue.TTL) {
		out.TtlGranularity = durationpb.New(r.Traits.TTLGranularity)
	}
	if ttl := kv.DefaultTTL(); ttl > 0 {
		out.DefaultTtl = durationpb.New(ttl)
	}
	for c := keyvalue.Eventual; c <= kv.Consistency(); c++ {
		out.ConsistencyLevels = append(out.ConsistencyLevels, datav1.Consistency(c))
	}
	return out, nil
}

// requestID asks for the call's id once.
func requestID(ctx context.Context, known string) string {
	if known != "" {
		return known
	}
	return faultgrpc.RequestID(ctx)
}
