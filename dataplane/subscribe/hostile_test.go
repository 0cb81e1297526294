package subscribe_test

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/prism-gateway/prism/dataplane/subscribe"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	"github.com/prism-gateway/prism/shared/ident"
)

// TestSharedSetsThatComeWhileApplyRuns has a partition go into effect in a shared set that many newer ones have overtaken
// meanwhile, one of them named by the partition's next version and not there yet.
func TestSharedSetsThatComeWhileApplyRuns(t *testing.T) {
	one := nsIn(1, 0)
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		p, _, s := running(t, members{one: "1"}, func(cfg *subscribe.Config, p *proxy) {
			cfg.StateDir, p.proceed = dir, make(chan struct{}, 2)
			p.proceed <- struct{}{} // the assignment
			p.proceed <- struct{}{} // the first version
		})
		sets := make([]members, 12)
		for i := range sets {
			sets[i] = members{"backend/main": fmt.Sprint("type-", i)}
		}
		s.ack(s.send(subscribe.SharedType, content("shared", backends, sets[0], nil)))
		s.send(subscribe.NamespaceType, content("p/0001", members{one: "1"}, members{one: "2"}, sets[0]))
		has(t, p.state(), 1, members{one: "2"}, sets[0]) // Apply runs
		s.send(subscribe.NamespaceType, content("p/0001", members{one: "2"}, members{one: "3"}, sets[11]))
		for i := range sets[1:11] {
			s.ack(s.send(subscribe.SharedType, content("shared", nil, sets[i+1], nil)))
		}
		p.proceed <- struct{}{}
		synctest.Wait()
		if got := p.client.Status().Cells; len(got) != 1 || got[0].SharedRoot != manifestOf("shared", sets[0]).Root() {
			t.Fatalf("in effect: %+v", got)
		}
		// A change of something else takes the partition along as it is.
		s.send(subscribe.AssignmentType, assignment(2, 1))
		has(t, p.state(), 1, members{one: "2"}, sets[0])
		p.proceed <- struct{}{}
		s.send(subscribe.SharedType, content("shared", nil, sets[11], nil))
		has(t, p.state(), 1, members{one: "3"}, sets[11])
		p.proceed <- struct{}{}
		time.Sleep(time.Minute)
		if text := p.client.Status().PersistError; text != "" {
			t.Errorf("not kept: %s", text)
		}
	})
}

// TestNothingGrowsWithoutEnd has a control plane send members of a collection and never say that it is whole.
func TestNothingGrowsWithoutEnd(t *testing.T) {
	one := nsIn(1, 0)
	synctest.Test(t, func(t *testing.T) {
		p, _, s := running(t, members{one: "1"}, nil)
		large := strings.Repeat("x", 1<<20)
		refused := false
		for i := 0; i < 300 && !refused; i++ {
			n := s.send(subscribe.NamespaceType, []*discoveryv3.Resource{object("p/0001", fmt.Sprint("ns/endless-", i), large)})
			r := s.next()
			if r.GetResponseNonce() != n {
				t.Fatalf("got %v", r)
			}
			refused = r.GetErrorDetail() != nil
		}
		if !refused {
			t.Fatal("300 MiB of a change that does not end were taken")
		}
		p.idle("the change is not whole")
		n := s.send(subscribe.NamespaceType, content("p/0001", members{one: "1"}, members{one: "2"}, backends))
		s.next() // it is asked for anew: the change was damaged
		s.next()
		s.nack(n)
		s.ack(s.send(subscribe.NamespaceType, content("p/0001", nil, members{one: "2"}, backends)))
		has(t, p.state(), 1, members{one: "2"}, backends)
	})
}

// TestAnAssignmentWithoutPartitionsIsRefused keeps a proxy from being ready for nothing.
func TestAnAssignmentWithoutPartitionsIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cp := newPeer(t, "")
		p := start(t, map[string]*peer{"a": cp}, nil)
		s := cp.accept(t)
		s.next()
		s.next()
		for name, wrong := range map[string]*configv1.Assignment{
			"none":     {Epoch: 1, Members: []*configv1.Member{{Id: "proxy-1"}}},
			"too many": {Epoch: 1, Partitions: make([]*configv1.PartitionOwners, 1<<17)},
		} {
			for i := range wrong.Partitions {
				wrong.Partitions[i] = &configv1.PartitionOwners{}
			}
			if got := s.nack(s.send(subscribe.AssignmentType, []*discoveryv3.Resource{fleet(wrong)})); len(got) != 1 || got[0].GetResource() != "fleet" {
				t.Errorf("%s: refused %v", name, got)
			}
		}
		p.idle("nothing is assigned")
		s.ack(s.send(subscribe.AssignmentType, assignment(2)))
		if st := p.state(); st.Epoch != 2 {
			t.Errorf("the state is %v", st)
		}
	})
}

// TestStopsThoughNobodyReadsTheReports has a replica that takes a report stream and never reads it.
func TestStopsThoughNobodyReadsTheReports(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cp := newPeer(t, "")
		cp.serveReport = func(s controlv1.FleetService_ReportServer) error {
			<-s.Context().Done()
			return s.Context().Err()
		}
		f := &facts{readiness: subscribe.Readiness{Reasons: []string{strings.Repeat("x", 1<<20)}}}
		p := start(t, map[string]*peer{"a": cp}, func(cfg *subscribe.Config, _ *proxy) { cfg.Facts = f })
		cp.accept(t).handshake([]ident.Partition{1}, backends)
		for range 20 {
			p.client.Notify()
			synctest.Wait()
		}
		begun := time.Now()
		p.stop()
		if took := time.Since(begun); took > 10*time.Second {
			t.Errorf("stopped after %v", took)
		}
	})
}

// TestAReplicaThatAnswersAndFailsIsNotCalledWithoutEnd counts the streams of ten minutes.
func TestAReplicaThatAnswersAndFailsIsNotCalledWithoutEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cp := newPeer(t, "")
		var streams atomic.Int64
		cp.serve = func(s discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
			streams.Add(1)
			if err := s.Send(&response{TypeUrl: subscribe.AssignmentType, Nonce: "1"}); err != nil {
				return err
			}
			return errors.New("no more")
		}
		start(t, map[string]*peer{"a": cp}, nil)
		time.Sleep(10 * time.Minute)
		if n := streams.Load(); n < 10 || n > 200 {
			t.Errorf("%d streams in 10 minutes, want some tens", n)
		}
	})
}

func TestAnAddressThatTakesNoProxiesIsNamedAsSuch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cp := newPeer(t, "")
		cp.serve = func(discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
			return status.Error(codes.Unimplemented, "unknown service")
		}
		p := start(t, map[string]*peer{"a": cp}, nil)
		time.Sleep(time.Second)
		synctest.Wait()
		p.stop()
		if log := p.log.String(); !strings.Contains(log, "want the fleet_listen of a prism-admin") || strings.Contains(log, "does not answer") {
			t.Errorf("the log says %s", log)
		}
	})
}
