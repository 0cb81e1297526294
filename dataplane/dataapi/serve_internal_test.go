package dataapi

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"github.com/prism-gateway/prism/dataplane/caller"
	"github.com/prism-gateway/prism/dataplane/forward"
	"github.com/prism-gateway/prism/dataplane/frame"
	"github.com/prism-gateway/prism/dataplane/limit"
	"github.com/prism-gateway/prism/dataplane/routing"
	"github.com/prism-gateway/prism/dataplane/session"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
)

// TestACallWhoseCallerIsGoneTellsItsOutcome has no connection by which the header could go.
func TestACallWhoseCallerIsGoneTellsItsOutcome(t *testing.T) {
	metrics, err := NewMetrics(prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	routes := routing.New(nil)
	routes.Publish(routing.NewTable(1).With(map[ident.Partition]*routing.Partition{
		0: {Routes: map[string]*routing.Route{"orders": {Namespace: "orders", Header: map[string][]string{"prism-config-version": {"1"}}, Limits: limit.New(limit.Bounds{})}}},
	}, &routing.Fleet{}), nil)
	sessions, err := session.New(session.Config{})
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{Routes: routes, Forward: forward.New(forward.Config{}), Callers: caller.New(caller.Config{Self: "p"}), Sessions: sessions, Metrics: metrics})
	if err != nil {
		t.Fatal(err)
	}
	request, err := proto.Marshal(&datav1.PutRequest{Namespace: "orders", Id: []byte("a")})
	if err != nil {
		t.Fatal(err)
	}
	_, err = unary(s, "prism.data.v1.KeyValue", "Put", true, put).Handler(nil, t.Context(), func(into any) error {
		return frame.NewCodec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(request)}, into)
	}, nil)
	if f := fault.From(err); f == nil || f.Code != fault.Cancelled || f.Reason != fault.Client || f.Outcome != fault.NotApplied {
		t.Errorf("got %+v, want that the caller gave up and nothing was applied", f)
	}
}
