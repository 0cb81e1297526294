package subscribe_test

import (
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/test/bufconn"

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
		r.do <- answered(5 * time.Second)
		since := time.Now()
		f.count(subscribe.Traffic{Calls: 10, Failed: 2, Took: time.Second, Since: since})
		p.client.Notify()
		if m := r.next(t); len(m.GetCells()) != 0 || m.GetLoad() == nil {
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
		for range 3 {
			r.next(t)
			r.do <- answered(2 * time.Second)
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
		r.do <- answered(2 * time.Second)
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
		start(t, map[string]*peer{"one": cp}, func(cfg *subscribe.Config, _ *proxy) {
			cfg.Node.ID, cfg.Node.Validator, cfg.Facts = "validator-1", true, f
		})
		s := cp.accept(t)
		r := receive(t, cp.reports, "a report stream")
		if m := r.next(t); !m.GetMember().GetValidator() {
			t.Fatalf("the first report is %v", m)
		}
		s.handshake([]ident.Partition{0, 1, 2, 3}, backends)
	})
}

// TestSilentReplicasAreLeft has replicas that are there and of no use, each beside a good one.
func TestSilentReplicasAreLeft(t *testing.T) {
	for name, break_ := range map[string]func(*peer){
		"it never answers a report": func(p *peer) {
			p.serveReport = func(s controlv1.FleetService_ReportServer) error {
				for {
					if _, err := s.Recv(); err != nil {
						return err
					}
				}
			}
		},
		"it does not read": func(p *peer) {
			p.serveReport = func(s controlv1.FleetService_ReportServer) error {
				<-s.Context().Done()
				return s.Context().Err()
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				bad, good := newPeer(t, "test"), newPeer(t, "test")
				break_(bad)
				f := &facts{readiness: subscribe.Readiness{Reasons: []string{strings.Repeat("much to read ", 1<<14)}}}
				start(t, map[string]*peer{"bad": bad, "good": good}, func(cfg *subscribe.Config, _ *proxy) { cfg.Facts = f })
				r := receive(t, good.reports, "a report stream at the other replica")
				for range 3 {
					r.next(t)
					r.do <- answered(time.Second)
				}
			})
		})
	}
}

// TestAConnectionThatSaysNothingIsLeft has an address that takes connections and never says a word on them.
func TestAConnectionThatSaysNothingIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mute := bufconn.Listen(1 << 20)
		var held sync.WaitGroup
		held.Go(func() {
			for {
				conn, err := mute.Accept()
				if err != nil {
					return
				}
				held.Go(func() { _, _ = io.Copy(io.Discard, conn) })
			}
		})
		good := newPeer(t, "test")
		f := &facts{}
		p := start(t, map[string]*peer{"mute": {listener: mute}, "good": good}, func(cfg *subscribe.Config, _ *proxy) { cfg.Facts = f })
		good.accept(t)
		receive(t, good.reports, "a report stream at the other replica")
		p.stop()
		_ = mute.Close()
		held.Wait()
	})
}

// TestCallsAreToldWhileChangesComeWithoutEnd has changes that follow each other faster than heartbeats.
func TestCallsAreToldWhileChangesComeWithoutEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &facts{}
		p, cp, _ := running(t, members{nsIn(1, 0): "1"}, func(cfg *subscribe.Config, _ *proxy) { cfg.Facts = f })
		r := receive(t, cp.reports, "a report stream")
		r.do <- answered(time.Second)
		f.count(subscribe.Traffic{Calls: 10, Since: time.Now()})
		for range 30 {
			p.client.Notify()
			time.Sleep(100 * time.Millisecond)
		}
		synctest.Wait()
		for len(r.requests) > 0 {
			for _, c := range r.next(t).GetCells() {
				if c.GetTraffic().GetCalls() == 10 {
					return
				}
			}
		}
		t.Fatal("the calls were not told")
	})
}

// TestPropagationIsTold has changes that come while the proxy is connected, and one that waited for it.
func TestPropagationIsTold(t *testing.T) {
	one, two := nsIn(1, 0), nsIn(1, 1)
	synctest.Test(t, func(t *testing.T) {
		f := &facts{}
		p, cp, s := running(t, members{one: "1"}, func(cfg *subscribe.Config, _ *proxy) { cfg.Facts = f })
		r := receive(t, cp.reports, "a report stream")
		synctest.Wait()
		for len(r.requests) > 0 {
			if m := r.next(t); len(m.GetPropagation()) > 0 {
				t.Fatalf("what is old counts as a change: %v", m.GetPropagation())
			}
		}
		time.Sleep(time.Second)
		committed := time.Now()
		time.Sleep(40 * time.Millisecond)
		to := members{one: "1", two: "1"}
		changed := append(content("p/0001", members{one: "1"}, to, backends)[:1], sentinelAt("p/0001", to, backends, committed))
		s.ack(s.send(subscribe.NamespaceType, changed))
		m := r.next(t)
		if len(m.GetPropagation()) != 1 || m.GetPropagation()[0].GetSnapshotVersion() != 2 || m.GetPropagation()[0].GetTook().AsDuration() != 40*time.Millisecond {
			t.Fatalf("the report tells of %v", m.GetPropagation())
		}
		families, err := p.metrics.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, family := range families {
			if family.GetName() == "prism_subscribe_propagation_seconds" {
				if h := family.GetMetric()[0].GetHistogram(); h.GetSampleCount() != 1 || len(h.GetBucket()) != 14 || h.GetBucket()[13].GetUpperBound() != 8.192 {
					t.Errorf("the metric is %v", h)
				}
				return
			}
		}
		t.Error("there is no metric")
	})
}
