// Command passthrough is what Prism is measured against: the least that a Go program between gRPC and Redis can do.
// It serves KeyValue.Get and KeyValue.Put with the store's client and nothing else: no namespaces, no configuration,
// no limits, no metrics, no conditions, no expiry.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"

	"github.com/redis/go-redis/v9"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
)

type server struct {
	datav1.UnimplementedKeyValueServer
	redis *redis.Client
}

func (s *server) Get(ctx context.Context, in *datav1.GetRequest) (*datav1.GetResponse, error) {
	value, err := s.redis.Get(ctx, name(in.GetId(), in.GetKey())).Bytes()
	if errors.Is(err, redis.Nil) {
		return &datav1.GetResponse{}, nil
	}
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	return &datav1.GetResponse{Item: &datav1.Item{Id: in.GetId(), Key: in.GetKey(), Value: value}}, nil
}

func (s *server) Put(ctx context.Context, in *datav1.PutRequest) (*datav1.PutResponse, error) {
	if err := s.redis.Set(ctx, name(in.GetId(), in.GetKey()), in.GetValue(), 0).Err(); err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	return &datav1.PutResponse{}, nil
}

func name(id, key []byte) string { return string(id) + ":" + string(key) }

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "where to serve")
	store := flag.String("redis", "", "host:port of Redis")
	flag.Parse()
	l, err := net.Listen("tcp", *listen)
	if err != nil {
		fmt.Fprintln(os.Stderr, "passthrough:", err)
		os.Exit(1)
	}
	s := grpc.NewServer()
	datav1.RegisterKeyValueServer(s, &server{redis: redis.NewClient(&redis.Options{Addr: *store, ContextTimeoutEnabled: true, MaxRetries: -1})})
	if err := s.Serve(l); err != nil {
		fmt.Fprintln(os.Stderr, "passthrough:", err)
		os.Exit(1)
	}
}
