// Package vault is the provider of credentials for HashiCorp Vault and OpenBao.
//
// What a path gives decides how it is kept: dynamic secrets (database/creds/<role> and those of other engines) have
// leases, what stands in a KV store has none. Of the environment it reads nothing: VAULT_* variables have no effect.
package vault

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/prism-gateway/prism/dataplane/credential"
	"github.com/prism-gateway/prism/shared/secret"
)

// maxAnswerBytes bounds what a server may answer.
const maxAnswerBytes = 4 << 20

// Config makes a Provider.
type Config struct {
	// Address is the server's URL; required.
	Address string
	// Namespace is the Vault namespace; empty means the root.
	Namespace string
	// CAFile has the authorities of the server's certificate, PEM; empty means the system's.
	CAFile string
	// ServerName is the name in its certificate, where it is not the host of the address.
	ServerName string
	// Identity is how the proxy itself logs in; nil: it does not.
	Identity Identity
}

// Provider asks one server. Its methods may be called concurrently.
type Provider struct {
	client    *api.Client // never used itself: each call has a copy, with its token and namespace
	namespace string
	identity  Identity
}

// New makes a Provider. It reads the authorities and does not ask the server.
func New(cfg Config) (*Provider, error) {
	u, err := url.Parse(cfg.Address)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return nil, fmt.Errorf("vault: address %q is no URL of a server", cfg.Address)
	case u.Scheme == "http" && !loopback(u.Hostname()):
		return nil, fmt.Errorf("vault: address %q: without TLS only a server on this machine is asked", cfg.Address)
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, fmt.Errorf("vault: address %q: want https://", cfg.Address)
	}
	if strings.ContainsAny(cfg.Namespace, "\r\n") {
		return nil, errors.New("vault: the namespace is no name")
	}
	roots, err := authorities(cfg.CAFile)
	if err != nil {
		return nil, fmt.Errorf("vault: %w", err)
	}
	transport := &http.Transport{
		DialContext:         (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, ServerName: cfg.ServerName},
		TLSHandshakeTimeout: 5 * time.Second, MaxIdleConnsPerHost: 32, IdleConnTimeout: 90 * time.Second, ForceAttemptHTTP2: true,
	}
	client, err := api.NewClient(&api.Config{
		Address: cfg.Address, Timeout: 30 * time.Second, MaxRetries: -1,
		HttpClient: &http.Client{
			Transport: bounded{transport},
			// The SDK follows one redirect, of a standby to the active server, by itself.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	})
	if err != nil {
		return nil, fmt.Errorf("vault: %w", err)
	}
	client.ClearToken() // NewClient takes these from the environment
	client.SetHeaders(http.Header{"X-Vault-Request": {"true"}})
	return &Provider{client: client, namespace: cfg.Namespace, identity: cfg.Identity}, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func authorities(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s: no certificate in it", file)
	}
	return roots, nil
}

// Type returns vault.
func (*Provider) Type() string { return "vault" }

// Dynamic returns true.
func (*Provider) Dynamic() bool { return true }

// Login logs a caller in by its JWT, or the proxy by its own identity.
func (p *Provider) Login(ctx context.Context, who *credential.Login) (credential.Lease, error) {
	namespace, identity := p.namespace, p.identity
	if who != nil {
		identity = jwt{authPath: who.AuthPath, role: who.Role, token: who.Token}
		if who.VaultNamespace != "" {
			namespace = who.VaultNamespace
		}
	}
	if identity == nil {
		return credential.Lease{}, credential.ErrNoIdentity
	}
	if _, ok := identity.(TokenFile); ok {
		return credential.Lease{Login: true}, nil // the file is read for each call, as another keeps it fresh
	}
	path, body, hide, err := identity.login(ctx)
	if err != nil {
		return credential.Lease{}, fmt.Errorf("log in: %w", err)
	}
	answer, err := p.ask(ctx, call{namespace: namespace, method: http.MethodPut, path: path, body: body, hide: hide})
	if err != nil {
		return credential.Lease{}, err
	}
	if answer == nil || answer.Auth == nil || answer.Auth.ClientToken == "" {
		return credential.Lease{}, fmt.Errorf("%s: the answer has no token: %w", path, credential.ErrRefused)
	}
	return loginLease(answer.Auth, namespace), nil
}

func loginLease(auth *api.SecretAuth, namespace string) credential.Lease {
	l := credential.Lease{
		Login: true, Token: secret.New(auth.ClientToken), VaultNamespace: namespace,
		TTL: time.Duration(auth.LeaseDuration) * time.Second, Renewable: auth.Renewable,
	}
	if auth.Accessor != "" { // a batch token has none: it cannot be revoked
		l.ID = secret.New(auth.Accessor)
	}
	return l
}

// Fetch returns what a path gives. What follows a '?' are parameters of the request, such as
// pki/issue/orders?common_name=orders or kv/data/orders?version=3.
func (p *Provider) Fetch(ctx context.Context, r credential.Request) (credential.Issued, error) {
	path, query, _ := strings.Cut(r.Path, "?")
	params, err := url.ParseQuery(query)
	if err != nil {
		return credential.Issued{}, fmt.Errorf("%s: what follows '?' is not name=value&…: %w", path, credential.ErrRefused)
	}
	c := call{namespace: r.As.VaultNamespace, token: r.As.Token, method: http.MethodGet, path: path, params: params}
	if segments := strings.Split(path, "/"); len(segments) > 2 && segments[len(segments)-2] == "issue" {
		c.method, c.params, c.body = http.MethodPut, nil, map[string]any{}
		for name := range params {
			c.body[name] = params.Get(name)
		}
	}
	answer, err := p.ask(ctx, c)
	if err != nil {
		return credential.Issued{}, err
	}
	if answer == nil {
		return credential.Issued{}, fmt.Errorf("%s: there is nothing: %w", path, credential.ErrRefused)
	}
	found, err := credentialOf(answer.Data)
	if err != nil {
		return credential.Issued{}, fmt.Errorf("%s: %w", path, err)
	}
	issued := credential.Issued{Credential: found}
	if answer.LeaseID != "" {
		issued.Lease = credential.Lease{
			ID: secret.New(answer.LeaseID), VaultNamespace: r.As.VaultNamespace,
			TTL: time.Duration(answer.LeaseDuration) * time.Second, Renewable: answer.Renewable,
		}
	}
	return issued, nil
}

// Renew has a lease, or a login, live for another TTL.
func (p *Provider) Renew(ctx context.Context, l credential.Lease) (credential.Lease, error) {
	seconds := max(int(l.TTL/time.Second), 1)
	c := call{namespace: l.VaultNamespace, token: l.As, method: http.MethodPut, path: "sys/leases/renew",
		body: map[string]any{"lease_id": l.ID.Reveal(), "increment": seconds}, hide: []secret.Text{l.ID}}
	if l.Login {
		c.token, c.path, c.body = l.Token, "auth/token/renew-self", map[string]any{"increment": seconds}
	}
	answer, err := p.ask(ctx, c)
	switch {
	case err != nil:
		return credential.Lease{}, err
	case answer == nil, l.Login && answer.Auth == nil:
		return credential.Lease{}, fmt.Errorf("%s: the answer is empty: %w", c.path, credential.ErrRefused)
	case l.Login:
		l.TTL, l.Renewable = time.Duration(answer.Auth.LeaseDuration)*time.Second, answer.Auth.Renewable
	default:
		l.TTL, l.Renewable = time.Duration(answer.LeaseDuration)*time.Second, answer.Renewable
	}
	return l, nil
}

// Revoke ends a lease or a login. The server ends a lease in the background, at once, and tries again by itself if the
// store does not answer.
func (p *Provider) Revoke(ctx context.Context, l credential.Lease) error {
	c := call{namespace: l.VaultNamespace, token: l.As, method: http.MethodPut, hide: []secret.Text{l.ID}}
	switch {
	case l.Login && !l.Token.IsZero():
		c.token, c.path = l.Token, "auth/token/revoke-self"
	case l.Login:
		c.path, c.body = "auth/token/revoke-accessor", map[string]any{"accessor": l.ID.Reveal()}
	default:
		c.path, c.body = "sys/leases/revoke", map[string]any{"lease_id": l.ID.Reveal()}
	}
	_, err := p.ask(ctx, c)
	if gone := (*refusal)(nil); errors.As(err, &gone) && gone.unknown {
		return nil
	}
	return err
}

// Check logs in as the proxy, asks what that identity may do, and logs out. It returns an error that names what is missing
// of what Prism needs: to revoke what a former process left, and to read these paths.
func (p *Provider) Check(ctx context.Context, paths ...string) error {
	l, err := p.Login(ctx, nil)
	if err != nil {
		return err
	}
	if !l.ID.IsZero() {
		defer p.Revoke(context.WithoutCancel(ctx), l)
	}
	needs := map[string]string{"sys/leases/revoke": "update", "auth/token/revoke-accessor": "update"}
	asked := []string{"sys/leases/revoke", "auth/token/revoke-accessor"}
	for _, path := range paths {
		path, _, _ = strings.Cut(path, "?")
		needs[path] = "read"
		asked = append(asked, path)
	}
	answer, err := p.ask(ctx, call{namespace: l.VaultNamespace, token: l.Token, method: http.MethodPut, path: "sys/capabilities-self", body: map[string]any{"paths": asked}})
	if err != nil {
		return err
	}
	var missing []string
	for _, path := range asked {
		if answer == nil || !allows(answer.Data[path], needs[path]) {
			missing = append(missing, needs[path]+" on "+path)
		}
	}
	if missing != nil {
		return fmt.Errorf("the proxy's policy lacks %s: %w", strings.Join(missing, ", "), credential.ErrRefused)
	}
	return nil
}

func allows(capabilities any, want string) bool {
	list, _ := capabilities.([]any)
	for _, c := range list {
		if c == want || c == "root" {
			return true
		}
	}
	return false
}

// call is one request. A zero token means the file's, where the proxy has its token in one, or none.
type call struct {
	namespace string
	token     secret.Text
	method    string
	path      string
	params    url.Values
	body      map[string]any
	hide      []secret.Text // what may not be in an error, besides the token
}

// ask makes a request and returns the answer; nil when it is empty.
func (p *Provider) ask(ctx context.Context, c call) (*api.Secret, error) {
	if err := checkPath(c.path); err != nil {
		return nil, err
	}
	if strings.ContainsAny(c.namespace, "\r\n") {
		return nil, fmt.Errorf("the Vault namespace is no name: %w", credential.ErrRefused)
	}
	if c.namespace == "" {
		c.namespace = p.namespace
	}
	client := p.client.WithNamespace(c.namespace)
	if file, ok := p.identity.(TokenFile); ok && c.token.IsZero() && !strings.HasPrefix(c.path, "auth/token/revoke-self") {
		token, err := file.read()
		if err != nil {
			return nil, err
		}
		c.token = token
	}
	client.SetToken(c.token.Reveal())
	var answer *api.Secret
	var err error
	if c.method == http.MethodGet {
		answer, err = client.Logical().ReadWithDataWithContext(ctx, c.path, c.params)
	} else {
		answer, err = client.Logical().WriteWithContext(ctx, c.path, c.body)
	}
	if err != nil {
		return nil, classify(err, c)
	}
	return answer, nil
}

// checkPath keeps a path, which may come from a namespace's configuration, from being another one.
func checkPath(path string) error {
	for _, segment := range strings.Split(path, "/") {
		if segment == "" || segment == "." || segment == ".." || strings.ContainsAny(segment, "%\\?#\x00\r\n") {
			return fmt.Errorf("%q is no path of a secret: %w", path, credential.ErrRefused)
		}
	}
	return nil
}

// refusal is a server's no.
type refusal struct {
	text    string
	unknown bool // what was named is not there
}

func (r *refusal) Error() string { return r.text }
func (*refusal) Unwrap() error   { return credential.ErrRefused }

// classify says what an error means to a Source, without what is secret.
func classify(err error, c call) error {
	var answered *api.ResponseError
	if !errors.As(err, &answered) {
		var network *url.Error
		if errors.As(err, &network) { // it holds the whole URL
			err = network.Err
		}
		return fmt.Errorf("%s: %w", c.path, hidden(err, c))
	}
	text := fmt.Sprintf("%s: %d %s", c.path, answered.StatusCode, http.StatusText(answered.StatusCode))
	if !answered.RawError {
		for _, e := range answered.Errors {
			text += ": " + strings.Join(strings.Fields(e), " ")
		}
	}
	text = c.without(text)
	switch answered.StatusCode {
	case http.StatusTooManyRequests:
		return fmt.Errorf("%s: %w", text, credential.ErrThrottled)
	case http.StatusBadRequest, http.StatusForbidden, http.StatusNotFound, http.StatusMethodNotAllowed:
		return &refusal{text: text, unknown: answered.StatusCode != http.StatusForbidden}
	}
	return errors.New(text)
}

func hidden(err error, c call) error {
	if text := c.without(err.Error()); text != err.Error() {
		return errors.New(text)
	}
	return err
}

// without takes the secrets of a call out of a text.
func (c call) without(text string) string {
	for _, s := range append(c.hide, c.token) {
		if !s.IsZero() {
			text = strings.ReplaceAll(text, s.Reveal(), s.String())
		}
	}
	return text
}

// bounded reads no more of an answer than it should have.
type bounded struct{ http.RoundTripper }

// RoundTrip makes the request.
func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := b.RoundTripper.RoundTrip(r)
	if err == nil {
		answer.Body = http.MaxBytesReader(nil, answer.Body, maxAnswerBytes)
	}
	return answer, err
}

// credentialOf reads what an engine answers, each of which has names of its own.
func credentialOf(data map[string]any) (credential.Credential, error) {
	if inner, ok := data["data"].(map[string]any); ok { // a KV store with versions
		data = inner
	}
	first := func(names ...string) string {
		for _, name := range names {
			if text, ok := data[name].(string); ok && text != "" {
				return text
			}
		}
		return ""
	}
	text := func(names ...string) secret.Text {
		if s := first(names...); s != "" {
			return secret.New(s)
		}
		return secret.Text{}
	}
	c := credential.Credential{
		Username: first("username", "access_key"), Password: text("password", "secret_key"), APIKey: text("api_key"),
		Token: text("token", "jwt", "security_token", "session_token"), PrivateKey: text("private_key", "seed"),
	}
	chain := first("issuing_ca", "ca")
	if list, ok := data["ca_chain"].([]any); ok && len(list) > 0 {
		chain = joined(list)
	}
	if leaf := first("certificate"); leaf != "" {
		c.Certificate = []byte(leaf + "\n")
		if chain != "" {
			c.Certificate = append(c.Certificate, chain+"\n"...)
		}
	}
	if chain != "" {
		c.Authorities = []byte(chain + "\n")
	}
	if ends, ok := data["expiration"].(json.Number); ok {
		if seconds, err := ends.Int64(); err == nil && seconds > 0 {
			c.ExpiresAt = time.Unix(seconds, 0)
		}
	}
	if metadata, ok := data["metadata"].(map[string]any); ok {
		c.Metadata = map[string]string{}
		for name, value := range metadata {
			if s, ok := value.(string); ok {
				c.Metadata[name] = s
			}
		}
	}
	if c.Username == "" && c.Password.IsZero() && c.APIKey.IsZero() && c.Token.IsZero() && c.PrivateKey.IsZero() {
		return credential.Credential{}, fmt.Errorf("the answer has nothing that opens a store: %w", credential.ErrRefused)
	}
	return c, nil
}

func joined(list []any) string {
	var certificates []string
	for _, each := range list {
		if s, ok := each.(string); ok {
			certificates = append(certificates, s)
		}
	}
	return strings.Join(certificates, "\n")
}
