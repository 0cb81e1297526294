package server

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/prism-gateway/prism/dataplane/authn"
	"github.com/prism-gateway/prism/dataplane/caller"
	"github.com/prism-gateway/prism/dataplane/credential"
	"github.com/prism-gateway/prism/dataplane/credential/vault"
	bootstrapv1 "github.com/prism-gateway/prism/protos/prism/bootstrap/v1"
	"github.com/prism-gateway/prism/shared/certs"
	"github.com/prism-gateway/prism/shared/lifecycle"
	"github.com/prism-gateway/prism/shared/principal"
)

// conditionIssuers tells of issuers whose tokens cannot be believed now.
const conditionIssuers = "issuers"

// identity is what the proxy knows others by, what it is known by itself, and where it gets credentials.
type identity struct {
	tokens    *authn.Verifier    // nil: no issuer is believed
	source    *credential.Source // nil: there are no providers
	listen    *certs.Source      // of the data services; nil: plaintext
	own       *certs.Source      // towards prism-admin and other proxies; nil: plaintext
	providers map[string]credential.Provider
	addresses map[string]string // of the providers, by name

	known atomic.Pointer[known] // what own is now
}

type known struct {
	serial   string
	identity *caller.Identity
}

// newIdentity makes the parts. It reads the files of authorities, and does no other I/O.
func (s *Server) newIdentity() error {
	c := s.cfg.Settings
	var err error
	if s.identity.tokens, err = s.verifier(c.GetAuthentication()); err != nil {
		return err
	}
	if err := s.providers(c); err != nil {
		return err
	}
	if tls := c.GetTls(); tls != nil {
		if s.identity.listen, err = s.certificates("data", tls.GetCertificates()); err != nil {
			return err
		}
		s.identity.own = s.identity.listen
	}
	if own := c.GetIdentity(); own != nil {
		if s.identity.own, err = s.certificates("identity", own); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) verifier(a *bootstrapv1.Authentication) (*authn.Verifier, error) {
	if len(a.GetIssuers()) == 0 {
		return nil, nil
	}
	cfg := authn.Config{CacheSize: int(a.GetTokenCache()), Logger: s.cfg.Logger, Registerer: s.registry}
	for i, from := range a.GetIssuers() {
		roots, err := authorities(from.GetCaFile())
		if err != nil {
			return nil, fmt.Errorf("authentication.issuers[%d].ca_file: %w", i, err)
		}
		cfg.Issuers = append(cfg.Issuers, authn.Issuer{
			URL: from.GetUrl(), JWKSURL: from.GetJwksUrl(), Audiences: from.GetAudiences(), Algorithms: from.GetAlgorithms(), RootCAs: roots,
			GroupsClaim: from.GetGroupsClaim(), TeamsClaim: from.GetTeamsClaim(), Leeway: from.GetLeeway().AsDuration(), Services: from.GetServices(),
		})
	}
	v, err := authn.New(cfg)
	if err != nil {
		return nil, fmt.Errorf("authentication: %w", err)
	}
	return v, nil
}

// authorities reads a PEM file; nil for none, which means the system's.
func authorities(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("%s holds no certificate (PEM)", file)
	}
	return pool, nil
}

// providers makes the source of credentials.
func (s *Server) providers(c *bootstrapv1.ProxyConfig) error {
	if len(c.GetCredentialProviders()) == 0 {
		return nil
	}
	cfg := credential.Config{
		Providers: map[string]credential.Provider{}, CacheTTL: map[string]time.Duration{}, JournalDir: filepath.Join(c.GetStateDir(), "leases"),
		Policy: credential.Policy{
			Margin: c.GetCredentials().GetMargin().AsDuration(), Grace: c.GetCredentials().GetGrace().AsDuration(),
			IssuesPerSecond: c.GetCredentials().GetIssuesPerSecond(), RenewalsPerSecond: c.GetCredentials().GetRenewalsPerSecond(),
		},
		Logger: s.cfg.Logger, Registerer: s.registry,
	}
	s.identity.addresses, s.identity.providers = map[string]string{}, cfg.Providers
	for i, p := range c.GetCredentialProviders() {
		made, err := provider(p)
		if err != nil {
			return fmt.Errorf("credential_providers[%d]: %w", i, err)
		}
		if cfg.Providers[p.GetName()] != nil {
			return fmt.Errorf("credential_providers[%d].name: %s is there twice", i, p.GetName())
		}
		cfg.Providers[p.GetName()], cfg.CacheTTL[p.GetName()] = made, p.GetCacheTtl().AsDuration()
		s.identity.addresses[p.GetName()] = p.GetVault().GetAddress()
	}
	var err error
	s.identity.source, err = credential.New(cfg)
	return err
}

func (s *Server) certificates(name string, from *bootstrapv1.Certificates) (*certs.Source, error) {
	cfg := certs.Config{Name: name, Certificates: from, Logger: s.cfg.Logger, Registerer: s.registry}
	if pki := from.GetVaultPki(); pki != nil {
		engine, ok := s.identity.providers[pki.GetProvider()].(*vault.Provider)
		if !ok {
			return nil, fmt.Errorf("%s: vault_pki.provider: credential_providers lists no vault named %q", name, pki.GetProvider())
		}
		cfg.Issue = engine.Issue
	}
	return certs.New(cfg)
}

// caller is this proxy's certificate as callers' proxies know it.
func (i *identity) caller(self string) func() (*caller.Identity, error) {
	if i.own == nil {
		return nil
	}
	return func() (*caller.Identity, error) {
		now := i.own.Certificate()
		if now == nil || now.Leaf == nil {
			return nil, errors.New("the proxy has no certificate yet")
		}
		serial := string(now.Leaf.Raw)
		if k := i.known.Load(); k != nil && k.serial == serial {
			return k.identity, nil
		}
		made, err := caller.NewIdentity(now, self)
		if err != nil {
			return nil, err
		}
		i.known.Store(&known{serial: serial, identity: made})
		return made, nil
	}
}

// serve is how connections to the data services are secured.
func (i *identity) serve(tls *bootstrapv1.ListenerTls) credentials.TransportCredentials {
	if i.listen == nil {
		return insecure.NewCredentials()
	}
	return i.listen.ServerCredentials(certs.ServerConfig{ClientAuth: tls.GetClientCertificates(), MaxDepth: int(tls.GetMaxDepth())})
}

// dial is how the proxy reaches other proxies: those whose certificates differ from its own in the node's name only.
func (i *identity) dial() []grpc.DialOption {
	if i.own == nil {
		return nil
	}
	return []grpc.DialOption{grpc.WithTransportCredentials(i.own.ClientCredentials(certs.ClientConfig{Verify: func(p *principal.Principal) error {
		own, err := principal.FromCertificate(i.own.Certificate().Leaf)
		if err != nil {
			return err
		}
		if !own.Beside(p) {
			return errors.New("the certificate is of no other proxy: their names differ in more than the proxy's id")
		}
		return nil
	}}))}
}

// admin is how the proxy reaches prism-admin.
func (i *identity) admin() []grpc.DialOption {
	if i.own == nil {
		return nil
	}
	return []grpc.DialOption{grpc.WithTransportCredentials(i.own.ClientCredentials(certs.ClientConfig{}))}
}

// load waits for what must be there before anything is served.
func (i *identity) load(ctx context.Context, self string) error {
	for _, source := range i.sources() {
		if err := source.Load(ctx); err != nil {
			return err
		}
	}
	if i.own == nil {
		return nil
	}
	_, err := i.caller(self)()
	return err
}

func (i *identity) sources() []*certs.Source {
	var out []*certs.Source
	for _, s := range []*certs.Source{i.listen, i.own} {
		if s != nil && !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// parts are what runs for the identity, in the order in which it starts.
func (s *Server) identityParts() []lifecycle.Part {
	var out []lifecycle.Part
	for _, source := range s.identity.sources() {
		out = append(out, lifecycle.Part{Name: source.Name() + " certificates", Run: source.Run})
	}
	if v := s.identity.tokens; v != nil {
		out = append(out, lifecycle.Part{Name: "issuers", Run: func(ctx context.Context) error {
			go s.tellIssuers(ctx)
			return v.Run(ctx)
		}})
	}
	if source := s.identity.source; source != nil {
		out = append(out, lifecycle.Part{Name: "credentials", Run: source.Run, Drain: source.Drain})
	}
	if s.abilities != nil {
		out = append(out, lifecycle.Part{Name: "credential capabilities", Run: s.abilities.run})
	}
	return out
}

// tellIssuers says in /readyz which issuers cannot be asked: a proxy serves the others' callers all the same.
func (s *Server) tellIssuers(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		var missing []string
		troubles := s.identity.tokens.Ready()
		for _, url := range slices.Sorted(maps.Keys(troubles)) {
			missing = append(missing, fmt.Sprintf("%s: %v", url, troubles[url]))
		}
		if len(missing) == 0 {
			s.ready.Ready(conditionIssuers)
		} else {
			s.ready.Note(conditionIssuers, "tokens of these issuers cannot be believed now: "+strings.Join(missing, "; "))
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// knows reports whether an issuer is believed.
func (i *identity) knows(url string) bool { return i.tokens != nil && i.tokens.Knows(url) }
