package certs

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"
)

// parse makes material of PEM: the program's chain and key, the authorities, and lists of revoked certificates where there
// are any. Errors name the part and tell nothing of its content.
func parse(chain, key, authorities, lists []byte, now time.Time) (*material, error) {
	m := &material{loadedAt: now, sum: sum(chain, key, authorities, lists)}
	if _, err := blocks(chain, "CERTIFICATE"); err != nil { // X509KeyPair drops what is cut off
		return nil, fmt.Errorf("the certificate: %w", err)
	}
	own, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return nil, fmt.Errorf("the certificate and its key: %w", err)
	}
	m.own = &own
	found, err := blocks(authorities, "CERTIFICATE")
	if err != nil {
		return nil, fmt.Errorf("the authorities: %w", err)
	}
	for _, der := range found {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("the authorities: %w", err)
		}
		m.authorities = append(m.authorities, c)
	}
	m.trust()
	if lists == nil {
		return m, nil
	}
	if found, err = blocks(lists, "X509 CRL"); err != nil {
		return nil, fmt.Errorf("the lists of revoked certificates: %w", err)
	}
	for _, der := range found {
		l, err := newRevoked(der)
		if err != nil {
			return nil, fmt.Errorf("the lists of revoked certificates: %w", err)
		}
		m.lists = append(m.lists, l)
	}
	return m, nil
}

// blocks are the PEM blocks of a kind: all there are, at least one, and none of another kind or cut off.
func blocks(data []byte, kind string) ([][]byte, error) {
	var found [][]byte
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			break
		}
		if block.Type != kind {
			return nil, fmt.Errorf("want PEM blocks of type %s only", kind)
		}
		found, data = append(found, block.Bytes), rest
	}
	switch {
	case bytes.Contains(data, []byte("-----BEGIN")):
		return nil, errors.New("a PEM block is damaged or not whole")
	case len(found) == 0:
		return nil, fmt.Errorf("has no PEM block of type %s", kind)
	}
	return found, nil
}

// sum tells one set of parts from another.
func sum(parts ...[]byte) [sha256.Size]byte {
	all := make([]byte, 0, len(parts)*sha256.Size)
	for _, p := range parts {
		h := sha256.Sum256(p)
		all = append(all, h[:]...)
	}
	return sha256.Sum256(all)
}
