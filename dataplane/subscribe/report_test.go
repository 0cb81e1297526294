package subscribe_test

import (
	"io"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/prism-gateway/prism/dataplane/subscribe"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	"github.com/prism-gateway/prism/shared/ident"
)

type facts struct {
	mu        sync.Mutex
	readiness subscribe.Readiness
	unready   map[ident.Partition][]subscribe.Unready
	traffic   subscribe.Traffic
}

func (f *facts) Readiness() subscribe.Readiness {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.readiness
}

func (f *facts) Unready(p ident.Partition) []subscribe.Unready {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.unready[p]
}

func (f *facts) Traffic(ident.Partition) subscribe.Traffic {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.traffic
}

func (f *facts) count(t subscribe.Traffic) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.traffic = t
}

func (f *facts) set(r subscribe.Readiness, unready map[ident.Partition][]subscribe.Unready) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.readiness, f.unready = r, unready
}

// answered is a replica's answer to a report, with the interval that it wants.
func answered(heartbeat time.Duration) func(controlv1.FleetService_ReportServer) error {
	return func(g controlv1.FleetService_ReportServer) error {
		return g.Send(&controlv1.ReportResponse{Heartbeat: durationpb.New(heartbeat)})
	}
}

func (r *reportStream) next(t *testing.T) *controlv1.ReportRequest {
	t.Helper()
	return receive(t, r.requests, "a report")
}

func TestReports(t *testing.T) {
	one := nsIn(1, 0)
	synctest.Test(t, func(t *testing.T) {
		f := &facts{readiness: subscribe.Readiness{Reasons: []string{"starting"}}}
		p, cp, s := running(t, members{one: "1"}, func(cfg *subscribe.Config, _ *proxy) { cfg.Facts = f })
		r := receive(t, cp.reports, "a report stream")
		synctest.Wait()
		var all *controlv1.ReportRequest
		for len(r.requests) > 0 {
			m := r.next(t)
			if all == nil {
				all = m
			}
			all.Cells = append(all.Cells, m.GetCells()...)
		}
		if all.GetMember().GetId() != "proxy-1" || all.GetMember().GetAddress() != "127.0.0.1:8980" || all.GetBuild() != "v1.2.3" || all.GetReady() || !slices.Equal(all.GetReasons(), []string{"starting"}) {
			t.Fatalf("the first report is %v", all)
		}
		if len(all.Cells) == 0 || all.Cells[len(all.Cells)-1].GetSnapshotVersion() != 1 {
			t.Fatalf("the cells are %v", all.Cells)
		}

		// The replica's interval, in which nothing is told that has not changed.
		r.do <- func(g controlv1.FleetService_ReportServer) error {
			return g.Send(&controlv1.ReportResponse{Heartbeat: durationpb.New(2 * time.Second)})
		}
		synctest.Wait()
		begun := time.Now()
		for range 3 {
			if m := r.next(t); m.GetMember().GetId() != "proxy-1" || len(m.GetCells()) != 0 || m.GetStale() != nil || m.GetEpoch() != 1 {
				t.Fatalf("the heartbeat is %v", m)
			}
		}
		if waited := time.Since(begun); waited != 6*time.Second {
			t.Fatalf("three heartbeats in %v", waited)
		}

		// A change of readiness, at once.
		f.set(subscribe.Readiness{Ready: true, CallsPerSecond: 5, Draining: true}, map[ident.Partition][]subscribe.Unready{1: {{Namespace: "app", Reason: "main is down"}}})
		p.client.Notify()
		begun = time.Now()
		m := r.next(t)
		if time.Since(begun) != 0 || !m.GetReady() || !m.GetMember().GetDraining() || m.GetCallsPerSecond() != 5 || len(m.GetCells()) != 1 || m.GetCells()[0].GetUnready()[0].GetReason() != "main is down" {
			t.Fatalf("the report is %v", m)
		}

		// What Apply refuses, and what is dropped.
		p.reject = func(subscribe.State) []*configv1.Rejection {
			return []*configv1.Rejection{{Resource: one, Reason: "bad"}}
		}
		s.nack(s.send(subscribe.NamespaceType, content("p/0001", members{one: "1"}, members{one: "2"}, backends)))
		if m := r.next(t); len(m.GetCells()) != 1 || m.GetCells()[0].GetRejections()[0].GetReason() != "bad" || ident.Hash(m.GetCells()[0].GetRoot()) != manifestOf("p/0001", members{one: "2"}).Root() {
			t.Fatalf("the report is %v", m)
		}

		// A new stream is told everything.
		r.do <- func(controlv1.FleetService_ReportServer) error { return status.Error(codes.Unavailable, "going away") }
		r = receive(t, cp.reports, "another report stream")
		if m := r.next(t); len(m.GetCells()) != 1 {
			t.Fatalf("the first report is %v", m)
		}
		r.do <- answered(5 * time.Second)
		s.ack(s.send(subscribe.AssignmentType, assignment(2)))
		for {
			if m := r.next(t); len(m.GetDropped()) > 0 {
				if !slices.Equal(m.GetDropped(), []uint32{1}) || m.GetEpoch() != 2 {
					t.Fatalf("the report is %v", m)
				}
				break
			}
		}

		// How old the configuration is.
		s.fail(status.Error(codes.Unavailable, "going away"))
		for {
			if m := r.next(t); m.GetStale().AsDuration() > 0 {
				break
			}
		}
	})
}

func TestLeavesInGoodOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &facts{readiness: subscribe.Readiness{Ready: true}}
		cp := newPeer(t, "")
		p := start(t, map[string]*peer{"a": cp}, func(cfg *subscribe.Config, _ *proxy) { cfg.Facts = f })
		r := receive(t, cp.reports, "a report stream")
		r.next(t)
		synctest.Wait()
		f.set(subscribe.Readiness{Draining: true, Reasons: []string{"draining"}}, nil)
		begun := time.Now()
		p.stop()
		if waited := time.Since(begun); waited != 0 {
			t.Fatalf("stopped after %v", waited)
		}
		var last *controlv1.ReportRequest
		for m := range r.requests {
			last = m
		}
		if !last.GetMember().GetDraining() || r.ended != io.EOF {
			t.Fatalf("left with %v, %v", last, r.ended)
		}
	})
}
