package dataapi_test

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/prism-gateway/prism/dataplane/assembly/statetest"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/testserver/redisserver"
)

// TestACacheBeforeAStore has items in SQLite, copies of them in Redis, and two proxies.
func TestACacheBeforeAStore(t *testing.T) {
	const stale = time.Minute
	r := redisserver.Start(t, redisserver.Options{})
	c := &clock{}
	a, b := startProxy(t, "a", c), startProxy(t, "b", c)
	s := statetest.New(t, 8, a.member("a"), b.member("b"))
	s.Backend(&configv1.Backend{Name: "sqlite-main", Type: "sqlite", Endpoints: []string{filepath.Join(t.TempDir(), "data.db")}})
	s.Backend(&configv1.Backend{Name: "redis-main", Type: "redis", Endpoints: []string{r.Addr()}})
	config := statetest.KeyValue("orders", "sqlite-main", "sqlite")
	pattern := config.GetPatterns()[0]
	pattern.Interfaces = offeredBy(t, "sqlite")
	pattern.Bindings = append(pattern.Bindings, &configv1.Binding{Slot: "cache-redis", Backend: "redis-main", BackendType: "redis"})
	pattern.Consistency = configv1.Consistency_CONSISTENCY_READ_YOUR_WRITES
	pattern.MaxStaleness = durationpb.New(stale)
	s.Namespace(config)
	applyAll(t, s, a, b)

	read := func(t *testing.T, p *proxy, id, want string, consistency datav1.Consistency, token []byte) {
		t.Helper()
		out := must[*datav1.GetResponse](t)(p.client.Get(t.Context(), &datav1.GetRequest{Namespace: "orders", Id: []byte(id), Consistency: consistency, AtLeast: token}))
		if got := string(out.GetItem().GetValue()); got != want {
			t.Fatalf("read %q, want %q", got, want)
		}
	}
	eventual, mine := datav1.Consistency_CONSISTENCY_EVENTUAL, datav1.Consistency_CONSISTENCY_READ_YOUR_WRITES
	// writes puts through both proxies in turn, with reads that leave copies in between.
	writes := func(t *testing.T, id string) {
		t.Helper()
		for n := range 20 {
			writer, reader := a, b
			if n%2 == 1 {
				writer, reader = b, a
			}
			value := fmt.Sprint(n)
			done := caller{t, t.Context(), writer.client, "orders"}.put(id, "", value)
			if len(done.GetCommitToken()) == 0 {
				t.Fatal("no commit token")
			}
			read(t, writer, id, value, eventual, nil)
			read(t, reader, id, value, mine, done.GetCommitToken())
			read(t, writer, id, value, eventual, nil)
		}
	}
	described := must[*datav1.DescribeResponse](t)(a.client.Describe(t.Context(), &datav1.DescribeRequest{Namespace: "orders"}))
	if described.GetMaxStaleness().AsDuration() != stale || described.GetIdempotencyWindow() == nil || described.GetMaxLargeValueBytes() == 0 {
		t.Errorf("described %v", described)
	}
	t.Run("KV-22 KV-23 own writes, and those of others with a commit token", func(t *testing.T) { writes(t, "up") })
	t.Run("a copy answers, and is ended by every kind of write", func(t *testing.T) {
		at := caller{t, t.Context(), a.client, "orders"}
		at.put("kinds", "", "1")
		read(t, b, "kinds", "1", eventual, nil)
		must[*datav1.IncrementResponse](t)(a.client.Increment(t.Context(), &datav1.IncrementRequest{Namespace: "orders", Id: []byte("kinds"), Delta: 1}))
		read(t, b, "kinds", "2", eventual, nil)
		must[*datav1.TransactResponse](t)(a.client.Transact(t.Context(), &datav1.TransactRequest{Namespace: "orders", Id: []byte("kinds"), Writes: []*datav1.Write{
			{Op: &datav1.Write_Put{Put: &datav1.PutOp{Id: []byte("kinds"), Value: []byte("3")}}},
		}}))
		read(t, b, "kinds", "3", eventual, nil)
		must[*datav1.DeleteRangeResponse](t)(a.client.DeleteRange(t.Context(), &datav1.DeleteRangeRequest{Namespace: "orders", Id: []byte("kinds"), All: true}))
		read(t, b, "kinds", "", mine, at.put("another", "", "v").GetCommitToken())
	})
	t.Run("a cache that is stopped slows and does not fail", func(t *testing.T) {
		r.Kill()
		writes(t, "down")
	})
	t.Run("a cache that comes back has nothing old", func(t *testing.T) {
		r.Restart(t)
		writes(t, "down")
		c.move(2 * stale)
		writes(t, "down")
	})
}
