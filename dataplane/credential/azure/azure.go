// Package azure is the provider of credentials that stand in Azure Key Vault.
package azure

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"regexp"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azsecrets"

	"github.com/prism-gateway/prism/dataplane/credential"
	"github.com/prism-gateway/prism/dataplane/credential/internal/remote"
)

// Config says where the secrets are. The identity to ask with is, in this order, the pod's (AZURE_FEDERATED_TOKEN_FILE),
// that of a client's secret or certificate in the environment (AZURE_CLIENT_SECRET, AZURE_CLIENT_CERTIFICATE_PATH), and the
// machine's managed identity.
type Config struct {
	// VaultURL is the vault, such as https://prism.vault.azure.net; required. The server must be one of Azure's.
	VaultURL string
	// TenantID is the tenant; empty means the environment's.
	TenantID string
	// ClientID is the client id of the pod's or the managed identity; empty means the only one, or the environment's.
	ClientID string
	// Lookup finds a variable; nil means os.LookupEnv.
	Lookup func(string) (string, bool)
	// Transport sends requests; nil means TLS with the system's authorities.
	Transport http.RoundTripper
}

// Provider reads secrets. Its methods may be called concurrently.
type Provider struct {
	credential.Static
	client *azsecrets.Client
}

// New makes a Provider. It asks no server.
func New(cfg Config) (*Provider, error) {
	if secure, err := remote.Endpoint(cfg.VaultURL); err != nil {
		return nil, fmt.Errorf("azure: %w", err)
	} else if !secure {
		return nil, fmt.Errorf("azure: vault %q: want https://", cfg.VaultURL)
	}
	if cfg.Lookup == nil {
		cfg.Lookup = os.LookupEnv
	}
	options := azcore.ClientOptions{
		Transport: remote.Client(cfg.Transport),
		Retry:     policy.RetryOptions{MaxRetries: -1}, // when to ask again is the Source's business
		Telemetry: policy.TelemetryOptions{Disabled: true},
	}
	identity, err := cfg.identity(options)
	if err != nil {
		return nil, fmt.Errorf("azure: the identity of the program: %w", err)
	}
	client, err := azsecrets.NewClient(cfg.VaultURL, identity, &azsecrets.ClientOptions{ClientOptions: options})
	if err != nil {
		return nil, fmt.Errorf("azure: %w", err)
	}
	return &Provider{client: client}, nil
}

// identity chooses what the program shows who it is with. None of these runs a program or asks a person, as the SDK's
// default does.
func (cfg Config) identity(options azcore.ClientOptions) (azcore.TokenCredential, error) {
	set := func(name string) bool {
		value, _ := cfg.Lookup(name)
		return value != ""
	}
	switch {
	case set("AZURE_FEDERATED_TOKEN_FILE"):
		return azidentity.NewWorkloadIdentityCredential(&azidentity.WorkloadIdentityCredentialOptions{ClientOptions: options, ClientID: cfg.ClientID, TenantID: cfg.TenantID})
	case set("AZURE_CLIENT_SECRET"), set("AZURE_CLIENT_CERTIFICATE_PATH"):
		return azidentity.NewEnvironmentCredential(&azidentity.EnvironmentCredentialOptions{ClientOptions: options})
	}
	managed := &azidentity.ManagedIdentityCredentialOptions{ClientOptions: options}
	if cfg.ClientID != "" {
		managed.ID = azidentity.ClientID(cfg.ClientID)
	}
	return azidentity.NewManagedIdentityCredential(managed)
}

// Type returns azure-keyvault.
func (*Provider) Type() string { return "azure-keyvault" }

// name is that of a secret, with a version or without.
var name = regexp.MustCompile(`^([A-Za-z0-9-]{1,127})(?:/([0-9a-f]{32}))?$`)

// Fetch reads a version of a secret, the current one when the path is a name only. Its end is the one that the vault has
// for it.
func (p *Provider) Fetch(ctx context.Context, r credential.Request) (credential.Issued, error) {
	parts := name.FindStringSubmatch(r.Path)
	if parts == nil {
		return credential.Issued{}, fmt.Errorf("%.100q is no name of a secret: %w", r.Path, credential.ErrRefused)
	}
	c, err := p.read(ctx, parts[1], parts[2])
	if err != nil {
		return credential.Issued{}, fmt.Errorf("%s: %w", r.Path, err)
	}
	return credential.Issued{Credential: c}, nil
}

func (p *Provider) read(ctx context.Context, name, version string) (credential.Credential, error) {
	answer, err := p.client.GetSecret(ctx, name, version, nil)
	if err != nil {
		return credential.Credential{}, meaning(err)
	}
	if answer.Value == nil {
		return credential.Credential{}, remote.ErrAnswer
	}
	c, err := credential.Parse([]byte(*answer.Value))
	if err != nil {
		return credential.Credential{}, err
	}
	if a := answer.Attributes; a != nil && a.Expires != nil {
		c.ExpiresAt = *a.Expires
	}
	return c, nil
}

// meaning is what the SDK's error means to a Source. The SDK's own text has the whole answer in it.
func meaning(err error) error {
	var answer *azcore.ResponseError
	if errors.As(err, &answer) {
		return remote.Answered(answer.StatusCode, answer.ErrorCode, false)
	}
	var login *azidentity.AuthenticationFailedError
	if errors.As(err, &login) {
		if login.RawResponse == nil {
			return fmt.Errorf("the login at Azure: %w", remote.Unanswered(err, credential.ErrNoIdentity))
		}
		if err := remote.Answered(login.RawResponse.StatusCode, "", false); !errors.Is(err, credential.ErrRefused) {
			return fmt.Errorf("the login at Azure: %w", err)
		}
		return fmt.Errorf("%w: %s", credential.ErrNoIdentity, remote.Answer(login.RawResponse.StatusCode, ""))
	}
	return remote.Unanswered(err, remote.ErrAnswer)
}
