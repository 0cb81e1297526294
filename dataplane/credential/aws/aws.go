// Package aws is the provider of credentials that stand in AWS Secrets Manager.
package aws

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/logging"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/prism-gateway/prism/dataplane/credential"
	"github.com/prism-gateway/prism/dataplane/credential/internal/remote"
)

// Config says where the secrets are. The credentials to ask with are those that AWS programs find by themselves: variables
// of the environment, shared files, a web identity, the container's or the machine's role.
type Config struct {
	// Region is the region; empty means what the environment or the shared files say.
	Region string
	// RoleARN is a role to assume; empty means none.
	RoleARN string
	// Endpoint is the URL of another server; empty means that of the region.
	Endpoint string
	// Transport sends requests; nil means TLS with the system's authorities, or those of AWS_CA_BUNDLE.
	Transport http.RoundTripper
}

// Provider reads secrets. Its methods may be called concurrently.
type Provider struct {
	credential.Static
	client   *secretsmanager.Client
	identity aws.CredentialsProvider
}

// New makes a Provider. It reads the environment and the shared files, and asks no server.
func New(cfg Config) (*Provider, error) {
	if cfg.Endpoint != "" {
		if _, err := remote.Endpoint(cfg.Endpoint); err != nil {
			return nil, fmt.Errorf("aws: %w", err)
		}
	}
	found, err := load(cfg.Region, cfg.Transport)
	if err != nil {
		return nil, fmt.Errorf("aws: %w", err)
	}
	if found.Region == "" {
		return nil, errors.New("aws: a region is required, here or in AWS_REGION")
	}
	if cfg.RoleARN != "" {
		assume := stscreds.NewAssumeRoleProvider(sts.NewFromConfig(found), cfg.RoleARN, func(o *stscreds.AssumeRoleOptions) { o.RoleSessionName = "prism-proxy" })
		found.Credentials = aws.NewCredentialsCache(assume)
	}
	client := secretsmanager.NewFromConfig(found, func(o *secretsmanager.Options) {
		o.HTTPClient = bounded{o.HTTPClient}
		if cfg.Endpoint != "" {
			o.BaseEndpoint = aws.String(cfg.Endpoint)
		}
	})
	return &Provider{client: client, identity: found.Credentials}, nil
}

// Identity returns the credentials of the AWS identity that the program runs as, found as those of New are; they are
// remembered until shortly before their end. An empty region means the environment's.
func Identity(region string) (aws.CredentialsProvider, error) {
	found, err := load(region, nil)
	if err != nil {
		return nil, fmt.Errorf("aws: %w", err)
	}
	return found.Credentials, nil
}

func load(region string, transport http.RoundTripper) (aws.Config, error) {
	options := []func(*config.LoadOptions) error{
		config.WithRegion(region),
		config.WithLogger(logging.Nop{}),
		config.WithRetryer(func() aws.Retryer { return aws.NopRetryer{} }), // when to ask again is the Source's business
	}
	if transport != nil {
		options = append(options, config.WithHTTPClient(remote.Client(transport)))
	}
	return config.LoadDefaultConfig(context.Background(), options...)
}

// bounded is the SDK's client, whose answers are bounded. It is not remote's, which knows no AWS_CA_BUNDLE.
type bounded struct{ client secretsmanager.HTTPClient }

// Do does one request.
func (b bounded) Do(r *http.Request) (*http.Response, error) {
	response, err := b.client.Do(r)
	if err == nil {
		remote.Bound(response)
	}
	return response, err
}

// Type returns aws-secrets-manager.
func (*Provider) Type() string { return "aws-secrets-manager" }

// Fetch reads the current version of the secret of a name or an ARN.
func (p *Provider) Fetch(ctx context.Context, r credential.Request) (credential.Issued, error) {
	if !isSecret(r.Path) {
		return credential.Issued{}, fmt.Errorf("%.100q is no name or ARN of a secret: %w", r.Path, credential.ErrRefused)
	}
	c, err := p.read(ctx, r.Path)
	if err != nil {
		return credential.Issued{}, fmt.Errorf("%s: %w", r.Path, err)
	}
	return credential.Issued{Credential: c}, nil
}

func (p *Provider) read(ctx context.Context, id string) (credential.Credential, error) {
	// Asked for first, so that what is wrong with it is told apart; it is remembered.
	if _, err := p.identity.Retrieve(ctx); err != nil {
		return credential.Credential{}, noIdentity(err)
	}
	secret, err := p.client.GetSecretValue(ctx, &secretsmanager.GetSecretValueInput{SecretId: &id})
	if err != nil {
		return credential.Credential{}, meaning(err)
	}
	if secret.SecretString == nil {
		return credential.Parse(secret.SecretBinary)
	}
	return credential.Parse([]byte(*secret.SecretString))
}

// throttles are the words of AWS for too many requests, whose status is often 400.
var throttles = regexp.MustCompile(`Throttl|TooManyRequests|LimitExceeded`)

// meaning is what the SDK's error means to a Source.
func meaning(err error) error {
	var said smithy.APIError
	var answer *smithyhttp.ResponseError
	switch {
	case !errors.As(err, &answer):
		return remote.Unanswered(err, remote.ErrAnswer)
	case errors.As(err, &said):
		return remote.Answered(answer.HTTPStatusCode(), said.ErrorCode(), throttles.MatchString(said.ErrorCode()))
	case answer.HTTPStatusCode() != http.StatusOK:
		return remote.Answered(answer.HTTPStatusCode(), "", false)
	}
	return remote.Unanswered(err, remote.ErrAnswer)
}

// noIdentity tells that AWS gives the program no identity, or that who would give it does not answer.
func noIdentity(err error) error {
	var said smithy.APIError
	var answer *smithyhttp.ResponseError
	if errors.As(err, &said) && errors.As(err, &answer) && errors.Is(meaning(err), credential.ErrRefused) {
		return fmt.Errorf("%w: %s", credential.ErrNoIdentity, remote.Answer(answer.HTTPStatusCode(), said.ErrorCode()))
	}
	return fmt.Errorf("the AWS credentials of the program: %w", remote.Unanswered(err, credential.ErrNoIdentity))
}

// names of secrets, and what follows "arn:…:secret:".
var (
	name = regexp.MustCompile(`^[A-Za-z0-9_+=.@-]+(/[A-Za-z0-9_+=.@-]+)*$`)
	arn  = regexp.MustCompile(`^arn:aws[a-z-]*:secretsmanager:[a-z0-9-]+:[0-9]{12}:secret:/?[A-Za-z0-9_+=.@-]+(/[A-Za-z0-9_+=.@-]+)*$`)
)

// isSecret reports whether a path names a secret. What looks like a way out of a directory is none, though it could be one.
func isSecret(path string) bool {
	if len(path) > 2048 {
		return false
	}
	for _, part := range strings.Split(path[strings.LastIndexByte(path, ':')+1:], "/") {
		if part == "." || part == ".." {
			return false
		}
	}
	if strings.HasPrefix(path, "arn:") {
		return arn.MatchString(path)
	}
	return len(path) <= 512 && name.MatchString(path)
}
