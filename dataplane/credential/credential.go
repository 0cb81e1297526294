// Package credential keeps what opens the stores: it fetches credentials from providers, renews their leases, replaces
// them in time, and revokes what is not used any more.
//
// Providers are adapters below this package; each wraps one SDK and passes the suite in credential/conformance. A Source
// schedules what all of them do. Nothing of a credential, a token or a lease's id is ever in a log, an error or a metric.
package credential

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prism-gateway/prism/shared/secret"
)

// A Provider keeps or makes credentials. Its methods may be called concurrently, return when ctx ends, and ask once: when
// to ask again is the Source's business. Their errors are, or wrap, ErrRefused, ErrThrottled or ErrNoIdentity; any other
// means that the provider did not answer. An error names what was asked and never holds a secret, nor a lease's id.
type Provider interface {
	// Type is what it is, such as vault, aws-secrets-manager, gcp-secret-manager, azure-keyvault, file, environment.
	Type() string
	// Dynamic reports whether it gives leases and wants a login.
	Dynamic() bool
	// Login makes a token with which credentials are fetched: of the caller whose own token is given, or of the proxy
	// itself when who is nil. The lease has Login set; one without an ID is neither renewed nor revoked.
	Login(ctx context.Context, who *Login) (Lease, error)
	// Fetch returns the credential at a path: a new one, with its lease, or the one that stands there.
	Fetch(ctx context.Context, r Request) (Issued, error)
	// Renew asks that a lease lives for another TTL. The lease that it returns may live less long.
	Renew(ctx context.Context, l Lease) (Lease, error)
	// Revoke ends a lease, and with that of a login all that was fetched with it. One that has ended already is no error.
	Revoke(ctx context.Context, l Lease) error
}

// What a provider's errors wrap.
var (
	// ErrRefused is that the provider said no: there is no such path, it is not allowed, the token or lease is not there
	// any more. Asking the same again does not help.
	ErrRefused = errors.New("refused")
	// ErrThrottled is that the provider is asked too often.
	ErrThrottled = errors.New("asked too often")
	// ErrNoIdentity is that the proxy has no identity of its own at this provider.
	ErrNoIdentity = errors.New("the proxy has no login of its own")
	// ErrLogin is that a login was refused, in errors of a Source: the caller's token is not good there.
	ErrLogin = errors.New("the login was refused")
)

// Login says who a caller is, to a provider.
type Login struct {
	// AuthPath is where callers log in, such as auth/jwt; empty means the provider's default.
	AuthPath string
	// Role is the role to ask for.
	Role string
	// Token is the caller's own token (a JWT).
	Token secret.Text
	// VaultNamespace is the Vault namespace; empty means the provider's.
	VaultNamespace string
}

// Request asks for the credential at a path.
type Request struct {
	// Path is what follows the provider's name and "://".
	Path string
	// As is the login that asks; the zero Lease at a provider that is not dynamic.
	As Lease
}

// Issued is a credential and its lease.
type Issued struct {
	Credential Credential
	// Lease is zero when the credential stands at its path and is not made for who asks.
	Lease Lease
}

// Lease is what a provider gave for a time: a login's token, or a credential.
type Lease struct {
	// Login tells a login's token from a credential.
	Login bool
	// ID is by what it is revoked: a lease's id, or the accessor of a token. Zero: there is nothing to revoke.
	ID secret.Text
	// Token is the token of a login. It is zero when the login is known by its accessor only, as after a restart.
	Token secret.Text
	// As is the token with which a credential's lease, or a login that is known by its accessor only, is renewed and
	// revoked. A Source sets it.
	As secret.Text
	// VaultNamespace is where it is; empty means the provider's.
	VaultNamespace string
	// TTL is how long it lives from when it was given or renewed. 0: it does not end.
	TTL time.Duration
	// Renewable is whether Renew can help.
	Renewable bool
}

// String tells no secret.
func (l Lease) String() string {
	kind := "lease"
	if l.Login {
		kind = "login"
	}
	return fmt.Sprintf("%s of %s", kind, l.TTL)
}

// GoString tells no secret.
func (l Lease) GoString() string { return l.String() }

// MarshalText tells no secret.
func (l Lease) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// LogValue tells no secret.
func (l Lease) LogValue() slog.Value { return slog.StringValue(l.String()) }

// Credential is what opens a store. It does not change, and neither may its holder change it.
type Credential struct {
	// Generation numbers the credentials that a Source has had for one key, from 1. A renewed one keeps its number.
	// Providers leave it 0.
	Generation uint64
	// Username is who a store sees. It is not secret, but neither is it for logs.
	Username                string
	Password, APIKey, Token secret.Text
	// Certificate is PEM, with its intermediates; PrivateKey belongs to it.
	Certificate []byte
	PrivateKey  secret.Text
	// Authorities are the certificates, PEM, of who issued it.
	Authorities []byte
	// Metadata is what else stands there, such as backend_type and environment.
	Metadata map[string]string
	// IssuedAt is when the Source got it. Providers leave it zero.
	IssuedAt time.Time
	// ExpiresAt is when it ends; zero: never. Providers set it where the credential itself says so.
	ExpiresAt time.Time
}

// String tells no secret, nor the user.
func (c Credential) String() string { return fmt.Sprintf("credential of generation %d", c.Generation) }

// GoString tells no secret, nor the user.
func (c Credential) GoString() string { return c.String() }

// MarshalText tells no secret, nor the user.
func (c Credential) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// LogValue tells no secret, nor the user.
func (c Credential) LogValue() slog.Value { return slog.StringValue(c.String()) }

// Static are the methods of a provider whose credentials stand at their paths, for embedding: there is no login, and no
// lease to renew or to revoke.
type Static struct{}

// Dynamic returns false.
func (Static) Dynamic() bool { return false }

// Login does nothing.
func (Static) Login(context.Context, *Login) (Lease, error) { return Lease{Login: true}, nil }

// Renew does nothing.
func (Static) Renew(_ context.Context, l Lease) (Lease, error) { return l, nil }

// Revoke does nothing.
func (Static) Revoke(context.Context, Lease) error { return nil }

// errOver is a credential that had ended when it was fetched.
var errOver = fmt.Errorf("the credential at the path has expired: %w", ErrRefused)
