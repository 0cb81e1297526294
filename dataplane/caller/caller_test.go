package caller_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/prism-gateway/prism/dataplane/authn"
	"github.com/prism-gateway/prism/dataplane/caller"
	"github.com/prism-gateway/prism/shared/certs/authority"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/principal"
)

// world is an authority, and what a test issues with it.
type world struct {
	*authority.Authority
	t testing.TB
}

func newWorld(t testing.TB) *world {
	t.Helper()
	a, err := authority.New("test", nil)
	if err != nil {
		t.Fatal(err)
	}
	return &world{a, t}
}

// certificate issues one of a SPIFFE id.
func (w *world) certificate(id string) *tls.Certificate {
	w.t.Helper()
	p, err := w.Issue(authority.Request{URIs: []string{id}, Client: true, Server: true, Units: []string{"payments"}})
	if err != nil {
		w.t.Fatal(err)
	}
	c, err := tls.X509KeyPair(p.Certificate, []byte(p.Key.Reveal()))
	if err != nil {
		w.t.Fatal(err)
	}
	c.Leaf = p.Leaf
	return &c
}

// believe is what a proxy's certificates do: whom the authority's certificates name.
func (w *world) believe(chain []*x509.Certificate) (*principal.Principal, error) {
	if len(chain) == 0 {
		return nil, errors.New("no certificate")
	}
	roots := x509.NewCertPool()
	roots.AddCert(w.Certificate())
	if _, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return nil, err
	}
	return principal.FromCertificate(chain[0])
}

// proxy is a proxy's finder.
func (w *world) proxy(id string, now func() time.Time) (*caller.Finder, *tls.Certificate) {
	w.t.Helper()
	c := w.certificate("spiffe://x/prism/proxy/" + id)
	own, err := caller.NewIdentity(c, id)
	if err != nil {
		w.t.Fatal(err)
	}
	return caller.New(caller.Config{Self: id, Own: func() (*caller.Identity, error) { return own, nil }, Believe: w.believe, Now: now}), c
}

// from is the context of a call on a connection that shows a certificate; nil shows none.
func from(c *tls.Certificate, md metadata.MD) context.Context {
	info := credentials.TLSInfo{}
	if c != nil {
		info.State.VerifiedChains = [][]*x509.Certificate{{c.Leaf}}
	}
	return metadata.NewIncomingContext(peer.NewContext(context.Background(), &peer.Peer{AuthInfo: caller.NewConnection(info)}), md)
}

// forwarded is what the first proxy tells the second of a service's call.
func forwarded(t testing.TB, first *caller.Finder, service *tls.Certificate, to string) metadata.MD {
	t.Helper()
	md, err := first.Forwarded(from(service, metadata.MD{"authorization": {"Bearer t"}, "x-prism-hop": {"forged"}, "cookie": {"c"}}), to)
	if err != nil {
		t.Fatal(err)
	}
	if len(md["authorization"]) != 1 || len(md["cookie"]) != 0 {
		t.Fatalf("forwarded %v", md)
	}
	delete(md, "authorization")
	md.Set("x-prism-hop", "1")
	return md
}

func TestWhoForwardsSaysWhoCalls(t *testing.T) {
	w := newWorld(t)
	first, one := w.proxy("proxy-1", nil)
	second, _ := w.proxy("proxy-2", nil)
	service := w.certificate("spiffe://x/ns/shop/sa/api")
	md := forwarded(t, first, service, "proxy-2")
	for range 2 { // and again out of memory
		who, err := second.Find(from(one, md))
		if err != nil {
			t.Fatal(err)
		}
		direct, err := second.Find(from(service, nil))
		if err != nil {
			t.Fatal(err)
		}
		if who.Principal.ID != "spiffe://x/ns/shop/sa/api" || who.Principal.Certificate != direct.Principal.Certificate || len(who.Principal.Teams) != 1 {
			t.Errorf("forwarded as %+v, and %+v is known directly", who.Principal, direct.Principal)
		}
	}
	renewed := w.certificate("spiffe://x/prism/proxy/proxy-1") // signed with the new key, sent on the old connection
	own, err := caller.NewIdentity(renewed, "proxy-1")
	if err != nil {
		t.Fatal(err)
	}
	later := caller.New(caller.Config{Self: "proxy-1", Own: func() (*caller.Identity, error) { return own, nil }, Believe: w.believe})
	if _, err := second.Find(from(one, forwarded(t, later, service, "proxy-2"))); err != nil {
		t.Errorf("after a renewal: %v, %v", err, fault.From(err).Unwrap())
	}
	if _, err := second.Find(from(one, metadata.Pairs("x-prism-hop", "1"))); !fault.Is(err, fault.NoCredentials) {
		t.Errorf("a forwarded call of nobody is the proxy's own: %v", err)
	}
}

func TestWhatIsForgedIsNotBelieved(t *testing.T) {
	now := time.Now()
	clock := func() time.Time { return now }
	w, other := newWorld(t), newWorld(t)
	first, one := w.proxy("proxy-1", clock)
	second, two := w.proxy("proxy-2", clock)
	third, three := w.proxy("proxy-3", clock)
	foreign, _ := other.proxy("proxy-1", clock)
	service := w.certificate("spiffe://x/ns/shop/sa/api")
	good := forwarded(t, first, service, "proxy-2")
	text := good[caller.Header][0]
	changed := metadata.Pairs(caller.Header, strings.Replace(text, "shop", "bank", 1), "x-prism-hop", "1")
	for name, tc := range map[string]struct {
		on   *tls.Certificate
		md   metadata.MD
		at   *caller.Finder
		want fault.Reason // of the refusal; empty: it is the connection's own caller
	}{
		"changed":                               {one, changed, second, fault.CertInvalid},
		"cut":                                   {one, metadata.Pairs(caller.Header, text[:len(text)/2]), second, fault.CertInvalid},
		"no signature at all":                   {one, metadata.Pairs(caller.Header, "x"), second, fault.CertInvalid},
		"nothing":                               {one, metadata.Pairs(caller.Header, ""), second, fault.CertInvalid},
		"meant for another proxy":               {one, good, third, fault.CertInvalid},
		"sent on by another proxy":              {three, good, second, fault.CertInvalid},
		"of a proxy of another authority":       {one, forwarded(t, foreign, service, "proxy-2"), second, fault.CertInvalid},
		"by a service":                          {service, good, second, ""},
		"by a service that says it is a hop":    {service, metadata.Pairs("x-prism-hop", "1"), second, ""},
		"by a program of another kind, like it": {w.certificate("spiffe://x/prism/admin/proxy-1"), good, second, ""},
	} {
		who, err := tc.at.Find(from(tc.on, tc.md))
		if tc.want != "" && !fault.Is(err, tc.want) {
			t.Errorf("%s: %v", name, err)
		}
		if tc.want == "" && (err != nil || who.Principal.ID != tc.on.Leaf.URIs[0].String()) {
			t.Errorf("%s: %v", name, err)
		}
	}
	_ = two
	if _, err := second.Find(from(one, good)); err != nil {
		t.Fatalf("the good one: %v", err)
	}
	conn := from(one, good)
	now = now.Add(2 * time.Minute)
	if _, err := second.Find(conn); !fault.Is(err, fault.CertInvalid) {
		t.Errorf("two minutes later: %v", err)
	}
	now = now.Add(-time.Hour)
	if _, err := second.Find(from(one, good)); !fault.Is(err, fault.CertInvalid) {
		t.Errorf("of the far future: %v", err)
	}
}

func TestAProxyMustBeNamedByItsCertificate(t *testing.T) {
	w := newWorld(t)
	for id, ok := range map[string]bool{"proxy-1": true, "proxy-2": false, "x": false, "": false} {
		if _, err := caller.NewIdentity(w.certificate("spiffe://x/prism/proxy/proxy-1"), id); (err == nil) != ok {
			t.Errorf("%q: %v", id, err)
		}
	}
}

// FuzzForwarded looks for bytes that are believed without a proxy's signature.
// A connection may be older than what was shown on it: a certificate counts until its end, and a token is asked for again
// after a while, for its issuer may have withdrawn the key.
func TestAConnectionOutlivesWhatItShowed(t *testing.T) {
	w := newWorld(t)
	now := time.Now()
	believed := &counting{}
	f := caller.New(caller.Config{Self: "proxy-1", Tokens: believed, Now: func() time.Time { return now }})
	service := w.certificate("spiffe://x/ns/a/sa/b")
	ctx := from(service, nil)
	if _, err := f.Find(ctx); err != nil {
		t.Fatal(err)
	}
	user := from(service, metadata.Pairs("authorization", "Bearer abc"))
	for range 3 {
		if _, err := f.Find(user); err != nil {
			t.Fatal(err)
		}
	}
	if believed.asked != 1 {
		t.Errorf("the token was verified %d times for one connection", believed.asked)
	}
	renewed, err := f.Find(from(w.certificate("spiffe://x/ns/a/sa/b"), metadata.Pairs("authorization", "Bearer abc")))
	if err != nil {
		t.Fatal(err)
	}
	first, err := f.Find(user)
	if err != nil || renewed.Claim().Principal.Certificate != first.Claim().Principal.Certificate {
		t.Errorf("with a renewed certificate the token's session is another's, %v", err)
	}
	other, err := f.Find(from(w.certificate("spiffe://x/ns/a/sa/c"), metadata.Pairs("authorization", "Bearer abc")))
	if err != nil || other.Claim().Principal.Certificate == first.Claim().Principal.Certificate {
		t.Errorf("with another's certificate the token's session is the same, %v", err)
	}
	believed.asked = 1
	now = now.Add(6 * time.Minute)
	if _, err := f.Find(user); err != nil || believed.asked != 2 {
		t.Errorf("later: %v, verified %d times", err, believed.asked)
	}
	now = service.Leaf.NotAfter
	if _, err := f.Find(ctx); !fault.Is(err, fault.CertInvalid) {
		t.Errorf("after its end the certificate is %v", err)
	}
}

// counting believes every token for a year.
type counting struct{ asked int }

func (c *counting) Verify(context.Context, string) (*authn.Token, error) {
	c.asked++
	return &authn.Token{Principal: &principal.Principal{Kind: principal.User, ID: "i#s"}, ExpiresAt: time.Now().Add(365 * 24 * time.Hour)}, nil
}

func FuzzForwarded(f *testing.F) {
	w := newWorld(f)
	first, one := w.proxy("proxy-1", nil)
	second, _ := w.proxy("proxy-2", nil)
	good := forwarded(f, first, w.certificate("spiffe://x/ns/shop/sa/api"), "proxy-2")[caller.Header][0]
	f.Add([]byte(good))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, text []byte) {
		who, err := second.Find(from(one, metadata.MD{caller.Header: {string(text)}}))
		if err == nil && who.Principal.ID != "spiffe://x/ns/shop/sa/api" {
			t.Errorf("believed: %q", text)
		}
	})
}

// BenchmarkFind is what a call pays for its caller to be known, by a certificate.
func BenchmarkFind(b *testing.B) {
	w := newWorld(b)
	second, _ := w.proxy("proxy-2", nil)
	ctx := from(w.certificate("spiffe://x/ns/shop/sa/api"), metadata.MD{})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := second.Find(ctx); err != nil {
			b.Fatal(err)
		}
	}
}
