package subscribe_test

import (
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/prism-gateway/prism/dataplane/subscribe"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	"github.com/prism-gateway/prism/shared/ident"
)

func TestCallsAreToldWithHeartbeatsOnly(t *testing.T) {
	one := nsIn(1, 0)
	synctest.Test(t, func(t *testing.T) {
		f := &facts{}
		p, cp, _ := running(t, members{one: "1"}, func(cfg *subscribe.Config, _ *proxy) { cfg.Facts = f })
		r := receive(t, cp.reports, "a report stream")
		synctest.Wait()
		for len(r.requests) > 0 {
			for _, c := range r.next(t).GetCells() {
				if c.GetTraffic() != nil {
					t.Fatalf("without calls the report tells of %v", c.GetTraffic())
				}
			}
		}
		since := time.Now()
		f.count(subscribe.Traffic{Calls: 10, Failed: 2, Took: time.Second, Since: since})
		p.client.Notify()
		if m := r.next(t); len(m.GetCells()) != 0 || m.GetLoad() != nil {
			t.Fatalf("calls alone made the report %v", m)
		}
		m := r.next(t)
		if len(m.GetCells()) != 1 || m.GetLoad() == nil {
			t.Fatalf("the heartbeat is %v", m)
		}
		got := m.GetCells()[0].GetTraffic()
		if got.GetCalls() != 10 || got.GetFailed() != 2 || got.GetTook().AsDuration() != time.Second || !got.GetSince().AsTime().Equal(since) {
			t.Fatalf("the heartbeat tells of %v", got)
		}
		if m := r.next(t); len(m.GetCells()) != 0 {
			t.Fatalf("the same again is told: %v", m)
		}
	})
}

func TestReplicaThatStopsAnsweringIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &facts{}
		_, cp, _ := running(t, members{nsIn(1, 0): "1"}, func(cfg *subscribe.Config, _ *proxy) { cfg.Facts = f })
		r := receive(t, cp.reports, "a report stream")
		answer := func(g controlv1.FleetService_ReportServer) error {
			return g.Send(&controlv1.ReportResponse{Heartbeat: durationpb.New(2 * time.Second)})
		}
		for range 3 {
			r.next(t)
			r.do <- answer
		}
		again := receive(t, cp.reports, "another report stream")
		if m := again.next(t); m.GetMember().GetId() != "proxy-1" {
			t.Fatalf("the first report of the new stream is %v", m)
		}
	})
}

// A former build of the control plane answers the first report only.
func TestReplicaThatAnswersOnceIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &facts{}
		_, cp, _ := running(t, members{nsIn(1, 0): "1"}, func(cfg *subscribe.Config, _ *proxy) { cfg.Facts = f })
		r := receive(t, cp.reports, "a report stream")
		r.next(t)
		r.do <- func(g controlv1.FleetService_ReportServer) error {
			return g.Send(&controlv1.ReportResponse{Heartbeat: durationpb.New(2 * time.Second)})
		}
		for range 10 {
			r.next(t)
		}
		if len(cp.reports) != 0 {
			t.Fatal("the proxy has left the replica")
		}
	})
}

func TestValidatorHasEveryPartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &facts{}
		cp := newPeer(t, "test")
		start(t, map[string]*peer{"one": cp}, func(cfg *subscribe.Config, _ *proxy) { cfg.Node.ID, cfg.Node.Validator, cfg.Facts = "validator-1", true, f })
		s := cp.accept(t)
		r := receive(t, cp.reports, "a report stream")
		if m := r.next(t); !m.GetMember().GetValidator() {
			t.Fatalf("the first report is %v", m)
		}
		s.handshake([]ident.Partition{0, 1, 2, 3}, backends)
	})
}
