// Package google is the provider of credentials that stand in Google Secret Manager.
package google

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"net/http"
	"regexp"
	"sync"

	"cloud.google.com/go/auth"
	"cloud.google.com/go/auth/credentials"
	"cloud.google.com/go/auth/httptransport"
	secretmanager "cloud.google.com/go/secretmanager/apiv1"
	"cloud.google.com/go/secretmanager/apiv1/secretmanagerpb"
	"github.com/googleapis/gax-go/v2"
	"github.com/googleapis/gax-go/v2/apierror"
	"google.golang.org/api/option"

	"github.com/prism-gateway/prism/dataplane/credential"
	"github.com/prism-gateway/prism/dataplane/credential/internal/remote"
)

// Config says where the secrets are.
type Config struct {
	// Project is the project of secrets that are given by name; required.
	Project string
	// CredentialsFile has the key of a service account; empty means what Google programs find by themselves: the file of
	// GOOGLE_APPLICATION_CREDENTIALS, or the metadata server.
	CredentialsFile string
	// Endpoint is the URL of another server; empty means Google's. One without TLS is on this machine and gets no login.
	Endpoint string
	// Transport sends requests; nil means TLS with the system's authorities.
	Transport http.RoundTripper
}

// Provider reads secrets. Its methods may be called concurrently.
type Provider struct {
	credential.Static
	cfg    Config
	secure bool

	// mu guards client and identity, which are made by the first call that finds an identity.
	mu       sync.Mutex
	client   *secretmanager.Client
	identity *auth.Credentials
}

// New makes a Provider. It asks no server.
func New(cfg Config) (*Provider, error) {
	if !project.MatchString(cfg.Project) {
		return nil, fmt.Errorf("google: %q is no project", cfg.Project)
	}
	secure := true
	if cfg.Endpoint != "" {
		var err error
		if secure, err = remote.Endpoint(cfg.Endpoint); err != nil {
			return nil, fmt.Errorf("google: %w", err)
		}
	}
	return &Provider{cfg: cfg, secure: secure}, nil
}

// Type returns gcp-secret-manager.
func (*Provider) Type() string { return "gcp-secret-manager" }

// Fetch reads a version of a secret: of a name the latest one in the configured project, of a resource name without a
// version (projects/…/secrets/…) the latest, else the one that is named.
func (p *Provider) Fetch(ctx context.Context, r credential.Request) (credential.Issued, error) {
	name, ok := p.version(r.Path)
	if !ok {
		return credential.Issued{}, fmt.Errorf("%.100q is no name of a secret: %w", r.Path, credential.ErrRefused)
	}
	c, err := p.read(ctx, name)
	if err != nil {
		return credential.Issued{}, fmt.Errorf("%s: %w", r.Path, err)
	}
	return credential.Issued{Credential: c}, nil
}

func (p *Provider) read(ctx context.Context, name string) (credential.Credential, error) {
	if err := ctx.Err(); err != nil {
		return credential.Credential{}, err
	}
	client, identity, err := p.connect()
	if err != nil {
		return credential.Credential{}, err
	}
	// Asked for first, so that what is wrong with it is told apart; it is remembered.
	if identity != nil {
		if _, err := identity.Token(ctx); err != nil {
			return credential.Credential{}, noIdentity(err)
		}
	}
	once := gax.WithRetry(nil) // when to ask again is the Source's business
	answer, err := client.AccessSecretVersion(ctx, &secretmanagerpb.AccessSecretVersionRequest{Name: name}, once)
	if err != nil {
		return credential.Credential{}, meaning(err)
	}
	data := answer.GetPayload().GetData()
	if sum := answer.GetPayload().DataCrc32C; sum != nil && *sum != int64(crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli))) {
		return credential.Credential{}, errors.New("the secret was damaged on its way")
	}
	return credential.Parse(data)
}

// connect returns the client and the identity that it asks with, which is nil without TLS. Who looks for an identity may
// ask a metadata server, and find one later, so New does not.
func (p *Provider) connect() (*secretmanager.Client, *auth.Credentials, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.client != nil {
		return p.client, p.identity, nil
	}
	// A variable of the environment would make the SDK log answers, with the secrets in them.
	silent := slog.New(slog.DiscardHandler)
	client := remote.Client(p.cfg.Transport)
	var identity *auth.Credentials
	if p.secure {
		var err error
		if identity, err = p.find(silent); err != nil {
			return nil, nil, noIdentity(err)
		}
		if err := httptransport.AddAuthorizationMiddleware(client, identity); err != nil {
			return nil, nil, noIdentity(err)
		}
	}
	options := []option.ClientOption{option.WithLogger(silent), option.WithHTTPClient(client)}
	if p.cfg.Endpoint != "" {
		options = append(options, option.WithEndpoint(p.cfg.Endpoint))
	}
	// The client is not bound to this call's context: it is used by all that follow.
	made, err := secretmanager.NewRESTClient(context.Background(), options...)
	if err != nil {
		return nil, nil, errors.New("the client of Google Secret Manager cannot be made")
	}
	p.client, p.identity = made, identity
	return made, identity, nil
}

// find looks for the identity of the program.
func (p *Provider) find(logger *slog.Logger) (*auth.Credentials, error) {
	options := &credentials.DetectOptions{
		Scopes:              secretmanager.DefaultAuthScopes(),
		UseSelfSignedJWT:    true, // a service account's key needs no one to ask for a token
		DisableAsyncRefresh: true,
		Client:              remote.Client(p.cfg.Transport),
		Logger:              logger,
	}
	if p.cfg.CredentialsFile != "" {
		return credentials.NewCredentialsFromFile(credentials.ServiceAccount, p.cfg.CredentialsFile, options)
	}
	return credentials.DetectDefault(options)
}

// meaning is what the SDK's error means to a Source.
func meaning(err error) error {
	var said *apierror.APIError
	if errors.As(err, &said) && said.HTTPCode() > 0 {
		return remote.Answered(said.HTTPCode(), said.Reason(), false)
	}
	return remote.Unanswered(err, remote.ErrAnswer)
}

// noIdentity tells that Google gives the program no identity, or that who would give it does not answer.
func noIdentity(err error) error {
	var said *auth.Error
	if !errors.As(err, &said) || said.Response == nil {
		return fmt.Errorf("the Google credentials of the program: %w", remote.Unanswered(err, credential.ErrNoIdentity))
	}
	if err := remote.Answered(said.Response.StatusCode, "", false); !errors.Is(err, credential.ErrRefused) {
		return fmt.Errorf("the Google credentials of the program: %w", err)
	}
	return fmt.Errorf("%w: %s", credential.ErrNoIdentity, remote.Answer(said.Response.StatusCode, ""))
}

// names of projects, of secrets, and of secrets and versions as resources.
var (
	project  = regexp.MustCompile(`^([a-z0-9.-]+:)?[a-z0-9][a-z0-9-]*$`)
	secret   = regexp.MustCompile(`^[A-Za-z0-9_-]{1,255}$`)
	resource = regexp.MustCompile(`^projects/([a-z0-9.-]+:)?[a-z0-9][a-z0-9-]*(/locations/[a-z0-9-]+)?/secrets/[A-Za-z0-9_-]{1,255}(/versions/[A-Za-z0-9_-]{1,63})?$`)
	numbered = regexp.MustCompile(`/versions/[A-Za-z0-9_-]+$`)
)

// version returns the full name of the version that a path means.
func (p *Provider) version(path string) (name string, ok bool) {
	switch {
	case secret.MatchString(path):
		return "projects/" + p.cfg.Project + "/secrets/" + path + "/versions/latest", true
	case len(path) > 1024 || !resource.MatchString(path):
		return "", false
	case numbered.MatchString(path):
		return path, true
	}
	return path + "/versions/latest", true
}
