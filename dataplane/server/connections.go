package server

import (
	"net"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc/credentials"

	"github.com/prism-gateway/prism/dataplane/caller"
)

// connections counts those that are open, and remembers with each whose it is. It counts where each begins, because grpc's way of telling allocates for every
// call as well.
type connections struct {
	credentials.TransportCredentials
	open atomic.Int64
}

// ServerHandshake begins one.
func (c *connections) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := c.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		return conn, info, err
	}
	c.open.Add(1)
	return &connection{Conn: conn, closed: sync.OnceFunc(func() { c.open.Add(-1) })}, caller.NewConnection(info), nil
}

// Clone returns the same: there is one count.
func (c *connections) Clone() credentials.TransportCredentials { return c }

// connection is one that is counted until it is closed.
type connection struct {
	net.Conn
	closed func()
}

// Close ends it.
func (c *connection) Close() error {
	c.closed()
	return c.Conn.Close()
}
