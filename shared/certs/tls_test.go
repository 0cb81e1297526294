package certs_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"testing"
	"time"

	bootstrapv1 "github.com/prism-gateway/prism/protos/prism/bootstrap/v1"
	"github.com/prism-gateway/prism/shared/certs"
	"github.com/prism-gateway/prism/shared/certs/authority"
	"github.com/prism-gateway/prism/shared/principal"
)

// S2-T1, S2-I1, S2-I3: who gets in, and why others do not.
func TestCallersAreTakenByTheirCertificates(t *testing.T) {
	var shift time.Duration
	ca, err := authority.New("test", func() time.Time { return time.Now().Add(shift) })
	if err != nil {
		t.Fatal(err)
	}
	first := intermediate(t, ca, "first")
	second := intermediate(t, first, "second")
	stranger := newAuthority(t) // of the same name
	caller := authority.Request{CommonName: "api.prod", Client: true}
	changed := func(change func(*authority.Request)) authority.Request {
		r := caller
		change(&r)
		return r
	}
	good, below, deep := issue(t, ca, caller), issue(t, first, caller), issue(t, second, caller)
	expired := issue(t, ca, changed(func(r *authority.Request) { r.TTL = -30 * time.Second }))
	shift = time.Hour
	early := issue(t, ca, caller)
	shift = 0
	key, err := first.Key()
	if err != nil {
		t.Fatal(err)
	}
	itself := authority.Pair{Certificate: issue(t, first, caller).Certificate, Key: key}
	itself.Certificate = itself.Certificate[len(itself.Certificate)-len(chainOf(t, first)):]
	join := func(lists ...[]byte) (all []byte) {
		for _, l := range lists {
			all = append(all, l...)
		}
		return all
	}
	optional := certs.ServerConfig{ClientAuth: bootstrapv1.ClientCertificates_CLIENT_CERTIFICATES_OPTIONAL}
	own := issue(t, ca, program("proxy"))

	for name, tc := range map[string]struct {
		caller authority.Pair
		cfg    certs.ServerConfig
		lists  []byte
		want   string // empty: the connection comes about
	}{
		"a good certificate":                          {caller: good},
		"one by an intermediate authority":            {caller: below},
		"a chain that is too deep":                    {caller: deep, want: "too_deep"},
		"a chain as deep as is permitted":             {caller: deep, cfg: certs.ServerConfig{MaxDepth: 4}},
		"a chain deeper than what is permitted":       {caller: below, cfg: certs.ServerConfig{MaxDepth: 2}, want: "too_deep"},
		"none":                                        {want: "no_certificate"},
		"none where none is needed":                   {cfg: optional},
		"a good one where none is needed":             {caller: good, cfg: optional},
		"a bad one where none is needed":              {caller: issue(t, stranger, caller), cfg: optional, want: "unknown_authority"},
		"another authority":                           {caller: issue(t, stranger, caller), want: "unknown_authority"},
		"an intermediate one of another authority":    {caller: issue(t, intermediate(t, stranger, "first"), caller), want: "unknown_authority"},
		"an intermediate authority that is not shown": {caller: authority.Pair{Certificate: below.Certificate[:len(below.Certificate)-len(chainOf(t, first))], Key: below.Key}, want: "unknown_authority"},
		"expired":                         {caller: expired, want: "expired"},
		"not good yet":                    {caller: early, want: "expired"},
		"for servers":                     {caller: issue(t, ca, changed(func(r *authority.Request) { r.Client, r.Server = false, true })), want: "wrong_usage"},
		"for nothing in particular":       {caller: issue(t, ca, changed(func(r *authority.Request) { r.Client = false })), want: "wrong_usage"},
		"for both":                        {caller: issue(t, ca, changed(func(r *authority.Request) { r.Server = true }))},
		"an authority's own":              {caller: itself, want: "wrong_usage"},
		"not revoked":                     {caller: good, lists: revoke(t, ca, time.Hour, below.Leaf)},
		"revoked":                         {caller: good, lists: revoke(t, ca, time.Hour, good.Leaf), want: "revoked"},
		"revoked, where none is needed":   {caller: good, cfg: optional, lists: revoke(t, ca, time.Hour, good.Leaf), want: "revoked"},
		"revoked in an old list":          {caller: good, lists: revoke(t, ca, -time.Second, good.Leaf), want: "revoked"},
		"an old list":                     {caller: good, lists: revoke(t, ca, -time.Second), want: "revocation_list_expired"},
		"an old list beside a new one":    {caller: good, lists: join(revoke(t, ca, -time.Second, good.Leaf), revoke(t, ca, time.Hour))},
		"no list of its authority":        {caller: good, lists: revoke(t, first, time.Hour), want: "revocation_list_missing"},
		"a list of another of the name":   {caller: good, lists: revoke(t, stranger, time.Hour, good.Leaf), want: "revocation_list_missing"},
		"revoked by an intermediate one":  {caller: below, lists: revoke(t, first, time.Hour, below.Leaf), want: "revoked"},
		"not revoked by it":               {caller: below, lists: revoke(t, first, time.Hour, good.Leaf)},
		"the intermediate one is revoked": {caller: below, lists: join(revoke(t, first, time.Hour), revoke(t, ca, time.Hour, first.Certificate())), want: "revoked"},
		"its list is old":                 {caller: below, lists: join(revoke(t, first, time.Hour), revoke(t, ca, -time.Second)), want: "revocation_list_expired"},
		"a serial number of another authority's revoked": {caller: below, lists: join(revoke(t, first, time.Hour), revoke(t, ca, time.Hour, below.Leaf))},
	} {
		for version, number := range map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13} {
			t.Run(name+", TLS "+version, func(t *testing.T) {
				files := filed(t, t.TempDir(), own)
				if tc.lists != nil {
					files.CrlFile = files.GetCaFile() + ".crl"
					put(t, files.GetCrlFile(), tc.lists)
				}
				s := serve(t, load(t, ofFiles(files)).Server(tc.cfg))
				cfg := &tls.Config{RootCAs: pool(ca.PEM()), MaxVersion: number, NextProtos: []string{"h2"}}
				if tc.caller.Certificate != nil {
					shown := pair(t, tc.caller)
					cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &shown, nil }
				}
				conn, err := s.dial(cfg)
				if tc.want == "" {
					if err != nil {
						t.Fatal(err, <-s.refused)
					}
					state := conn.ConnectionState()
					if state.Version != number || state.NegotiatedProtocol != "h2" {
						t.Errorf("version %x, protocol %q", state.Version, state.NegotiatedProtocol)
					}
					conn.Close()
					return
				}
				if err == nil {
					conn.Close()
					t.Fatal("the connection comes about")
				}
				if refused := <-s.refused; certs.Reason(refused) != tc.want {
					t.Errorf("refused as %s, want %s: %v", certs.Reason(refused), tc.want, refused)
				}
			})
		}
	}
}

// chainOf is the PEM of an authority's certificate.
func chainOf(t testing.TB, a *authority.Authority) []byte {
	t.Helper()
	leaf := issue(t, a, authority.Request{CommonName: "a.b", Client: true})
	return leaf.Certificate[len(leaf.Certificate)-len(pemOf(a.Certificate())):]
}

func TestServersAreTakenByTheirCertificates(t *testing.T) {
	ca, stranger := newAuthority(t), newAuthority(t)
	changed := func(change func(*authority.Request)) authority.Request {
		r := program("admin")
		change(&r)
		return r
	}
	named := changed(func(r *authority.Request) { r.IPs = nil })
	other := errors.New("it is another program")
	only := func(id string) func(*principal.Principal) error {
		return func(p *principal.Principal) error {
			if p.SPIFFE != id {
				return other
			}
			return nil
		}
	}
	admin := issue(t, ca, program("admin"))
	for name, tc := range map[string]struct {
		server authority.Pair
		cfg    certs.ClientConfig
		dialed string
		lists  []byte
		want   string // empty: the connection comes about
	}{
		"the name that is told":               {server: admin, cfg: certs.ClientConfig{ServerName: "localhost"}},
		"the address that is told":            {server: admin, cfg: certs.ClientConfig{ServerName: "127.0.0.1"}},
		"the name that is dialled":            {server: admin, dialed: "localhost"},
		"another name":                        {server: admin, cfg: certs.ClientConfig{ServerName: "example.org"}, want: "wrong_name"},
		"another name that is dialled":        {server: admin, dialed: "example.org", want: "wrong_name"},
		"an address that it does not carry":   {server: issue(t, ca, named), cfg: certs.ClientConfig{ServerName: "127.0.0.1"}, want: "wrong_name"},
		"an address that nobody told":         {server: admin, dialed: "127.0.0.1", want: "other"},
		"the program":                         {server: issue(t, ca, named), cfg: certs.ClientConfig{Verify: only("spiffe://example.org/admin")}},
		"another program":                     {server: admin, cfg: certs.ClientConfig{Verify: only("spiffe://example.org/proxy")}, want: "other"},
		"the program with another name":       {server: admin, cfg: certs.ClientConfig{ServerName: "example.org", Verify: only("spiffe://example.org/admin")}, want: "wrong_name"},
		"the program by another authority":    {server: issue(t, stranger, program("admin")), cfg: certs.ClientConfig{Verify: only("spiffe://example.org/admin")}, want: "unknown_authority"},
		"another authority":                   {server: issue(t, stranger, program("admin")), cfg: certs.ClientConfig{ServerName: "localhost"}, want: "unknown_authority"},
		"expired":                             {server: issue(t, ca, changed(func(r *authority.Request) { r.TTL = -time.Second })), cfg: certs.ClientConfig{ServerName: "localhost"}, want: "expired"},
		"a client's":                          {server: issue(t, ca, changed(func(r *authority.Request) { r.Server = false })), cfg: certs.ClientConfig{ServerName: "localhost"}, want: "wrong_usage"},
		"for nothing in particular":           {server: issue(t, ca, changed(func(r *authority.Request) { r.Server, r.Client = false, false })), cfg: certs.ClientConfig{ServerName: "localhost"}, want: "wrong_usage"},
		"revoked":                             {server: admin, cfg: certs.ClientConfig{ServerName: "localhost"}, lists: revoke(t, ca, time.Hour, admin.Leaf), want: "revoked"},
		"a program without a name of a kind":  {server: issue(t, ca, changed(func(r *authority.Request) { r.URIs, r.CommonName = nil, "admin" })), cfg: certs.ClientConfig{Verify: only("")}, want: "other"},
		"a server that names no program does": {server: issue(t, ca, changed(func(r *authority.Request) { r.URIs, r.CommonName = nil, "admin" })), dialed: "localhost"},
	} {
		t.Run(name, func(t *testing.T) {
			files := filed(t, t.TempDir(), issue(t, ca, program("proxy")))
			if tc.lists != nil {
				files.CrlFile = files.GetCaFile() + ".crl"
				put(t, files.GetCrlFile(), tc.lists)
			}
			s := serve(t, &tls.Config{Certificates: []tls.Certificate{pair(t, tc.server)}, ClientAuth: tls.RequireAnyClientCert})
			cfg := load(t, ofFiles(files)).Client(tc.cfg)
			if tc.dialed != "" {
				cfg = cfg.Clone()
				cfg.ServerName = tc.dialed // as grpc does with the name that it dials
			}
			conn, err := s.dial(cfg)
			switch {
			case err == nil:
				conn.Close()
				if tc.want != "" {
					t.Error("the connection comes about")
				}
			case tc.want == "" || certs.Reason(err) != tc.want:
				t.Errorf("refused as %s, want %q: %v", certs.Reason(err), tc.want, err)
			}
		})
	}
}

// A session that is resumed is verified by nobody: there is none.
func TestSessionsAreNotResumed(t *testing.T) {
	ca := newAuthority(t)
	s := serve(t, load(t, ofFiles(filed(t, t.TempDir(), issue(t, ca, program("proxy"))))).Server(certs.ServerConfig{}))
	cfg := &tls.Config{
		RootCAs: pool(ca.PEM()), Certificates: []tls.Certificate{pair(t, issue(t, ca, program("api")))}, ClientSessionCache: tls.NewLRUClientSessionCache(8),
	}
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		cfg.MaxVersion = version
		for range 3 {
			conn, err := s.dial(cfg)
			if err != nil {
				t.Fatal(err)
			}
			if conn.ConnectionState().DidResume {
				t.Errorf("TLS %x: a session was resumed", version)
			}
			conn.Close()
		}
	}
}

func TestOldProtocolsAreRefused(t *testing.T) {
	ca := newAuthority(t)
	s := serve(t, load(t, ofFiles(filed(t, t.TempDir(), issue(t, ca, program("proxy"))))).Server(certs.ServerConfig{}))
	own := []tls.Certificate{pair(t, issue(t, ca, program("api")))}
	for name, cfg := range map[string]*tls.Config{
		"TLS 1.1":                         {MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11},
		"a suite without forward secrecy": {MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}},
		"a suite with CBC":                {MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}},
	} {
		t.Run(name, func(t *testing.T) {
			cfg.RootCAs, cfg.Certificates = pool(ca.PEM()), own
			if conn, err := s.dial(cfg); err == nil {
				conn.Close()
				t.Error("the connection comes about")
			}
		})
	}
}

// The caller that passed is where handlers look for it.
func TestWhoPassedIsVerified(t *testing.T) {
	ca := newAuthority(t)
	cfg := load(t, ofFiles(filed(t, t.TempDir(), issue(t, ca, program("proxy"))))).Server(certs.ServerConfig{})
	seen := make(chan tls.ConnectionState, 1)
	each := cfg.GetConfigForClient
	cfg.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		c, err := each(hello)
		if err != nil {
			return nil, err
		}
		verify := c.VerifyConnection
		c.VerifyConnection = func(state tls.ConnectionState) error {
			seen <- state
			return verify(state)
		}
		return c, nil
	}
	s, leaf := serve(t, cfg), issue(t, ca, program("api"))
	conn, err := s.dial(&tls.Config{RootCAs: pool(ca.PEM()), Certificates: []tls.Certificate{pair(t, leaf)}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if state := <-seen; len(state.VerifiedChains) != 1 || !state.VerifiedChains[0][0].Equal(leaf.Leaf) {
		t.Errorf("verified chains: %v", state.VerifiedChains)
	}
}

func TestReasonsAreAClosedSet(t *testing.T) {
	for want, err := range map[string]error{
		"other":             errors.New("EOF"),
		"unknown_authority": &tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}},
		"wrong_name":        &tls.CertificateVerificationError{Err: x509.HostnameError{}},
		"too_deep":          &tls.CertificateVerificationError{Err: x509.CertificateInvalidError{Reason: x509.TooManyIntermediates}},
	} {
		if got := certs.Reason(err); got != want {
			t.Errorf("%v: %s, want %s", err, got, want)
		}
	}
	if got := certs.Reason(nil); got != "other" {
		t.Error(got)
	}
}

func TestOtherProtocolsThanHTTP2AreOfferedWhereAsked(t *testing.T) {
	ca := newAuthority(t)
	w := load(t, ofFiles(filed(t, t.TempDir(), issue(t, ca, program("admin")))))
	for name, tc := range map[string]struct {
		offered, spoken []string
		want            string
	}{
		"h2 by default":              {nil, []string{"h2", "http/1.1"}, "h2"},
		"http/1.1 where asked":       {[]string{"h2", "http/1.1"}, []string{"http/1.1"}, "http/1.1"},
		"and else there is no other": {nil, []string{"http/1.1"}, ""}, // which grpc refuses
	} {
		t.Run(name, func(t *testing.T) {
			cfg := w.Client(certs.ClientConfig{ServerName: "localhost"})
			cfg.NextProtos = tc.spoken
			conn, err := serve(t, w.Server(certs.ServerConfig{Protocols: tc.offered})).dial(cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if got := conn.ConnectionState().NegotiatedProtocol; got != tc.want {
				t.Errorf("%q, want %q", got, tc.want)
			}
		})
	}
}
