package dataapi_test

import (
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/prism-gateway/prism/dataplane/assembly/statetest"
	"github.com/prism-gateway/prism/dataplane/dataapi"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/fault"
)

// TestAStreamDoesNotWaitForEver opens streams and says nothing, or nothing more.
func TestAStreamDoesNotWaitForEver(t *testing.T) {
	p := startProxy(t, "0", nil, func(c *dataapi.Config) { c.ReceiveWait = 50 * time.Millisecond })
	s := statetest.New(t, 8, p.member("0"))
	s.Backend(&configv1.Backend{Name: "memory-main", Type: "memory"})
	namespace := statetest.KeyValue("orders", "memory-main", "memory")
	namespace.Patterns[0].Interfaces = []string{"keyvalue", "keyvalue.large"}
	s.Namespace(namespace)
	p.apply(t, s)
	for name, begin := range map[string]*datav1.WriteValueRequest{
		"no first message": nil,
		"no second":        {Put: &datav1.PutRequest{Namespace: "orders", Id: []byte("a")}, Chunk: []byte("begin")},
	} {
		t.Run(name, func(t *testing.T) {
			stream := must[grpc.ClientStreamingClient[datav1.WriteValueRequest, datav1.WriteValueResponse]](t)(p.client.WriteValue(t.Context()))
			if begin != nil {
				if err := stream.Send(begin); err != nil {
					t.Fatal(err)
				}
			}
			err := stream.RecvMsg(&datav1.WriteValueResponse{}) // the sending side stays open
			fails(t, err, fault.DeadlineExceeded, fault.Queue, fault.NotApplied)
		})
	}
	if item := (caller{t, t.Context(), p.client, "orders"}).get("a", ""); item != nil {
		t.Errorf("half a value is there: %v", item)
	}
}
