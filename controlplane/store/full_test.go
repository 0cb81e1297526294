package store_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/store"
	"github.com/prism-gateway/prism/controlplane/store/embedded"
	"github.com/prism-gateway/prism/shared/fault"
)

// answering is a client of the shared etcd some of whose transactions are answered as etcd would under load, once armed.
func answering(t *testing.T, answer func(do func() error) error) (client *clientv3.Client, armed *atomic.Bool) {
	t.Helper()
	armed = &atomic.Bool{}
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{etcd.Endpoint()}, DialOptions: []grpc.DialOption{
		grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			do := func() error { return invoke(ctx, method, req, reply, conn, opts...) }
			if !strings.HasSuffix(method, "/Txn") || !armed.Load() {
				return do()
			}
			return answer(do)
		}),
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client, armed
}

// TestFullEtcdIsTold fills a real etcd: the change that finds no room says so, and was not made.
func TestFullEtcdIsTold(t *testing.T) {
	server, err := embedded.Start(embedded.Config{Dir: t.TempDir(), Quota: 4 << 20, Volatile: true, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	s := open(t, store.Config{Client: dial(t, server.Endpoint())})
	for i := 0; ; i++ {
		version := s.Head().Version()
		_, err := s.Commit(t.Context(), release.Order{}, edit(namespace(t, "accounts", strings.Repeat(string(rune('a'+i)), 512<<10))))
		if err == nil && i < 20 {
			continue
		}
		if f := fault.From(err); err == nil || f.Code != fault.Exhausted || f.Reason != fault.StoreDown || f.Outcome != fault.NotApplied ||
			!strings.Contains(f.Text, "docs/operating.md") {
			t.Errorf("change %d: %v, want RESOURCE_EXHAUSTED that was not applied and says where to read on", i, err)
		}
		if got := s.Head().Version(); got != version {
			t.Errorf("head is snapshot %d after the refusal, want %d", got, version)
		}
		return
	}
}

// TestChangeThatFillsEtcdWasMade answers as etcd does for the transaction that fills it: done, and told that there is no room.
func TestChangeThatFillsEtcdWasMade(t *testing.T) {
	var filled atomic.Bool
	client, armed := answering(t, func(do func() error) error {
		if err := do(); err != nil || filled.Swap(true) {
			return err
		}
		return rpctypes.ErrGRPCNoSpace
	})
	s := open(t, store.Config{Client: client})
	armed.Store(true)
	made := commit(t, s, namespace(t, "accounts", "1"))
	if !filled.Load() || made.Tree.Version() != 1 {
		t.Errorf("snapshot %d, filled %v; want the first snapshot, acknowledged", made.Tree.Version(), filled.Load())
	}
}

// TestBusyEtcdIsAskedAgain answers that there are too many requests a few times before etcd is asked.
func TestBusyEtcdIsAskedAgain(t *testing.T) {
	const times = 3
	var refused atomic.Int32
	client, armed := answering(t, func(do func() error) error {
		if refused.Add(1) <= times {
			return rpctypes.ErrGRPCRequestTooManyRequests
		}
		return do()
	})
	s := open(t, store.Config{Client: client})
	armed.Store(true)
	made := commit(t, s, namespace(t, "accounts", "1"))
	if refused.Load() <= times || made.Tree.Version() != 1 {
		t.Errorf("snapshot %d after %d requests, want the first after more than %d", made.Tree.Version(), refused.Load(), times)
	}
}
