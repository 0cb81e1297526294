package subscribe_test

import (
	"log/slog"
	"os"
	"runtime"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/prism-gateway/prism/dataplane/subscribe"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	"github.com/prism-gateway/prism/shared/ident"
)

// TestReconnectsLeaveNothingBehind has a replica end each stream, of configuration and of reports, as soon as it has
// answered on it: many reconnects later, half of each kind, there are as many goroutines and as much memory.
// PRISM_RECONNECTS says how many; the promise is made for 10,000.
func TestReconnectsLeaveNothingBehind(t *testing.T) {
	const warm = 200 // of one kind
	more := 1_000
	if text := os.Getenv("PRISM_RECONNECTS"); text != "" {
		var err error
		if more, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		going := status.Error(codes.Unavailable, "going away")
		cp := newPeer(t, "installation-1")
		cp.serve = func(s discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
			if _, err := s.Recv(); err != nil {
				return err
			}
			if err := s.Send(&response{TypeUrl: subscribe.AssignmentType, Nonce: "1", Resources: assignment(1, 1)}); err != nil {
				return err
			}
			for { // until the answer is acknowledged, and so in effect
				r, err := s.Recv()
				if err != nil {
					return err
				}
				if r.GetResponseNonce() != "" {
					return going
				}
			}
		}
		cp.serveReport = func(s controlv1.FleetService_ReportServer) error {
			if _, err := s.Recv(); err != nil {
				return err
			}
			return going
		}
		p := start(t, map[string]*peer{"a": cp}, func(cfg *subscribe.Config, p *proxy) {
			cfg.Facts, cfg.Logger = &facts{}, slog.New(slog.DiscardHandler)
		})
		go func() { // ends with the test
			for range p.states {
			}
		}()
		t.Cleanup(func() { close(p.states) })
		after := func(reconnects float64) (goroutines int, heap uint64) {
			for p.counter("reconnects_total") < reconnects {
				time.Sleep(time.Hour) // of the bubble's clock
			}
			for p.client.Status().Endpoint != "" || p.client.Staleness() < 100*time.Millisecond { // between two streams
				time.Sleep(time.Millisecond)
			}
			synctest.Wait()
			runtime.GC()
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return runtime.NumGoroutine(), m.HeapAlloc
		}
		goroutines, heap := after(warm)
		goroutinesThen, heapThen := after(float64(warm + more/2))
		t.Logf("%d goroutines and %d bytes, %d and %d after %d reconnects more", goroutines, heap, goroutinesThen, heapThen, more)
		if goroutinesThen > goroutines+10 { // a stream may be just beginning
			t.Errorf("%d goroutines, %d before", goroutinesThen, goroutines)
		}
		if heapThen > heap+4<<20 { // a connection that is open just now has 1 MiB each way
			t.Errorf("%d bytes, %d before", heapThen, heap)
		}
		if n := len(p.client.Status().Missing); n != 1 || p.client.Status().Missing[0] != ident.Partition(1) {
			t.Errorf("the status is %+v", p.client.Status())
		}
	})
}
