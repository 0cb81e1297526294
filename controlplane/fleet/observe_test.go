package fleet_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"

	"github.com/prism-gateway/prism/controlplane/fleet"
	"github.com/prism-gateway/prism/shared/ident"
)

// eventually waits until something holds of what is observed.
func eventually(t *testing.T, o *fleet.Observation, what string, holds func() bool) {
	t.Helper()
	deadline := time.After(patience)
	for !holds() {
		select {
		case <-o.Changed():
		case <-deadline:
			t.Fatalf("%s: never", what)
		}
	}
}

// long is for tests in which nobody is to be taken for gone while the machine is busy.
func long(c *fleet.Config) { c.Lease = time.Hour }

func TestObservation(t *testing.T) {
	server := etcd(t)
	replicas := []*replica{start(t, server, "replica-1"), start(t, server, "replica-2"), start(t, server, "replica-3")}
	asked := replicas[0]
	a, b := join(t, replicas[1], "a"), join(t, replicas[2], "b")
	o := asked.fleet.Observe(1, 2)
	defer o.Close()
	a.send(&controlv1.CellReport{Partition: 1, Root: ident.HashOf([]byte("x")).Bytes(), SnapshotVersion: 5})
	b.send(&controlv1.CellReport{Partition: 1, SnapshotVersion: 6}, &controlv1.CellReport{Partition: 2, SnapshotVersion: 6}, &controlv1.CellReport{Partition: 3, SnapshotVersion: 6})
	eventually(t, o, "what two other replicas know", func() bool {
		cells := o.Cells(1)
		return o.Complete() && cells["a"].GetSnapshotVersion() == 5 && cells["b"].GetSnapshotVersion() == 6 && o.Cells(2)["b"] != nil
	})
	if moved := o.Moved(); !slices.Equal(moved, []ident.Partition{1, 2}) {
		t.Errorf("%v have moved", moved)
	}
	started := timestamppb.Now()
	a.send(&controlv1.CellReport{
		Partition: 1, Root: ident.HashOf([]byte("y")).Bytes(), SnapshotVersion: 7, Drifted: []string{"ns/orders"},
		Traffic: &controlv1.Traffic{Calls: 10, Failed: 1, Took: durationpb.New(time.Second), Since: started},
	})
	eventually(t, o, "a change with counters and drift", func() bool {
		c := o.Cells(1)["a"]
		return c.GetSnapshotVersion() == 7 && c.GetTraffic().GetCalls() == 10 && len(c.GetDrifted()) == 1
	})
	eventually(t, o, "that it has moved", func() bool { return slices.Contains(o.Moved(), 1) })
	// Counters that go on make no signal, and are known all the same.
	deadline := time.After(patience)
	for o.Cells(1)["a"].GetTraffic().GetCalls() != 20 {
		a.send(&controlv1.CellReport{
			Partition: 1, Root: ident.HashOf([]byte("y")).Bytes(), SnapshotVersion: 7, Drifted: []string{"ns/orders"},
			Traffic: &controlv1.Traffic{Calls: 20, Since: started},
		})
		select {
		case <-time.After(10 * time.Millisecond):
		case <-deadline:
			t.Fatal("counters that went on are not known")
		}
	}
	if c := o.Cells(1)["a"]; len(c.GetDrifted()) != 1 || !bytes.Equal(c.GetServingRoot(), ident.HashOf([]byte("y")).Bytes()) {
		t.Errorf("with newer counters the cell is %v", c)
	}
	replicas[1].stop()
	eventually(t, o, "what a replica knew that is gone", func() bool { return o.Cells(1)["a"] == nil && o.Cells(1)["b"] != nil })
}

func TestObservationsComeAndGo(t *testing.T) {
	server := etcd(t)
	asked, other := start(t, server, "replica-1", long), start(t, server, "replica-2", long)
	random := rand.New(rand.NewPCG(1, 2))
	proxies := []*proxy{join(t, other, "a"), join(t, other, "b"), join(t, asked, "c")}
	serving := map[string]map[ident.Partition]uint64{"a": {}, "b": {}, "c": {}}
	var open []*fleet.Observation
	partition := func() ident.Partition { return ident.Partition(random.IntN(partitions)) }
	for version := range uint64(300) {
		switch random.IntN(4) {
		case 0:
			open = append(open, asked.fleet.Observe(partition(), partition()))
		case 1:
			if len(open) > 0 {
				open[0].Close()
				open = open[1:]
			}
		default:
			p, at := proxies[random.IntN(len(proxies))], partition()
			if random.IntN(4) == 0 {
				p.drop(at)
				delete(serving[p.member.GetId()], at)
			} else {
				p.send(&controlv1.CellReport{Partition: uint32(at), SnapshotVersion: version + 1})
				serving[p.member.GetId()][at] = version + 1
			}
		}
	}
	all := make([]ident.Partition, partitions)
	for i := range all {
		all[i] = ident.Partition(i)
	}
	o := asked.fleet.Observe(all...)
	defer o.Close()
	eventually(t, o, "what proxies serve", func() bool {
		for _, p := range all {
			cells := o.Cells(p)
			for id, want := range serving {
				if got := cells[id].GetSnapshotVersion(); got != want[p] {
					return false
				}
			}
		}
		return true
	})
	for _, o := range open {
		o.Close()
	}
	if n := other.followed.Load(); n != 1 {
		t.Errorf("the other replica was asked on %d streams", n)
	}
}

// drop reports that the proxy no longer has a partition.
func (p *proxy) drop(at ident.Partition) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stream.Send(&controlv1.ReportRequest{Member: p.member, Dropped: []uint32{uint32(at)}}) // fails when the stream is gone
}

func TestAThousandWaitAtOnce(t *testing.T) {
	server := etcd(t)
	asked, other := start(t, server, "replica-1", long), start(t, server, "replica-2", long)
	tree := commit(t, asked, "orders")
	a, b := join(t, asked, "a"), join(t, other, "b")
	a.serve(tree)
	b.serve(tree)
	o := asked.fleet.Observe(0)
	eventually(t, o, "what the other replica knows", func() bool { return o.Cells(0)["b"] != nil })
	o.Close()
	asked.until(t, "both own everything", settled("a", "b"))
	tree = commit(t, asked, "orders")
	var waiting errgroup.Group
	begun := make(chan struct{}, 1000)
	for range 1000 {
		waiting.Go(func() error {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			first := true
			return asked.fleet.WatchStatus(ctx, "orders", func(s *configv1.NamespaceStatus) bool {
				if first {
					begun <- struct{}{}
				}
				first = false
				return s.GetLive()
			})
		})
	}
	for range 1000 {
		wait(t, begun, "all wait")
	}
	a.serve(tree)
	b.serve(tree)
	if err := waiting.Wait(); err != nil {
		t.Error(err)
	}
	if n := other.followed.Load(); n != 1 {
		t.Errorf("the other replica was asked on %d streams", n)
	}
}

func TestEveryReportIsAnswered(t *testing.T) {
	r := start(t, etcd(t), "replica-1")
	stream, err := controlv1.NewFleetServiceClient(r.conn).Report(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := stream.Send(&controlv1.ReportRequest{Member: &configv1.Member{Id: "a"}}); err != nil {
			t.Fatal(err)
		}
		answer, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if answer.GetHeartbeat().AsDuration() <= 0 || answer.GetLease().AsDuration() != time.Second {
			t.Errorf("answer %v", answer)
		}
	}
}

func TestReportsAreBounded(t *testing.T) {
	r := start(t, etcd(t), "replica-1")
	text := string(bytes.Repeat([]byte{'x'}, 257))
	labels := map[string]string{}
	for i := range 65 {
		labels[fmt.Sprint(i)] = ""
	}
	for name, change := range map[string]func(*controlv1.ReportRequest){
		"no id":                         func(m *controlv1.ReportRequest) { m.Member.Id = "" },
		"a long id":                     func(m *controlv1.ReportRequest) { m.Member.Id = text },
		"an id that moves the cursor":   func(m *controlv1.ReportRequest) { m.Member.Id = "a\x1b[2J" },
		"a long address":                func(m *controlv1.ReportRequest) { m.Member.Address = text + text },
		"a long build":                  func(m *controlv1.ReportRequest) { m.Build = text },
		"many labels":                   func(m *controlv1.ReportRequest) { m.Member.Labels = labels },
		"a long label":                  func(m *controlv1.ReportRequest) { m.Member.Labels = map[string]string{"zone": text} },
		"a partition that there is not": func(m *controlv1.ReportRequest) { m.Cells = []*controlv1.CellReport{{Partition: partitions}} },
	} {
		t.Run(name, func(t *testing.T) {
			stream, err := controlv1.NewFleetServiceClient(r.conn).Report(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			m := &controlv1.ReportRequest{Member: &configv1.Member{Id: "a"}}
			change(m)
			if err := stream.Send(m); err != nil {
				t.Fatal(err)
			}
			if _, err := stream.Recv(); err == nil {
				t.Error("it is taken")
			}
		})
	}
	t.Run("what one cell refuses is cut", func(t *testing.T) {
		a := join(t, r, "a")
		cell := &controlv1.CellReport{Partition: 1}
		for i := range 3000 {
			cell.Rejections = append(cell.Rejections, &configv1.Rejection{Resource: fmt.Sprint("ns/", i)})
		}
		o := r.fleet.Observe(1)
		defer o.Close()
		a.send(proto.CloneOf(cell))
		eventually(t, o, "some are known", func() bool { return len(o.Cells(1)["a"].GetRejections()) == 1000 })
	})
}
