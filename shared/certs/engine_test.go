package certs_test

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	bootstrapv1 "github.com/prism-gateway/prism/protos/prism/bootstrap/v1"
	"github.com/prism-gateway/prism/shared/certs"
	"github.com/prism-gateway/prism/shared/certs/authority"
	"github.com/prism-gateway/prism/shared/secret"
)

func ofVault(ttl time.Duration) *bootstrapv1.Certificates {
	pki := &bootstrapv1.VaultPki{
		Provider: "vault", Path: "pki/sign/prism", CommonName: "proxy.prod", UriSans: []string{"spiffe://example.org/proxy"}, Names: []string{"localhost", "127.0.0.1", "::1"},
	}
	if ttl > 0 {
		pki.Ttl = durationpb.New(ttl)
	}
	return &bootstrapv1.Certificates{Source: &bootstrapv1.Certificates_VaultPki{VaultPki: pki}}
}

// issuer answers as a PKI secrets engine does, with an authority of its own.
type issuer struct {
	ca *authority.Authority

	mu    sync.Mutex // guards what follows
	asked []time.Time
	fails error
	spoil func(*certs.Issued)
	makes bool // makes keys itself
}

func (i *issuer) issue(_ context.Context, r certs.Request) (certs.Issued, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.asked = append(i.asked, time.Now())
	if i.fails != nil {
		return certs.Issued{}, i.fails
	}
	block, _ := pem.Decode(r.SigningRequest)
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return certs.Issued{}, err
	}
	if err := request.CheckSignature(); err != nil {
		return certs.Issued{}, err
	}
	// What the request says as text is what it says as PKCS #10.
	var uris, ips []string
	for _, u := range request.URIs {
		uris = append(uris, u.String())
	}
	for _, ip := range request.IPAddresses {
		ips = append(ips, ip.String())
	}
	if request.Subject.CommonName != r.CommonName || !slices.Equal(uris, r.URIs) || !slices.Equal(request.DNSNames, r.DNS) || !slices.Equal(ips, r.IPs) ||
		r.Provider != "vault" || r.Path != "pki/sign/prism" {
		return certs.Issued{}, fmt.Errorf("the request is %+v", r)
	}
	want := authority.Request{CommonName: r.CommonName, URIs: r.URIs, DNS: r.DNS, TTL: r.TTL, Client: true, Server: true}
	for _, ip := range r.IPs {
		want.IPs = append(want.IPs, net.ParseIP(ip))
	}
	got := certs.Issued{Authorities: i.ca.PEM()}
	if i.makes {
		p, err := i.ca.Issue(want)
		if err != nil {
			return certs.Issued{}, err
		}
		got.Certificate, got.Key = p.Certificate, p.Key
	} else {
		leaf, err := i.ca.Sign(want, request.PublicKey)
		if err != nil {
			return certs.Issued{}, err
		}
		got.Certificate = pemOf(leaf)
	}
	if i.spoil != nil {
		i.spoil(&got)
	}
	return got, nil
}

// takeAsked gives when it was asked since the last time.
func (i *issuer) takeAsked() []time.Time {
	i.mu.Lock()
	defer i.mu.Unlock()
	asked := i.asked
	i.asked = nil
	return asked
}

func (i *issuer) set(change func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	change()
}

func TestIssuedCertificatesServe(t *testing.T) {
	for name, makes := range map[string]bool{"a key that stays here": false, "a key that the engine makes": true} {
		t.Run(name, func(t *testing.T) {
			i := &issuer{ca: newAuthority(t), makes: makes}
			w := load(t, ofVault(0), func(c *certs.Config) { c.Issue = i.issue })
			s := serve(t, w.Server(certs.ServerConfig{}))
			for _, dialed := range []string{"localhost", "127.0.0.1"} {
				conn, err := s.dial(w.Client(certs.ClientConfig{ServerName: dialed}))
				if err != nil {
					t.Fatal(err)
				}
				conn.Close()
			}
			leaf := w.Certificate().Leaf
			if life := leaf.NotAfter.Sub(leaf.NotBefore); life < 24*time.Hour || life > 25*time.Hour {
				t.Errorf("it lives %s", life)
			}
		})
	}
}

func TestIssuedCertificatesAreReplacedAtHalfOfTheirLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ttl = 10 * time.Hour
		i := &issuer{ca: newAuthority(t)}
		w := load(t, ofVault(ttl), func(c *certs.Config) { c.Issue = i.issue })
		i.takeAsked()
		w.run(t)
		differ := map[time.Duration]bool{}
		last, lastLeaf := time.Now(), w.Certificate().Leaf
		for range 10 {
			time.Sleep(time.Until(last.Add(ttl*45/100 - time.Second)))
			synctest.Wait()
			if n := len(i.takeAsked()); n > 0 {
				t.Fatalf("it was asked %d times before", n)
			}
			time.Sleep(ttl/10 + 2*time.Second)
			synctest.Wait()
			asked := i.takeAsked()
			if len(asked) != 1 {
				t.Fatalf("it was asked %d times", len(asked))
			}
			after := asked[0].Sub(last)
			if w.Certificate().Leaf.Equal(lastLeaf) {
				t.Error("it was not replaced")
			}
			differ[after], last, lastLeaf = true, asked[0], w.Certificate().Leaf
		}
		if len(differ) < 5 {
			t.Errorf("no jitter: %v", differ)
		}
	})
}

func TestAnEngineThatFailsIsAskedAgainWithPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ttl = 10 * time.Hour
		other, err := newAuthority(t).Issue(authority.Request{CommonName: "a.b", Client: true})
		if err != nil {
			t.Fatal(err)
		}
		expired, err := newAuthority(t).Issue(authority.Request{CommonName: "a.b", Client: true, TTL: -time.Second})
		if err != nil {
			t.Fatal(err)
		}
		i := &issuer{ca: newAuthority(t), fails: errors.New("sealed")}
		time.AfterFunc(20*time.Second, func() { i.set(func() { i.fails = nil }) })
		w := load(t, ofVault(ttl), func(c *certs.Config) { c.Issue = i.issue }) // waits
		if n := len(i.takeAsked()); n < 5 || n > 40 {
			t.Errorf("asked %d times in 20 s", n)
		}
		w.run(t)
		for name, spoil := range map[string]func(){
			"it is down":            func() { i.fails = errors.New("connection refused") },
			"it says nothing":       func() { i.spoil = func(g *certs.Issued) { *g = certs.Issued{} } },
			"another's certificate": func() { i.spoil = func(g *certs.Issued) { g.Certificate = other.Certificate } },
			"no authority":          func() { i.spoil = func(g *certs.Issued) { g.Authorities = nil } },
			"a key of another":      func() { i.spoil = func(g *certs.Issued) { g.Key = other.Key } },
			"a key that is no key":  func() { i.spoil = func(g *certs.Issued) { g.Key = secret.New("canary-key") } },
			"half of a certificate": func() { i.spoil = func(g *certs.Issued) { g.Certificate = half(g.Certificate) } },
			"an expired one":        func() { i.spoil = func(g *certs.Issued) { g.Certificate, g.Key = expired.Certificate, expired.Key } },
		} {
			good := w.Certificate()
			i.set(spoil)
			time.Sleep(ttl * 56 / 100)
			synctest.Wait()
			if w.Certificate() != good || w.metric(t, "prism_certs_broken") != 1 {
				t.Errorf("%s: the last good is not in use, or nothing is told", name)
			}
			i.takeAsked()
			time.Sleep(20 * time.Minute)
			if n := len(i.takeAsked()); n < 15 || n > 120 {
				t.Errorf("%s: asked %d times in 20 minutes", name, n)
			}
			i.set(func() { i.fails, i.spoil = nil, nil })
			time.Sleep(2*time.Minute + ttl)
			synctest.Wait()
			if w.Certificate() == good || w.metric(t, "prism_certs_broken") != 0 {
				t.Errorf("%s: it does not recover", name)
			}
		}
		if strings.Contains(w.log.String(), "canary") || strings.Contains(w.log.String(), keyText(other)) {
			t.Errorf("the log tells a key: %s", w.log)
		}
	})
}
