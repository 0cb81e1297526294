package identity_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/prism-gateway/prism/e2e/harness"
	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"
	bootstrapv1 "github.com/prism-gateway/prism/protos/prism/bootstrap/v1"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
)

// methods are all methods of the data services, as their descriptors tell them.
func methods() (out []protoreflect.MethodDescriptor) {
	for _, file := range []protoreflect.FileDescriptor{datav1.File_prism_data_v1_keyvalue_proto, datav1.File_prism_data_v1_session_proto} {
		for n := range file.Services().Len() {
			all := file.Services().Get(n).Methods()
			for m := range all.Len() {
				out = append(out, all.Get(m))
			}
		}
	}
	return out
}

// asking is a request of a method for a namespace, and for nothing else.
func asking(m protoreflect.MethodDescriptor, namespace string) proto.Message {
	request := dynamicpb.NewMessage(m.Input())
	if !name(request, namespace, 2) {
		return nil
	}
	return request
}

// name sets the first field that is named namespace, or one of the messages in it.
func name(m protoreflect.Message, namespace string, depth int) bool {
	fields := m.Descriptor().Fields()
	if f := fields.ByName("namespace"); f != nil && f.Kind() == protoreflect.StringKind {
		m.Set(f, protoreflect.ValueOfString(namespace))
		return true
	}
	for n := range fields.Len() {
		f := fields.Get(n)
		if f.Kind() != protoreflect.MessageKind || f.IsList() || f.IsMap() || depth == 0 {
			continue
		}
		if inner := m.NewField(f).Message(); name(inner, namespace, depth-1) {
			m.Set(f, protoreflect.ValueOfMessage(inner))
			return true
		}
	}
	return false
}

// call calls a method and returns how it ended.
func call(ctx context.Context, conn *grpc.ClientConn, m protoreflect.MethodDescriptor, request proto.Message) error {
	path := "/" + string(m.Parent().FullName()) + "/" + string(m.Name())
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, path)
	if err != nil {
		return err
	}
	if err := stream.SendMsg(request); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if !m.IsStreamingClient() {
		if err := stream.CloseSend(); err != nil {
			return err
		}
	}
	return stream.RecvMsg(dynamicpb.NewMessage(m.Output()))
}

// SE-01 other_namespace_denied_each_method: who has rights in one namespace has none in another, by any method, and neither the
// store nor the provider hears of it.
func TestNoMethodReachesAnotherNamespace(t *testing.T) {
	w := start(t, 2, nil)
	orders := request("orders", "redis", path, configv1.CredentialScope_CREDENTIAL_SCOPE_PRINCIPAL)
	people := request("people", "redis", path, configv1.CredentialScope_CREDENTIAL_SCOPE_PRINCIPAL)
	people.Team, people.Access = "others", &configv1.Access{Writers: []*configv1.Principal{{Who: &configv1.Principal_Subject{Subject: "bob"}}}}
	w.Apply(t.Context(), orders)
	w.Apply(t.Context(), people)
	bob := w.as(t, w.issuer.Token(t, "bob", time.Hour, nil))
	if err := put(bob, w.Proxies[0], "people", "a"); err != nil {
		t.Fatal(err)
	}
	alice := w.forever(t, w.writer(t, "alice"))
	seen := 0
	for _, p := range w.Proxies {
		conn := w.Dial(p.Address)
		for _, m := range methods() {
			request := asking(m, "people")
			if request == nil {
				t.Errorf("%s names no namespace", m.FullName())
				continue
			}
			ctx, cancel := context.WithTimeout(alice, 10*time.Second)
			err := call(ctx, conn, m, request)
			cancel()
			if got := reason(err); got != "PERMISSION_DENIED/NAMESPACE" {
				t.Errorf("%s at %s: %s: %v", m.FullName(), p.ID, got, err)
			}
			seen++
		}
	}
	if seen < 2*18 {
		t.Errorf("only %d methods were tried", seen)
	}
	if n := w.vault.Requests(t, "database/creds/people"); n != 1 {
		t.Errorf("the provider was asked for %d credentials, want bob's only", n)
	}
	if _, err := w.Proxies[0].KeyValue.Get(bob, &datav1.GetRequest{Namespace: "people", Id: []byte("a")}); err != nil {
		t.Error(err)
	}
}

// errTold is that a stream of events said that the session has ended, and ended.
var errTold = errors.New("told")

// SE-08 expired_token_mid_stream: every stream ends with the token, and says so.
func TestStreamsEndWithTheToken(t *testing.T) {
	w := start(t, 1, func(c *bootstrapv1.ProxyConfig) {
		c.Authentication.Issuers[0].Leeway = durationpb.New(time.Second)
	})
	req := request("orders", "memory", "", 0)
	req.Auth.Vault, req.Patterns[0].Slots = nil, nil
	req.Patterns[0].Needs = &configv1.Needs{Durability: configv1.Durability_DURABILITY_NONE, Interfaces: []string{"keyvalue.watch", "keyvalue.large"}}
	w.Apply(t.Context(), req)
	p := w.Proxies[0]
	short := func() context.Context {
		return w.forever(t, w.issuer.Token(t, "alice", 3*time.Second, map[string]any{"groups": []string{"writers"}}))
	}
	if err := put(w.as(t, w.writer(t, "alice")), p, "orders", "a"); err != nil {
		t.Fatalf("%v\n%s", err, p.Log())
	}
	conn := w.Dial(p.Address)
	ends := map[string]chan error{}
	follow := func(what string, err error, next func() error) {
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		c := make(chan error, 1)
		ends[what] = c
		go func() {
			var err error
			for err == nil {
				err = next()
			}
			c <- err
		}()
	}
	watch, err := datav1.NewKeyValueClient(conn).Watch(short(), &datav1.WatchRequest{Namespace: "orders", Id: []byte("a")})
	follow("Watch", err, func() error { _, err := watch.Recv(); return err })
	events, err := datav1.NewSessionManagerClient(conn).WatchSession(short(), &datav1.WatchSessionRequest{Namespace: "orders"})
	var told datav1.SessionEvent
	follow("WatchSession", err, func() error {
		got, err := events.Recv()
		if err == nil {
			told = got.GetEvent()
		} else if errors.Is(err, io.EOF) && told == datav1.SessionEvent_SESSION_EVENT_ENDED {
			return errTold
		}
		return err
	})
	writing, err := datav1.NewKeyValueClient(conn).WriteValue(short())
	if err == nil {
		err = writing.Send(&datav1.WriteValueRequest{Put: &datav1.PutRequest{Namespace: "orders", Id: []byte("b")}})
	}
	follow("WriteValue", err, func() error {
		select {
		case <-time.After(100 * time.Millisecond):
		case <-writing.Context().Done():
		}
		err := writing.Send(&datav1.WriteValueRequest{Chunk: []byte("more")})
		if errors.Is(err, io.EOF) {
			_, err = writing.CloseAndRecv()
		}
		return err
	})
	for what, c := range ends {
		select {
		case err := <-c:
			if got := reason(err); got != "UNAUTHENTICATED/TOKEN_EXPIRED" && !errors.Is(err, errTold) {
				t.Errorf("%s ended with %s: %v", what, got, err)
			}
		case <-time.After(40 * time.Second):
			t.Errorf("%s goes on without a token that is good", what)
		}
	}
	if _, err := p.KeyValue.Get(w.as(t, w.writer(t, "alice")), &datav1.GetRequest{Namespace: "orders", Id: []byte("b")}); reason(err) != "OK" && !strings.HasPrefix(reason(err), "NOT_FOUND") {
		t.Error(err)
	}
	harness.Eventually(t, 5*time.Second, "the proxy serves on", func() error { return put(w.as(t, w.writer(t, "alice")), p, "orders", "a") })
}

// CR-23 tls_misconfigured_namespace_degraded_others_fine: a backend whose certificate is not believed, and one whose provider has no
// such path, take nothing from the namespaces beside them.
func TestABrokenNamespaceLeavesTheOthersAlone(t *testing.T) {
	w := start(t, 1, nil)
	if _, err := w.Admin().Operator.ApplyBackends(t.Context(), &adminv1.ApplyBackendsRequest{Changes: []*adminv1.BackendChange{{Backend: &configv1.Backend{
		Name: "pg-secure", Type: "postgres", Endpoints: []string{w.db.Addr()}, Config: map[string]string{"database": "postgres"},
	}}}}); err != nil {
		t.Fatal(err)
	}
	w.Apply(t.Context(), request("orders", "redis", path, configv1.CredentialScope_CREDENTIAL_SCOPE_PRINCIPAL))
	secure := request("secure", "pg-main", "vault://database/creds/orders", configv1.CredentialScope_CREDENTIAL_SCOPE_PRINCIPAL)
	secure.Patterns[0].Needs = &configv1.Needs{Durability: configv1.Durability_DURABILITY_STRONG}
	secure.Patterns[0].Slots[0].Prefer = &configv1.Preference{Backend: "pg-secure"}
	absent := request("absent", "redis", "vault://database/creds/nobody", configv1.CredentialScope_CREDENTIAL_SCOPE_PRINCIPAL)
	for _, r := range []*configv1.NamespaceRequest{secure, absent} {
		if _, err := w.Admin().Control.CreateNamespace(t.Context(), &controlv1.CreateNamespaceRequest{Request: r}); err != nil {
			t.Fatal(err)
		}
	}
	p, alice := w.Proxies[0], w.forever(t, w.writer(t, "alice"))
	wants := map[string]string{"secure": "UNAVAILABLE/BACKEND_DOWN", "absent": "UNAVAILABLE/CREDENTIALS_UNAVAILABLE"}
	for namespace, want := range wants {
		harness.Eventually(t, 20*time.Second, namespace+" is known as broken", func() error {
			ctx, cancel := context.WithTimeout(alice, 5*time.Second)
			defer cancel()
			if err := put(ctx, p, namespace, "a"); reason(err) != want {
				return fmt.Errorf("%s: %w", reason(err), err)
			}
			return nil
		})
	}
	for range 20 {
		if err := put(alice, p, "orders", "a"); err != nil {
			t.Errorf("the namespace beside them: %v", err)
		}
	}
	if err := p.Ready(); err != nil {
		t.Error(err)
	}
}
