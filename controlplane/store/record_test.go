package store_test

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	"github.com/prism-gateway/prism/controlplane/store"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
)

// TestOneChangeOfTenThousandNamespaces takes what the API lets through at most, with the longest names and notes: the
// history tells all of it, to other replicas too.
func TestOneChangeOfTenThousandNamespaces(t *testing.T) {
	const many = 10_000
	a, b := open(t, store.Config{Timeout: 10 * time.Second, Policies: release.Policies{Scoped: &configv1.ReleasePolicy{}}}), open(t, store.Config{})
	author, message := strings.Repeat("a", 256), strings.Repeat("m", 4096)
	for version, content := range []string{"1", "2"} { // what updates has two hashes for each
		sets := make([]snapshot.Set, many)
		for i := range sets {
			sets[i] = namespace(t, fmt.Sprintf("orders-%05d-%s", i, strings.Repeat("x", 50)), content)
			sets[i].Author, sets[i].Message, sets[i].RequestID = author, message, "request-"+content
			sets[i].TraceParent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
		}
		sets[many-1].Author, sets[many-1].Message, sets[many-1].RequestID = "", "", ""
		sets[many-2].Message = "another"
		if c := commit(t, a, sets...); c.Snapshot.Version != uint64(version+1) {
			t.Fatalf("version %d, want %d", c.Snapshot.Version, version+1)
		}
	}
	wait(t, b.Store, func(tree *snapshot.Tree) bool { return tree.Version() == 2 })
	own, err := a.Snapshot(t.Context(), 2)
	if err != nil {
		t.Fatal(err)
	}
	followed, err := b.Snapshot(t.Context(), 2)
	if err != nil {
		t.Fatal(err)
	}
	history, err := b.Snapshots(t.Context(), 0, 2)
	if err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(own, followed) || !proto.Equal(own, history[0]) {
		t.Error("replicas tell different histories")
	}
	for i, c := range own.GetChanges() {
		wantAuthor, wantMessage, wantRequest := author, message, "request-2"
		switch i {
		case many - 1:
			wantAuthor, wantMessage, wantRequest = "", "", ""
		case many - 2:
			wantMessage = "another"
		}
		if c.GetAuthor() != wantAuthor || c.GetMessage() != wantMessage || c.GetRequestId() != wantRequest || c.GetSameNote() ||
			c.GetTraceParent() == "" || !c.GetInRelease() {
			t.Fatalf("change %d is by %.20q of %.20q because of %.20q", i, c.GetAuthor(), c.GetRequestId(), c.GetMessage())
		}
	}
	if got := len(own.GetChanges()); got != many {
		t.Errorf("%d changes are told", got)
	}
}

// TestMuchIsGivenMoreTime holds the requests of commits against the time that they are given: those that are large have
// more than one write may take, all others have no more.
func TestMuchIsGivenMoreTime(t *testing.T) {
	const timeout, large = time.Minute, 128 << 10
	var mu sync.Mutex                                             // guards all below
	most, least := time.Duration(0), time.Duration(math.MaxInt64) // that small requests have, and large ones
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{etcd.Endpoint()}, DialOptions: []grpc.DialOption{
		grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, in, out any, conn *grpc.ClientConn, call grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			if txn, ok := in.(*pb.TxnRequest); ok && slices.ContainsFunc(txn.Success, func(op *pb.RequestOp) bool { return op.GetRequestPut() != nil }) {
				deadline, _ := ctx.Deadline()
				left := time.Until(deadline)
				mu.Lock()
				if proto.Size(txn) > large {
					least = min(least, left)
				} else {
					most = max(most, left)
				}
				mu.Unlock()
			}
			return call(ctx, method, in, out, conn, opts...)
		}),
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	s := open(t, store.Config{Client: client, Timeout: timeout})
	mu.Lock()
	most = 0 // what creates an installation is given more
	mu.Unlock()
	commit(t, s, namespace(t, "orders", "1"))
	var sets []snapshot.Set
	for i := range 9 { // more than one request
		sets = append(sets, namespace(t, fmt.Sprintf("orders-%d", i), strings.Repeat("x", 400<<10)))
	}
	commit(t, s, sets...)
	commit(t, s, namespace(t, "carts", strings.Repeat("x", 2*large)))
	mu.Lock()
	defer mu.Unlock()
	if most <= 0 || most > timeout || least <= timeout || least > 5*timeout {
		t.Errorf("small requests have up to %v, large ones at least %v", most, least)
	}
}
