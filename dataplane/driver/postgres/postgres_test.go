package postgres_test

import (
	"crypto/rand"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/dataplane/driver/conformance"
	"github.com/prism-gateway/prism/dataplane/driver/postgres"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/secret"
	"github.com/prism-gateway/prism/shared/testserver/postgresserver"
)

// connect opens a connection of the superuser until the test ends.
func connect(t testing.TB, s *postgresserver.Server, database string) *pgx.Conn {
	t.Helper()
	cfg, err := pgx.ParseConfig("postgres://" + s.Addr() + "/" + database + "?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	cfg.User, cfg.Password = postgresserver.User, postgresserver.Password
	conn, err := pgx.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(t.Context()) })
	return conn
}

func execute(t testing.TB, conn *pgx.Conn, text string) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), text); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
}

// config makes a database and says how to open it.
func config(t testing.TB, s *postgresserver.Server) driver.Config {
	t.Helper()
	name := "d" + strings.ToLower(rand.Text()[:12])
	conn := connect(t, s, "postgres")
	execute(t, conn, "CREATE DATABASE "+name)
	conn.Close(t.Context())
	return driver.Config{
		Name: "store", Endpoints: []string{s.Addr()}, Username: postgresserver.User, Password: secret.New(postgresserver.Password),
		Settings: map[string]string{"database": name, "sslmode": "disable"},
	}
}

func backend(t testing.TB, s *postgresserver.Server) conformance.Backend {
	return conformance.Backend{
		Driver: postgres.Driver(), Config: config(t, s), Shared: true, Sweeps: true,
		Stop: func(t *testing.T) { s.Stop(t) }, Start: func(t *testing.T) { s.Restart(t) },
	}
}

func TestConformance(t *testing.T) {
	conformance.Run(t, backend(t, postgresserver.Start(t, postgresserver.Options{})))
}

// TestIsolation refuses writes where a transaction would judge by what is no longer true, and sees to it that none does
// where it can.
func TestIsolation(t *testing.T) {
	s := postgresserver.Start(t, postgresserver.Options{})
	for cache, refused := range map[string]bool{"true": false, "false": true} {
		cfg := config(t, s)
		execute(t, connect(t, s, "postgres"), "ALTER DATABASE "+cfg.Settings["database"]+" SET default_transaction_isolation = 'repeatable read'")
		cfg.Settings["statement_cache"] = cache
		i, err := postgres.Driver().Open(cfg)
		if err != nil {
			t.Fatal(err)
		}
		_, err = i.(driver.KeyValue).Write(t.Context(), "s.1", driver.Write{Name: driver.Name{ID: []byte("a")}, Condition: driver.IfAbsent})
		if f := fault.From(err); (f != nil) != refused || refused && (f.Outcome != fault.NotApplied || !strings.Contains(f.Text, "read committed")) {
			t.Errorf("statement_cache %s: %+v", cache, f)
		}
		if err := i.Close(); err != nil {
			t.Error(err)
		}
	}
}
