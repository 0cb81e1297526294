package vaultserver_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/prism-gateway/prism/shared/testserver/oidcserver"
	"github.com/prism-gateway/prism/shared/testserver/postgresserver"
	"github.com/prism-gateway/prism/shared/testserver/redisserver"
	"github.com/prism-gateway/prism/shared/testserver/vaultserver"
)

// got is a part of an answer, which is text.
func got(t *testing.T, answer map[string]any, part, name string) string {
	t.Helper()
	fields := answer
	if part != "" {
		fields, _ = answer[part].(map[string]any)
	}
	text, _ := fields[name].(string)
	if text == "" {
		t.Fatalf("no %s %s in %v", part, name, answer)
	}
	return text
}

// TestACallersTokenGivesAUserOfPostgreSQLThatIsNamedAfterHim goes the whole way of a caller's token: from an issuer through a
// login to a user of the store, whom a manager makes that is no superuser, and who is gone when the login is.
func TestACallersTokenGivesAUserOfPostgreSQLThatIsNamedAfterHim(t *testing.T) {
	issuer := oidcserver.Start(t, oidcserver.Options{Users: []oidcserver.User{{Email: "ann@example.com"}}, Audiences: []string{"vault", "other"}})
	db := postgresserver.Start(t, postgresserver.Options{TLS: true})
	s := vaultserver.Start(t, vaultserver.Options{})
	config, err := pgx.ParseConfig("postgres://" + db.Addr() + "/postgres?sslmode=verify-full&sslrootcert=" + db.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	as := func(user, password string) (*pgx.Conn, error) {
		theirs := config.Copy()
		theirs.User, theirs.Password = user, password
		conn, err := pgx.ConnectConfig(t.Context(), theirs)
		if err == nil {
			t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) }) // it may be closed already
		}
		return conn, err
	}
	admin, err := as(postgresserver.User, postgresserver.Password)
	if err != nil {
		t.Fatal(err)
	}
	for _, statement := range []string{
		"CREATE ROLE ns_rw", "CREATE ROLE manager LOGIN CREATEROLE PASSWORD 'right'", "GRANT ns_rw TO manager WITH ADMIN OPTION", "GRANT pg_signal_backend TO manager",
	} {
		if _, err := admin.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	s.EnableJWT(t, "auth/jwt", issuer.Issuer(), issuer.KeysURL())
	s.Policy(t, "leasing", vaultserver.Leasing)
	s.JWTRole(t, "auth/jwt", "callers", "vault", "1h", "leasing")
	s.Do(t, http.MethodPost, "auth/jwt/role/callers", map[string]any{"role_type": "jwt", "bound_audiences": []string{"vault"}, "user_claim": "email"})
	s.EnableDatabase(t)
	s.PostgreSQL(t, "pg", db.Addr(), "manager", "right", db.CAFile())
	s.PostgreSQLRole(t, "orders", "pg", "ns_rw", "1h", "2h")

	if answer, err := s.As("", http.MethodPost, "auth/jwt/login", map[string]string{"role": "callers", "jwt": issuer.Token(t, "ann@example.com", "other")}); err == nil {
		t.Errorf("a token for another is taken: %v", answer)
	}
	login, err := s.As("", http.MethodPost, "auth/jwt/login", map[string]string{"role": "callers", "jwt": issuer.Token(t, "ann@example.com")})
	if err != nil {
		t.Fatal(err)
	}
	token := got(t, login, "auth", "client_token")
	credential, err := s.As(token, http.MethodGet, "database/creds/orders", nil)
	if err != nil {
		t.Fatal(err)
	}
	user, password := got(t, credential, "data", "username"), got(t, credential, "data", "password")
	if !strings.HasPrefix(user, "v-jwt-ann_at_example.com-orders-") {
		t.Errorf("the user is called %s", user)
	}
	conn, err := as(user, password)
	if err != nil {
		t.Fatal(err)
	}
	if leases := s.Leases(t, "database/creds/orders/"); len(leases) != 1 || s.Requests(t, "database/creds/") != 1 {
		t.Errorf("leases %v, %d requests", leases, s.Requests(t, "database/creds/"))
	}
	if _, err := s.As(token, http.MethodPut, "sys/leases/revoke", map[string]any{"lease_id": got(t, credential, "", "lease_id"), "sync": true}); err != nil {
		t.Fatal(err)
	}
	if err := conn.Ping(t.Context()); err == nil {
		t.Error("the user's connection is open")
	}
	if _, err := as(user, password); err == nil {
		t.Error("the user is there")
	}
	if leases := s.Leases(t, "database/creds/orders/"); len(leases) != 0 {
		t.Errorf("leases %v", leases)
	}
}

func TestItMakesUsersOfRedisAndRemovesThem(t *testing.T) {
	store := redisserver.Start(t, redisserver.Options{TLS: true, Args: []string{"--requirepass", "right"}})
	s := vaultserver.Start(t, vaultserver.Options{Plain: true})
	s.EnableDatabase(t)
	host, port, err := net.SplitHostPort(store.Addr())
	if err != nil {
		t.Fatal(err)
	}
	s.Redis(t, "redis", host, port, "default", "right", store.CAFile())
	s.RedisRole(t, "orders", "redis", "1h", "2h", `["~orders*", "+@all"]`)
	authority, err := os.ReadFile(store.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authority)
	credential := s.Do(t, http.MethodGet, "database/creds/orders", nil)
	user, password := got(t, credential, "data", "username"), got(t, credential, "data", "password")
	say := func(lines ...string) (answers []string) {
		conn, err := tls.Dial("tcp", store.Addr(), &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		in := bufio.NewReader(conn)
		for _, line := range lines {
			if _, err := conn.Write([]byte(line + "\r\n")); err != nil {
				t.Fatal(err)
			}
			answer, err := in.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			word, _, _ := strings.Cut(strings.TrimSpace(answer), " ")
			answers = append(answers, word)
		}
		return answers
	}
	login := "AUTH " + user + " " + password
	if answers := say(login, "SET orders:1 x", "SET others x"); !slices.Equal(answers, []string{"+OK", "+OK", "-NOPERM"}) {
		t.Errorf("%s is answered %v", user, answers)
	}
	s.Do(t, http.MethodPut, "sys/leases/revoke", map[string]any{"lease_id": got(t, credential, "", "lease_id"), "sync": true})
	if answers := say(login); !slices.Equal(answers, []string{"-WRONGPASS"}) {
		t.Errorf("%s is answered %v when he is gone", user, answers)
	}
}

func TestWhatItHasSurvivesARestartAndASeal(t *testing.T) {
	s := vaultserver.Start(t, vaultserver.Options{Keep: true})
	s.Policy(t, "leasing", vaultserver.Leasing)
	root := s.RootToken()
	s.Kill()
	s.Restart(t)
	if s.RootToken() != root {
		t.Fatal("it was initialized again")
	}
	s.Seal(t)
	if _, err := s.As(root, http.MethodGet, "sys/policies/acl/leasing", nil); err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("sealed, it answers %v", err)
	}
	s.Unseal(t)
	out := s.Do(t, http.MethodGet, "sys/policies/acl/leasing", nil)
	if data, _ := out["data"].(map[string]any); data["policy"] != vaultserver.Leasing {
		t.Errorf("%v", out)
	}
}

func TestAServerThatKeepsNothingIsAnotherAfterARestart(t *testing.T) {
	s := vaultserver.Start(t, vaultserver.Options{})
	s.Policy(t, "leasing", vaultserver.Leasing)
	root := s.RootToken()
	s.Kill()
	s.Restart(t)
	if _, err := s.As(root, http.MethodGet, "sys/policies/acl/leasing", nil); err == nil || !strings.Contains(err.Error(), "403") {
		t.Errorf("the former root token is answered %v", err)
	}
	if _, err := s.As(s.RootToken(), http.MethodGet, "sys/policies/acl/leasing", nil); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("for the former policy it answers %v", err)
	}
	if n := s.Requests(t, "sys/policies/acl/leasing"); n != 3 {
		t.Errorf("%d requests are counted, want 3", n)
	}
}

func TestAPausedServerAnswersWhenItGoesOn(t *testing.T) {
	s := vaultserver.Start(t, vaultserver.Options{})
	s.Pause(t)
	answered := make(chan error, 1)
	go func() {
		_, err := s.As(s.RootToken(), http.MethodGet, "auth/token/lookup-self", nil)
		answered <- err
	}()
	s.Resume(t)
	if err := <-answered; err != nil {
		t.Error(err)
	}
}
