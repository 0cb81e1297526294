//go:build envoy

package standard_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/prism-gateway/prism/e2e/harness"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
)

// bootstrap has Envoy take clusters and owners from Prism, by either variant of xDS, and route each call to the cluster
// that its header names. The bootstrap in docs/standard-clients.md is this one.
const bootstrap = `
node: {id: envoy-1, cluster: edge}
dynamic_resources:
  ads_config:
    api_type: %s
    transport_api_version: V3
    grpc_services: [{envoy_grpc: {cluster_name: prism}}]
  cds_config: {ads: {}, resource_api_version: V3}
static_resources:
  listeners:
  - name: data
    address: {socket_address: {address: 127.0.0.1, port_value: %s}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: data
          codec_type: HTTP2
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
          route_config:
            virtual_hosts:
            - name: prism
              domains: ["*"]
              routes:
              - match: {prefix: /}
                route:
                  cluster_header: x-prism-cluster
                  timeout: 0s
                  retry_policy:
                    retry_on: reset,connect-failure,refused-stream,unavailable
                    num_retries: 3
                    retry_priority:
                      name: envoy.retry_priorities.previous_priorities
                      typed_config:
                        "@type": type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig
                        update_frequency: 1
  clusters:
  - name: prism
    type: STATIC
    connect_timeout: 2s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
    load_assignment:
      cluster_name: prism
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: %s, port_value: %s}}}}]}]
`

// routed names the cluster of a namespace in every call.
type routed struct {
	datav1.KeyValueClient
	namespace string
}

// Put calls with the header.
func (r routed) Put(ctx context.Context, in *datav1.PutRequest, o ...grpc.CallOption) (*datav1.PutResponse, error) {
	return r.KeyValueClient.Put(r.header(ctx), in, o...)
}

// Get calls with the header.
func (r routed) Get(ctx context.Context, in *datav1.GetRequest, o ...grpc.CallOption) (*datav1.GetResponse, error) {
	return r.KeyValueClient.Get(r.header(ctx), in, o...)
}

func (r routed) header(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "x-prism-cluster", target(r.namespace))
}

func TestEnvoyFollowsOwners(t *testing.T) {
	for _, variant := range []string{"GRPC", "DELTA_GRPC"} {
		t.Run(variant, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			defer cancel()
			c := start(ctx, t, "orders")
			host, port, err := net.SplitHostPort(c.Admin().FleetAddress)
			if err != nil {
				t.Fatal(err)
			}
			address := harness.FreeAddress(t)
			_, own, err := net.SplitHostPort(address)
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(t.TempDir(), "envoy.yaml")
			if err := os.WriteFile(file, fmt.Appendf(nil, bootstrap, variant, own, host, port), 0o600); err != nil {
				t.Fatal(err)
			}
			harness.Run(t, t.TempDir(), "envoy", harness.Program(t, ".cache/bin/envoy", "scripts/fetch envoy"),
				"--config-path", file, "--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warning")
			client := routed{datav1.NewKeyValueClient(c.Dial(address)), "orders"}
			harness.Eventually(t, time.Minute, "a call through Envoy", func() error {
				_, err := client.Put(ctx, &datav1.PutRequest{Namespace: "orders", Id: []byte("first"), Key: []byte("k")})
				return err
			})
			l := begin(ctx, "orders", client, 4)
			moveOwners(t, c, "orders", l)
			calls, err := l.stop()
			t.Logf("%d calls, %d failed", calls, len(l.failed))
			if err != nil {
				t.Errorf("calls failed: %v", err)
			}
		})
	}
}
