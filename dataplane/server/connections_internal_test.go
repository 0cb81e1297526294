package server

import (
	"net"
	"testing"

	"google.golang.org/grpc/credentials/insecure"
)

func TestConnectionsAreCountedUntilTheyAreClosed(t *testing.T) {
	c := &connections{TransportCredentials: insecure.NewCredentials()}
	var open []net.Conn
	for range 3 {
		ours, theirs := net.Pipe()
		defer theirs.Close()
		conn, _, err := c.Clone().ServerHandshake(ours)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, conn)
	}
	if n := c.open.Load(); n != 3 {
		t.Errorf("%d are open, want 3", n)
	}
	for range 2 { // grpc may close twice
		_ = open[0].Close()
	}
	if n := c.open.Load(); n != 2 {
		t.Errorf("%d are open after one was closed, want 2", n)
	}
}
