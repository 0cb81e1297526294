package nats_test

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/dataplane/driver/conformance"
	"github.com/prism-gateway/prism/dataplane/driver/nats"
	"github.com/prism-gateway/prism/shared/testserver/natsserver"
)

// cluster runs three servers that are one cluster.
func cluster(t *testing.T) []*natsserver.Server {
	t.Helper()
	var routes []string
	var held []net.Listener
	for range 3 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		routes = append(routes, l.Addr().String())
		held = append(held, l)
	}
	for _, l := range held { // at once, so that no two get one port
		l.Close()
	}
	var servers []*natsserver.Server
	for n, own := range routes {
		servers = append(servers, natsserver.Start(t, natsserver.Options{Config: roomy.Config + fmt.Sprintf(
			"\nserver_name: s%d\ncluster { name: c, listen: %q, routes: [\"nats://%s\"] }", n, own, strings.Join(routes, `", "nats://`),
		)}))
	}
	return servers
}

// TestConformanceWithReplicas has a stream on three servers, whose reads go to its leader.
func TestConformanceWithReplicas(t *testing.T) {
	var endpoints []string
	for _, s := range cluster(t) {
		endpoints = append(endpoints, s.Addr())
	}
	config := driver.Config{Name: "items", Endpoints: endpoints, Settings: map[string]string{"replicas": "3"}}
	s := open(t, config)
	for begin := time.Now(); ; { // until the servers have found each other
		_, err := s.Write(t.Context(), "s", put("a", "k", "v"))
		if err == nil {
			break
		}
		if time.Since(begin) > time.Minute {
			t.Fatal(err)
		}
	}
	conformance.Run(t, conformance.Backend{Driver: nats.Driver(), Shared: true, Config: config})
}
