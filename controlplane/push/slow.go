package push

import (
	"context"
	"net"
	"runtime"
	"sync"
	"time"
	"weak"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"
)

const (
	// slowAfter is for how long a response may not be acknowledged before its stream is called slow.
	slowAfter = 5 * time.Second
	// leaveTime is how long streams have to end when the server stops. A client that does not read what it is sent
	// would keep its stream for ever.
	leaveTime = time.Second
)

// codec writes large messages into buffers of their own size. gRPC's are pooled, and what is larger than 32 KiB takes
// 1 MiB.
type codec struct{ encoding.CodecV2 }

// Marshal writes a message.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	m, ok := v.(proto.Message)
	if !ok || proto.Size(m) <= 32<<10 {
		return c.CodecV2.Marshal(v)
	}
	data, err := proto.Marshal(m)
	return mem.BufferSlice{mem.SliceBuffer(data)}, err
}

// waits reports whether a response is not acknowledged for so long.
func (s *session) waits(now time.Time, long time.Duration) bool {
	for _, f := range []*feed{s.assignment, s.shared, s.namespaces} {
		if at := f.sentAt.Load(); at != 0 && now.Sub(time.Unix(0, at)) >= long {
			return true
		}
	}
	return false
}

// flagSlow counts the slow streams, and names each once.
func (s *Server) flagSlow(now time.Time) {
	var found []string
	n := 0
	for _, session := range s.everybody() {
		slow := session.waits(now, slowAfter)
		if slow {
			n++
			if !session.flagged {
				found = append(found, session.node)
			}
		}
		session.flagged = slow
	}
	s.metrics.slow.Set(float64(n))
	for _, node := range found {
		s.log.Warn("a proxy does not acknowledge what it is sent", "proxy", node, "after", slowAfter)
	}
}

// cutOff waits until all streams have ended, and then closes the connections of those that have not, or whose client may
// not have read all that it was sent: gRPC would wait for it.
func (s *Server) cutOff() {
	enough := time.NewTimer(leaveTime)
	defer enough.Stop()
	for s.connections.streams() > 0 {
		select {
		case <-s.connections.left:
		case <-enough.C:
			s.log.Warn("streams do not end and are cut off", "streams", s.connections.streams())
			s.connections.cut()
			return
		}
	}
	s.connections.cut()
}

// Listener returns l with its connections known to the server, which closes those whose streams do not end when it
// stops.
func (s *Server) Listener(l net.Listener) net.Listener {
	return &listener{Listener: l, connections: s.connections}
}

type listener struct {
	net.Listener
	connections *connections
}

// Accept takes the next connection.
func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if tcp, ok := c.(*net.TCPConn); ok {
		l.connections.add(tcp)
	}
	return c, nil // not wrapped: gRPC reads a TCP connection without a buffer of its own
}

// connections are those that are open, by the address of the other end, and what is known of their streams.
type connections struct {
	left chan struct{} // holds a signal after a stream has ended

	mu   sync.Mutex // guards the rest
	open map[string]weak.Pointer[net.TCPConn]
	busy map[string]int      // how many streams there are
	deaf map[string]struct{} // where a stream ended with something unacknowledged when the server stopped
}

func newConnections() *connections {
	return &connections{left: make(chan struct{}, 1), open: map[string]weak.Pointer[net.TCPConn]{}, busy: map[string]int{}, deaf: map[string]struct{}{}}
}

func (cs *connections) add(c *net.TCPConn) {
	address := c.RemoteAddr().String()
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.open[address] = weak.Make(c)
	runtime.AddCleanup(c, cs.forget, address)
}

// forget drops a connection that nobody has any more, unless another has its address now.
func (cs *connections) forget(address string) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if cs.open[address].Value() == nil {
		delete(cs.open, address)
	}
}

// begin counts a stream until end is called, with whether the client may not have read all.
func (cs *connections) begin(ctx context.Context) (end func(deaf bool)) {
	address := ""
	if p, ok := peer.FromContext(ctx); ok {
		address = p.Addr.String()
	}
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.busy[address]++
	return func(deaf bool) {
		cs.mu.Lock()
		if deaf {
			cs.deaf[address] = struct{}{}
		}
		if cs.busy[address]--; cs.busy[address] == 0 {
			delete(cs.busy, address)
		}
		cs.mu.Unlock()
		select {
		case cs.left <- struct{}{}:
		default:
		}
	}
}

func (cs *connections) streams() (n int) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for _, streams := range cs.busy {
		n += streams
	}
	return n
}

// cut closes the connections that streams come over, or came with clients that do not read.
func (cs *connections) cut() {
	cs.mu.Lock()
	var busy []*net.TCPConn
	for address := range cs.busy {
		cs.deaf[address] = struct{}{}
	}
	for address := range cs.deaf {
		if c := cs.open[address].Value(); c != nil {
			busy = append(busy, c)
		}
	}
	cs.mu.Unlock()
	for _, c := range busy {
		c.Close() // it may be closed already
	}
}
