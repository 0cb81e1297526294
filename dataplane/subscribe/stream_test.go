package subscribe_test

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/prism-gateway/prism/dataplane/subscribe"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	"github.com/prism-gateway/prism/shared/ident"
)

func TestAssignmentMoves(t *testing.T) {
	one := nsIn(1, 0)
	synctest.Test(t, func(t *testing.T) {
		p, _, s := running(t, members{one: "1"}, nil)

		// Away: served for the release delay, with what still arrives, then let go.
		s.ack(s.send(subscribe.AssignmentType, assignment(2)))
		p.state()
		synctest.Wait()
		if !p.client.Status().Cells[0].Leaving {
			t.Fatal("the partition is not said to leave")
		}
		s.ack(s.send(subscribe.NamespaceType, content("p/0001", members{one: "1"}, members{one: "2"}, backends)))
		has(t, p.state(), 1, members{one: "2"}, backends)
		moved := time.Now()
		if r := s.next(); !slices.Equal(r.GetResourceNamesUnsubscribe(), []string{"p/0001"}) {
			t.Fatalf("got %v", r)
		}
		if waited := time.Since(moved); waited != 30*time.Second {
			t.Fatalf("let go after %v", waited)
		}
		if st := p.state(); len(st.Partitions) != 0 || !slices.Equal(st.Changed, []ident.Partition{1}) {
			t.Fatalf("the state is %v", st)
		}

		// Back: loaded anew. Away and back within the delay: kept.
		n := s.send(subscribe.AssignmentType, assignment(3, 1))
		if r := s.next(); !slices.Equal(r.GetResourceNamesSubscribe(), []string{"p/0001"}) {
			t.Fatalf("got %v", r)
		}
		s.ack(n)
		p.state()
		s.ack(s.send(subscribe.NamespaceType, content("p/0001", nil, members{one: "2"}, backends)))
		has(t, p.state(), 1, members{one: "2"}, backends)
		s.ack(s.send(subscribe.AssignmentType, assignment(4)))
		time.Sleep(20 * time.Second)
		s.ack(s.send(subscribe.AssignmentType, assignment(5, 1)))
		time.Sleep(time.Minute)
		s.none("the partition came back in time")

		// An assignment in which nobody owns anything takes nothing away, and one with other partitions is refused.
		none := &configv1.Assignment{Epoch: 6, Partitions: make([]*configv1.PartitionOwners, partitions)}
		for i := range none.Partitions {
			none.Partitions[i] = &configv1.PartitionOwners{}
		}
		s.ack(s.send(subscribe.AssignmentType, []*discoveryv3.Resource{fleet(none)}))
		for _, wrong := range []*configv1.Assignment{
			{Epoch: 7},
			{Epoch: 7, Partitions: append(none.Partitions, &configv1.PartitionOwners{})},
			{Epoch: 7, Partitions: append(none.Partitions[:3:3], &configv1.PartitionOwners{Owners: []uint32{0}})},
		} {
			if got := s.nack(s.send(subscribe.AssignmentType, []*discoveryv3.Resource{fleet(wrong)})); got[0].GetResource() != "fleet" {
				t.Fatalf("refused %v", got)
			}
		}
		time.Sleep(time.Hour)
		if got := p.client.Status(); len(got.Cells) != 1 || got.Epoch != 6 {
			t.Fatalf("the status is %+v", got)
		}
	})
}

func TestEndpointThatIsBehindIsLeftForAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newPeer(t, ""), newPeer(t, "")
		start(t, map[string]*peer{"a": a, "b": b}, nil)
		behind, err := status.New(codes.Unavailable, "behind").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(40 * time.Second)})
		if err != nil {
			t.Fatal(err)
		}
		var first, other *peer
		var s *adsStream
		select {
		case s = <-a.streams:
			first, other = a, b
		case s = <-b.streams:
			first, other = b, a
		}
		s.t = t
		s.next()
		begun := time.Now()
		s.fail(behind.Err())
		other.accept(t).next()
		if waited := time.Since(begun); waited != 40*time.Second {
			t.Fatalf("came back after %v", waited)
		}
		if len(first.streams) != 0 {
			t.Fatal("the endpoint that is behind was asked again")
		}
	})
}

func TestSilenceIsAskedAgainThenLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cp := newPeer(t, "")
		p := start(t, map[string]*peer{"a": cp}, nil)
		s := cp.accept(t)
		begun := time.Now()
		s.next()
		s.next()
		var again []string
		for len(again) < 2 {
			if r := s.next(); len(r.GetResourceNamesSubscribe()) > 0 {
				if r.GetNode() != nil {
					t.Fatal("the node is told twice")
				}
				again = append(again, r.GetResourceNamesSubscribe()...)
			}
		}
		if waited := time.Since(begun); waited != 15*time.Second {
			t.Fatalf("asked again after %v", waited)
		}
		s = cp.accept(t)
		if p.counter("timeouts_total") < 2 {
			t.Fatal("the silence was not counted")
		}
		s.handshake([]ident.Partition{1}, backends)
		p.state()
		time.Sleep(16 * time.Second)
		if r := s.next(); !slices.Equal(r.GetResourceNamesUnsubscribe(), []string{"p/0001"}) {
			t.Fatalf("got %v", r)
		}
		if r := s.next(); !slices.Equal(r.GetResourceNamesSubscribe(), []string{"p/0001"}) {
			t.Fatalf("got %v", r)
		}
	})
}

func TestStaticStability(t *testing.T) {
	one := nsIn(1, 0)
	synctest.Test(t, func(t *testing.T) {
		p, cp, s := running(t, members{one: "1"}, nil)
		if p.client.Staleness() != 0 || p.counter("connected") != 1 {
			t.Fatal("not connected")
		}
		connected := p.client.Status()
		if connected.ConnectedSince.IsZero() || connected.Heard.Before(connected.ConnectedSince) || !connected.StaleSince.IsZero() {
			t.Errorf("while connected %+v", connected)
		}
		s.fail(status.Error(codes.Unavailable, "going away"))
		synctest.Wait()
		cp.listener.Close()
		gone := time.Now()
		for len(cp.streams) > 0 {
			cp.accept(t).fail(status.Error(codes.Unavailable, "gone"))
		}
		time.Sleep(3 * time.Hour)
		got := p.client.Status()
		if len(got.Cells) != 1 || got.Endpoint != "" || got.StaleSince.Before(gone.Add(-time.Minute)) || p.client.Staleness() < 2*time.Hour || p.counter("connected") != 0 {
			t.Fatalf("after three hours: %+v", got)
		}
		if !got.ConnectedSince.IsZero() || got.Heard != connected.Heard {
			t.Errorf("after three hours connected since %v, heard of at %v, which was at %v", got.ConnectedSince, got.Heard, connected.Heard)
		}
		p.idle("nobody said anything")
	})
}

// TestAnotherInstallationIsRefused has the control plane of another installation answer where that of the state did.
func TestAnotherInstallationIsRefused(t *testing.T) {
	one := nsIn(1, 0)
	refused := func(t *testing.T, p *proxy, told <-chan string, dir string) {
		t.Helper()
		text := receive(t, told, "what is told of it")
		for _, want := range []string{"passthrough:///a is installation installation-2", "serves installation-1", "directory " + dir} {
			if !strings.Contains(text, want) {
				t.Errorf("%q does not say %q", text, want)
			}
		}
		time.Sleep(10 * time.Minute)
		p.idle("it is not our control plane")
		if got := p.client.Status(); got.Installation != "installation-1" || got.Epoch != 1 || got.Endpoint != "" || len(got.Cells) != 1 {
			t.Errorf("the status is %+v", got)
		}
		if p.counter("foreign_endpoints") != 1 || len(told) != 0 {
			t.Errorf("counted %v, told %d times more", p.counter("foreign_endpoints"), len(told))
		}
	}
	// answering has a control plane answer every stream, as one does that knows nothing of other installations.
	answering := func(cp *peer, id string) {
		cp.become(id, func(s discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
			if err := s.Send(&response{TypeUrl: subscribe.AssignmentType, Nonce: "1", Resources: assignment(9)}); err != nil {
				return err
			}
			<-s.Context().Done()
			return s.Context().Err()
		})
	}
	refusing := func(cp *peer, id string) {
		cp.become(id, func(discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
			return status.Error(codes.Unavailable, "this replica is behind what the proxy has seen")
		})
	}
	listen := func(told chan<- string, dir string) func(*subscribe.Config, *proxy) {
		return func(cfg *subscribe.Config, _ *proxy) {
			cfg.StateDir, cfg.Foreign = dir, func(text string) { told <- text }
		}
	}
	t.Run("while the proxy runs, until its own is back", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dir, told := t.TempDir(), make(chan string, 100)
			p, cp, s := running(t, members{one: "1"}, listen(told, dir))
			answering(cp, "installation-2")
			s.fail(status.Error(codes.Unavailable, "going away"))
			refused(t, p, told, dir)
			if n := strings.Count(p.log.String(), "another installation is refused"); n != 1 {
				t.Errorf("logged %d times", n)
			}
			answering(cp, "installation-1")
			if text := receive(t, told, "that it is over"); text != "" || p.counter("foreign_endpoints") != 0 {
				t.Errorf("told %q", text)
			}
		})
	})
	t.Run("at the start, when the state is on disk", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dir, told := t.TempDir(), make(chan string, 100)
			p, cp, _ := running(t, members{one: "1"}, listen(told, dir))
			p.stop()
			answering(cp, "installation-2")
			p = start(t, map[string]*peer{"a": cp}, listen(told, dir))
			has(t, p.state(), 1, members{one: "1"}, backends)
			refused(t, p, told, dir)
		})
	})
	t.Run("also when it answers with a refusal", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dir, told := t.TempDir(), make(chan string, 100)
			p, cp, s := running(t, members{one: "1"}, listen(told, dir))
			refusing(cp, "installation-2")
			s.fail(status.Error(codes.Unavailable, "going away"))
			refused(t, p, told, dir)
		})
	})
	t.Run("but a refusal joins nobody", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			cp := newPeer(t, "")
			refusing(cp, "installation-2")
			p := start(t, map[string]*peer{"a": cp}, nil)
			time.Sleep(time.Minute)
			answering(cp, "installation-1")
			p.state()
			if synctest.Wait(); p.client.Status().Installation != "installation-1" {
				t.Errorf("the status is %+v", p.client.Status())
			}
		})
	})
	t.Run("and another endpoint is tried", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dir, told := t.TempDir(), make(chan string, 100)
			p, ours, _ := running(t, members{one: "1"}, listen(told, dir))
			p.stop()
			theirs := newPeer(t, "")
			answering(theirs, "installation-2")
			p = start(t, map[string]*peer{"a": ours, "b": theirs}, listen(told, dir))
			s := ours.accept(t)
			if got := s.next().GetNode().GetMetadata().GetFields(); got["prism.store_revision"].GetStringValue() != "7" || got["prism.installation"].GetStringValue() != "installation-1" {
				t.Fatalf("the metadata is %v", got)
			}
			s.send(subscribe.AssignmentType, assignment(2, 1))
			synctest.Wait()
			if got := p.client.Status(); got.Endpoint != "passthrough:///a" || got.Epoch != 2 {
				t.Errorf("the status is %+v", got)
			}
		})
	})
	t.Run("but joined when nothing is here", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dir, told := t.TempDir(), make(chan string, 100)
			p, cp, _ := running(t, members{one: "1"}, listen(told, dir))
			p.stop()
			cp.installation = "installation-2"
			p = start(t, map[string]*peer{"a": cp}, listen(told, t.TempDir()))
			cp.accept(t).handshake([]ident.Partition{1}, backends)
			if synctest.Wait(); p.client.Status().Installation != "installation-2" || len(told) != 0 {
				t.Errorf("the status is %+v", p.client.Status())
			}
		})
	})
}

// TestAReportNamesTheInstallation: so that the fleet of another can refuse it.
func TestAReportNamesTheInstallation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		p, cp, _ := running(t, members{nsIn(1, 0): "1"}, func(cfg *subscribe.Config, _ *proxy) { cfg.StateDir = dir })
		p.stop()
		named := make(chan []string, 100)
		cp.serveReport = func(s controlv1.FleetService_ReportServer) error {
			named <- metadata.ValueFromIncomingContext(s.Context(), "prism-installation")
			<-s.Context().Done()
			return s.Context().Err()
		}
		start(t, map[string]*peer{"a": cp}, func(cfg *subscribe.Config, _ *proxy) { cfg.StateDir, cfg.Facts = dir, &facts{} })
		if got := receive(t, named, "a report"); !slices.Equal(got, []string{"installation-1"}) {
			t.Fatalf("the report names %q", got)
		}
	})
}

// A partition's shared set is named only when it is another than the one that the stream was told of.
func TestResumesWithTheSharedSetOfEachPartition(t *testing.T) {
	one := nsIn(1, 0)
	synctest.Test(t, func(t *testing.T) {
		_, cp, s := running(t, members{one: "1"}, nil)
		root, older := manifestOf("p/0001", members{one: "1"}).Root().String(), manifestOf("shared", backends).Root().String()
		resumed := func(claim, want string) *adsStream {
			t.Helper()
			s.fail(status.Error(codes.Unavailable, "going away"))
			next := cp.accept(t)
			next.next() // of the assignment
			if r := next.next(); r.GetInitialResourceVersions()["shared"] != claim {
				t.Fatalf("the shared set %v, want %s", r, claim)
			}
			if r := next.next(); r.GetInitialResourceVersions()["p/0001"] != want {
				t.Fatalf("resumes with %v, want %s", r, want)
			}
			return next
		}
		s = resumed(older, root)
		s.ack(s.send(subscribe.SharedType, content("shared", backends, backends2, nil)))
		resumed(manifestOf("shared", backends2).Root().String(), root+"/"+older)
	})
}
