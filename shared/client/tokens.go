package client

import (
	"context"
	"crypto/rand"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/fault/faultgrpc"
)

const (
	offersKept     = 5 * time.Minute
	offersCached   = 10_000 // namespaces
	idempotencyKey = "keyvalue.idempotency"
)

// tokens knows which namespaces take idempotency tokens.
type tokens struct {
	// mu guards known.
	mu    sync.Mutex
	known map[string]offer
}

// offer is what is known of a namespace.
type offer struct {
	taken bool
	until time.Time
}

// give returns a write with a token of its own when its namespace takes them; own tells whether it did.
func (t *tokens) give(ctx context.Context, r *router, args any) (_ any, own bool) {
	write, ok := args.(interface {
		proto.Message
		GetNamespace() string
		GetToken() *datav1.IdempotencyToken
	})
	if !ok || write.GetToken() != nil || !t.taken(ctx, r, write.GetNamespace()) {
		return args, false
	}
	token := &datav1.IdempotencyToken{Nonce: make([]byte, 16), MadeAt: timestamppb.Now()}
	rand.Read(token.Nonce)
	return with(write, "token", protoreflect.ValueOfMessage(token.ProtoReflect())), true
}

// taken asks once in a while what a namespace offers.
func (t *tokens) taken(ctx context.Context, r *router, namespace string) bool {
	now := time.Now()
	t.mu.Lock()
	o, ok := t.known[namespace]
	t.mu.Unlock()
	if ok && now.Before(o.until) {
		return o.taken
	}
	var out datav1.DescribeResponse
	err := r.invoke(ctx, datav1.KeyValue_Describe_FullMethodName, &datav1.DescribeRequest{Namespace: namespace}, &out, nil)
	o = offer{until: now.Add(failureKept)} // the write itself tells what is wrong
	if err == nil {
		o.until = now.Add(offersKept)
		for _, name := range out.GetInterfaces() {
			o.taken = o.taken || name == idempotencyKey
		}
	}
	t.keep(namespace, o)
	return o.taken
}

func (t *tokens) keep(namespace string, o offer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.known == nil || len(t.known) >= offersCached {
		t.known = map[string]offer{}
	}
	t.known[namespace] = o
}

// refused reports whether a write failed for its token's sake only: the namespace takes none any more, or the clocks of
// this machine and the proxies differ. None is made for a while then.
func (t *tokens) refused(namespace string, err error) bool {
	if err == nil {
		return false
	}
	f := faultgrpc.FromStatus(err)
	if f.Reason != fault.TokenClock && f.Reason != fault.InterfaceMissing {
		return false
	}
	t.keep(namespace, offer{until: time.Now().Add(offersKept)})
	return true
}
