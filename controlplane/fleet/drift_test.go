package fleet_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/types/known/durationpb"

	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"

	"github.com/prism-gateway/prism/controlplane/fleet"
	"github.com/prism-gateway/prism/controlplane/push"
	"github.com/prism-gateway/prism/shared/ident"
)

// accepted is a tracker that says that a proxy accepted a root of every partition.
type accepted struct {
	*push.Tracker
	proxy string
	root  ident.Hash
}

func (a accepted) Cells(p ident.Partition) []*controlv1.CellState {
	return []*controlv1.CellState{{Proxy: a.proxy, Partition: uint32(p), SentRoot: a.root.Bytes(), AcceptedRoot: a.root.Bytes()}}
}

// resyncs remembers what was asked to be sent in full of proxies whose streams are here.
type resyncs struct {
	here  []string
	asked chan ident.Partition
}

func (r resyncs) set(c *fleet.Config) {
	c.Resync = func(proxy string, p ident.Partition) bool {
		if !slices.Contains(r.here, proxy) {
			return false
		}
		r.asked <- p
		return true
	}
}

func resynced(t *testing.T, r resyncs) ident.Partition {
	t.Helper()
	select {
	case p := <-r.asked:
		return p
	case <-time.After(patience):
		t.Fatal("nothing is sent in full")
		return 0
	}
}

func TestDriftIsNamedAndRepaired(t *testing.T) {
	server := etcd(t)
	here, there := resyncs{[]string{"a"}, make(chan ident.Partition, 64)}, resyncs{[]string{"b"}, make(chan ident.Partition, 64)}
	registry := prometheus.NewRegistry()
	r := start(t, server, "replica-1", long, here.set, func(c *fleet.Config) { c.Registerer = registry })
	other := start(t, server, "replica-2", long, there.set)
	tree := commit(t, r, "orders")
	a, b := join(t, r, "a"), join(t, r, "b") // b's stream of configuration is at the other replica
	a.serve(tree)
	b.serve(tree)
	r.until(t, "both own everything", settled("a", "b"))
	r.statusUntil(t, "live", "orders", (*configv1.NamespaceStatus).GetLive)
	at := ident.PartitionOf("orders", partitions)
	drifts := func(c *controlv1.CellReport) {
		if ident.Partition(c.GetPartition()) == at {
			c.Drifted = []string{"ns/orders"}
		}
	}

	a.serve(tree, drifts)
	s := r.statusUntil(t, "the namespace's status tells", "orders", func(s *configv1.NamespaceStatus) bool { return !s.GetLive() })
	if want := "a serves something else as ns/orders"; !strings.Contains(s.GetSummary(), want) {
		t.Errorf("summary %q; want %q in it", s.GetSummary(), want)
	}
	if o := s.GetOwners()[slices.IndexFunc(s.GetOwners(), func(o *configv1.OwnerStatus) bool { return o.GetProxy() == "a" })]; o.GetStage() != configv1.Stage_STAGE_SENT {
		t.Errorf("who has drifted is %v", o.GetStage()) // a deletion waits for it
	}
	if p := resynced(t, here); p != at {
		t.Errorf("%v is sent in full; want %v", p, at)
	}
	if p, parts, _ := r.fleet.Proxy(t.Context(), "a"); !slices.Equal(p.GetDrifted(), []string{"ns/orders"}) || !slices.Equal(parts[at].GetDrifted(), []string{"ns/orders"}) {
		t.Errorf("proxy %v, partition %v", p, parts[at])
	}
	if got := gauges(t, registry, "prism_fleet_drifted"); got != "1" {
		t.Errorf("the metric is %s", got)
	}
	a.serve(tree)
	r.statusUntil(t, "repaired", "orders", (*configv1.NamespaceStatus).GetLive)

	o := r.fleet.Observe(at)
	eventually(t, o, "the replicas know each other", o.Complete)
	o.Close()
	for len(other.store.Replicas()) < 2 {
		changed, stop := other.store.WatchFleet()
		wait(t, changed, "the replicas know each other")
		stop()
	}
	b.serve(tree, drifts)
	if p := resynced(t, there); p != at {
		t.Errorf("the other replica is asked to send %v in full; want %v", p, at)
	}
}

func TestAProxyThatServesWhatItDidNotAcceptHasDrifted(t *testing.T) {
	here := resyncs{[]string{"a"}, make(chan ident.Partition, 64)}
	root := ident.HashOf([]byte("accepted"))
	r := start(t, etcd(t), "replica-1", long, here.set, func(c *fleet.Config) { c.Tracker = accepted{push.NewTracker(), "a", root} })
	a := join(t, r, "a")
	for p := range uint32(partitions) {
		cell := &controlv1.CellReport{Partition: p, Root: root.Bytes(), SnapshotVersion: 1}
		if p == 3 {
			cell.Root = ident.HashOf([]byte("another")).Bytes()
		}
		a.send(cell)
	}
	if p := resynced(t, here); p != 3 {
		t.Errorf("%v is sent in full", p)
	}
	r.untilMembers(t, "a")
	if p := first(t, r); !slices.Equal(p.GetDrifted(), []string{"p/0003"}) {
		t.Errorf("drifted %v", p.GetDrifted())
	}
	if len(here.asked) > 0 {
		t.Errorf("%v is sent in full too", <-here.asked)
	}
}

// first is the first proxy that a replica tells of.
func first(t *testing.T, r *replica) *adminv1.Proxy {
	t.Helper()
	all, total := r.fleet.Proxies(t.Context(), "", 1)
	if len(all) != 1 || total < 1 {
		t.Fatalf("proxies %v of %d", all, total)
	}
	return all[0]
}

// gauges are the values of a metric, each after its labels' values.
func gauges(t *testing.T, registry *prometheus.Registry, name string) string {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			text := ""
			for _, l := range m.GetLabel() {
				text += l.GetValue() + " "
			}
			all = append(all, text+fmt.Sprint(m.GetGauge().GetValue()))
		}
	}
	return strings.Join(all, ", ")
}

func TestMetrics(t *testing.T) {
	registry := prometheus.NewRegistry()
	r := start(t, etcd(t), "replica-1", long, func(c *fleet.Config) { c.Registerer = registry })
	tree := commit(t, r, "orders", "users")
	a := join(t, r, "a")
	a.serve(tree)
	r.until(t, "it owns everything", settled("a"))
	r.untilMembers(t, "a")
	commit(t, r, "orders")
	a.mu.Lock()
	a.stream.Send(&controlv1.ReportRequest{
		Member: a.member, Ready: true, Stale: durationpb.New(90 * time.Second), Load: &controlv1.Load{Connections: 7, Sessions: 3},
		Propagation: []*controlv1.Propagation{{SnapshotVersion: 1, Took: durationpb.New(3 * time.Millisecond)}, {SnapshotVersion: 1, Took: durationpb.New(-time.Millisecond)}},
	})
	a.mu.Unlock()
	deadline := time.After(patience)
	for first(t, r).GetLoad().GetConnections() != 7 {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-deadline:
			t.Fatal("its load is not known")
		}
	}
	if p := first(t, r); p.GetLoad().GetSessions() != 3 || p.GetStale().AsDuration() != 90*time.Second || p.GetCurrent() != partitions-1 {
		t.Errorf("proxy %v", p)
	}
	for name, want := range map[string]string{
		"prism_fleet_cells_behind":  "1",
		"prism_fleet_stale_seconds": "90",
		"prism_fleet_reporting":     "draining 0, not_ready 0, ready 1, silent 0, validator 0",
	} {
		if got := gauges(t, registry, name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "prism_fleet_propagation_seconds" {
			h := f.GetMetric()[0].GetHistogram()
			if n := len(h.GetBucket()); h.GetSampleCount() != 2 || n != 14 || h.GetBucket()[0].GetUpperBound() != 0.001 || h.GetBucket()[n-1].GetUpperBound() != 8.192 {
				t.Errorf("propagation %v", h)
			}
			return
		}
	}
	t.Error("there is no propagation")
}
