package certs

import (
	"bytes"
	"testing"
	"time"

	"github.com/prism-gateway/prism/shared/certs/authority"
)

// Whatever files hold is taken whole or refused.
func FuzzParse(f *testing.F) {
	ca, err := authority.New("test", nil)
	if err != nil {
		f.Fatal(err)
	}
	p, err := ca.Issue(authority.Request{CommonName: "a.b", Client: true})
	if err != nil {
		f.Fatal(err)
	}
	list, err := ca.Revoke(time.Hour, p.Leaf)
	if err != nil {
		f.Fatal(err)
	}
	key := []byte(p.Key.Reveal())
	f.Add(p.Certificate, key, ca.PEM(), list)
	f.Add(append(p.Certificate, ca.PEM()...), key, append(ca.PEM(), ca.PEM()[:100]...), []byte(nil))
	f.Add(p.Certificate[:100], key[:100], ca.PEM()[:100], list[:100])
	f.Add(key, p.Certificate, list, ca.PEM())
	f.Fuzz(func(t *testing.T, chain, key, authorities, lists []byte) {
		m, err := parse(chain, key, authorities, lists, time.Now())
		if err != nil {
			if len(key) > 40 && bytes.Contains([]byte(err.Error()), key) {
				t.Fatalf("the error tells the key: %v", err)
			}
			return
		}
		if m.own.Leaf == nil || m.own.PrivateKey == nil || len(m.authorities) == 0 || m.roots == nil || len(lists) > 0 && len(m.lists) == 0 {
			t.Fatalf("it is not whole: %+v", m)
		}
		for _, part := range []struct {
			text []byte
			n    int
		}{{chain, len(m.own.Certificate)}, {authorities, len(m.authorities)}, {lists, len(m.lists)}} {
			if bytes.Count(part.text, []byte("\n-----END ")) < part.n {
				t.Fatalf("%d of %q", part.n, part.text)
			}
		}
		_ = m.problem(time.Now())
		_ = m.check(nil, 0, 0, time.Now())
	})
}
