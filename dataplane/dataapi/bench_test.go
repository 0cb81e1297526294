package dataapi_test

import (
	"context"
	"fmt"
	"net"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/prism-gateway/prism/dataplane/assembly/statetest"
	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/dataplane/driver/memory"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
)

// bare asks the driver and does nothing else: what grpc-go and the store cost by themselves.
type bare struct {
	datav1.UnimplementedKeyValueServer
	store driver.KeyValue
}

// Get answers.
func (s bare) Get(ctx context.Context, in *datav1.GetRequest) (*datav1.GetResponse, error) {
	item, err := s.store.Get(ctx, "orders.1", driver.Name{ID: in.GetId(), Key: in.GetKey()}, false)
	if err != nil {
		return nil, err
	}
	return &datav1.GetResponse{Item: &datav1.Item{
		Id: item.ID, Key: item.Key, Value: item.Value, Version: item.Version, ModifiedAt: timestamppb.New(item.ModifiedAt),
	}}, nil
}

// BenchmarkGet compares a Get of 256 bytes through the data API, from memory, with a bare gRPC server in front of the
// same driver; the difference is what the proxy adds. Client and server are one process.
func BenchmarkGet(b *testing.B) {
	value := make([]byte, 256)
	run := func(b *testing.B, client datav1.KeyValueClient) {
		in := &datav1.GetRequest{Namespace: "orders", Id: []byte("id"), Key: []byte("key")}
		b.ReportAllocs()
		b.SetParallelism(8)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if out, err := client.Get(b.Context(), in); err != nil || len(out.GetItem().GetValue()) != len(value) {
					b.Errorf("%v, %v", out, err)
					return
				}
			}
		})
	}
	b.Run("bare", func(b *testing.B) {
		store, err := memory.Driver().Open(driver.Config{Name: "bare"})
		if err != nil {
			b.Fatal(err)
		}
		kv := store.(driver.KeyValue)
		if _, err := kv.Write(b.Context(), "orders.1", driver.Write{Name: driver.Name{ID: []byte("id"), Key: []byte("key")}, Value: value}); err != nil {
			b.Fatal(err)
		}
		server := grpc.NewServer()
		datav1.RegisterKeyValueServer(server, bare{store: kv})
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- server.Serve(l) }()
		conn, err := grpc.NewClient("passthrough:///"+l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = conn.Close(); server.Stop(); <-done; _ = store.Close() })
		run(b, datav1.NewKeyValueClient(conn))
	})
	owner, other := startProxy(b, "a", nil), startProxy(b, "b", nil)
	s := statetest.New(b, 1024, owner.member("a"), other.member("b"))
	s.Backend(&configv1.Backend{Name: "memory-main", Type: "memory"})
	s.Namespace(statetest.KeyValue("orders", "memory-main", "memory"))
	state := s.State()
	for _, p := range []*proxy{owner, other} {
		if refused := p.Apply(b.Context(), state); refused != nil {
			b.Fatal(refused)
		}
	}
	if _, err := owner.client.Put(b.Context(), &datav1.PutRequest{Namespace: "orders", Id: []byte("id"), Key: []byte("key"), Value: value}); err != nil {
		b.Fatal(err)
	}
	b.Run("memory", func(b *testing.B) { run(b, owner.client) })
	b.Run("memory, forwarded", func(b *testing.B) { run(b, other.client) })
}

// BenchmarkBatchGet reads a hundred items of 256 bytes at once through the data API, from memory. Client and server are
// one process.
func BenchmarkBatchGet(b *testing.B) {
	owner := startProxy(b, "a", nil)
	s := statetest.New(b, 1024, owner.member("a"))
	s.Backend(&configv1.Backend{Name: "memory-main", Type: "memory"})
	s.Namespace(statetest.KeyValue("orders", "memory-main", "memory"))
	if refused := owner.Apply(b.Context(), s.State()); refused != nil {
		b.Fatal(refused)
	}
	in := &datav1.BatchGetRequest{Namespace: "orders"}
	for n := range 100 {
		name := &datav1.Name{Id: fmt.Appendf(nil, "item-%04d", n)}
		in.Names = append(in.Names, name)
		if _, err := owner.client.Put(b.Context(), &datav1.PutRequest{Namespace: "orders", Id: name.Id, Value: make([]byte, 256)}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		if out, err := owner.client.BatchGet(b.Context(), in); err != nil || len(out.GetResults()) != 100 {
			b.Fatal(err)
		}
	}
}
