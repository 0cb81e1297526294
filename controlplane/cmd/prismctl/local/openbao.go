package local

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

// bank is the OpenBao of a local Prism, as who sets it up sees it.
type bank struct {
	address, token string
	client         *http.Client
}

func (i *identity) bank() *bank {
	roots := x509.NewCertPool()
	roots.AddCert(i.authority.Certificate())
	return &bank{address: i.bao.Address, client: &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
	}}}
}

// do makes a request and reads its answer into one; nil reads nothing. What is there already is no error.
func (b *bank) do(ctx context.Context, method, path string, body, into any) error {
	data, err := json.Marshal(body)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, method, "https://"+b.address+"/v1/"+path, bytes.NewReader(data))
	if err != nil {
		return err
	}
	request.Header.Set("X-Vault-Token", b.token)
	answer, err := b.client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, 1<<20))
	switch {
	case err != nil:
		return err
	case answer.StatusCode == http.StatusBadRequest && strings.Contains(string(text), "path is already in use"):
		return nil
	case answer.StatusCode >= http.StatusMultipleChoices:
		return fmt.Errorf("OpenBao answers %s to %s %s: %s", answer.Status, method, path, bytes.TrimSpace(text))
	case into == nil:
		return nil
	}
	return json.Unmarshal(text, into)
}

// healthy asks whether it answers, be it initialized or not.
func (b *bank) healthy(ctx context.Context) error {
	return b.do(ctx, http.MethodGet, "sys/health?standbyok=true&sealedcode=200&uninitcode=200", nil, nil)
}

// policy is what callers' logins and the proxies' own may do.
const policy = `
path "database/creds/*"           { capabilities = ["read"] }
path "sys/leases/renew"           { capabilities = ["update"] }
path "sys/leases/revoke"          { capabilities = ["update"] }
path "auth/token/renew-self"      { capabilities = ["update"] }
path "auth/token/revoke-self"     { capabilities = ["update"] }
path "auth/token/revoke-accessor" { capabilities = ["update"] }
path "sys/capabilities-self"      { capabilities = ["update"] }
`

// userNames makes users' names begin with whom the token names.
const userNames = `{{ printf "v-%s-%s-%s" (.DisplayName | replace "@" "_at_" | truncate 24) (.RoleName | truncate 8) (random 8) | truncate 60 }}`

// setUp makes OpenBao what a local Prism needs, also when it is that already.
func (i *identity) setUp(ctx context.Context) error {
	b := i.bank()
	if err := i.initialize(ctx, b); err != nil {
		return err
	}
	secretID, err := os.ReadFile(i.dir.file("secret-id"))
	if err != nil {
		return err
	}
	host, port, err := net.SplitHostPort(i.redis.Address)
	if err != nil {
		return err
	}
	for _, step := range []struct {
		path string
		body any
	}{
		{"sys/policies/acl/prism-leasing", map[string]string{"policy": policy}},
		{"sys/auth/jwt", map[string]string{"type": "jwt"}},
		{"auth/jwt/config", map[string]string{"jwks_url": i.issuer() + "/keys", "bound_issuer": i.issuer()}},
		{"auth/jwt/role/callers", map[string]any{
			"role_type": "jwt", "bound_audiences": []string{"prism"}, "user_claim": "email", "token_policies": []string{"prism-leasing"},
			"token_ttl": "1h", "token_no_default_policy": true,
		}},
		{"sys/auth/approle", map[string]string{"type": "approle"}},
		{"auth/approle/role/prism-proxy", map[string]any{"token_policies": []string{"prism-leasing"}, "token_ttl": "1h", "token_no_default_policy": true}},
		{"auth/approle/role/prism-proxy/role-id", map[string]string{"role_id": "prism-proxy"}},
		{"auth/approle/role/prism-proxy/custom-secret-id", map[string]string{"secret_id": string(secretID)}},
		{"sys/mounts/database", map[string]string{"type": "database"}},
		{"database/config/redis", map[string]any{
			"plugin_name": "redis-database-plugin", "allowed_roles": "*", "host": host, "port": port, "username": "default",
			"password": i.password.Reveal(), "username_template": userNames,
		}},
		{"database/roles/private", map[string]any{
			"db_name": "redis", "default_ttl": "15m", "max_ttl": "12h", "creation_statements": `["~{????????}??private.*","+@all","-@admin","-@dangerous"]`,
		}},
	} {
		err := b.do(ctx, http.MethodPost, step.path, step.body, nil)
		if err != nil && !(strings.HasSuffix(step.path, "custom-secret-id") && strings.Contains(err.Error(), "already registered")) {
			return err
		}
	}
	return nil
}

// initialize makes a new OpenBao one that is in use, and waits until it is.
func (i *identity) initialize(ctx context.Context, b *bank) error {
	kept := i.dir.file("openbao.keys")
	var keys struct {
		RootToken string   `json:"root_token"`
		Recovery  []string `json:"recovery_keys_base64"`
	}
	data, err := os.ReadFile(kept)
	if errors.Is(err, fs.ErrNotExist) {
		if err := b.do(ctx, http.MethodPost, "sys/init", map[string]int{"recovery_shares": 1, "recovery_threshold": 1}, &keys); err != nil {
			return err
		}
		if data, err = json.Marshal(keys); err == nil {
			err = os.WriteFile(kept, data, 0o600)
		}
	} else if err == nil {
		err = json.Unmarshal(data, &keys)
	}
	if err != nil {
		return fmt.Errorf("the keys of OpenBao: %w", err)
	}
	b.token = keys.RootToken
	for tick := time.NewTicker(50 * time.Millisecond); ; { // another process: there is no channel to wait on
		if err = b.do(ctx, http.MethodGet, "sys/health", nil, nil); err == nil {
			tick.Stop()
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			tick.Stop()
			return err
		}
	}
}
