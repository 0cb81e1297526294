package fleet_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"

	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
)

func TestStatus(t *testing.T) {
	server := etcd(t)
	asked, other := start(t, server, "replica-1"), start(t, server, "replica-2")
	old := commit(t, asked, "orders")
	a, b := join(t, asked, "a"), join(t, other, "b")
	a.serve(old)
	b.serve(old)
	asked.until(t, "both own everything", settled("a", "b"))
	tree := commit(t, asked, "orders")

	told := make(chan *configv1.NamespaceStatus, 64)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	watching := make(chan error, 1)
	go func() {
		watching <- asked.fleet.WatchStatus(ctx, "orders", func(s *configv1.NamespaceStatus) bool {
			told <- s
			return false
		})
	}()
	until := func(what string, holds func(s *configv1.NamespaceStatus) bool) {
		t.Helper()
		deadline := time.After(patience)
		var last *configv1.NamespaceStatus
		for {
			select {
			case last = <-told:
				if holds(last) {
					return
				}
			case <-deadline:
				t.Fatalf("%s: never; the last is %v", what, last)
			}
		}
	}
	owner := func(s *configv1.NamespaceStatus, id string) *configv1.OwnerStatus {
		for _, o := range s.GetOwners() {
			if o.GetProxy() == id {
				return o
			}
		}
		return nil
	}
	until("nobody has it", func(s *configv1.NamespaceStatus) bool {
		return !s.GetLive() && s.GetVersion() != "" && len(s.GetOwners()) == 2 &&
			owner(s, "a").GetStage() == configv1.Stage_STAGE_PENDING && owner(s, "b").GetStage() == configv1.Stage_STAGE_PENDING
	})
	a.serve(tree)
	until("one has it", func(s *configv1.NamespaceStatus) bool {
		return owner(s, "a").GetStage() == configv1.Stage_STAGE_SERVING && strings.Contains(s.GetSummary(), "live on 1 of 2 owners: b waits")
	})
	object, _ := tree.Namespace("orders")
	b.serve(tree, func(c *controlv1.CellReport) {
		c.Rejections = []*configv1.Rejection{{
			Resource: "ns/orders", Version: object.Hash.String(), Field: "patterns[0].bindings[0]", Reason: "no such backend",
		}}
	})
	until("the other, at another replica, refuses it", func(s *configv1.NamespaceStatus) bool {
		return owner(s, "b").GetStage() == configv1.Stage_STAGE_REJECTED && owner(s, "b").GetRejection() != nil &&
			owner(s, "b").GetReason() == "b refused ns/orders: patterns[0].bindings[0]: no such backend"
	})
	b.serve(tree, func(c *controlv1.CellReport) {
		c.Unready = []*controlv1.Unready{{Namespace: "orders", Reason: "redis-main does not answer"}}
	})
	until("its backend does not answer", func(s *configv1.NamespaceStatus) bool {
		return owner(s, "b").GetStage() == configv1.Stage_STAGE_ACCEPTED && strings.Contains(owner(s, "b").GetReason(), "redis-main does not answer")
	})
	// Another namespace of the same partition goes on changing, and nobody has that yet: this one is live all the same.
	sibling := ""
	for i := 0; sibling == ""; i++ {
		if name := fmt.Sprintf("team-%d", i); ident.PartitionOf(name, partitions) == ident.PartitionOf("orders", partitions) {
			sibling = name
		}
	}
	commit(t, asked, sibling)
	b.serve(tree)
	until("live", func(s *configv1.NamespaceStatus) bool {
		return s.GetLive() && s.GetSummary() == "" && s.GetSnapshotVersion() > tree.Version()
	})
	b.die()
	until("one is silent", func(s *configv1.NamespaceStatus) bool {
		return !s.GetLive() && strings.Contains(s.GetSummary(), "b has not been heard of") ||
			!s.GetLive() && owner(s, "b").GetStage() == configv1.Stage_STAGE_PENDING
	})
	cancel()
	if err := <-watching; err != context.Canceled {
		t.Errorf("the watch ended with %v", err)
	}

	if _, err := asked.fleet.Status(t.Context(), "no-such"); !fault.Is(err, fault.Namespace) {
		t.Errorf("no such namespace: %v", err)
	}
	status, err := asked.fleet.Status(t.Context(), "orders")
	if err != nil || len(status.GetOwners()) == 0 {
		t.Errorf("status %v, %v", status, err)
	}
}

func TestStatusTellsWhatTheNamespaceNeeds(t *testing.T) {
	r := start(t, etcd(t), "replica-1")
	bound := func(backend string) *snapshot.Tree {
		t.Helper()
		config := &configv1.NamespaceConfig{Namespace: "orders", Patterns: []*configv1.PatternConfig{{Bindings: []*configv1.Binding{{Backend: "main"}}}}}
		var sets []snapshot.Set
		for name, m := range map[string]proto.Message{"ns/orders": config, "backend/main": &configv1.Backend{Name: backend}, "backend/other": &configv1.Backend{}} {
			data, err := proto.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			sets = append(sets, snapshot.Set{Name: name, Data: append([]byte{}, data...)})
		}
		c, err := r.store.Commit(t.Context(), release.Order{}, func(*snapshot.Tree, uint64) ([]snapshot.Set, error) { return sets, nil })
		if err != nil {
			t.Fatal(err)
		}
		return c.Tree
	}
	before, tree := bound("one"), bound("two")
	old, _ := before.Backend("main")
	main, _ := tree.Backend("main")
	partition := ident.PartitionOf("orders", partitions).String()
	a := join(t, r, "a")
	r.until(t, "it owns everything", settled("a"))
	for _, c := range []struct {
		name     string
		refuses  *configv1.Rejection
		stage    configv1.Stage
		elsewise func(*controlv1.CellReport)
	}{
		{"its backend", &configv1.Rejection{Resource: "backend/main", Version: main.Hash.String()}, configv1.Stage_STAGE_REJECTED, nil},
		{"a former state of its backend", &configv1.Rejection{Resource: "backend/main", Version: old.Hash.String()}, configv1.Stage_STAGE_SERVING, nil},
		{"a backend of others", &configv1.Rejection{Resource: "backend/other"}, configv1.Stage_STAGE_SERVING, nil},
		{"its partition, which serves an older state", &configv1.Rejection{Resource: partition, Field: "root"}, configv1.Stage_STAGE_REJECTED,
			func(c *controlv1.CellReport) { c.Root = nil }},
		{"its partition, which serves it all the same", &configv1.Rejection{Resource: partition, Field: "root"}, configv1.Stage_STAGE_SERVING, nil},
	} {
		a.serve(tree, func(cell *controlv1.CellReport) {
			cell.Rejections = []*configv1.Rejection{c.refuses}
			if c.elsewise != nil {
				c.elsewise(cell)
			}
		})
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		var last *configv1.NamespaceStatus
		if err := r.fleet.WatchStatus(ctx, "orders", func(s *configv1.NamespaceStatus) bool {
			last = s
			return s.GetOwners()[0].GetStage() == c.stage
		}); err != nil {
			t.Errorf("%s: %v; the last is %v", c.name, err, last)
		}
		cancel()
	}
}
