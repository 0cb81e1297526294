package client

import (
	"bytes"
	"context"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
)

// Session calls the data services and reads its own writes, also where a namespace may answer from a cache: it remembers
// the newest commit token of each namespace that it wrote to, and sends it with reads. It is safe for concurrent use; a
// read sees the writes that were acknowledged before it began. Its client closes the connections.
type Session struct {
	// KeyValue is the key-value service. A stream of WriteValue is not seen; give its commit token to Saw.
	KeyValue datav1.KeyValueClient

	// mu guards seen, by namespace.
	mu   sync.Mutex
	seen map[string][]byte
}

// Session begins a session.
func (c *Client) Session() *Session { return newSession(c.router) }

func newSession(conn grpc.ClientConnInterface) *Session {
	s := &Session{seen: map[string][]byte{}}
	s.KeyValue = datav1.NewKeyValueClient(sessionConn{conn, s})
	return s
}

// Seen returns the newest commit token of a namespace, so that a session elsewhere can go on with it; nil before a write.
func (s *Session) Seen(namespace string) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen[namespace]
}

// Saw notes a commit token that something else got, so that reads see that write.
func (s *Session) Saw(namespace string, commitToken []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if bytes.Compare(commitToken, s.seen[namespace]) > 0 { // the greater covers both
		s.seen[namespace] = commitToken
	}
}

// sessionConn adds commit tokens to reads and takes them from answers.
type sessionConn struct {
	grpc.ClientConnInterface
	session *Session
}

// Invoke does one unary call.
func (c sessionConn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	namespace := namespaceOf(args)
	if read, ok := args.(interface {
		proto.Message
		GetAtLeast() []byte
	}); ok && len(read.GetAtLeast()) == 0 {
		if token := c.session.Seen(namespace); len(token) > 0 {
			args = with(read, "at_least", protoreflect.ValueOfBytes(token))
		}
	}
	err := c.ClientConnInterface.Invoke(ctx, method, args, reply, opts...)
	if written, ok := reply.(interface{ GetCommitToken() []byte }); ok && err == nil {
		c.session.Saw(namespace, written.GetCommitToken())
	}
	return err
}

// with is a copy of a message with a field set. It shares the other fields' values: the message is its caller's.
func with(m proto.Message, field protoreflect.Name, value protoreflect.Value) proto.Message {
	from := m.ProtoReflect()
	to := from.New()
	from.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		to.Set(f, v)
		return true
	})
	to.Set(from.Descriptor().Fields().ByName(field), value)
	return to.Interface()
}
