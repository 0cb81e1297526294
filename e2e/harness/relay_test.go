package harness_test

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/prism-gateway/prism/e2e/harness"
)

// TestRelay has a link do each thing that a network does, on a connection that is open and on a new one.
func TestRelay(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	arrived := make(chan byte, 16)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				var b [1]byte
				for {
					if _, err := conn.Read(b[:]); err != nil {
						return
					}
					arrived <- b[0]
					if _, err := conn.Write(b[:]); err != nil {
						return
					}
				}
			}()
		}
	}()
	r := harness.NewRelay(t, l.Addr().String())
	dial := func() net.Conn {
		conn, err := net.Dial("tcp", r.Address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	write := func(conn net.Conn, b byte) {
		if _, err := conn.Write([]byte{b}); err != nil {
			t.Fatal(err)
		}
	}
	read := func(conn net.Conn, patience time.Duration) (byte, error) {
		_ = conn.SetReadDeadline(time.Now().Add(patience))
		var b [1]byte
		_, err := io.ReadFull(conn, b[:])
		return b[0], err
	}
	const long, short = 10 * time.Second, 50 * time.Millisecond
	echoes := func(conn net.Conn, b byte) {
		t.Helper()
		write(conn, b)
		<-arrived
		if got, err := read(conn, long); err != nil || got != b {
			t.Fatalf("%q came back for %q: %v", got, b, err)
		}
	}
	conn := dial()
	echoes(conn, 'a')

	r.Set(harness.Deaf)
	write(conn, 'b')
	if got := <-arrived; got != 'b' {
		t.Errorf("%q arrived", got)
	}
	if _, err := read(conn, short); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("an answer came through a deaf link: %v", err)
	}

	r.Set(harness.Blackhole)
	write(conn, 'c')
	fresh := dial()
	write(fresh, 'd')
	if _, err := read(fresh, short); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("an answer came through a black hole: %v", err)
	}
	if len(arrived) > 0 {
		t.Errorf("%q arrived through a black hole", <-arrived)
	}

	r.Set(harness.Healed)
	for _, want := range []byte{'b', 'c'} {
		if got, err := read(conn, long); err != nil || got != want {
			t.Errorf("%q came after healing, %v; want %q", got, err, want)
		}
	}
	if got, err := read(fresh, long); err != nil || got != 'd' {
		t.Errorf("%q came on the new connection after healing: %v", got, err)
	}
	for range 2 {
		<-arrived
	}

	r.Set(harness.Fault{Delay: time.Millisecond})
	echoes(conn, 'e')
	r.Set(harness.Trickle)
	echoes(conn, 'f')

	r.Set(harness.Cut)
	cut := func(err error) bool { return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.EOF) }
	if _, err := read(conn, long); !cut(err) {
		t.Errorf("the open connection was not cut: %v", err)
	}
	late, err := net.Dial("tcp", r.Address)
	if err == nil { // else the reset was there before the connection was
		_, err = read(late, long)
		_ = late.Close()
	}
	if !cut(err) {
		t.Errorf("a new connection was not cut: %v", err)
	}
	r.Set(harness.Healed)
	echoes(dial(), 'g')
}
