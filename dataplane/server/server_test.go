package server_test

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/prism-gateway/prism/dataplane/driver/builtin"
	"github.com/prism-gateway/prism/dataplane/server"
	bootstrapv1 "github.com/prism-gateway/prism/protos/prism/bootstrap/v1"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/fault/faultgrpc"
)

func settings(t *testing.T) *bootstrapv1.ProxyConfig {
	return &bootstrapv1.ProxyConfig{
		Id: "proxy-1", Listen: "127.0.0.1:0", HttpListen: "127.0.0.1:0", AdminEndpoints: []string{"127.0.0.1:1"},
		StateDir: filepath.Join(t.TempDir(), "state"), DrainTimeout: durationpb.New(5 * time.Second), ReleaseDelay: durationpb.New(0),
	}
}

func newServer(t *testing.T, c *bootstrapv1.ProxyConfig) (*server.Server, error) {
	t.Helper()
	return server.New(server.Config{Settings: c, Drivers: builtin.Drivers(), Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
}

// run starts a proxy; stop ends it and returns what Run did.
func run(t *testing.T, c *bootstrapv1.ProxyConfig) (s *server.Server, stop func() error) {
	t.Helper()
	s, err := newServer(t, c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	select {
	case <-s.Started():
	case err := <-done:
		t.Fatal(err)
	}
	return s, func() error { cancel(); return <-done }
}

func get(t *testing.T, s *server.Server, path string) (int, string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + s.HTTPAddress() + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestAProxyWithoutAnyConfigurationSaysSo(t *testing.T) {
	defer goleak.VerifyNone(t)
	s, stop := run(t, settings(t))
	conn, err := grpc.NewClient("passthrough:///"+s.Address(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	_, err = datav1.NewKeyValueClient(conn).Get(t.Context(), &datav1.GetRequest{Namespace: "orders", Id: []byte("x")})
	if f := faultgrpc.FromStatus(err); f == nil || f.Code != fault.Unavailable || f.Reason != fault.Starting || f.RetryAfter == 0 || f.Metadata["request_id"] == "" {
		t.Errorf("a call answers %v, want UNAVAILABLE, STARTING, with a wait and a request id", err)
	}
	health, err := healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{})
	if err != nil || health.GetStatus() != healthv1.HealthCheckResponse_NOT_SERVING {
		t.Errorf("health %v, %v; want not serving", health, err)
	}
	if code, body := get(t, s, "/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(body, "assignment") || strings.Contains(body, "insecure_listen") {
		t.Errorf("/readyz %d %s", code, body)
	} else if !strings.Contains(body, `"following":{"snapshot":0,"revision":0}`) {
		t.Errorf("/readyz does not tell that nobody was ever followed: %s", body)
	}
	if code, _ := get(t, s, "/debug/pprof/"); code != http.StatusNotFound {
		t.Errorf("/debug/pprof/ %d", code)
	}
	if code, _ := get(t, s, "/healthz"); code != http.StatusOK {
		t.Errorf("/healthz %d", code)
	}
	code, body := get(t, s, "/config_dump")
	var dump struct{ Proxy string }
	if err := json.Unmarshal([]byte(body), &dump); code != http.StatusOK || err != nil || dump.Proxy != "proxy-1" {
		t.Errorf("/config_dump %d %s", code, body)
	}
	if _, body := get(t, s, "/metrics"); !strings.Contains(body, `prism_proxy_calls_total{code="Unavailable",method="KeyValue/Get"} 1`) ||
		!strings.Contains(body, "prism_proxy_table_swaps_total 0") {
		t.Errorf("/metrics lacks what was called:\n%s", body)
	}
	_ = conn.Close()
	if err := stop(); err != nil {
		t.Errorf("stopped with %v", err)
	}
}

func TestAValidatorTakesNoCalls(t *testing.T) {
	defer goleak.VerifyNone(t)
	c := settings(t)
	c.Validator, c.Pprof = true, true
	s, stop := run(t, c)
	if code, _ := get(t, s, "/debug/pprof/"); code != http.StatusOK {
		t.Errorf("/debug/pprof/ %d", code)
	}
	conn, err := grpc.NewClient("passthrough:///"+s.Address(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	kv := datav1.NewKeyValueClient(conn)
	_, unary := kv.Get(t.Context(), &datav1.GetRequest{Namespace: "orders", Id: []byte("x")})
	stream, err := kv.Watch(t.Context(), &datav1.WatchRequest{Namespace: "orders"})
	if err != nil {
		t.Fatal(err)
	}
	_, streamed := stream.Recv()
	for kind, err := range map[string]error{"call": unary, "stream": streamed} {
		if f := faultgrpc.FromStatus(err); f == nil || f.Code != fault.Unavailable || f.Reason != fault.NotOwner || f.Outcome != fault.NotApplied || !strings.Contains(f.Text, "validator") {
			t.Errorf("a %s answers %v, want UNAVAILABLE, NOT_OWNER, that it is a validator", kind, err)
		}
	}
	if code, body := get(t, s, "/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(body, "takes no calls") {
		t.Errorf("/readyz %d %s", code, body)
	}
	_ = conn.Close()
	if err := stop(); err != nil {
		t.Errorf("stopped with %v", err)
	}
}

func TestOtherMachinesAreLetInOnlyWhenThatIsSaid(t *testing.T) {
	open := settings(t)
	open.Listen = "0.0.0.0:0"
	if _, err := newServer(t, open); err == nil || !strings.Contains(err.Error(), "insecure_listen") {
		t.Errorf("error %v, want one that names the switch", err)
	}
	open.InsecureListen = true
	s, stop := run(t, open)
	if _, body := get(t, s, "/readyz"); !strings.Contains(body, "insecure_listen") {
		t.Errorf("/readyz does not name the switch: %s", body)
	}
	if err := stop(); err != nil {
		t.Errorf("stopped with %v", err)
	}
}

func TestAnAddressInUseIsAnError(t *testing.T) {
	s, stop := run(t, settings(t))
	second := settings(t)
	second.Listen = s.Address()
	other, err := newServer(t, second)
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "data services") {
		t.Errorf("error %v, want one that names the data services", err)
	}
	if err := stop(); err != nil {
		t.Errorf("stopped with %v", err)
	}
}

// TestAStuckCallDoesNotStopTheStop has a client that opens a stream and never sends: the drain waits for it, but not
// longer than it may.
func TestAStuckCallDoesNotStopTheStop(t *testing.T) {
	c := settings(t)
	c.DrainTimeout = durationpb.New(50 * time.Millisecond)
	s, stop := run(t, c)
	conn, err := grpc.NewClient("passthrough:///"+s.Address(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	health, err := healthv1.NewHealthClient(conn).Watch(t.Context(), &healthv1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := health.Recv(); err != nil {
		t.Fatal(err)
	}
	stuck, err := datav1.NewKeyValueClient(conn).WriteValue(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stop(); err == nil || !strings.Contains(err.Error(), "cut off") {
		t.Errorf("stopped with %v, want that calls were cut off", err)
	}
	if _, err := stuck.CloseAndRecv(); status.Code(err) == codes.OK {
		t.Error("the stuck call succeeded")
	}
}
