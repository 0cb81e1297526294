// Package caller finds out whose call it is: by the certificate of its connection, by its bearer token, and by what another
// proxy that forwarded it says of the first.
//
// What it finds is remembered with the connection, so that a caller that goes on with the same token is known by a
// comparison.
package caller

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/prism-gateway/prism/dataplane/authn"
	"github.com/prism-gateway/prism/dataplane/session"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/principal"
	"github.com/prism-gateway/prism/shared/secret"
)

// The metadata in which callers bring bearer tokens.
const (
	authorization = authn.Authorization
	prismToken    = authn.PrismToken
)

// believedFor is how long a connection's token is believed without asking again: its issuer may have withdrawn the key.
const believedFor = 5 * time.Minute

// Caller is whose call it is. It does not change and is shared between calls.
type Caller struct {
	// Principal is who calls; nil when nobody told.
	Principal *principal.Principal
	// Token is the bearer token that was shown; nil when none was.
	Token *authn.Token

	login secret.Text
	ends  time.Time // of the token, or of the certificate
	until time.Time // when the token is to be verified again
	shown shown
}

// shown is what a call shows besides its certificate, for comparison with the next.
type shown struct {
	base *principal.Principal // by certificate
	key  string               // the metadata key of the token
	text string               // its value
}

// Claim is what the caller shows for its session.
func (c *Caller) Claim() session.Claim {
	claim := session.Claim{Principal: c.Principal, Login: c.login, Ends: c.ends}
	if c.Token != nil {
		claim.Token = c.Token.Hash
	}
	return claim
}

// verifier is what believes bearer tokens.
type verifier interface {
	Verify(ctx context.Context, token string) (*authn.Token, error)
}

// Config makes a Finder.
type Config struct {
	// Self is this proxy's id. Required.
	Self string
	// Tokens verifies bearer tokens; nil: none is believed.
	Tokens verifier
	// Own is this proxy's certificate and key; nil where proxies speak in plaintext, and believe each other nothing.
	Own func() (*Identity, error)
	// Believe returns whom a certificate of another proxy names; set where Own is.
	Believe func(chain []*x509.Certificate) (*principal.Principal, error)
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Finder finds out who calls. Its methods may be called concurrently.
type Finder struct {
	cfg  Config
	mine signatures
}

// New makes a Finder.
func New(cfg Config) *Finder {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Finder{cfg: cfg}
}

// Connection is what is known of the other end of a connection: the AuthInfo of every connection of the proxy's server.
type Connection struct {
	credentials.AuthInfo
	who *principal.Principal // nil: no certificate was shown, or it names nobody
	err error                // why it names nobody

	last    atomic.Pointer[Caller] // who was here last with a token
	plain   Caller                 // who is here without one
	others  sync.Map               // of a proxy: what it signed, as string -> *Caller
	nothers atomic.Int64
}

// NewConnection looks at what a handshake gave.
func NewConnection(info credentials.AuthInfo) *Connection {
	c := &Connection{AuthInfo: info}
	if tls, ok := info.(credentials.TLSInfo); ok && len(tls.State.VerifiedChains) > 0 {
		leaf := tls.State.VerifiedChains[0][0]
		c.who, c.err = principal.FromCertificate(leaf)
		c.plain = Caller{Principal: c.who, ends: leaf.NotAfter}
	}
	return c
}

// GetCommonAuthInfo is what grpc asks for the connection's security.
func (c *Connection) GetCommonAuthInfo() credentials.CommonAuthInfo {
	if info, ok := c.AuthInfo.(interface {
		GetCommonAuthInfo() credentials.CommonAuthInfo
	}); ok {
		return info.GetCommonAuthInfo()
	}
	return credentials.CommonAuthInfo{SecurityLevel: credentials.NoSecurity}
}

// of returns the connection of a call.
func of(ctx context.Context) *Connection {
	if p, ok := peer.FromContext(ctx); ok {
		if c, ok := p.AuthInfo.(*Connection); ok {
			return c
		}
	}
	return &Connection{}
}

// FromProxy reports whether the connection of a call is that of another proxy of the fleet. Where proxies have no
// certificates nobody can tell, and every caller is.
func (f *Finder) FromProxy(ctx context.Context) bool {
	if f.cfg.Own == nil {
		return true
	}
	own, err := f.cfg.Own()
	return err == nil && of(ctx).who.Beside(own.principal)
}

// Anybody returns who calls as far as it is known without a token, for namespaces that ask nobody who he is. It never fails.
func (f *Finder) Anybody(ctx context.Context) *Caller { return &of(ctx).plain }

// Find returns who calls. An error is a fault: what the caller shows is not believed, or it shows nothing.
func (f *Finder) Find(ctx context.Context) (*Caller, error) {
	conn := of(ctx)
	base, err := f.base(ctx, conn)
	if err != nil {
		return nil, err
	}
	byHeader, byOurs := metadata.ValueFromIncomingContext(ctx, authorization), metadata.ValueFromIncomingContext(ctx, prismToken)
	switch {
	case len(byHeader) > 0 || len(byOurs) > 0:
		return f.byToken(ctx, conn, base, byHeader, byOurs)
	case base.Principal != nil && !base.ends.IsZero() && !f.cfg.Now().Before(base.ends): // the connection is older than that
		return nil, fault.New(fault.Unauthenticated, fault.CertInvalid, "the client certificate has expired").WithOutcome(fault.NotApplied)
	case base.Principal != nil:
		return base, nil
	case conn.err != nil:
		return nil, fault.Wrap(conn.err, fault.Unauthenticated, fault.CertInvalid, "the client certificate names nobody").WithOutcome(fault.NotApplied)
	}
	return nil, fault.New(fault.Unauthenticated, fault.NoCredentials, "the call brings neither a client certificate nor a bearer token").WithOutcome(fault.NotApplied)
}

// base is who calls, without a token: whom the proxy names that forwarded the call, or whose the connection is.
func (f *Finder) base(ctx context.Context, conn *Connection) (*Caller, error) {
	signed := metadata.ValueFromIncomingContext(ctx, Header)
	if len(signed) == 0 || f.cfg.Own == nil {
		if f.cfg.Own != nil && len(metadata.ValueFromIncomingContext(ctx, hopHeader)) > 0 && f.FromProxy(ctx) {
			return &Caller{}, nil // of a caller without a certificate
		}
		return &conn.plain, nil
	}
	if !f.FromProxy(ctx) {
		return &conn.plain, nil // from outside it means nothing
	}
	return f.signedBy(conn, signed[0])
}

func (f *Finder) byToken(ctx context.Context, conn *Connection, base *Caller, byHeader, byOurs []string) (*Caller, error) {
	as := shown{base: base.Principal}
	if len(byHeader) > 0 {
		as.key, as.text = authorization, byHeader[0]
	} else {
		as.key, as.text = prismToken, byOurs[0]
	}
	if c := conn.last.Load(); c != nil && len(byHeader)+len(byOurs) == 1 && c.shown == as && f.cfg.Now().Before(c.until) {
		return c, nil
	}
	text, _, err := authn.Bearer(metadata.MD{authorization: byHeader, prismToken: byOurs})
	if err != nil {
		return nil, err
	}
	if f.cfg.Tokens == nil {
		return nil, fault.New(fault.Unauthenticated, fault.IssuerUnknown, "this proxy believes no issuer of tokens").WithOutcome(fault.NotApplied)
	}
	token, err := f.cfg.Tokens.Verify(ctx, text)
	if err != nil {
		return nil, err
	}
	c := &Caller{Principal: token.Principal, Token: token, login: secret.New(text), ends: token.ExpiresAt, shown: as}
	if c.until = f.cfg.Now().Add(believedFor); c.ends.Before(c.until) {
		c.until = c.ends
	}
	if base.Principal != nil && base.Principal.Certificate != [sha256.Size]byte{} {
		bound := *token.Principal
		// The session belongs to whom the certificate names, who may get another for the same name meanwhile.
		bound.Certificate = sha256.Sum256([]byte(base.Principal.ID))
		c.Principal = &bound
	}
	conn.last.Store(c)
	return c, nil
}
