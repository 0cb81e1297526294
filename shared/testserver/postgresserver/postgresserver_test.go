package postgresserver_test

import (
	"net"
	"testing"

	"github.com/prism-gateway/prism/shared/testserver/postgresserver"
)

func TestServerTakesConnectionsUntilItIsStopped(t *testing.T) {
	s := postgresserver.Start(t, postgresserver.Options{})
	if !takes(t, s.Addr()) {
		t.Fatal("a server that started takes no connection")
	}
	s.Stop(t)
	if takes(t, s.Addr()) {
		t.Error("a stopped server takes connections")
	}
	s.Restart(t)
	s.Kill()
	s.Restart(t)
	if !takes(t, s.Addr()) {
		t.Error("a server that was started again takes no connection")
	}
}

func takes(t *testing.T, addr string) bool {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return false
	}
	defer c.Close()
	// The request for TLS, which each PostgreSQL answers with one letter.
	if _, err := c.Write([]byte{0, 0, 0, 8, 4, 210, 22, 47}); err != nil {
		t.Fatal(err)
	}
	n, err := c.Read(make([]byte, 1))
	return err == nil && n == 1
}
