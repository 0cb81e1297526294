package principal_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prism-gateway/prism/shared/principal"
)

// subject is what a test's certificate says.
type subject struct {
	cn    string
	units []string
	uris  []string // as they stand in the certificate, byte by byte
	usage []x509.ExtKeyUsage
}

// certificate makes a certificate in which the names stand as they are given, which crypto/x509 itself would not write. It
// is nil when crypto/x509 refuses to read it: then no connection comes about either.
func certificate(t testing.TB, s subject) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: s.cn, OrganizationalUnit: s.units},
		NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: s.usage,
	}
	if len(s.uris) > 0 {
		var names []asn1.RawValue
		for _, uri := range s.uris {
			names = append(names, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(uri)})
		}
		value, err := asn1.Marshal(names)
		if err != nil {
			t.Fatal(err)
		}
		template.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: value}}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil
	}
	return c
}

var client = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}

func TestACertificateNamesItsService(t *testing.T) {
	for name, tc := range map[string]struct {
		subject
		want principal.Principal
	}{
		"a SPIFFE id":               {subject{uris: []string{"spiffe://example.org/ns/prod/sa/api"}}, principal.Principal{ID: "spiffe://example.org/ns/prod/sa/api", SPIFFE: "spiffe://example.org/ns/prod/sa/api"}},
		"a SPIFFE id before a name": {subject{cn: "api.prod.eu", uris: []string{"spiffe://example.org/api"}}, principal.Principal{ID: "spiffe://example.org/api", SPIFFE: "spiffe://example.org/api"}},
		"other URIs do not count":   {subject{cn: "api.prod", uris: []string{"https://example.org/api"}}, principal.Principal{ID: "cn:api.prod", Name: "api", Environment: "prod", Region: "unknown"}},
		"beside a SPIFFE id either": {subject{uris: []string{"https://example.org/", "spiffe://example.org/api"}}, principal.Principal{ID: "spiffe://example.org/api", SPIFFE: "spiffe://example.org/api"}},
		"the scheme in capitals":    {subject{uris: []string{"SPIFFE://example.org/api"}}, principal.Principal{ID: "spiffe://example.org/api", SPIFFE: "spiffe://example.org/api"}},
		"a trust domain alone":      {subject{uris: []string{"spiffe://example.org"}}, principal.Principal{ID: "spiffe://example.org", SPIFFE: "spiffe://example.org"}},
		"service, environment":      {subject{cn: "user-api.prod"}, principal.Principal{ID: "cn:user-api.prod", Name: "user-api", Environment: "prod", Region: "unknown"}},
		"and region":                {subject{cn: "user-api.prod.eu-west-1"}, principal.Principal{ID: "cn:user-api.prod.eu-west-1", Name: "user-api", Environment: "prod", Region: "eu-west-1"}},
		"teams":                     {subject{cn: "a.b", units: []string{"payments", "orders"}}, principal.Principal{ID: "cn:a.b", Name: "a", Environment: "b", Region: "unknown", Teams: []string{"orders", "payments"}}},
		"any usage":                 {subject{cn: "a.b", usage: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}, principal.Principal{ID: "cn:a.b", Name: "a", Environment: "b", Region: "unknown"}},
	} {
		t.Run(name, func(t *testing.T) {
			if tc.usage == nil {
				tc.usage = client
			}
			c := certificate(t, tc.subject)
			got, err := principal.FromCertificate(c)
			if err != nil {
				t.Fatal(err)
			}
			slices.Sort(got.Teams) // a certificate keeps them in no order
			want := tc.want
			want.Kind, want.Certificate = principal.Service, sha256.Sum256(c.Raw)
			if got.ID != want.ID || got.SPIFFE != want.SPIFFE || got.Name != want.Name || got.Environment != want.Environment || got.Region != want.Region ||
				!slices.Equal(got.Teams, want.Teams) || got.Kind != want.Kind || got.Certificate != want.Certificate || got.Issuer+got.Subject != "" || got.Groups != nil {
				t.Errorf("%+v, want %+v", got, want)
			}
		})
	}
}

// SE-04: names that look like others', or mean another to whoever reads them once more, are refused, not mended.
func TestNameTricksAreRefused(t *testing.T) {
	long := strings.Repeat("a", 2100)
	for name, tc := range map[string]subject{
		"no name":                          {},
		"a name of one part":               {cn: "api"},
		"a name of four parts":             {cn: "api.prod.eu.west"},
		"an empty part":                    {cn: "api..eu"},
		"a dot at the end":                 {cn: "api.prod."},
		"a dot at the beginning":           {cn: ".api.prod"},
		"a wildcard":                       {cn: "*.prod"},
		"a slash":                          {cn: "api/x.prod"},
		"a NUL":                            {cn: "api.prod\x00.eu"},
		"a blank":                          {cn: "api .prod"},
		"a line feed":                      {cn: "api.prod\n"},
		"another alphabet's a":             {cn: "\u0430pi.prod"},
		"a dot of another width":           {cn: "api\uff0eprod.eu"},
		"a name longer than names are":     {cn: "a." + long},
		"two SPIFFE ids":                   {cn: "a.b", uris: []string{"spiffe://x/a", "spiffe://x/b"}},
		"twice the same":                   {uris: []string{"spiffe://x/a", "spiffe://x/a"}},
		"two that differ in the scheme":    {uris: []string{"spiffe://x/a", "SPIFFE://x/b"}},
		"a bad one before a good name":     {cn: "a.b", uris: []string{"spiffe://x/../a"}},
		"dots":                             {uris: []string{"spiffe://x/../a"}},
		"a dot":                            {uris: []string{"spiffe://x/./a"}},
		"dots in percent":                  {uris: []string{"spiffe://x/%2e%2e/a"}},
		"a slash in percent":               {uris: []string{"spiffe://x/ns%2fprod"}},
		"a letter in percent":              {uris: []string{"spiffe://x/%61pi"}},
		"a NUL in percent":                 {uris: []string{"spiffe://x/a%00"}},
		"a NUL in an id":                   {uris: []string{"spiffe://x/a\x00b"}},
		"an empty segment":                 {uris: []string{"spiffe://x//a"}},
		"a slash at the end":               {uris: []string{"spiffe://x/a/"}},
		"a slash after the trust domain":   {uris: []string{"spiffe://x/"}},
		"no trust domain":                  {uris: []string{"spiffe:///a"}},
		"no slashes":                       {uris: []string{"spiffe:x/a"}},
		"a trust domain in capitals":       {uris: []string{"spiffe://X/a"}},
		"a port":                           {uris: []string{"spiffe://x:443/a"}},
		"a user":                           {uris: []string{"spiffe://root@x/a"}},
		"a query":                          {uris: []string{"spiffe://x/a?b"}},
		"an empty query":                   {uris: []string{"spiffe://x/a?"}},
		"a fragment":                       {uris: []string{"spiffe://x/a#b"}},
		"a star":                           {uris: []string{"spiffe://x/*"}},
		"a letter of another alphabet":     {uris: []string{"spiffe://x/\u0430pi"}},
		"such a trust domain":              {uris: []string{"spiffe://ex\u0430mple.org/a"}},
		"a backslash":                      {uris: []string{`spiffe://x/a\b`}},
		"an id longer than ids are":        {uris: []string{"spiffe://x/" + long}},
		"no usage":                         {cn: "a.b", usage: []x509.ExtKeyUsage{}},
		"the usage of servers":             {cn: "a.b", usage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}},
		"the usage of signatures of code":  {cn: "a.b", usage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}},
		"the usage of servers with an id":  {uris: []string{"spiffe://x/a"}, usage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}},
		"an address that is no URI at all": {uris: []string{"spiffe://x/%zz"}},
	} {
		t.Run(name, func(t *testing.T) {
			if tc.usage == nil {
				tc.usage = client
			}
			c := certificate(t, tc)
			if c == nil {
				return // refused before it comes to us
			}
			if got, err := principal.FromCertificate(c); err == nil {
				t.Errorf("it is %s", got.ID)
			} else if strings.ContainsAny(err.Error(), "\x00\n") || len(err.Error()) > 300 {
				t.Errorf("the error repeats what the certificate says: %q", err)
			}
		})
	}
}

func TestAServersCertificateIsForServers(t *testing.T) {
	server := certificate(t, subject{uris: []string{"spiffe://x/admin/1"}, usage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	if p, err := principal.FromServerCertificate(server); err != nil || p.SPIFFE != "spiffe://x/admin/1" {
		t.Errorf("%+v, %v", p, err)
	}
	if p, err := principal.FromServerCertificate(certificate(t, subject{cn: "a.b", usage: client})); err == nil {
		t.Errorf("a client's passes: %+v", p)
	}
}

func TestNodesOfOneKind(t *testing.T) {
	of := func(s subject) *principal.Principal {
		s.usage = client
		p, err := principal.FromCertificate(certificate(t, s))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	one, two := of(subject{uris: []string{"spiffe://x/proxy/one"}}), of(subject{uris: []string{"spiffe://x/proxy/two"}})
	three, four := of(subject{cn: "three.prod.eu"}), of(subject{cn: "four.prod.eu"})
	for name, tc := range map[string]struct {
		a, b *principal.Principal
		node string
		want bool
	}{
		"SPIFFE ids":               {one, two, "one", true},
		"common names":             {three, four, "three", true},
		"itself":                   {one, one, "one", true},
		"another path":             {one, of(subject{uris: []string{"spiffe://x/app/two"}}), "one", false},
		"another trust domain":     {one, of(subject{uris: []string{"spiffe://y/proxy/two"}}), "one", false},
		"deeper":                   {one, of(subject{uris: []string{"spiffe://x/proxy/one/one"}}), "one", false},
		"another environment":      {three, of(subject{cn: "four.test.eu"}), "three", false},
		"another region":           {three, of(subject{cn: "four.prod.us"}), "three", false},
		"a name and an id":         {three, one, "three", false},
		"nobody":                   {nil, one, "", false},
		"a user beside a program":  {&principal.Principal{Kind: principal.User, ID: "https://idp#a", Subject: "a"}, one, "", false},
		"users are not of a kind":  {&principal.Principal{Kind: principal.User, Subject: "a"}, &principal.Principal{Kind: principal.User, Subject: "b"}, "", false},
		"an id that ends the same": {of(subject{uris: []string{"spiffe://x/one/one"}}), of(subject{uris: []string{"spiffe://x/two/one"}}), "one", false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := tc.a.Node(); got != tc.node {
				t.Errorf("the node is %q, want %q", got, tc.node)
			}
			if tc.a.Beside(tc.b) != tc.want || tc.b.Beside(tc.a) != tc.want {
				t.Errorf("beside: %v, and the other way %v, want %v", tc.a.Beside(tc.b), tc.b.Beside(tc.a), tc.want)
			}
		})
	}
}

func TestKindsHaveNames(t *testing.T) {
	if got := principal.Anonymous.String() + " " + principal.Service.String() + " " + principal.User.String(); got != "anonymous service user" {
		t.Error(got)
	}
}

// What a certificate is believed to say is what stands in it.
func FuzzFromCertificate(f *testing.F) {
	for _, seed := range [][2]string{
		{"spiffe://example.org/ns/prod/sa/api", ""}, {"", "api.prod.eu"}, {"SPIFFE://x/%2e%2e/a", "a.b"}, {"spiffe://x/a%2fb", ""}, {"https://x/", "a.b"},
		{"spiffe://u:p@x:1/a?b#c", "a\x00.b"}, {"spiffe://x//", "\u0430.b"}, {"spiffe:x", "a..b"}, {"spiffe://x/a#", "*.b"},
		{"spiffe://..", ""}, // a trust domain by SPIFFE's rules
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, uri, cn string) {
		c := &x509.Certificate{Raw: []byte(uri + cn), Subject: pkix.Name{CommonName: cn}, ExtKeyUsage: client}
		if uri != "" {
			u, err := url.Parse(uri)
			if err != nil {
				return // crypto/x509 refuses it too
			}
			c.URIs = []*url.URL{u}
		}
		p, err := principal.FromCertificate(c)
		if err != nil {
			return
		}
		if p.SPIFFE != "" {
			said := strings.TrimSuffix(uri, "#") // which is not a part of the URI
			if p.ID != p.SPIFFE || len(said) < 9 || !strings.EqualFold(said[:9], "spiffe://") || p.SPIFFE[9:] != said[9:] {
				t.Fatalf("%q is taken for %q", uri, p.SPIFFE)
			}
			if strings.ContainsAny(p.SPIFFE, "%?#@*\\ \x00") || strings.Contains(p.SPIFFE[9:], "//") || strings.Contains(p.SPIFFE[9:]+"/", "/../") || !ascii(p.SPIFFE) {
				t.Fatalf("%q passes", p.SPIFFE)
			}
			return
		}
		want := p.Name + "." + p.Environment
		if p.Region != "unknown" || strings.Count(cn, ".") == 2 {
			want += "." + p.Region
		}
		if p.ID != "cn:"+cn || want != cn || !ascii(cn) || p.Name == "" || p.Environment == "" || p.Region == "" {
			t.Fatalf("%q is taken for %+v", cn, p)
		}
	})
}

func ascii(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) < 0
}
