package standard

import (
	"context"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
)

// telling is a stream whose answers say which of the names asked for there are not. Without it a client that understands
// it waits for a time to pass. It belongs to the goroutine of the stream's handler.
type telling struct {
	discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer
	server *Server
	asked  map[string][]string // names by type
}

// OnStreamRequest notes what is asked for.
func (t *telling) OnStreamRequest(_ int64, r *discoveryv3.DiscoveryRequest) error {
	t.asked[r.GetTypeUrl()] = r.GetResourceNames()
	return nil
}

// OnStreamResponse adds what there is not.
func (t *telling) OnStreamResponse(_ context.Context, _ int64, _ *discoveryv3.DiscoveryRequest, response *discoveryv3.DiscoveryResponse) {
	c, ok := t.server.caches[response.GetTypeUrl()]
	if !ok || c.NumResources() == 0 {
		return // nothing is known yet
	}
	for _, name := range t.asked[response.GetTypeUrl()] {
		if name != "*" && !known(name, c.NumResources()) {
			response.ResourceErrors = append(response.ResourceErrors, &discoveryv3.ResourceError{
				ResourceName: &discoveryv3.ResourceName{Name: name},
				ErrorDetail:  &rpcstatus.Status{Code: int32(codes.NotFound), Message: "there is no partition of this name"},
			})
		}
	}
}

// OnStreamOpen does nothing.
func (t *telling) OnStreamOpen(context.Context, int64, string) error { return nil }

// OnStreamClosed does nothing.
func (t *telling) OnStreamClosed(int64, *corev3.Node) {}
