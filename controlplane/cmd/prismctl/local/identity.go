package local

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/bcrypt"
	"google.golang.org/grpc/credentials"

	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/target"
	bootstrapv1 "github.com/prism-gateway/prism/protos/prism/bootstrap/v1"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/certs/authority"
	"github.com/prism-gateway/prism/shared/client"
	"github.com/prism-gateway/prism/shared/secret"
)

//go:embed identity.yaml
var privateFile []byte

// Password is that of every user of a local Prism. They exist on this machine only.
const Password = "prism-local"

// users are who can log in, by name, with their group.
var users = []struct{ name, group string }{{"ann", "writers"}, {"ben", "readers"}, {"eve", "others"}}

// identity is what a local Prism has besides when its callers say who they are: an authority that certifies the programs, Dex
// as the issuer of tokens, OpenBao as the provider of credentials, and a Redis whose users OpenBao makes.
type identity struct {
	dir             directory // everything of it
	authority       *authority.Authority
	dex, bao, redis Program
	paths           map[string]string // of the programs
	cluster         string            // where OpenBao would meet others of its kind
	password        secret.Text       // of Redis' first user
}

// newIdentity opens the identity of a directory, or makes it, and finds its programs.
func newIdentity(dir directory, free *ports) (*identity, error) {
	i := &identity{dir: directory(dir.file("identity")), paths: map[string]string{}}
	for _, program := range []struct {
		into                *Program
		name, program, what string
		port                int
	}{
		{&i.redis, "redis", "redis-server", "Redis", 6380}, {&i.dex, "dex", "dex", "Dex", 5556}, {&i.bao, "openbao", "bao", "OpenBao", 8200},
	} {
		path, err := find(program.program)
		if err != nil {
			return nil, err
		}
		address, err := free.usual(program.what, program.port)
		if err != nil {
			return nil, err
		}
		i.paths[program.name] = path
		*program.into = Program{Name: program.name, Address: address, Log: dir.file(program.name + ".log")}
	}
	var err error
	if i.cluster, err = free.next(8201); err != nil {
		return nil, err
	}
	for _, name := range []string{"redis", "openbao"} {
		if err := os.MkdirAll(i.dir.file(name), 0o700); err != nil {
			return nil, err
		}
	}
	if err := i.certify(); err != nil {
		return nil, err
	}
	for _, name := range []string{"redis.password", "secret-id"} {
		if err := once(i.dir.file(name), []byte(rand.Text())); err != nil {
			return nil, err
		}
	}
	key := make([]byte, 32)
	rand.Read(key)
	if err := once(i.dir.file("seal.key"), key); err != nil {
		return nil, err
	}
	password, err := os.ReadFile(i.dir.file("redis.password"))
	i.password = secret.New(string(password))
	return i, err
}

// find looks for a program beside prismctl, on PATH, and where the scripts of the project put it.
func find(name string) (string, error) {
	var dirs []string
	if self, err := os.Executable(); err == nil {
		dirs = append(dirs, filepath.Dir(self), filepath.Join(filepath.Dir(self), "..", ".cache", "bin"))
	}
	for _, dir := range dirs {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	return "", fmt.Errorf("--auth needs %s: it is neither beside prismctl nor on PATH; in the project's directory: scripts/fetch redis openbao dex", name)
}

// once writes a file that is not there yet.
func once(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}

// certify opens the authority, or makes one, and certifies prismctl and OpenBao.
func (i *identity) certify() error {
	cert, certErr := os.ReadFile(i.dir.file("authority.pem"))
	key, keyErr := os.ReadFile(i.dir.file("authority-key.pem"))
	var err error
	if certErr == nil && keyErr == nil {
		i.authority, err = authority.Open(cert, secret.New(string(key)), time.Now)
	} else if i.authority, err = authority.New("a local Prism", time.Now); err == nil {
		var text secret.Text
		if text, err = i.authority.Key(); err == nil {
			err = errors.Join(os.WriteFile(i.dir.file("authority-key.pem"), []byte(text.Reveal()), 0o600), os.WriteFile(i.dir.file("authority.pem"), i.authority.PEM(), 0o600))
		}
	}
	if err != nil {
		return fmt.Errorf("the authority of a local Prism: %w", err)
	}
	if _, err := i.certificate("operator", "operator"); err != nil {
		return err
	}
	_, err = i.certificate("openbao", "openbao")
	return err
}

// certificate certifies a program anew.
func (i *identity) certificate(name, id string) (*bootstrapv1.Certificates, error) {
	pair, err := i.authority.Issue(authority.Request{
		URIs: []string{"spiffe://prism.local/" + id}, DNS: []string{"localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}, Client: true, Server: true,
	})
	if err == nil {
		err = pair.Write(string(i.dir), name)
	}
	return &bootstrapv1.Certificates{Source: &bootstrapv1.Certificates_Files{Files: &bootstrapv1.CertificateFiles{
		CertFile: i.dir.file(name + ".pem"), KeyFile: i.dir.file(name + "-key.pem"), CaFile: i.dir.file("ca.pem"),
	}}}, err
}

// admin and proxy add the identity to a program's configuration.
func (i *identity) admin(c *bootstrapv1.AdminConfig) error {
	own, err := i.certificate("prism-admin", "prism/admin/"+c.GetReplicaId())
	c.Tls = &bootstrapv1.ListenerTls{Certificates: own}
	c.FleetTls = c.Tls
	return err
}

func (i *identity) proxy(c *bootstrapv1.ProxyConfig) error {
	own, err := i.certificate(c.GetId(), "prism/proxy/"+c.GetId())
	c.Tls = &bootstrapv1.ListenerTls{Certificates: own, ClientCertificates: bootstrapv1.ClientCertificates_CLIENT_CERTIFICATES_OPTIONAL}
	c.Authentication = &bootstrapv1.Authentication{Issuers: []*bootstrapv1.TokenIssuer{{Url: i.issuer(), JwksUrl: i.issuer() + "/keys", Audiences: []string{"prism"}}}}
	c.CredentialProviders = []*bootstrapv1.CredentialProvider{{Name: "vault", Type: &bootstrapv1.CredentialProvider_Vault{Vault: &bootstrapv1.VaultProvider{
		Address: "https://" + i.bao.Address, CaFile: i.dir.file("ca.pem"),
		Login: &bootstrapv1.VaultProvider_AppRole{AppRole: &bootstrapv1.VaultAppRole{RoleId: "prism-proxy", SecretIdFile: i.dir.file("secret-id")}},
	}}}}
	return err
}

// context adds what prismctl shows and believes.
func (i *identity) context(c *target.Context) {
	c.Identity = target.Identity{
		CAFile: i.dir.file("ca.pem"), CertFile: i.dir.file("operator.pem"), KeyFile: i.dir.file("operator-key.pem"), TokenFile: i.token(),
	}
}

// client says how prismctl itself calls the programs, with a user's token or without.
func (i *identity) client(endpoint string, token client.TokenSource) (client.Config, error) {
	roots := x509.NewCertPool()
	roots.AddCert(i.authority.Certificate())
	own, err := tls.LoadX509KeyPair(i.dir.file("operator.pem"), i.dir.file("operator-key.pem"))
	return client.Config{Endpoints: []string{endpoint}, Token: token, Credentials: credentials.NewTLS(&tls.Config{
		RootCAs: roots, Certificates: []tls.Certificate{own}, MinVersion: tls.VersionTLS12,
	})}, err
}

// backend is the store whose users OpenBao makes.
func (i *identity) backend() *configv1.Backend {
	return &configv1.Backend{Name: "local-users", Type: "redis", Endpoints: []string{i.redis.Address}}
}

// issuer is who signs the users' tokens.
func (i *identity) issuer() string { return "http://" + i.dex.Address }

// programs are those of the identity, in the order in which they start.
func (i *identity) programs() []Program { return []Program{i.redis, i.dex, i.bao} }

// args are a program's, whose configuration write has written.
func (i *identity) args(name string) []string {
	switch name {
	case i.dex.Name:
		return []string{"serve", i.dir.file("dex.json")}
	case i.bao.Name:
		return []string{"server", "-config=" + i.dir.file("openbao.json")}
	}
	return []string{i.dir.file("redis.conf")}
}

// write writes the configurations. JSON is YAML, and what OpenBao reads too.
func (i *identity) write() error {
	host, port, err := net.SplitHostPort(i.redis.Address)
	if err != nil {
		return err
	}
	hash, err := bcrypt.GenerateFromPassword([]byte(Password), bcrypt.DefaultCost)
	if err != nil {
		return err
	}
	var accounts []map[string]any
	for _, u := range users {
		accounts = append(accounts, map[string]any{"email": u.name + "@example.com", "hash": string(hash), "username": u.name, "userID": u.name, "groups": []string{u.group}})
	}
	for name, config := range map[string]any{
		"dex.json": map[string]any{
			"issuer": i.issuer(), "storage": map[string]string{"type": "memory"}, "web": map[string]string{"http": i.dex.Address},
			"expiry": map[string]string{"idTokens": "12h"}, "enablePasswordDB": true, "staticPasswords": accounts,
			"oauth2":        map[string]any{"passwordConnector": "local", "grantTypes": []string{"password"}},
			"staticClients": []map[string]any{{"id": "prism", "name": "prismctl", "secret": Password}},
		},
		"openbao.json": map[string]any{
			"storage": map[string]any{"raft": map[string]any{"path": i.dir.file("openbao"), "node_id": "local", "performance_multiplier": 1}},
			"listener": map[string]any{"tcp": map[string]any{
				"address": i.bao.Address, "cluster_address": i.cluster, "tls_cert_file": i.dir.file("openbao.pem"), "tls_key_file": i.dir.file("openbao-key.pem"),
			}},
			// It unseals itself, which a Vault that guards anything must not.
			"seal":     map[string]any{"static": map[string]string{"current_key_id": "local", "current_key": "file://" + i.dir.file("seal.key")}},
			"api_addr": "https://" + i.bao.Address, "cluster_addr": "https://" + i.cluster, "log_level": "warn",
		},
	} {
		data, err := json.MarshalIndent(config, "", "  ")
		if err == nil {
			err = os.WriteFile(i.dir.file(name), data, 0o600)
		}
		if err != nil {
			return err
		}
	}
	return errors.Join(
		os.WriteFile(i.dir.file("redis.conf"), fmt.Appendf(nil, "bind %s\nport %s\nrequirepass %s\nappendonly yes\ndir %q\n", host, port, i.password.Reveal(), i.dir.file("redis")), 0o600),
		os.WriteFile(i.dir.file("private.yaml"), privateFile, 0o600),
	)
}

// ready says why a program of the identity does not answer yet; empty when it does.
func (i *identity) ready(ctx context.Context, name string) string {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	switch name {
	case i.redis.Name:
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", i.redis.Address)
		if err != nil {
			return silent
		}
		return closing(conn.Close())
	case i.dex.Name:
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, i.issuer()+"/keys", nil)
		if err != nil {
			return err.Error()
		}
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			return silent
		}
		return closing(answer.Body.Close())
	}
	if err := i.bank().healthy(ctx); err != nil {
		return silent
	}
	return ""
}

func closing(err error) string {
	if err != nil {
		return err.Error()
	}
	return ""
}

// welcome says what there is besides; nothing of a nil identity.
func (i *identity) welcome() string {
	if i == nil {
		return ""
	}
	return fmt.Sprintf(`  issuer         %s   users %s, password %s; ann is logged in
  OpenBao        https://%s   its first token and the authority's key are in %s
  Redis          %s   its users are made by OpenBao
`, i.issuer(), names(), Password, i.bao.Address, i.dir, i.redis.Address)
}

// variables are those of the environment by which prismctl shows and believes the same as by its context.
func (i *identity) variables() string {
	if i == nil {
		return ""
	}
	var c target.Context
	i.context(&c)
	return fmt.Sprintf(" PRISM_CA_FILE=%s PRISM_CERT_FILE=%s PRISM_KEY_FILE=%s PRISM_TOKEN_FILE=%s", c.CAFile, c.CertFile, c.KeyFile, c.TokenFile)
}

// known reports whether there is a user.
func known(name string) bool {
	return slices.ContainsFunc(users, func(u struct{ name, group string }) bool { return u.name == name })
}

// names are the users'.
func names() string {
	var out []string
	for _, u := range users {
		out = append(out, u.name)
	}
	return strings.Join(out, ", ")
}
