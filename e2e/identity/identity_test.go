// Package identity_test proves with the real programs, an OpenBao, a PostgreSQL and a Redis who may call, and as whom the
// stores see it.
package identity_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/grpc/metadata"

	"github.com/prism-gateway/prism/e2e/harness"
	bootstrapv1 "github.com/prism-gateway/prism/protos/prism/bootstrap/v1"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/fault/faultgrpc"
	"github.com/prism-gateway/prism/shared/testserver/postgresserver"
	"github.com/prism-gateway/prism/shared/testserver/redisserver"
	"github.com/prism-gateway/prism/shared/testserver/vaultserver"
)

const jwtMount = "auth/jwt"

// world is a cluster whose namespaces' callers have users of their own in the stores.
type world struct {
	*harness.Cluster
	issuer *harness.Issuer
	vault  *vaultserver.Server
	db     *postgresserver.Server
	redis  *redisserver.Server
	admin  *pgx.Conn
	canary *canary
}

// start runs it. change is for the proxies' configuration; nil changes nothing.
func start(t *testing.T, proxies int, change func(*bootstrapv1.ProxyConfig)) *world {
	t.Helper()
	var w *world
	return startAs(t, &w, proxies, change)
}

// startAs is start for a change that looks at the world, which is where it is told before the programs start.
func startAs(t *testing.T, at **world, proxies int, change func(*bootstrapv1.ProxyConfig)) *world {
	t.Helper()
	return startBy(t, at, proxies, change, harness.StartIssuer(t, "prism"), "sub")
}

// startBy is startAs with an issuer, whose claim names users in the stores.
func startBy(t *testing.T, at **world, proxies int, change func(*bootstrapv1.ProxyConfig), issuer *harness.Issuer, claim string) *world {
	t.Helper()
	w := &world{
		issuer: issuer, vault: vaultserver.Start(t, vaultserver.Options{Keep: true}),
		db: postgresserver.Start(t, postgresserver.Options{Settings: []string{
			"max_connections=200", "log_line_prefix=user=%u ", "log_connections=on",
		}}), redis: redisserver.Start(t, redisserver.Options{Args: []string{"--requirepass", redisPassword}}),
		canary: newCanary(),
	}
	*at = w
	w.admin = w.connect(t, postgresserver.User, postgresserver.Password)
	for _, statement := range []string{
		"CREATE ROLE prism_rw", "GRANT CREATE ON DATABASE postgres TO prism_rw", "GRANT ALL ON SCHEMA public TO prism_rw",
	} {
		if _, err := w.admin.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	v := w.vault
	v.Policy(t, "leasing", vaultserver.Leasing)
	v.EnableJWT(t, jwtMount, w.issuer.URL, w.issuer.Keys)
	v.JWTRole(t, jwtMount, "callers", "prism", "1h", "leasing")
	v.Do(t, http.MethodPost, jwtMount+"/role/callers", map[string]any{"role_type": "jwt", "user_claim": claim})
	v.EnableDatabase(t)
	v.PostgreSQL(t, "pg", w.db.Addr(), postgresserver.User, postgresserver.Password)
	v.PostgreSQLRole(t, "orders", "pg", "prism_rw", "1h", "2h")
	host, port, err := net.SplitHostPort(w.redis.Addr())
	if err != nil {
		t.Fatal(err)
	}
	v.Redis(t, "redis", host, port, "default", redisPassword)
	v.RedisRole(t, "people", "redis", "1h", "2h", `["~{????????}??orders.*","~{????????}??people.*","+@all","-@admin","-@dangerous"]`)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", harness.StartCollector(t, w.canary.export))
	w.Cluster = harness.Start(t, harness.Options{
		Proxies: proxies, Owners: uint32(min(proxies, 3)), Dial: w.canary.dial(),
		Backends: []*configv1.Backend{
			{Name: "pg-main", Type: "postgres", Endpoints: []string{w.db.Addr()}, Config: map[string]string{"sslmode": "disable", "database": "postgres"}},
			{Name: "redis-main", Type: "redis", Endpoints: []string{w.redis.Addr()}}, {Name: "scratch", Type: "memory"},
		},
		ConfigureProxy: func(c *bootstrapv1.ProxyConfig) {
			c.Authentication = &bootstrapv1.Authentication{Issuers: []*bootstrapv1.TokenIssuer{{Url: w.issuer.URL, JwksUrl: w.issuer.Keys, Audiences: []string{"prism"}}}}
			c.CredentialProviders = []*bootstrapv1.CredentialProvider{{Name: "vault", Type: &bootstrapv1.CredentialProvider_Vault{
				Vault: &bootstrapv1.VaultProvider{Address: v.Address(), CaFile: v.CAFile()},
			}}}
			if change != nil {
				change(c)
			}
		},
	})
	t.Cleanup(func() { w.canary.searchAll(t, w) })
	return w
}

func (w *world) connect(t *testing.T, user, password string) *pgx.Conn {
	t.Helper()
	cfg, err := pgx.ParseConfig("postgres://" + w.db.Addr() + "/postgres?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	cfg.User, cfg.Password = user, password
	conn, err := pgx.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	return conn
}

// users are the dynamic users of PostgreSQL, with how many connections each has.
func (w *world) users(t *testing.T) map[string]int {
	t.Helper()
	rows, err := w.admin.Query(t.Context(), `SELECT r.rolname, count(a.pid) FROM pg_roles r LEFT JOIN pg_stat_activity a ON a.usename = r.rolname WHERE r.rolname LIKE 'v-%' GROUP BY 1`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	out := map[string]int{}
	for rows.Next() {
		var name string
		var n int
		if err := rows.Scan(&name, &n); err != nil {
			t.Fatal(err)
		}
		out[name] = n
	}
	return out
}

// request asks for a namespace whose callers have credentials of their own.
func request(name, backend, path string, scope configv1.CredentialScope) *configv1.NamespaceRequest {
	return &configv1.NamespaceRequest{
		Namespace: name, Team: "payments",
		Patterns: []*configv1.Pattern{{Name: "state", Type: "keyvalue", Needs: &configv1.Needs{Durability: configv1.Durability_DURABILITY_RELAXED}, Slots: []*configv1.Slot{{Name: "storage-" + map[string]string{"pg-main": "postgres", "redis": "redis"}[backend]}}}},
		Access: &configv1.Access{
			Writers: []*configv1.Principal{{Who: &configv1.Principal_Group{Group: "writers"}}},
			Readers: []*configv1.Principal{{Who: &configv1.Principal_Subject{Subject: "reader"}}},
		},
		Auth: &configv1.Auth{Enabled: true, Vault: &configv1.VaultAuth{
			JwtAuth: &configv1.JwtLogin{Role: "callers", AuthPath: jwtMount}, Credentials: &configv1.CredentialSource{Path: path, Scope: scope},
		}},
	}
}

// as is the context of a caller's call.
func (w *world) as(t *testing.T, token string) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}

// forever is as without a deadline, for many calls.
func (w *world) forever(t *testing.T, token string) context.Context {
	return metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+token)
}

func (w *world) writer(t *testing.T, name string) string {
	return w.issuer.Token(t, name, time.Hour, map[string]any{"groups": []string{"writers"}})
}

func put(ctx context.Context, p *harness.Proxy, namespace, id string) error {
	_, err := p.KeyValue.Put(ctx, &datav1.PutRequest{Namespace: namespace, Id: []byte(id), Value: []byte("v")})
	return err
}

func reason(err error) string {
	if err == nil {
		return "OK"
	}
	f := faultgrpc.FromStatus(err)
	return fmt.Sprintf("%s/%s", f.Code, f.Reason)
}

func named(users map[string]int, name string) (out []string) {
	for u := range users {
		if strings.Contains(u, name) {
			out = append(out, u)
		}
	}
	return out
}

func TestStoresSeeTheCallersAndForgetThem(t *testing.T) {
	w := start(t, 1, nil)
	w.Apply(t.Context(), request("orders", "pg-main", "vault://database/creds/orders", configv1.CredentialScope_CREDENTIAL_SCOPE_PRINCIPAL))
	p := w.Proxies[0]
	alice, bob := w.as(t, w.writer(t, "alice")), w.as(t, w.writer(t, "bob"))
	for range 5 {
		for name, ctx := range map[string]context.Context{"alice": alice, "bob": bob} {
			if err := put(ctx, p, "orders", name); err != nil {
				t.Fatalf("%s: %v\n%s", name, err, p.Log())
			}
		}
	}
	users := w.users(t)
	if len(named(users, "alice")) != 1 || len(named(users, "bob")) != 1 || len(users) != 2 {
		t.Fatalf("users %v", users)
	}
	for u, connections := range users {
		if connections == 0 {
			t.Errorf("%s has no connection: somebody else's served its calls", u)
		}
	}
	sessions := datav1.NewSessionManagerClient(w.Dial(p.Address))
	if _, err := sessions.CloseSession(alice, &datav1.CloseSessionRequest{Namespace: "orders"}); err != nil {
		t.Fatal(err)
	}
	closed := time.Now()
	harness.Eventually(t, 10*time.Second, "alice's user goes", func() error {
		if left := named(w.users(t), "alice"); len(left) > 0 {
			return fmt.Errorf("%v", left)
		}
		return nil
	})
	t.Logf("alice's user was gone %v after her session was closed", time.Since(closed))
	if err := put(bob, p, "orders", "bob"); err != nil || len(named(w.users(t), "bob")) != 1 {
		t.Errorf("bob: %v", err)
	}
	if err := put(alice, p, "orders", "alice"); err != nil { // a session is made by the first call
		t.Errorf("alice again: %v", err)
	}
	if !p.Stop(20 * time.Second) {
		t.Error("the proxy did not stop")
	}
	if left := w.users(t); len(left) > 0 {
		t.Errorf("after the proxy was stopped there are %v", left)
	}
}

func TestWhoMayDoWhat(t *testing.T) {
	w := start(t, 2, nil)
	w.Apply(t.Context(), request("orders", "redis", "vault://database/creds/people", configv1.CredentialScope_CREDENTIAL_SCOPE_PRINCIPAL))
	writer, reader := w.writer(t, "alice"), w.issuer.Token(t, "reader", time.Hour, nil)
	other := harness.StartIssuer(t, "prism")
	for name, tc := range map[string]struct {
		ctx         context.Context
		read, write string
	}{
		"a writer":                   {w.as(t, writer), "OK", "OK"},
		"a reader":                   {w.as(t, reader), "OK", "PERMISSION_DENIED/OPERATION"},
		"a member of the team":       {w.as(t, w.issuer.Token(t, "carol", time.Hour, map[string]any{"teams": "payments"})), "OK", "OK"},
		"a stranger":                 {w.as(t, w.issuer.Token(t, "mallory", time.Hour, nil)), "PERMISSION_DENIED/NAMESPACE", "PERMISSION_DENIED/NAMESPACE"},
		"nobody":                     {t.Context(), "UNAUTHENTICATED/NO_CREDENTIALS", "UNAUTHENTICATED/NO_CREDENTIALS"},
		"one of another issuer":      {w.as(t, other.Token(t, "alice", time.Hour, map[string]any{"groups": []string{"writers"}})), "UNAUTHENTICATED/ISSUER_UNKNOWN", "UNAUTHENTICATED/ISSUER_UNKNOWN"},
		"one whose token is over":    {w.as(t, w.issuer.Token(t, "alice", -time.Minute, nil)), "UNAUTHENTICATED/TOKEN_EXPIRED", "UNAUTHENTICATED/TOKEN_EXPIRED"},
		"a token that was changed":   {w.as(t, writer[:len(writer)-8]+"AAAAAAAA"), "UNAUTHENTICATED/TOKEN_INVALID", "UNAUTHENTICATED/TOKEN_INVALID"},
		"two tokens":                 {metadata.AppendToOutgoingContext(w.as(t, writer), "x-prism-token", writer), "UNAUTHENTICATED/TOKEN_INVALID", "UNAUTHENTICATED/TOKEN_INVALID"},
		"who says to be a proxy":     {metadata.AppendToOutgoingContext(t.Context(), "x-prism-caller-bin", "x"), "UNAUTHENTICATED/NO_CREDENTIALS", "UNAUTHENTICATED/NO_CREDENTIALS"},
		"a writer, by x-prism-token": {metadata.AppendToOutgoingContext(t.Context(), "x-prism-token", writer), "OK", "OK"},
	} {
		for _, p := range w.Proxies {
			_, err := p.KeyValue.Get(tc.ctx, &datav1.GetRequest{Namespace: "orders", Id: []byte("a")})
			if got := reason(err); got != tc.read {
				t.Errorf("%s reads at %s: %s, want %s (%v)", name, p.ID, got, tc.read, err)
			}
			if got := reason(put(tc.ctx, p, "orders", "a")); got != tc.write {
				t.Errorf("%s writes at %s: %s, want %s", name, p.ID, got, tc.write)
			}
		}
	}
	for _, p := range w.Proxies {
		if strings.Contains(string(p.Log()), writer) || strings.Contains(string(p.Log()), "v-jwt") {
			t.Errorf("the log of %s holds a token or a user", p.ID)
		}
	}
}

// Who reads a namespace that asks nobody is asked as soon as it has rules.
func TestRulesEndTheStreamsOfThoseWhomNobodyAsked(t *testing.T) {
	w := start(t, 1, nil)
	req := request("orders", "redis", "", 0)
	rules := req.Access
	req.Auth, req.Access, req.Patterns[0].Slots = nil, nil, nil
	req.Patterns[0].Needs = &configv1.Needs{Durability: configv1.Durability_DURABILITY_NONE, Interfaces: []string{"keyvalue.watch"}}
	w.Apply(t.Context(), req)
	stream, err := w.Proxies[0].KeyValue.Watch(t.Context(), &datav1.WatchRequest{Namespace: "orders", Id: []byte("a")})
	if err == nil {
		_, err = stream.Recv()
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, w.Proxies[0].Log())
	}
	req.Access = rules
	w.Apply(t.Context(), req)
	for err == nil {
		_, err = stream.Recv()
	}
	if got := reason(err); got != "UNAUTHENTICATED/NO_CREDENTIALS" {
		t.Errorf("the stream ended with %s: %v", got, err)
	}
}

// SE-07
func TestAChangeOfRulesEndsStreamsAndCallsWithinASecond(t *testing.T) {
	w := start(t, 1, nil)
	req := request("orders", "redis", "", 0)
	req.Auth.Vault, req.Patterns[0].Slots = nil, nil // the store is of the proxy itself
	req.Patterns[0].Needs = &configv1.Needs{Durability: configv1.Durability_DURABILITY_NONE, Interfaces: []string{"keyvalue.watch"}}
	w.Apply(t.Context(), req)
	p := w.Proxies[0]
	ctx := w.as(t, w.writer(t, "alice"))
	stream, err := p.KeyValue.Watch(ctx, &datav1.WatchRequest{Namespace: "orders", Id: []byte("a")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatalf("%v\n%s", err, p.Log())
	}
	req.Access.Writers = nil
	w.Apply(t.Context(), req)
	changed := time.Now()
	for err == nil {
		_, err = stream.Recv()
	}
	if got := reason(err); got != "PERMISSION_DENIED/REVOKED" {
		t.Errorf("the stream ended with %s: %v", got, err)
	}
	t.Logf("the stream ended %v after the change was in effect", time.Since(changed))
	if got := reason(put(ctx, p, "orders", "a")); got != "PERMISSION_DENIED/NAMESPACE" {
		t.Errorf("a call after that: %s", got)
	}
}
