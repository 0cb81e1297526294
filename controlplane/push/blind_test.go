package push_test

import (
	"errors"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/prism-gateway/prism/controlplane/push"
)

// A replica that is cut off from the store has no changes to tell, and its proxies would not know that others have.
func TestReplicaThatDoesNotFollowTheStoreSendsItsProxiesAway(t *testing.T) {
	s := newSource(32)
	r := start(t, s, func(c *push.Config) { c.BlindPatience = time.Millisecond })
	first := connect(t, r)
	first.request(&request{TypeUrl: push.SharedType, ResourceNamesSubscribe: []string{"shared"}})
	if _, err := first.stream.Recv(); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	s.trouble = errors.New("the watch ended")
	s.mu.Unlock()
	_, err := first.stream.Recv()
	if status.Code(err) != codes.Unavailable || status.Convert(err).Message() != "this replica does not follow the store: try another" {
		t.Fatalf("the stream ended with %v", err)
	}
	again := connect(t, r) // it is taken all the same: there may be no other
	again.request(&request{TypeUrl: push.SharedType, ResourceNamesSubscribe: []string{"shared"}})
	if _, err := again.stream.Recv(); err != nil {
		t.Fatal(err)
	}
}
