package vaultserver_test

import (
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/prism-gateway/prism/shared/testserver/postgresserver"
	"github.com/prism-gateway/prism/shared/testserver/redisserver"
	"github.com/prism-gateway/prism/shared/testserver/vaultserver"
)

// credential asks for a credential with the root token.
func credential(t *testing.T, s *vaultserver.Server, role string) (user, password, lease string) {
	t.Helper()
	out := s.Do(t, http.MethodGet, "database/creds/"+role, nil)
	data, _ := out["data"].(map[string]any)
	user, _ = data["username"].(string)
	password, _ = data["password"].(string)
	lease, _ = out["lease_id"].(string)
	if user == "" || password == "" || lease == "" {
		t.Fatalf("got %v", out)
	}
	return user, password, lease
}

func TestItMakesUsersOfPostgreSQLAndRemovesThem(t *testing.T) {
	db := postgresserver.Start(t, postgresserver.Options{})
	s := vaultserver.Start(t, vaultserver.Options{})
	s.EnableDatabase(t)
	s.PostgreSQL(t, "pg", db.Addr(), postgresserver.User, postgresserver.Password)
	admin, err := pgx.ParseConfig("postgres://" + db.Addr() + "/postgres?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	admin.User, admin.Password = postgresserver.User, postgresserver.Password
	conn, err := pgx.ConnectConfig(t.Context(), admin)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), "CREATE ROLE ns_rw"); err != nil {
		t.Fatal(err)
	}
	s.PostgreSQLRole(t, "orders", "pg", "ns_rw", "1h", "2h")
	user, password, lease := credential(t, s, "orders")
	as := admin.Copy()
	as.User, as.Password = user, password
	theirs, err := pgx.ConnectConfig(t.Context(), as)
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close(t.Context())
	if !strings.HasPrefix(user, "v-root-orders-") || len(s.Leases(t, "database/creds/orders/")) != 1 || s.Requests(t, "database/creds/") != 1 {
		t.Errorf("user %s, leases %v", user, s.Leases(t, "database/creds/orders/"))
	}
	s.Do(t, http.MethodPut, "sys/leases/revoke", map[string]any{"lease_id": lease, "sync": true})
	if err := theirs.Ping(t.Context()); err == nil {
		t.Error("the user's connection is open")
	}
	if _, err := pgx.ConnectConfig(t.Context(), as); err == nil {
		t.Error("the user is there")
	}
}

func TestItMakesUsersOfRedis(t *testing.T) {
	store := redisserver.Start(t, redisserver.Options{Args: []string{"--requirepass", "right"}})
	s := vaultserver.Start(t, vaultserver.Options{Plain: true})
	s.EnableDatabase(t)
	host, port, err := net.SplitHostPort(store.Addr())
	if err != nil {
		t.Fatal(err)
	}
	s.Redis(t, "redis", host, port, "default", "right")
	s.RedisRole(t, "orders", "redis", "1h", "2h", `["~orders*", "+@all"]`)
	user, password, _ := credential(t, s, "orders")
	conn, err := net.Dial("tcp", store.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	answer := make([]byte, 100)
	if _, err := conn.Write([]byte("AUTH " + user + " " + password + "\r\n")); err != nil {
		t.Fatal(err)
	}
	n, err := conn.Read(answer)
	if err != nil || string(answer[:n]) != "+OK\r\n" {
		t.Errorf("%q, %v", answer[:n], err)
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
	response, err := http.Get(s.Address() + "/v1/sys/health")
	if err == nil { // it does not believe the certificate
		response.Body.Close()
		t.Error("its certificate is believed by everybody")
	}
	s.Unseal(t)
	s.Pause(t)
	s.Resume(t)
	out := s.Do(t, http.MethodGet, "sys/policies/acl/leasing", nil)
	if data, _ := out["data"].(map[string]any); data["policy"] != vaultserver.Leasing {
		t.Errorf("%v", out)
	}
}
