package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/prism-gateway/prism/e2e/harness"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
)

const simulatedProxies = 20

// simulated is a process of simulated proxies.
type simulated struct{ *harness.Process }

// simulatedReport is the part of its reports that the tests look at.
type simulatedReport struct {
	Connected  int    `json:"connected"`
	Owning     int    `json:"owning"`
	Cells      int    `json:"cells"`
	Snapshot   uint64 `json:"snapshot"`
	Resources  uint64 `json:"resources"`
	Resumed    uint64 `json:"resumed_resources"`
	Nacks      uint64 `json:"nacks"`
	Reconnects uint64 `json:"reconnects"`
	Everywhere struct {
		Count uint64 `json:"count"`
	} `json:"everywhere"`
	Partitions []struct {
		Proxies int `json:"proxies"`
		Roots   int `json:"roots"`
	} `json:"partitions"`
	Final bool `json:"final"`
}

func simulate(t *testing.T, c *harness.Cluster, more ...string) simulated {
	args := append([]string{"simulate", "-o", "json", "--admin-endpoint", c.Admins[0].FleetAddress, "--proxies", fmt.Sprint(simulatedProxies)}, more...)
	s := simulated{harness.Run(t, c.Dir, "simulate", harness.Program(t, "bin/prism-proxy", "make build"), args...)}
	s.await(t, "the proxies hold all partitions", func(r simulatedReport) bool { return r.Owning == simulatedProxies && r.Cells == 3*1024 })
	c.WaitSettled(time.Minute)
	return s
}

// last is the newest report.
func (s simulated) last() (r simulatedReport, err error) {
	lines := bytes.Split(bytes.TrimSpace(s.Log()), []byte("\n"))
	if len(lines[len(lines)-1]) == 0 {
		return r, errors.New("no report yet")
	}
	err = json.Unmarshal(lines[len(lines)-1], &r) // one that is written just now is cut
	return r, err
}

func (s simulated) await(t *testing.T, what string, ok func(simulatedReport) bool) (r simulatedReport) {
	t.Helper()
	harness.Eventually(t, 2*time.Minute, what, func() (err error) {
		if r, err = s.last(); err == nil && !ok(r) {
			err = fmt.Errorf("%+v", r)
		}
		return err
	})
	return r
}

func simulatedNamespaces(prefix string, n int, ttl time.Duration) (all []*configv1.NamespaceRequest) {
	for i := range n {
		all = append(all, &configv1.NamespaceRequest{
			Namespace: fmt.Sprintf("%s-%03d", prefix, i), Team: "sim", Pattern: "keyvalue",
			Needs: &configv1.Needs{Durability: configv1.Durability_DURABILITY_NONE, Ttl: durationpb.New(ttl)},
		})
	}
	return all
}

func TestSimulatedProxiesFollowTheControlPlane(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	c := harness.Start(t, harness.Options{Proxies: -1, Lease: 10 * time.Second, Backends: []*configv1.Backend{{Name: "memory-a", Type: "memory"}}})
	s := simulate(t, c, "--nack", "^refused-", "--reconnect", "2s", "--partitions-view")
	newest := c.Apply(ctx, simulatedNamespaces("app", 200, time.Hour)...).GetSnapshotVersion()

	status := awaitStatus(ctx, t, c, simulatedNamespaces("refused", 1, time.Hour), func(s *configv1.NamespaceStatus) bool {
		return len(s.GetOwners()) == 3 && s.GetOwners()[0].GetRejection() != nil && s.GetOwners()[1].GetRejection() != nil && s.GetOwners()[2].GetRejection() != nil
	})
	if r := status.GetOwners()[0].GetRejection(); r.GetResource() != "ns/refused-000" || r.GetField() == "" || !strings.Contains(r.GetReason(), "simulation") {
		t.Errorf("the status tells %v; want the namespace, a field and the reason", r)
	}
	before := s.await(t, "the refusals are counted", func(r simulatedReport) bool { return r.Nacks >= 3 && r.Snapshot >= newest })
	if before.Resources < 3*200 {
		t.Errorf("%d resources received, want three owners' of each namespace", before.Resources)
	}
	after := s.await(t, "every proxy has come back", func(r simulatedReport) bool {
		return r.Reconnects >= before.Reconnects+2*simulatedProxies
	})
	if again := after.Resumed - before.Resumed; again != 0 {
		t.Errorf("%d resources were sent again to proxies that had them", again)
	}
	if !s.Stop(20 * time.Second) {
		t.Fatal("it does not end when asked to")
	}
	final, err := s.last()
	if err != nil || !final.Final || len(final.Partitions) != 1024 || final.Everywhere.Count == 0 {
		t.Fatalf("no summary with all partitions at the end: %v, %+v", err, final)
	}
	for p, of := range final.Partitions {
		if of.Proxies != 3 || of.Roots != 1 {
			t.Errorf("partition %d: %d proxies with %d states, want 3 with the same", p, of.Proxies, of.Roots)
		}
	}
	harness.Eventually(t, 30*time.Second, "the proxies have left the fleet", func() error {
		out, err := c.Admins[0].Operator.ListProxies(ctx, listAll)
		if err == nil && out.GetTotalCount() > 0 {
			err = fmt.Errorf("%d are members", out.GetTotalCount())
		}
		return err
	})
}

func TestASimulatedProxyThatDoesNotReadHoldsUpNobodyElse(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	c := harness.Start(t, harness.Options{Proxies: -1, Lease: 10 * time.Second, Backends: []*configv1.Backend{{Name: "memory-a", Type: "memory"}}})
	simulate(t, c, "--stall", "1")
	requests := simulatedNamespaces("app", 200, time.Hour)
	const stalled = "sim-00001"
	// It stops at the first change after it has been settled for a while: they are changed until one waits for it.
	for turn := 1; ; turn++ {
		for _, req := range requests {
			req.Needs.Ttl = durationpb.New(time.Duration(turn) * time.Hour)
		}
		waits := 0
		newest := applyAll(ctx, t, c, requests)
		for _, req := range requests {
			status := awaitStatus(ctx, t, c, nil, func(s *configv1.NamespaceStatus) bool {
				if s.GetSnapshotVersion() < newest {
					return false
				}
				for _, o := range s.GetOwners() {
					if o.GetProxy() != stalled && o.GetStage() != configv1.Stage_STAGE_SERVING {
						return false
					}
				}
				return true
			}, req.GetNamespace())
			for _, o := range status.GetOwners() {
				if o.GetProxy() == stalled && o.GetStage() != configv1.Stage_STAGE_SERVING {
					waits++
				}
			}
		}
		if waits > 1 {
			return
		}
		if turn > 100 {
			t.Fatal("no namespace waits for the proxy that does not read")
		}
	}
}

// applyAll applies namespaces and returns the snapshot, without waiting for anything to be live.
func applyAll(ctx context.Context, t *testing.T, c *harness.Cluster, requests []*configv1.NamespaceRequest) uint64 {
	t.Helper()
	in := &controlv1.ApplyNamespacesRequest{Note: &controlv1.ChangeNote{Author: "e2e"}}
	for _, r := range requests {
		in.Changes = append(in.Changes, &controlv1.NamespaceChange{Request: r})
	}
	out, err := c.Admins[0].Control.ApplyNamespaces(ctx, in)
	if err != nil {
		t.Fatalf("apply: %v", err)
	}
	return out.GetSnapshotVersion()
}

// awaitStatus applies namespaces, when there are any, and waits until the status of the named one, or else of the first of
// them, is as it should be.
func awaitStatus(ctx context.Context, t *testing.T, c *harness.Cluster, requests []*configv1.NamespaceRequest, ok func(*configv1.NamespaceStatus) bool, named ...string) *configv1.NamespaceStatus {
	t.Helper()
	if len(requests) > 0 {
		applyAll(ctx, t, c, requests)
		named = append(named, requests[0].GetNamespace())
	}
	watching, stop := context.WithCancel(ctx)
	defer stop()
	stream, err := c.Admins[0].Control.WatchNamespaceStatus(watching, &controlv1.WatchNamespaceStatusRequest{Namespace: named[0]})
	if err != nil {
		t.Fatalf("status of %s: %v", named[0], err)
	}
	var last *configv1.NamespaceStatus
	for {
		in, err := stream.Recv()
		if err != nil {
			t.Fatalf("status of %s: %v; last: %v", named[0], err, last)
		}
		if last = in.GetStatus(); ok(last) {
			return last
		}
	}
}
