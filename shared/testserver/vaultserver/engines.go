package vaultserver

import (
	"net/http"
	"net/url"
	"os"
	"strings"
)

// EnableJWT lets holders of tokens of an issuer log in at a mount such as auth/jwt. keys is the URL of the issuer's JWK Set.
func (s *Server) EnableJWT(t T, mount, issuer, keys string) {
	t.Helper()
	s.Do(t, http.MethodPost, "sys/auth/"+strings.TrimPrefix(mount, "auth/"), map[string]string{"type": "jwt"})
	s.Do(t, http.MethodPost, mount+"/config", map[string]any{"jwks_url": keys, "bound_issuer": issuer})
}

// JWTRole makes a role for tokens with an audience. Who logs in is named by the claim sub.
func (s *Server) JWTRole(t T, mount, role, audience string, ttl string, policies ...string) {
	t.Helper()
	s.Do(t, http.MethodPost, mount+"/role/"+role, map[string]any{
		"role_type": "jwt", "bound_audiences": []string{audience}, "user_claim": "sub", "token_policies": policies, "token_ttl": ttl,
		"token_no_default_policy": true,
	})
}

// EnableAppRole makes a role at auth/approle and returns its id and a secret id.
func (s *Server) EnableAppRole(t T, role, ttl string, policies ...string) (id, secret string) {
	t.Helper()
	s.Do(t, http.MethodPost, "sys/auth/approle", map[string]string{"type": "approle"})
	s.Do(t, http.MethodPost, "auth/approle/role/"+role, map[string]any{"token_policies": policies, "token_ttl": ttl, "token_no_default_policy": true})
	data, _ := s.Do(t, http.MethodGet, "auth/approle/role/"+role+"/role-id", nil)["data"].(map[string]any)
	id, _ = data["role_id"].(string)
	data, _ = s.Do(t, http.MethodPut, "auth/approle/role/"+role+"/secret-id", nil)["data"].(map[string]any)
	secret, _ = data["secret_id"].(string)
	return id, secret
}

// Policy makes a policy, written in HCL.
func (s *Server) Policy(t T, name, hcl string) {
	t.Helper()
	s.Do(t, http.MethodPut, "sys/policies/acl/"+name, map[string]string{"policy": hcl})
}

// Leasing is a policy for credentials of database roles: to get them, to renew and to revoke them.
const Leasing = `
path "database/creds/*" { capabilities = ["read"] }
path "sys/leases/renew" { capabilities = ["update"] }
path "sys/leases/revoke" { capabilities = ["update"] }
path "auth/token/renew-self" { capabilities = ["update"] }
path "auth/token/revoke-self" { capabilities = ["update"] }
path "auth/token/lookup-self" { capabilities = ["read"] }
path "auth/token/revoke-accessor" { capabilities = ["update"] }
path "sys/capabilities-self" { capabilities = ["update"] }
`

// EnableDatabase mounts the engine of databases.
func (s *Server) EnableDatabase(t T) {
	t.Helper()
	s.Do(t, http.MethodPost, "sys/mounts/database", map[string]string{"type": "database"})
	s.Do(t, http.MethodPost, "sys/policies/password/"+passwordPolicy, map[string]string{
		"policy": `length = 40` + "\n" + `rule "charset" { charset = "ZQX" }`,
	})
}

const passwordPolicy = "plain"

// UserNames is the template of the users' names: they begin with whom the login names, so that a store's log does.
const UserNames = `{{ printf "v-%s-%s-%s" (.DisplayName | replace "@" "_at_" | truncate 24) (.RoleName | truncate 8) (random 8) | truncate 60 }}`

// Passwords is a regular expression of the users' passwords. They look like nothing else, so that a test can search for
// them where none may be.
const Passwords = `[ZQX]{40}`

// PostgreSQL connects the engine to a server, as name, by a user who may make roles: over TLS when the file with the server's
// authority is named.
func (s *Server) PostgreSQL(t T, name, addr, user, password string, ca ...string) {
	t.Helper()
	secured := "sslmode=disable"
	if len(ca) > 0 {
		secured = "sslmode=verify-full&sslrootcert=" + url.QueryEscape(ca[0])
	}
	s.Do(t, http.MethodPost, "database/config/"+name, map[string]any{
		"plugin_name": "postgresql-database-plugin", "allowed_roles": "*", "username_template": UserNames, "password_policy": passwordPolicy,
		"connection_url": "postgresql://{{username}}:{{password}}@" + addr + "/postgres?" + secured, "username": user, "password": password,
	})
}

// PostgreSQLRole makes a role of the engine: its users are members of member and act as that, so that they own nothing.
func (s *Server) PostgreSQLRole(t T, role, database, member, ttl, maxTTL string) {
	t.Helper()
	s.Do(t, http.MethodPost, "database/roles/"+role, map[string]any{
		"db_name": database, "default_ttl": ttl, "max_ttl": maxTTL,
		"creation_statements": []string{`CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}' IN ROLE ` + member, `ALTER ROLE "{{name}}" SET role = '` + member + `'`},
		"revocation_statements": []string{
			`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{{name}}'`, `DROP ROLE IF EXISTS "{{name}}"`,
		},
	})
}

// Redis connects the engine to a server, as name, by a user who may change its users: over TLS when the file with the
// server's authority is named.
func (s *Server) Redis(t T, name, host, port, user, password string, ca ...string) {
	t.Helper()
	config := map[string]any{
		"plugin_name": "redis-database-plugin", "allowed_roles": "*", "host": host, "port": port, "username": user, "password": password,
		"username_template": UserNames, "password_policy": passwordPolicy,
	}
	if len(ca) > 0 {
		text, err := os.ReadFile(ca[0])
		if err != nil {
			t.Fatal(err)
		}
		config["tls"], config["ca_cert"] = true, string(text)
	}
	s.Do(t, http.MethodPost, "database/config/"+name, config)
}

// RedisRole makes a role of the engine, whose users have the rules of Redis' ACL.
func (s *Server) RedisRole(t T, role, database, ttl, maxTTL string, rules string) {
	t.Helper()
	s.Do(t, http.MethodPost, "database/roles/"+role, map[string]any{
		"db_name": database, "default_ttl": ttl, "max_ttl": maxTTL, "creation_statements": []string{rules},
	})
}

// Leases are the ids of the leases below a prefix such as database/creds/orders/.
func (s *Server) Leases(t T, prefix string) []string {
	t.Helper()
	out, err := s.try("LIST", "sys/leases/lookup/"+prefix, nil)
	if err != nil {
		if strings.Contains(err.Error(), "404") {
			return nil
		}
		t.Fatal(err)
	}
	data, _ := out["data"].(map[string]any)
	keys, _ := data["keys"].([]any)
	var ids []string
	for _, k := range keys {
		if id, ok := k.(string); ok {
			ids = append(ids, id)
		}
	}
	return ids
}
