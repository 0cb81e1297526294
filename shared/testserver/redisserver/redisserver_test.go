package redisserver_test

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
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

func TestServerWithTLSTakesNothingInClear(t *testing.T) {
	s := redisserver.Start(t, redisserver.Options{TLS: true})
	authority, err := os.ReadFile(s.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authority)
	conn, err := tls.Dial("tcp", s.Addr(), &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := say(t, conn, "PING"); got != "+PONG" {
		t.Errorf("PING: %q", got)
	}
	clear, err := net.Dial("tcp", s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer clear.Close()
	fmt.Fprint(clear, "PING\r\n")
	if answer, _, err := bufio.NewReader(clear).ReadLine(); err == nil && string(answer) == "+PONG" {
		t.Error("it answers in clear")
	}
}

func ask(t *testing.T, addr, command string) string {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return say(t, c, command)
}

func say(t *testing.T, c net.Conn, command string) string {
	t.Helper()
	fmt.Fprintf(c, "%s\r\n", command)
	line, _, err := bufio.NewReader(c).ReadLine()
	if err != nil {
		t.Fatal(err)
	}
	return string(line)
}
