package natsserver_test

import (
	"bufio"
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/prism-gateway/prism/shared/testserver/natsserver"
)

func TestServerAnswersAndStops(t *testing.T) {
	s := natsserver.Start(t, natsserver.Options{Config: "max_payload: 2MB"})
	for range 2 {
		if info := hello(t, s.Addr()); !strings.Contains(info, `"jetstream":true`) || !strings.Contains(info, `"max_payload":2097152`) {
			t.Errorf("got %s", info)
		}
		s.Stop(t)
		if c, err := net.Dial("tcp", s.Addr()); err == nil {
			c.Close()
			t.Error("a stopped server takes connections")
		}
		s.Restart(t)
	}
}

// hello is what a server says first.
func hello(t *testing.T, addr string) string {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		t.Fatal(fmt.Errorf("the server said %q: %w", line, err))
	}
	return line
}
