package dataapi_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/prism-gateway/prism/dataplane/assembly/statetest"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/client"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/fault/faultgrpc"
)

// served is a proxy with a namespace in memory, orders, that offers everything, and another, plain, that offers items only.
type served struct {
	*proxy
	state  *statetest.Builder
	orders *configv1.NamespaceConfig
}

func serveOrders(t *testing.T) *served {
	t.Helper()
	s := &served{proxy: startProxy(t, "0", nil)}
	s.state = statetest.New(t, 8, s.member("0"))
	for _, name := range []string{"memory-1", "memory-2"} {
		s.state.Backend(&configv1.Backend{Name: name, Type: "memory"})
	}
	s.orders = statetest.KeyValue("orders", "memory-1", "memory")
	s.orders.Patterns[0].Interfaces = offeredBy(t, "memory")
	s.state.Namespace(s.orders)
	plain := statetest.KeyValue("plain", "memory-1", "memory")
	plain.Patterns[0].Interfaces = []string{"keyvalue"}
	s.state.Namespace(plain)
	s.apply(t, s.state)
	return s
}

// dial makes a client of the proxy, whose calls go through what a test puts in between.
func (s *served) dial(t *testing.T, options ...grpc.DialOption) *client.Client {
	t.Helper()
	c, err := client.Dial(client.Config{Endpoints: []string{s.address}, Options: options})
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

// lossy loses the answers of the first calls of a method, after the proxy has done them, and counts the calls.
type lossy struct {
	method string
	lose   int
	change func(req any) // before it is sent

	mu    sync.Mutex
	calls int
}

func (l *lossy) option() grpc.DialOption {
	return grpc.WithUnaryInterceptor(func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		if !strings.HasSuffix(method, l.method) {
			return invoke(ctx, method, req, reply, conn, opts...)
		}
		if l.change != nil {
			l.change(req)
		}
		err := invoke(ctx, method, req, reply, conn, opts...)
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.calls++; err == nil && l.calls <= l.lose {
			return status.Error(codes.Unavailable, "the answer is lost")
		}
		return err
	})
}

// TestClientGivesWritesTokens loses the answer of a write: it is done once where the namespace takes tokens, and its outcome
// is left to the caller where it does not.
func TestClientGivesWritesTokens(t *testing.T) {
	s := serveOrders(t)
	l := &lossy{method: "/Increment", lose: 2}
	c := s.dial(t, l.option())
	add := &datav1.IncrementRequest{Namespace: "orders", Id: []byte("a"), Delta: 5}
	out, err := c.KeyValue.Increment(t.Context(), add)
	if err != nil || out.GetValue() != 5 || !out.GetDuplicate() || l.calls != 3 {
		t.Errorf("got %v, %v after %d calls", out, err, l.calls)
	}
	if add.GetToken() != nil {
		t.Error("the caller's request was changed")
	}
	if out, err := c.KeyValue.Increment(t.Context(), add); err != nil || out.GetValue() != 10 {
		t.Errorf("a second call: %v, %v", out, err)
	}
	l = &lossy{method: "/Put", lose: 1}
	_, err = s.dial(t, l.option()).KeyValue.Put(t.Context(), &datav1.PutRequest{Namespace: "plain", Id: []byte("a"), Value: []byte("v")})
	if status.Code(err) != codes.Unavailable || l.calls != 1 {
		t.Errorf("without tokens: %v after %d calls", err, l.calls)
	}
}

// TestClientWhoseClockIsWrong gives tokens of another time, which proxies refuse: the writes are done without.
func TestClientWhoseClockIsWrong(t *testing.T) {
	tokens := 0
	l := &lossy{method: "/Put", change: func(req any) {
		if token := req.(*datav1.PutRequest).GetToken(); token != nil {
			tokens++
			token.MadeAt = timestamppb.New(token.GetMadeAt().AsTime().AddDate(1, 0, 0))
		}
	}}
	s := serveOrders(t)
	c := s.dial(t, l.option())
	for n := range 3 {
		if _, err := c.KeyValue.Put(t.Context(), &datav1.PutRequest{Namespace: "orders", Id: []byte("a"), Value: []byte{byte(n)}}); err != nil {
			t.Fatal(err)
		}
	}
	if tokens != 1 || l.calls != 4 {
		t.Errorf("%d tokens in %d calls, want 1 in 4", tokens, l.calls)
	}
}

// TestClientWatchGoesOn watches through a move of the namespace to another store, and through a cut connection.
func TestClientWatchGoesOn(t *testing.T) {
	s := serveOrders(t)
	c := s.dial(t)
	put := func(key string) {
		t.Helper()
		if _, err := c.KeyValue.Put(t.Context(), &datav1.PutRequest{Namespace: "orders", Id: []byte("a"), Key: []byte(key)}); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	put("before")
	var got []string
	for e, err := range c.Watch(ctx, &datav1.WatchRequest{Namespace: "orders", Id: []byte("a"), StartVersion: []byte("none")}) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%s %s", strings.TrimPrefix(e.GetKind().String(), "WATCH_KIND_"), e.GetItem().GetKey()))
		switch len(got) {
		case 1:
			put("1")
		case 2:
			put("2")
		case 3:
			s.orders.Patterns[0].Bindings[0].Backend = "memory-2"
			s.state.Namespace(s.orders)
			s.apply(t, s.state)
		case 4: // what the other store knows of the last change is nothing
			put("3")
		case 5:
			cancel()
		}
	}
	if want := "RESYNC , PUT 1, PUT 2, RESYNC , PUT 3"; strings.Join(got, ", ") != want {
		t.Errorf("got %q, want %q", strings.Join(got, ", "), want)
	}
	for e, err := range c.Watch(t.Context(), &datav1.WatchRequest{Namespace: "nobodys", Id: []byte("a")}) {
		if e != nil || status.Code(err) != codes.NotFound {
			t.Errorf("a namespace that is not there: %v, %v", e, err)
		}
	}
	for range c.Watch(ctx, &datav1.WatchRequest{Namespace: "orders", Id: []byte("a")}) {
		t.Error("a watch whose context has ended yields something")
	}
}

// breaking ends the first streams of a method after some messages.
func breaking(method string, streams, after int) grpc.DialOption {
	return grpc.WithStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, full string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
		stream, err := open(ctx, desc, conn, full, opts...)
		if err != nil || !strings.HasSuffix(full, method) || streams == 0 {
			return stream, err
		}
		streams--
		return &broken{stream, after}, nil
	})
}

type broken struct {
	grpc.ClientStream
	left int
}

// RecvMsg receives until the connection breaks.
func (b *broken) RecvMsg(m any) error {
	if b.left == 0 {
		return status.Error(codes.Unavailable, "the connection broke")
	}
	b.left--
	return b.ClientStream.RecvMsg(m)
}

func TestClientReadsAndWritesLargeValues(t *testing.T) {
	s := serveOrders(t)
	c := s.dial(t, breaking("/ReadValue", 3, 4))
	value := make([]byte, 5<<20+17)
	for n := range value {
		value[n] = byte(rand.Uint32())
	}
	put := &datav1.PutRequest{Namespace: "orders", Id: []byte("a"), ContentType: "video/mp4"}
	get := &datav1.ReadValueRequest{Namespace: "orders", Id: []byte("a")}
	if v, err := c.ReadValue(t.Context(), get); v != nil || err != nil {
		t.Errorf("before it is written: %v, %v", v, err)
	}
	if _, err := c.WriteValue(t.Context(), put, bytes.NewReader(value)); err != nil {
		t.Fatal(err)
	}
	v, err := c.ReadValue(t.Context(), get)
	if err != nil || v.Size != uint64(len(value)) || v.Item.GetContentType() != "video/mp4" {
		t.Fatalf("got %+v, %v", v, err)
	}
	if got, err := io.ReadAll(v); err != nil || !bytes.Equal(got, value) {
		t.Errorf("read %d of %d bytes over broken streams, %v", len(got), len(value), err)
	}
	v.Close()
	// One that is replaced while it is read is not put together of two.
	c = s.dial(t, breaking("/ReadValue", 1, 4))
	if v, err = c.ReadValue(t.Context(), get); err != nil {
		t.Fatal(err)
	}
	if _, err := c.WriteValue(t.Context(), put, bytes.NewReader(value[:3<<20])); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(v); faultgrpc.FromStatus(err).Reason != fault.VersionMismatch {
		t.Errorf("a replaced value: %v", err)
	}
	v.Close()
	// A reader that fails writes nothing.
	oops := errors.New("the disk is gone")
	if _, err := c.WriteValue(t.Context(), put, io.MultiReader(bytes.NewReader(value[:1<<20]), iotest.ErrReader(oops))); !errors.Is(err, oops) {
		t.Errorf("a reader that fails: %v", err)
	}
	if v, err = c.ReadValue(t.Context(), get); err != nil || v.Size != 3<<20 {
		t.Errorf("after a reader that failed: %+v, %v", v, err)
	}
	v.Close()
}

// TestSessionSendsWhatItHasSeen looks at the reads of a session after a write, whose answer is made to be that of a
// namespace with a cache.
func TestSessionSendsWhatItHasSeen(t *testing.T) {
	s := serveOrders(t)
	token := func(at byte) []byte { return []byte{1, 0, 0, 0, 0, 0, 0, 0, at} }
	var sent [][]byte
	session := s.dial(t, grpc.WithUnaryInterceptor(
		func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			if read, ok := req.(*datav1.GetRequest); ok {
				sent = append(sent, read.GetAtLeast())
			}
			err := invoke(ctx, method, req, reply, conn, opts...)
			if written, ok := reply.(*datav1.PutResponse); ok {
				written.CommitToken = token(7)
			}
			return err
		})).Session()
	get := &datav1.GetRequest{Namespace: "orders", Id: []byte("a")}
	read := func() {
		t.Helper()
		if _, err := session.KeyValue.Get(t.Context(), get); err != nil {
			t.Fatal(err)
		}
	}
	read()
	if _, err := session.KeyValue.Put(t.Context(), &datav1.PutRequest{Namespace: "orders", Id: []byte("a"), Value: []byte("v")}); err != nil {
		t.Fatal(err)
	}
	read()
	session.Saw("orders", token(6))
	read()
	session.Saw("orders", token(8))
	read()
	for n, want := range [][]byte{nil, token(7), token(7), token(8)} {
		if !bytes.Equal(sent[n], want) {
			t.Errorf("read %d had %x, want %x", n, sent[n], want)
		}
	}
	if get.GetAtLeast() != nil || session.Seen("plain") != nil {
		t.Errorf("the caller's request is %v; of another namespace %x is seen", get, session.Seen("plain"))
	}
}
