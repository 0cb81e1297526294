package postgres_test

import (
	"encoding/binary"
	"io"
	"net"
	"sync/atomic"
	"testing"

	"github.com/prism-gateway/prism/dataplane/driver/conformance"
	"github.com/prism-gateway/prism/shared/testserver/postgresserver"
)

// TestWithoutStatementCache leaves nothing in a session for the next transaction, as a pooler demands that gives a connection
// for one: the whole suite passes without a prepared statement that has a name.
func TestWithoutStatementCache(t *testing.T) {
	s := postgresserver.Start(t, postgresserver.Options{})
	for cache, named := range map[string]bool{"false": false, "true": true} {
		t.Run("statement_cache "+cache, func(t *testing.T) {
			r := listen(t, s.Addr())
			b := backend(t, s)
			b.Config.Endpoints, b.Config.Settings["statement_cache"] = []string{r.addr}, cache
			b.Stop, b.Start = nil, nil
			if named { // the other way round shows that the relay sees names
				if _, err := open(t, b.Config).Write(t.Context(), "s", put("a", "", "v")); err != nil {
					t.Fatal(err)
				}
			} else {
				conformance.Run(t, b)
			}
			if r.parsed.Load() == 0 || (r.named.Load() > 0) != named {
				t.Errorf("of %d statements %d had a name", r.parsed.Load(), r.named.Load())
			}
		})
	}
}

// relay passes connections on and counts what is prepared on them.
type relay struct {
	addr          string
	parsed, named atomic.Int64
}

func listen(t *testing.T, server string) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	r := &relay{addr: l.Addr().String()}
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			go r.pass(client, server)
		}
	}()
	return r
}

// pass passes one connection on until either side ends it.
func (r *relay) pass(client net.Conn, server string) {
	defer client.Close()
	backend, err := net.Dial("tcp", server)
	if err != nil {
		return
	}
	defer backend.Close()
	go func() {
		io.Copy(client, backend)
		client.Close()
	}()
	// A message is its kind, which the first does not have, its length without the kind, and a body; that of Parse begins with
	// the name, which ends with a zero.
	for head := 4; ; head = 5 {
		message := make([]byte, head)
		if _, err := io.ReadFull(client, message); err != nil {
			return
		}
		body := make([]byte, binary.BigEndian.Uint32(message[head-4:])-4)
		if _, err := io.ReadFull(client, body); err != nil {
			return
		}
		if head == 5 && message[0] == 'P' {
			if r.parsed.Add(1); body[0] != 0 {
				r.named.Add(1)
			}
		}
		if _, err := backend.Write(append(message, body...)); err != nil {
			return
		}
	}
}
