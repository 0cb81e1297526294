package dataapi_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/prism-gateway/prism/dataplane/assembly/statetest"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
	"github.com/prism-gateway/prism/shared/testserver/redisserver"
)

const sharedNamespace, memoryNamespace = "on-redis", "on-memory"

// fleet is proxies with one namespace on Redis and one in memory.
func fleet(t *testing.T, n int) ([]*proxy, *statetest.Builder) {
	t.Helper()
	r := redisserver.Start(t, redisserver.Options{})
	var proxies []*proxy
	var members []*configv1.Member
	for i := range n {
		p := startProxy(t, fmt.Sprint(i), nil)
		proxies, members = append(proxies, p), append(members, p.member(fmt.Sprint(i)))
	}
	s := statetest.New(t, 8, members...)
	s.Backend(&configv1.Backend{Name: "redis-main", Type: "redis", Endpoints: []string{r.Addr()}})
	s.Backend(&configv1.Backend{Name: "memory-main", Type: "memory"})
	s.Namespace(statetest.KeyValue(sharedNamespace, "redis-main", "redis"))
	s.Namespace(statetest.KeyValue(memoryNamespace, "memory-main", "memory"))
	return proxies, s
}

func applyAll(t *testing.T, s *statetest.Builder, proxies ...*proxy) {
	t.Helper()
	state := s.State()
	for _, p := range proxies {
		if refused := p.Apply(t.Context(), state); refused != nil {
			t.Fatal(refused)
		}
	}
}

func none(ident.Partition) bool { return false }

func TestAnyProxyTakesAnyCall(t *testing.T) {
	proxies, s := fleet(t, 4)
	s.Assign(func(a *configv1.Assignment) { // the last owns nothing
		for _, p := range a.GetPartitions() {
			p.Owners = []uint32{0, 1, 2}
		}
	})
	applyAll(t, s, proxies[:3]...)
	s.Hold(none)
	applyAll(t, s, proxies[3])
	for _, namespace := range []string{sharedNamespace, memoryNamespace} {
		for i, w := range proxies {
			c := caller{t, t.Context(), w.client, namespace}
			c.put("id", fmt.Sprint(i), namespace+fmt.Sprint(i))
			for _, r := range proxies {
				(caller{t, t.Context(), r.client, namespace}).has("id", fmt.Sprint(i), namespace+fmt.Sprint(i))
			}
		}
	}
	if n := proxies[3].forward.Connections(); n != 1 {
		t.Errorf("connections to %d owners, want only to the first of three that answer", n)
	}
	_, err := proxies[3].client.Put(t.Context(), &datav1.PutRequest{Namespace: sharedNamespace})
	f := fails(t, err, fault.Invalid, fault.Field, fault.NotApplied)
	if len(f.Violations) != 1 || f.Metadata["request_id"] == "" {
		t.Errorf("the owner's answer came changed: %+v", f)
	}
	_, err = proxies[3].client.Get(t.Context(), &datav1.GetRequest{Namespace: "no-such", Id: []byte("x")})
	fails(t, err, fault.NotFound, fault.Namespace, fault.NotApplied)
	watch := must[datav1.KeyValue_WatchClient](t)(proxies[3].client.Watch(t.Context(), &datav1.WatchRequest{Namespace: sharedNamespace, Id: []byte("x")}))
	_, err = watch.Recv()
	fails(t, err, fault.FailedPrecondition, fault.InterfaceMissing, fault.NotApplied)
}

func TestACallHopsOnce(t *testing.T) {
	proxies, s := fleet(t, 2)
	s.Hold(none)
	applyAll(t, s, proxies...) // each believes that the other has it
	_, err := proxies[0].client.Get(t.Context(), &datav1.GetRequest{Namespace: sharedNamespace, Id: []byte("x")})
	fails(t, err, fault.Unavailable, fault.NotOwner, fault.NotApplied)
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-prism-hop", "1")
	_, err = proxies[0].client.Put(ctx, &datav1.PutRequest{Namespace: sharedNamespace, Id: []byte("x")})
	fails(t, err, fault.Unavailable, fault.NotOwner, fault.NotApplied)
}

func TestTheNextOwnerIsTriedWhenOneIsAway(t *testing.T) {
	proxies, s := fleet(t, 4)
	s.Assign(func(a *configv1.Assignment) {
		for _, p := range a.GetPartitions() {
			p.Owners = []uint32{0, 1, 2}
		}
	})
	applyAll(t, s, proxies[2])
	s.Hold(none)
	applyAll(t, s, proxies[1], proxies[3]) // 1 answers that it is no owner
	proxies[0].server.Stop()               // 0 is not there
	c := caller{t, t.Context(), proxies[3].client, sharedNamespace}
	for i := range 20 {
		c.put("id", fmt.Sprint(i), "v")
		c.has("id", fmt.Sprint(i), "v")
	}
	_, err := proxies[3].client.Put(t.Context(), &datav1.PutRequest{Namespace: memoryNamespace, Id: []byte("x")})
	if f := fails(t, err, fault.Unavailable, fault.NotOwner, fault.NotApplied); f.RetryAfter == 0 {
		t.Error("a namespace whose single owner is away: the caller is not told to come again")
	}
}

// TestAWriteOfUnknownOutcomeIsNotRepeated has an owner that takes a call and dies.
func TestAWriteOfUnknownOutcomeIsNotRepeated(t *testing.T) {
	proxies, s := fleet(t, 2)
	reached := make(chan struct{}, 100)
	broken := brokenOwner(t, reached)
	s.Assign(func(a *configv1.Assignment) {
		a.Members = append(a.Members, &configv1.Member{Id: "broken", Address: broken})
		for _, p := range a.GetPartitions() {
			p.Owners = []uint32{2, 1}
		}
	})
	applyAll(t, s, proxies[1])
	s.Hold(none)
	applyAll(t, s, proxies[0])
	_, err := proxies[0].client.Put(t.Context(), &datav1.PutRequest{Namespace: sharedNamespace, Id: []byte("x"), Value: []byte("v")})
	fails(t, err, fault.Unavailable, fault.NotOwner, fault.OutcomeUnknown)
	if len(reached) == 0 {
		t.Fatal("the broken owner was not asked: the test proves nothing")
	}
	if got := (caller{t, t.Context(), proxies[1].client, sharedNamespace}).get("x", ""); got != nil {
		t.Errorf("the write was repeated: %v", got)
	}
	// A read is, also when the broken owner is asked first.
	for range 20 {
		if _, err := proxies[0].client.Get(t.Context(), &datav1.GetRequest{Namespace: sharedNamespace, Id: []byte("x")}); err != nil {
			t.Fatalf("read: %v", err)
		}
	}
}

// brokenOwner speaks HTTP/2 until it has a request, and then closes the connection.
func brokenOwner(t *testing.T, reached chan<- struct{}) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				if _, err := conn.Write([]byte{0, 0, 0, 4, 0, 0, 0, 0, 0}); err != nil { // empty SETTINGS
					return
				}
				preface := make([]byte, 24)
				if _, err := io.ReadFull(conn, preface); err != nil {
					return
				}
				for {
					header := make([]byte, 9)
					if _, err := io.ReadFull(conn, header); err != nil {
						return
					}
					if _, err := io.CopyN(io.Discard, conn, int64(header[0])<<16|int64(header[1])<<8|int64(header[2])); err != nil {
						return
					}
					if header[3] == 0 { // DATA: the request is here
						reached <- struct{}{}
						return
					}
				}
			})
		}
	})
	return l.Addr().String()
}

func TestConnectionsToFormerMembersAreClosed(t *testing.T) {
	proxies, s := fleet(t, 2)
	s.Assign(func(a *configv1.Assignment) {
		for _, p := range a.GetPartitions() {
			p.Owners = []uint32{1}
		}
	})
	applyAll(t, s, proxies[1])
	s.Hold(none)
	applyAll(t, s, proxies[0])
	(caller{t, t.Context(), proxies[0].client, sharedNamespace}).put("id", "", "v")
	if n := proxies[0].forward.Connections(); n != 1 {
		t.Fatalf("%d connections, want 1", n)
	}
	s.Assign(func(a *configv1.Assignment) {
		a.Members = a.Members[:1]
		for _, p := range a.GetPartitions() {
			p.Owners = []uint32{0}
		}
	})
	applyAll(t, s, proxies[0])
	if n := proxies[0].forward.Connections(); n != 0 {
		t.Errorf("%d connections, want none", n)
	}
}

func TestLifeOfANamespace(t *testing.T) {
	p := startProxy(t, "a", nil)
	get := func(namespace string) error {
		_, err := p.client.Get(t.Context(), &datav1.GetRequest{Namespace: namespace, Id: []byte("x")})
		return err
	}
	if f := fails(t, get("orders"), fault.Unavailable, fault.Starting, fault.NotApplied); f.RetryAfter == 0 {
		t.Error("the caller is not told to come again")
	}
	s := statetest.New(t, 8, p.member("a"))
	s.Backend(&configv1.Backend{Name: "memory-main", Type: "memory"})
	config := statetest.KeyValue("orders", "memory-main", "memory")
	s.Namespace(config)
	p.apply(t, s)
	if err := get("orders"); err != nil {
		t.Fatal(err)
	}
	config.Draining = true
	s.Namespace(config)
	p.apply(t, s)
	fails(t, get("orders"), fault.FailedPrecondition, fault.NamespaceDraining, fault.NotApplied)
	s.Remove("orders")
	p.apply(t, s)
	fails(t, get("orders"), fault.NotFound, fault.Namespace, fault.NotApplied)
}

func TestLimitsAreEnforced(t *testing.T) {
	p := startProxy(t, "a", nil)
	s := statetest.New(t, 8, p.member("a"))
	s.Backend(&configv1.Backend{Name: "memory-main", Type: "memory"})
	config := statetest.KeyValue("orders", "memory-main", "memory")
	config.Limits.Rps = 1
	s.Namespace(config)
	p.apply(t, s)
	c := caller{t, t.Context(), p.client, "orders"}
	c.put("id", "", "v")
	var err error
	for range 10 { // a second may pass in between
		if _, err = p.client.Put(t.Context(), &datav1.PutRequest{Namespace: "orders", Id: []byte("id")}); err != nil {
			break
		}
	}
	if f := fails(t, err, fault.Exhausted, fault.Rate, fault.NotApplied); f.RetryAfter <= 0 || f.RetryAfter > time.Second {
		t.Errorf("retry after %v", f.RetryAfter)
	}
}

// TestABackendThatHangs pauses the real server.
func TestABackendThatHangs(t *testing.T) {
	r := redisserver.Start(t, redisserver.Options{})
	p := startProxy(t, "a", nil)
	s := statetest.New(t, 8, p.member("a"))
	s.Backend(&configv1.Backend{Name: "redis-main", Type: "redis", Endpoints: []string{r.Addr()}})
	s.Backend(&configv1.Backend{Name: "memory-main", Type: "memory"})
	hurried := statetest.KeyValue("hurried", "redis-main", "redis")
	hurried.Limits.DefaultDeadline = durationpb.New(200 * time.Millisecond)
	s.Namespace(hurried)
	s.Namespace(statetest.KeyValue("neighbour", "memory-main", "memory"))
	p.apply(t, s)
	c := caller{t, t.Context(), p.client, "hurried"}
	c.put("id", "", "before")
	r.Pause(t)

	t.Run("KV-30 deadline_in_backend_unknown", func(t *testing.T) {
		_, err := p.client.Put(t.Context(), &datav1.PutRequest{Namespace: "hurried", Id: []byte("id")})
		fails(t, err, fault.DeadlineExceeded, fault.Backend, fault.OutcomeUnknown)
	})
	t.Run("KB-11 batch_cut_by_deadline_marks_unknown", func(t *testing.T) {
		in := &datav1.BatchWriteRequest{Namespace: "hurried"}
		for i := range 3 {
			in.Writes = append(in.Writes, &datav1.Write{Op: &datav1.Write_Put{Put: &datav1.PutOp{Id: []byte("id"), Key: key(i)}}})
		}
		out, err := p.client.BatchWrite(t.Context(), in)
		if err != nil {
			t.Fatal(err)
		}
		for i, r := range out.GetResults() {
			fails(t, errorOf(r.GetStatus()), fault.DeadlineExceeded, fault.Backend, fault.OutcomeUnknown)
			if t.Failed() {
				t.Errorf("write %d", i)
			}
		}
	})
	t.Run("a neighbour is not slowed", func(t *testing.T) {
		(caller{t, t.Context(), p.client, "neighbour"}).put("id", "", "v")
	})
	r.Resume(t)
	if _, err := p.client.Get(t.Context(), &datav1.GetRequest{Namespace: "hurried", Id: []byte("id")}); err != nil {
		t.Errorf("after the pause: %v", err)
	}
}

// TestSwapsUnderLoad replaces the called namespace's configuration 10,000 times, moving it between two backends, while
// clients call it and a neighbour: no call fails, none is answered by another namespace, and in the end every pool and
// table that was replaced has been let go.
func TestSwapsUnderLoad(t *testing.T) {
	const swaps = 10000
	p := startProxy(t, "a", nil)
	s := statetest.New(t, 8, p.member("a"))
	config := statetest.KeyValue("moving", "memory-1", "memory")
	for i := range 3 {
		s.Backend(&configv1.Backend{Name: fmt.Sprintf("memory-%d", i), Type: "memory"})
	}
	s.Namespace(config)
	s.Namespace(statetest.KeyValue("standing", "memory-0", "memory"))
	p.apply(t, s)

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var calls atomic.Int64
	var wg sync.WaitGroup
	for client := range 4 {
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				namespace := []string{"moving", "standing"}[n%2]
				want := namespace + fmt.Sprint(client)
				if _, err := p.client.Put(t.Context(), &datav1.PutRequest{Namespace: namespace, Id: fmt.Append(nil, client), Value: []byte(want)}); err != nil {
					t.Errorf("put: %v", err)
					return
				}
				out, err := p.client.Get(t.Context(), &datav1.GetRequest{Namespace: namespace, Id: fmt.Append(nil, client)})
				if err != nil {
					t.Errorf("get: %v", err)
					return
				}
				if got := string(out.GetItem().GetValue()); got != want && (namespace == "standing" || got != "") {
					t.Errorf("%s answered %q", namespace, got)
					return
				}
				calls.Add(2)
			}
		})
	}
	for i := range swaps {
		config.Patterns[0].Bindings[0].Backend = fmt.Sprintf("memory-%d", 1+i%2)
		config.Limits.Concurrency = uint32(1000 + i)
		s.Namespace(config)
		p.apply(t, s)
	}
	cancel()
	wg.Wait()
	t.Logf("%d calls during %d swaps", calls.Load(), swaps)
	if calls.Load() < 1000 {
		t.Error("too few calls to prove anything")
	}
	if n := p.routes.Undrained(); n != 0 {
		t.Errorf("%d tables are still held", n)
	}
	open := p.pools.Snapshot()
	if len(open) != 2 {
		t.Errorf("pools %v, want those of the two namespaces", open)
	}
}
