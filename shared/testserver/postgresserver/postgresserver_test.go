package postgresserver_test

import (
	"net"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

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

func TestServerWithTLSTakesNothingInClear(t *testing.T) {
	s := postgresserver.Start(t, postgresserver.Options{TLS: true})
	login := func(settings string) error {
		cfg, err := pgx.ParseConfig("postgres://" + s.Addr() + "/postgres?" + settings)
		if err != nil {
			t.Fatal(err)
		}
		cfg.User, cfg.Password = postgresserver.User, postgresserver.Password
		conn, err := pgx.ConnectConfig(t.Context(), cfg)
		if err != nil {
			return err
		}
		return conn.Close(t.Context())
	}
	if err := login("sslmode=verify-full&sslrootcert=" + s.CAFile()); err != nil {
		t.Error(err)
	}
	if err := login("sslmode=disable"); err == nil || !strings.Contains(err.Error(), "no encryption") {
		t.Errorf("in clear: %v", err)
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
