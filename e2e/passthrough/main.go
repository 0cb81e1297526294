// Command passthrough is what Prism is measured against: the least that a Go program between gRPC and a store can do.
// It serves KeyValue.Get and KeyValue.Put with the store's client and nothing else: no namespaces, no configuration,
// no limits, no metrics, no conditions, no expiry.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
)

// store is a store by its client; an absent value is nil.
type store interface {
	get(ctx context.Context, name string) ([]byte, error)
	put(ctx context.Context, name string, value []byte) error
}

type server struct {
	datav1.UnimplementedKeyValueServer
	store store
}

func (s *server) Get(ctx context.Context, in *datav1.GetRequest) (*datav1.GetResponse, error) {
	value, err := s.store.get(ctx, name(in.GetId(), in.GetKey()))
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	if value == nil {
		return &datav1.GetResponse{}, nil
	}
	return &datav1.GetResponse{Item: &datav1.Item{Id: in.GetId(), Key: in.GetKey(), Value: value}}, nil
}

func (s *server) Put(ctx context.Context, in *datav1.PutRequest) (*datav1.PutResponse, error) {
	if err := s.store.put(ctx, name(in.GetId(), in.GetKey()), in.GetValue()); err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	return &datav1.PutResponse{}, nil
}

func name(id, key []byte) string { return string(id) + ":" + string(key) }

// allocations answers what was allocated since the start.
func allocations(w http.ResponseWriter, _ *http.Request) {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	if err := json.NewEncoder(w).Encode(map[string]uint64{"objects": m.Mallocs, "bytes": m.TotalAlloc}); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

func run() error {
	listen := flag.String("listen", "127.0.0.1:0", "where to serve")
	stats := flag.String("stats", "127.0.0.1:0", "where to tell what was allocated")
	kind := flag.String("store", "redis", "redis, postgres, sqlite or memory")
	address := flag.String("address", "", "host:port of the store, its URL for postgres, or its file")
	flag.Parse()
	s, err := open(*kind, *address)
	if err != nil {
		return err
	}
	told, err := net.Listen("tcp", *stats)
	if err != nil {
		return err
	}
	http.HandleFunc("GET /allocations", allocations)
	go http.Serve(told, nil)
	l, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	g := grpc.NewServer()
	datav1.RegisterKeyValueServer(g, &server{store: s})
	return g.Serve(l)
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "passthrough:", err)
		os.Exit(1)
	}
}
