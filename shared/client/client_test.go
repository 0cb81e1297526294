package client_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/client"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/fault/faultgrpc"
	"github.com/prism-gateway/prism/shared/ident"
)

// proxy is a real server whose answers a test decides.
type proxy struct {
	datav1.UnimplementedKeyValueServer
	adminv1.UnimplementedAdminServiceServer
	address string

	mu     sync.Mutex
	calls  int
	fails  []error // of the next calls, in order; then all succeed
	owners []string
}

func (p *proxy) next() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls++
	if len(p.fails) == 0 {
		return nil
	}
	err := p.fails[0]
	p.fails = p.fails[1:]
	return err
}

func (p *proxy) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.calls
}

func (p *proxy) Get(context.Context, *datav1.GetRequest) (*datav1.GetResponse, error) {
	return &datav1.GetResponse{Item: &datav1.Item{Value: []byte(p.address)}}, p.next()
}

func (p *proxy) Put(context.Context, *datav1.PutRequest) (*datav1.PutResponse, error) {
	return &datav1.PutResponse{}, p.next()
}

func (p *proxy) Watch(_ *datav1.WatchRequest, stream grpc.ServerStreamingServer[datav1.WatchResponse]) error {
	if err := p.next(); err != nil {
		return err
	}
	return stream.Send(&datav1.WatchResponse{Events: []*datav1.WatchEvent{{Item: &datav1.Item{Value: []byte(p.address)}}}})
}

func (p *proxy) GetOwners(context.Context, *adminv1.GetOwnersRequest) (*adminv1.GetOwnersResponse, error) {
	if err := p.next(); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	resp := &adminv1.GetOwnersResponse{}
	for _, o := range p.owners {
		resp.Owners = append(resp.Owners, &configv1.Member{Address: o})
	}
	return resp, nil
}

func serve(t *testing.T, fails ...error) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{address: l.Addr().String(), fails: fails}
	s := grpc.NewServer(grpc.UnaryInterceptor(faultgrpc.Unary(slog.New(slog.DiscardHandler))), grpc.StreamInterceptor(faultgrpc.Stream(slog.New(slog.DiscardHandler))))
	datav1.RegisterKeyValueServer(s, p)
	adminv1.RegisterAdminServiceServer(s, p)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil && !errors.Is(err, grpc.ErrServerStopped) { // stopped before it served
			t.Error(err)
		}
	})
	return p
}

// nobody returns an address where nothing listens.
func nobody(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func dial(t *testing.T, cfg client.Config) *client.Client {
	t.Helper()
	c, err := client.Dial(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func TestRepeatsWhatIsSafe(t *testing.T) {
	down := fault.New(fault.Unavailable, fault.BackendDown, "the backend did not answer")
	get := func(ctx context.Context, kv datav1.KeyValueClient) error {
		_, err := kv.Get(ctx, &datav1.GetRequest{Namespace: "abc"})
		return err
	}
	put := func(ctx context.Context, kv datav1.KeyValueClient) error {
		_, err := kv.Put(ctx, &datav1.PutRequest{Namespace: "abc"})
		return err
	}
	putWithToken := func(ctx context.Context, kv datav1.KeyValueClient) error {
		_, err := kv.Put(ctx, &datav1.PutRequest{Namespace: "abc", Token: &datav1.IdempotencyToken{Nonce: make([]byte, 16)}})
		return err
	}
	for name, tc := range map[string]struct {
		call  func(context.Context, datav1.KeyValueClient) error
		fails []error
		calls int
		want  fault.Code // 0: success
	}{
		"a read after no answer":                  {get, []error{down}, 2, 0},
		"a read until the attempts are used up":   {get, []error{down, down, down, down}, 3, fault.Unavailable},
		"no read after a refusal":                 {get, []error{fault.New(fault.NotFound, fault.Namespace, "no")}, 1, fault.NotFound},
		"a write that was not applied":            {put, []error{down.WithOutcome(fault.NotApplied)}, 2, 0},
		"no write whose outcome is unknown":       {put, []error{down.WithOutcome(fault.OutcomeUnknown)}, 1, fault.Unavailable},
		"no write of which nothing is told":       {put, []error{down}, 1, fault.Unavailable},
		"a write of unknown outcome with a token": {putWithToken, []error{down.WithOutcome(fault.OutcomeUnknown)}, 2, 0},
		"a refusal by limit that says when": {put, []error{
			fault.New(fault.Exhausted, fault.Rate, "slower").WithOutcome(fault.NotApplied).WithRetry(time.Millisecond)}, 2, 0},
		"no refusal by limit that says not when": {get, []error{fault.New(fault.Exhausted, fault.Rate, "slower")}, 1, fault.Exhausted},
		"no refusal that says much later":        {get, []error{down.WithRetry(time.Hour)}, 1, fault.Unavailable},
		"transactions that met": {put, []error{
			fault.New(fault.Conflict, fault.TxConflict, "met").WithOutcome(fault.NotApplied)}, 2, 0},
	} {
		t.Run(name, func(t *testing.T) {
			p := serve(t, tc.fails...)
			c := dial(t, client.Config{Endpoints: []string{p.address}, Attempts: 3, MaxBackoff: 10 * time.Millisecond})
			err := tc.call(t.Context(), c.KeyValue)
			if f := faultgrpc.FromStatus(err); (f == nil) != (tc.want == 0) || f != nil && f.Code != tc.want {
				t.Errorf("got %v, want %v", err, codes.Code(tc.want))
			}
			if p.count() != tc.calls {
				t.Errorf("%d calls, want %d", p.count(), tc.calls)
			}
		})
	}
}

func TestAWriteThatWasNotSentGoesToTheNextEndpoint(t *testing.T) {
	p := serve(t)
	c := dial(t, client.Config{Endpoints: []string{nobody(t), p.address}})
	for range 4 { // every endpoint has its turn as the first
		if _, err := c.KeyValue.Put(t.Context(), &datav1.PutRequest{Namespace: "abc"}); err != nil {
			t.Fatal(err)
		}
	}
	if p.count() != 4 {
		t.Errorf("%d calls, want 4", p.count())
	}
}

// TestARepeatDoesNotComeBeforeItIsWanted has a proxy say several times after how long to come again.
func TestARepeatDoesNotComeBeforeItIsWanted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slower := fault.New(fault.Exhausted, fault.Rate, "slower").WithOutcome(fault.NotApplied).WithRetry(time.Second)
		p := &proxy{fails: []error{slower, slower, slower, slower, slower, slower, slower}}
		var calls []time.Time
		l := bufconn.Listen(1 << 16)
		s := grpc.NewServer(grpc.ChainUnaryInterceptor(faultgrpc.Unary(slog.New(slog.DiscardHandler)),
			func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
				calls = append(calls, time.Now())
				return next(ctx, req)
			}))
		datav1.RegisterKeyValueServer(s, p)
		var serving sync.WaitGroup
		serving.Go(func() { _ = s.Serve(l) })
		defer serving.Wait()
		defer s.Stop()
		c := dial(t, client.Config{Endpoints: []string{"127.0.0.1:1"}, Attempts: 8, Options: []grpc.DialOption{
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }),
		}})
		if _, err := c.KeyValue.Get(t.Context(), &datav1.GetRequest{Namespace: "abc"}); err != nil {
			t.Fatal(err)
		}
		for i, at := range calls[1:] {
			if waited := at.Sub(calls[i]); waited < time.Second || waited > 2*time.Second {
				t.Errorf("repeat %d after %v, want a second and a little", i+1, waited)
			}
		}
		if len(calls) != 8 {
			t.Errorf("%d calls, want 8", len(calls))
		}
	})
}

// TestTheLastAnswerCountsWhenTheTimeIsOver has a repeat outlive the caller's patience.
func TestTheLastAnswerCountsWhenTheTimeIsOver(t *testing.T) {
	for name, tc := range map[string]struct {
		call func(context.Context, datav1.KeyValueClient) error
		want fault.Code
	}{
		"of a read": {func(ctx context.Context, kv datav1.KeyValueClient) error {
			_, err := kv.Get(ctx, &datav1.GetRequest{Namespace: "abc"})
			return err
		}, fault.Unavailable},
		"but not of a write, which may have been done since": {func(ctx context.Context, kv datav1.KeyValueClient) error {
			_, err := kv.Put(ctx, &datav1.PutRequest{Namespace: "abc"})
			return err
		}, fault.DeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &proxy{fails: []error{fault.New(fault.Unavailable, fault.StoreDown, "the store does not answer").WithOutcome(fault.NotApplied)}}
				l := bufconn.Listen(1 << 16)
				s := grpc.NewServer(grpc.ChainUnaryInterceptor(faultgrpc.Unary(slog.New(slog.DiscardHandler)),
					func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
						if p.count() > 0 {
							<-ctx.Done()
						}
						return next(ctx, req)
					}))
				datav1.RegisterKeyValueServer(s, p)
				var serving sync.WaitGroup
				serving.Go(func() { _ = s.Serve(l) })
				defer serving.Wait()
				defer s.Stop()
				c := dial(t, client.Config{Endpoints: []string{"127.0.0.1:1"}, Options: []grpc.DialOption{
					grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }),
				}})
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				if err := tc.call(ctx, c.KeyValue); faultgrpc.FromStatus(err).Code != tc.want {
					t.Errorf("got %v, want %v", err, tc.want)
				}
			})
		})
	}
}

func TestRepeatsAreBoundedByABudget(t *testing.T) {
	down := fault.New(fault.Unavailable, fault.BackendDown, "down")
	var fails []error
	for range 100 {
		fails = append(fails, down)
	}
	p := serve(t, fails...)
	c := dial(t, client.Config{Endpoints: []string{p.address}, MaxBackoff: time.Millisecond})
	for range 20 {
		if _, err := c.KeyValue.Get(t.Context(), &datav1.GetRequest{Namespace: "abc"}); err == nil {
			t.Fatal("no failure")
		}
	}
	if p.count() != 30 {
		t.Errorf("%d calls for 20 of the caller, want 30", p.count())
	}
}

func TestCallsGoToTheOwners(t *testing.T) {
	first, second, entry := serve(t), serve(t), serve(t)
	admin := serve(t)
	admin.owners = []string{first.address, second.address}
	control, err := client.DialControl(client.Config{Endpoints: []string{admin.address}})
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()
	c := dial(t, client.Config{Endpoints: []string{entry.address}, Owners: client.OwnersFromAdmin(control.Admin), MaxBackoff: time.Millisecond})
	get := func() string {
		t.Helper()
		resp, err := c.KeyValue.Get(t.Context(), &datav1.GetRequest{Namespace: "abc"})
		if err != nil {
			t.Fatal(err)
		}
		return string(resp.GetItem().GetValue())
	}
	if got := get() + get(); got != first.address+first.address || admin.count() != 1 {
		t.Errorf("went to %s after asking %d times, want %s twice and 1", got, admin.count(), first.address)
	}
	first.mu.Lock()
	first.fails = []error{fault.New(fault.Unavailable, fault.NotOwner, "moved away")}
	first.mu.Unlock()
	if got := get(); got != second.address {
		t.Errorf("went to %s, want the second owner %s", got, second.address)
	}
	admin.mu.Lock()
	admin.owners = []string{second.address}
	admin.mu.Unlock()
	if got := get(); got != second.address || admin.count() != 2 {
		t.Errorf("went to %s after asking %d times, want the new owner %s and 2", got, admin.count(), second.address)
	}
}

func TestWithoutKnownOwnersAnyProxyServes(t *testing.T) {
	p := serve(t)
	broken := func(context.Context, string) ([]string, error) { return nil, errors.New("no control plane") }
	c := dial(t, client.Config{Endpoints: []string{p.address}, Owners: broken})
	if _, err := c.KeyValue.Get(t.Context(), &datav1.GetRequest{Namespace: "abc"}); err != nil {
		t.Error(err)
	}
}

func TestOwnersOfAnAssignment(t *testing.T) {
	a := &configv1.Assignment{Members: []*configv1.Member{{Address: "a:1"}, {Address: "b:1"}}}
	for range 32 {
		a.Partitions = append(a.Partitions, &configv1.PartitionOwners{Owners: []uint32{0}})
	}
	a.Partitions[ident.PartitionOf("orders", 32)].Owners = []uint32{1, 0}
	latest := func(context.Context) (*configv1.Assignment, error) { return a, nil }
	got, err := client.OwnersFromAssignment(latest)(t.Context(), "orders")
	if err != nil || len(got) != 2 || got[0] != "b:1" {
		t.Errorf("got %v, %v", got, err)
	}
	a.Partitions[ident.PartitionOf("orders", 32)].Owners = []uint32{7}
	if _, err := client.OwnersFromAssignment(latest)(t.Context(), "orders"); err == nil {
		t.Error("an owner that is no member was found")
	}
	if _, err := client.OwnersFromAssignment(func(context.Context) (*configv1.Assignment, error) { return &configv1.Assignment{}, nil })(t.Context(), "orders"); err == nil {
		t.Error("an empty assignment has owners")
	}
}

func TestStreamsOpenAndTellTheirError(t *testing.T) {
	p := serve(t, nil, fault.New(fault.NotFound, fault.Namespace, "no"))
	c := dial(t, client.Config{Endpoints: []string{p.address}})
	for i, want := range []fault.Code{0, fault.NotFound} {
		stream, err := c.KeyValue.Watch(t.Context(), &datav1.WatchRequest{Namespace: "abc"})
		if err != nil {
			t.Fatal(err)
		}
		resp, err := stream.Recv()
		if f := faultgrpc.FromStatus(err); want == 0 && len(resp.GetEvents()) != 1 || want != 0 && (f == nil || f.Code != want) {
			t.Errorf("%d: %v, %v", i, resp, err)
		}
	}
}

func TestAClosedClientSaysSo(t *testing.T) {
	p := serve(t)
	c, err := client.Dial(client.Config{Endpoints: []string{p.address}})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.KeyValue.Get(t.Context(), &datav1.GetRequest{}); status.Code(err) != codes.Canceled {
		t.Errorf("got %v", err)
	}
	if _, err := c.KeyValue.Watch(t.Context(), &datav1.WatchRequest{}); status.Code(err) != codes.Canceled {
		t.Errorf("got %v", err)
	}
}

func TestTheControlPlaneMayAnswerMuch(t *testing.T) {
	p := serve(t)
	for range 100_000 {
		p.owners = append(p.owners, "proxy-1.fleet.prism.svc.cluster.local:8980")
	}
	c, err := client.DialControl(client.Config{Endpoints: []string{p.address}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	out, err := c.Admin.GetOwners(t.Context(), &adminv1.GetOwnersRequest{Namespace: "abc"})
	if err != nil || len(out.GetOwners()) != 100_000 {
		t.Errorf("%d owners, %v", len(out.GetOwners()), err)
	}
}

func TestEndpointsAreChecked(t *testing.T) {
	for _, endpoints := range [][]string{nil, {"localhost"}, {"http://a:1"}, {":8980"}} {
		if _, err := client.Dial(client.Config{Endpoints: endpoints}); err == nil {
			t.Errorf("%q was taken", endpoints)
		}
	}
}
