package redisserver_test

import (
	"bufio"
	"fmt"
	"net"
	"testing"

	"github.com/prism-gateway/prism/shared/testserver/redisserver"
)

func TestServerAnswersAndKeepsItsData(t *testing.T) {
	s := redisserver.Start(t, redisserver.Options{Keep: true})
	if got := ask(t, s.Addr(), "SET k v"); got != "+OK" {
		t.Fatalf("SET: %q", got)
	}
	s.Stop(t)
	if c, err := net.Dial("tcp", s.Addr()); err == nil {
		c.Close()
		t.Error("a stopped server takes connections")
	}
	s.Restart(t)
	if got := ask(t, s.Addr(), "GET k"); got != "$1" {
		t.Errorf("GET after a restart: %q, want a value of one byte", got)
	}
}

func ask(t *testing.T, addr, command string) string {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "%s\r\n", command)
	line, _, err := bufio.NewReader(c).ReadLine()
	if err != nil {
		t.Fatal(err)
	}
	return string(line)
}
