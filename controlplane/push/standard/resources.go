package standard

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	managerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"

	"github.com/prism-gateway/prism/shared/ident"
)

// Name is that of all of a partition's resources, and what follows xds:/// in a gRPC client: prism.p.0123.
func Name(p ident.Partition) string { return "prism." + strings.ReplaceAll(p.String(), "/", ".") }

// known reports whether there is a partition of a name, of so many.
func known(name string, partitions int) bool {
	text, ok := strings.CutPrefix(name, "prism.p.")
	p, err := ident.ParsePartition("p/" + text)
	return ok && err == nil && int(p) < partitions && Name(p) == name
}

// ads says that a resource comes over the stream that named it.
func ads() *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ResourceApiVersion:    corev3.ApiVersion_V3,
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
	}
}

// route sends everything to the partition's cluster. What an owner that goes did not answer, another may: a call that
// came to the end of its connection is made again, up to three times.
func route(name string) *routev3.RouteConfiguration {
	return &routev3.RouteConfiguration{
		Name: name,
		VirtualHosts: []*routev3.VirtualHost{{
			Name: name, Domains: []string{"*"},
			Routes: []*routev3.Route{{
				Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
				Action: &routev3.Route_Route{Route: &routev3.RouteAction{
					ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: name},
					RetryPolicy: &routev3.RetryPolicy{
						RetryOn: "unavailable", NumRetries: wrapperspb.UInt32(3),
						RetryBackOff: &routev3.RetryPolicy_RetryBackOff{
							BaseInterval: durationpb.New(25 * time.Millisecond), MaxInterval: durationpb.New(250 * time.Millisecond),
						},
					},
				}},
			}},
		}},
	}
}

func listener(name string) (*listenerv3.Listener, error) {
	router, err := anypb.New(&routerv3.Router{})
	if err != nil {
		return nil, err
	}
	manager, err := anypb.New(&managerv3.HttpConnectionManager{
		RouteSpecifier: &managerv3.HttpConnectionManager_RouteConfig{RouteConfig: route(name)},
		HttpFilters: []*managerv3.HttpFilter{{
			Name: "envoy.filters.http.router", ConfigType: &managerv3.HttpFilter_TypedConfig{TypedConfig: router},
		}},
	})
	if err != nil {
		return nil, err
	}
	return &listenerv3.Listener{Name: name, ApiListener: &listenerv3.ApiListener{ApiListener: manager}}, nil
}

// cluster speaks HTTP/2, which Envoy must be told. An owner that cannot be connected to is left alone for a second or
// more, so that Envoy, which does not look at connections by itself, turns to the next priority.
func cluster(name string) (*clusterv3.Cluster, error) {
	options, err := anypb.New(&httpv3.HttpProtocolOptions{
		UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
			ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: &corev3.Http2ProtocolOptions{}},
		}},
	})
	if err != nil {
		return nil, err
	}
	return &clusterv3.Cluster{
		Name: name, ConnectTimeout: durationpb.New(2 * time.Second),
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		EdsClusterConfig:     &clusterv3.Cluster_EdsClusterConfig{EdsConfig: ads(), ServiceName: name},
		LbPolicy:             clusterv3.Cluster_ROUND_ROBIN,
		// Prism bounds calls by namespace; the clients' own bounds, of 1,024 calls and 3 repeats at a time, would fail them.
		CircuitBreakers: &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
			MaxRequests: wrapperspb.UInt32(1 << 16), MaxPendingRequests: wrapperspb.UInt32(1 << 16), MaxRetries: wrapperspb.UInt32(1 << 12),
		}}},
		OutlierDetection: &clusterv3.OutlierDetection{
			SplitExternalLocalOriginErrors:     true,
			ConsecutiveLocalOriginFailure:      wrapperspb.UInt32(1),
			EnforcingConsecutive_5Xx:           wrapperspb.UInt32(0),
			EnforcingSuccessRate:               wrapperspb.UInt32(0),
			EnforcingLocalOriginSuccessRate:    wrapperspb.UInt32(0),
			EnforcingConsecutiveGatewayFailure: wrapperspb.UInt32(0),
			Interval:                           durationpb.New(time.Second),
			BaseEjectionTime:                   durationpb.New(time.Second),
			MaxEjectionTime:                    durationpb.New(5 * time.Second),
			MaxEjectionPercent:                 wrapperspb.UInt32(100),
		},
		TypedExtensionProtocolOptions: map[string]*anypb.Any{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
	}, nil
}

// endpoints are the owners of a partition, each with the priority of its rank: calls go to rank 0, which serves what only
// one process can, and to the next when it does not answer. Those that load are not among them, nor those that leave while
// others are there.
func endpoints(name string, a *configv1.Assignment, p ident.Partition) (*endpointv3.ClusterLoadAssignment, error) {
	var staying, all []*configv1.Member
	for _, i := range a.GetPartitions()[p].GetOwners() {
		if int(i) >= len(a.GetMembers()) {
			return nil, fmt.Errorf("%s: the assignment has no member %d", name, i)
		}
		m := a.GetMembers()[i]
		if all = append(all, m); !m.GetDraining() && !m.GetValidator() {
			staying = append(staying, m)
		}
	}
	if len(staying) == 0 {
		staying = all
	}
	load := &endpointv3.ClusterLoadAssignment{ClusterName: name}
	for rank, m := range staying {
		address, err := socket(m.GetAddress())
		if err != nil {
			return nil, fmt.Errorf("%s: the address of %s: %w", name, m.GetId(), err)
		}
		load.Endpoints = append(load.Endpoints, &endpointv3.LocalityLbEndpoints{
			Locality:            &corev3.Locality{Region: m.GetLabels()["region"], Zone: m.GetLabels()["zone"], SubZone: m.GetId()},
			Priority:            uint32(rank),
			LoadBalancingWeight: wrapperspb.UInt32(1),
			LbEndpoints: []*endpointv3.LbEndpoint{{
				LoadBalancingWeight: wrapperspb.UInt32(1),
				HostIdentifier:      &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: address}},
			}},
		})
	}
	return load, nil
}

func socket(address string) (*corev3.Address, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, err
	}
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: host, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(n)},
	}}}, nil
}
