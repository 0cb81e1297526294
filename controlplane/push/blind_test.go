package push_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"

	"github.com/prism-gateway/prism/controlplane/push"
	"github.com/prism-gateway/prism/controlplane/push/standard"
)

// A replica that is cut off from the store has no changes to tell, and its proxies would not know that others have.
func TestReplicaThatDoesNotFollowTheStoreSendsItsProxiesAway(t *testing.T) {
	s := newSource(32)
	r := start(t, s, func(c *push.Config) { c.BlindPatience = time.Millisecond })
	first := connect(t, r)
	first.request(&request{TypeUrl: push.SharedType, ResourceNamesSubscribe: []string{"shared"}})
	if _, err := first.stream.Recv(); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	s.trouble = errors.New("the watch ended")
	s.mu.Unlock()
	_, err := first.stream.Recv()
	if status.Code(err) != codes.Unavailable || status.Convert(err).Message() != "this replica does not follow the store: try another" {
		t.Fatalf("the stream ended with %v", err)
	}
	again := connect(t, r) // it is taken all the same: there may be no other
	again.request(&request{TypeUrl: push.SharedType, ResourceNamesSubscribe: []string{"shared"}})
	if _, err := again.stream.Recv(); err != nil {
		t.Fatal(err)
	}
}

// So it is with clients that are not Prism's, in either variant of xDS.
func TestReplicaThatDoesNotFollowTheStoreSendsStandardClientsAway(t *testing.T) {
	for name, open := range map[string]func(context.Context, discoveryv3.AggregatedDiscoveryServiceClient) (receive func() error, err error){
		"state of the world": func(ctx context.Context, c discoveryv3.AggregatedDiscoveryServiceClient) (func() error, error) {
			stream, err := c.StreamAggregatedResources(ctx)
			if err != nil {
				return nil, err
			}
			return func() error { _, err := stream.Recv(); return err },
				stream.Send(&discoveryv3.DiscoveryRequest{TypeUrl: resource.EndpointType, ResourceNames: []string{"prism.p.0003"}})
		},
		"incremental": func(ctx context.Context, c discoveryv3.AggregatedDiscoveryServiceClient) (func() error, error) {
			stream, err := c.DeltaAggregatedResources(ctx)
			if err != nil {
				return nil, err
			}
			return func() error { _, err := stream.Recv(); return err },
				stream.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resource.EndpointType, ResourceNamesSubscribe: []string{"prism.p.0003"}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSource(32)
			s.assignment = owned(1, 32, []*configv1.Member{{Id: "a", Address: "10.0.0.1:8980"}}, 0)
			others, err := standard.New(standard.Config{Fleet: s, Logger: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			var running sync.WaitGroup
			running.Go(func() { others.Run(ctx) })
			defer running.Wait()
			defer cancel()
			r := start(t, s, func(c *push.Config) { c.BlindPatience, c.Standard = time.Millisecond, others })
			client := discoveryv3.NewAggregatedDiscoveryServiceClient(dial(t, r.address))
			receive, err := open(ctx, client)
			if err != nil {
				t.Fatal(err)
			}
			if err := receive(); err != nil {
				t.Fatal(err)
			}
			s.mu.Lock()
			s.trouble = errors.New("the watch ended")
			s.mu.Unlock()
			if err := receive(); status.Code(err) != codes.Unavailable || status.Convert(err).Message() != "this replica does not follow the store: try another" {
				t.Fatalf("the stream ended with %v", err)
			}
			again, err := open(ctx, client) // it is taken all the same: there may be no other
			if err != nil {
				t.Fatal(err)
			}
			if err := again(); err != nil {
				t.Fatal(err)
			}
		})
	}
}
