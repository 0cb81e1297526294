package vault_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/prism-gateway/prism/dataplane/credential"
	"github.com/prism-gateway/prism/dataplane/credential/conformance"
	"github.com/prism-gateway/prism/dataplane/credential/vault"
	"github.com/prism-gateway/prism/shared/secret"
	"github.com/prism-gateway/prism/shared/testserver/postgresserver"
	"github.com/prism-gateway/prism/shared/testserver/vaultserver"
)

// issuer signs tokens of callers, as an identity provider does.
type issuer struct {
	key *ecdsa.PrivateKey
	url string
}

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	i := &issuer{key: key}
	public, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	encode := base64.RawURLEncoding.EncodeToString
	keys, err := json.Marshal(map[string]any{"keys": []any{map[string]string{
		"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "1", "x": encode(public[1:33]), "y": encode(public[33:]),
	}}})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(keys) }))
	t.Cleanup(server.Close)
	i.url = server.URL
	return i
}

// token is a caller's, good for an hour.
func (i *issuer) token(t *testing.T, subject string) secret.Text {
	t.Helper()
	encode := base64.RawURLEncoding.EncodeToString
	now := time.Now()
	claims, err := json.Marshal(map[string]any{"iss": "https://issuer.example.org", "sub": subject, "aud": "vault", "iat": now.Unix(), "exp": now.Add(time.Hour).Unix()})
	if err != nil {
		t.Fatal(err)
	}
	text := encode([]byte(`{"alg":"ES256","typ":"JWT","kid":"1"}`)) + "." + encode(claims)
	sum := sha256.Sum256([]byte(text))
	r, s, err := ecdsa.Sign(rand.Reader, i.key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return secret.New(text + "." + encode(append(fixed(r), fixed(s)...)))
}

func fixed(n *big.Int) []byte { return n.FillBytes(make([]byte, 32)) }

// world is a Vault that makes users of a PostgreSQL for the callers of an issuer.
type world struct {
	*issuer
	vault *vaultserver.Server
	store *postgresserver.Server
	admin *pgx.Conn
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{issuer: newIssuer(t), vault: vaultserver.Start(t, vaultserver.Options{Keep: true}), store: postgresserver.Start(t, postgresserver.Options{})}
	w.vault.EnableJWT(t, "auth/jwt", "https://issuer.example.org", w.url)
	w.vault.Policy(t, "leasing", vaultserver.Leasing)
	w.vault.JWTRole(t, "auth/jwt", "orders", "vault", "1h", "leasing")
	w.vault.EnableDatabase(t)
	w.admin = w.connect(t, postgresserver.User, postgresserver.Password)
	if _, err := w.admin.Exec(t.Context(), "CREATE ROLE ns_rw"); err != nil {
		t.Fatal(err)
	}
	w.vault.PostgreSQL(t, "pg", w.store.Addr(), postgresserver.User, postgresserver.Password)
	w.vault.PostgreSQLRole(t, "orders", "pg", "ns_rw", "1h", "24h")
	return w
}

func (w *world) try(t *testing.T, user, password string) (*pgx.Conn, error) {
	t.Helper()
	cfg, err := pgx.ParseConfig("postgres://" + w.store.Addr() + "/postgres?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	cfg.User, cfg.Password = user, password
	return pgx.ConnectConfig(t.Context(), cfg)
}

func (w *world) connect(t *testing.T, user, password string) *pgx.Conn {
	t.Helper()
	conn, err := w.try(t, user, password)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(t.Context()) })
	return conn
}

func (w *world) opens(t *testing.T, c credential.Credential) bool {
	t.Helper()
	conn, err := w.try(t, c.Username, c.Password.Reveal())
	if err != nil {
		return false
	}
	conn.Close(t.Context())
	return true
}

func (w *world) login(t *testing.T, name string) *credential.Login {
	t.Helper()
	return &credential.Login{Role: "orders", Token: w.token(t, name)}
}

// provider asks the world's Vault.
func (w *world) provider(t *testing.T, change func(*vault.Config)) *vault.Provider {
	t.Helper()
	cfg := vault.Config{Address: w.vault.Address(), CAFile: w.vault.CAFile()}
	if change != nil {
		change(&cfg)
	}
	p, err := vault.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestConformanceOfDynamicSecrets(t *testing.T) {
	w := newWorld(t)
	away, err := vault.New(vault.Config{Address: "https://127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	conformance.Run(t, conformance.Subject{
		Provider: w.provider(t, nil), Type: "vault", Path: "database/creds/orders", Absent: "database/creds/absent",
		Login: func(t *testing.T) *credential.Login { return w.login(t, "ann") }, Opens: w.opens, Unreachable: away,
	})
}

func TestConformanceOfSecretsThatStandThere(t *testing.T) {
	server := vaultserver.Start(t, vaultserver.Options{})
	server.Do(t, http.MethodPost, "sys/mounts/kv", map[string]any{"type": "kv", "options": map[string]string{"version": "2"}})
	file := write(t, "token", server.RootToken())
	p, err := vault.New(vault.Config{Address: server.Address(), CAFile: server.CAFile(), Identity: vault.TokenFile{Path: file}})
	if err != nil {
		t.Fatal(err)
	}
	conformance.Run(t, conformance.Subject{
		Provider: below{p, "kv/data/"}, Type: "vault", JSONOnly: true,
		Put: func(t *testing.T, path, text string) {
			server.Do(t, http.MethodPost, "kv/data/"+path, json.RawMessage(`{"data":`+text+`}`))
		},
	})
}

// below is a provider of what stands below a path.
type below struct {
	*vault.Provider
	prefix string
}

func (below) Dynamic() bool { return false }

func (b below) Fetch(ctx context.Context, r credential.Request) (credential.Issued, error) {
	if r.Path != "" {
		r.Path = b.prefix + r.Path
	}
	return b.Provider.Fetch(ctx, r)
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// CR-01: log in with the caller's token, get a user named after the caller, and be gone after.
func TestCR01LoginAndIssue(t *testing.T) {
	w := newWorld(t)
	p := w.provider(t, nil)
	as, err := p.Login(t.Context(), w.login(t, "ann"))
	if err != nil {
		t.Fatal(err)
	}
	issued, err := p.Fetch(t.Context(), credential.Request{Path: "database/creds/orders", As: as})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(issued.Credential.Username, "ann") {
		t.Errorf("the user is %s, which does not name the caller", issued.Credential.Username)
	}
	conn := w.connect(t, issued.Credential.Username, issued.Credential.Password.Reveal())
	var user string
	if err := conn.QueryRow(t.Context(), "SELECT session_user").Scan(&user); err != nil || user != issued.Credential.Username {
		t.Errorf("the store sees %s: %v", user, err)
	}
	for _, text := range []string{fmt.Sprintf("%v %+v %#v", issued, issued, issued), fmt.Sprintf("%v %+v %#v", as, as, as)} {
		for _, s := range []string{issued.Credential.Username, issued.Credential.Password.Reveal(), issued.Lease.ID.Reveal(), as.Token.Reveal(), as.ID.Reveal()} {
			if strings.Contains(text, s) {
				t.Error("what is printed holds a secret")
			}
		}
	}
}

func TestTheProxyLogsInByEachOfItsIdentities(t *testing.T) {
	w := newWorld(t)
	roleID, secretID := w.vault.EnableAppRole(t, "proxy", "1h", "leasing")
	w.vault.EnableJWT(t, "auth/cluster", "https://issuer.example.org", w.url)
	w.vault.JWTRole(t, "auth/cluster", "proxy", "vault", "1h", "leasing")
	t.Setenv("PRISM_TOKEN_FILE", write(t, "found", w.token(t, "proxy").Reveal()))
	for name, identity := range map[string]vault.Identity{
		"a role's secret":     vault.AppRole{RoleID: roleID, SecretIDFile: write(t, "secret-id", secretID+"\n")},
		"a JWT":               vault.JWT{AuthPath: "auth/cluster", Role: "proxy", File: write(t, "jwt", w.token(t, "proxy").Reveal())},
		"a JWT that is found": vault.JWT{AuthPath: "auth/cluster", Role: "proxy", Audience: "vault"},
		"a service account":   vault.Kubernetes{AuthPath: "auth/cluster", Role: "proxy", File: write(t, "jwt", w.token(t, "proxy").Reveal())},
		"a token in a file":   vault.TokenFile{Path: write(t, "token", w.vault.RootToken())},
	} {
		t.Run(name, func(t *testing.T) {
			p := w.provider(t, func(c *vault.Config) { c.Identity = identity })
			if err := p.Check(t.Context(), "database/creds/orders"); err != nil {
				t.Fatal(err)
			}
			as, err := p.Login(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			issued, err := p.Fetch(t.Context(), credential.Request{Path: "database/creds/orders", As: as})
			if err != nil {
				t.Fatal(err)
			}
			issued.Lease.As = as.Token
			if err := p.Revoke(t.Context(), issued.Lease); err != nil {
				t.Error(err)
			}
		})
	}
}
