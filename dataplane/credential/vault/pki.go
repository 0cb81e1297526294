package vault

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http"
	"strings"

	"github.com/prism-gateway/prism/dataplane/credential"
	"github.com/prism-gateway/prism/shared/certs"
	"github.com/prism-gateway/prism/shared/secret"
)

// Issue asks a PKI engine, as the proxy, for a certificate of its own: at pki/sign/<role> for the key that stays here, at
// pki/issue/<role> with a key that the server makes. The role must not make leases, which end with the login that asked.
func (p *Provider) Issue(ctx context.Context, r certs.Request) (certs.Issued, error) {
	l, err := p.Login(ctx, nil)
	if err != nil {
		return certs.Issued{}, err
	}
	if !l.ID.IsZero() {
		defer p.Revoke(context.WithoutCancel(ctx), l)
	}
	answer, err := p.ask(ctx, call{namespace: l.VaultNamespace, token: l.Token, method: http.MethodPut, path: r.Path, body: map[string]any{
		"common_name": r.CommonName, "uri_sans": strings.Join(r.URIs, ","), "alt_names": strings.Join(r.DNS, ","),
		"ip_sans": strings.Join(r.IPs, ","), "ttl": fmt.Sprintf("%ds", int(r.TTL.Seconds())), "csr": string(r.SigningRequest),
	}})
	switch {
	case err != nil:
		return certs.Issued{}, err
	case answer == nil:
		return certs.Issued{}, fmt.Errorf("%s: the answer is empty: %w", r.Path, credential.ErrRefused)
	case answer.LeaseID != "":
		return certs.Issued{}, fmt.Errorf("%s: the role makes leases, with which the certificate would be revoked: set its generate_lease to false: %w", r.Path, credential.ErrRefused)
	}
	text := func(name string) string { s, _ := answer.Data[name].(string); return s }
	chain := text("issuing_ca")
	if list, ok := answer.Data["ca_chain"].([]any); ok && len(list) > 0 {
		chain = joined(list)
	}
	between, roots, err := split(chain)
	if err != nil || text("certificate") == "" {
		return certs.Issued{}, fmt.Errorf("%s: the answer has no certificate, or a chain that is none: %w", r.Path, credential.ErrRefused)
	}
	issued := certs.Issued{Certificate: append([]byte(text("certificate")+"\n"), between...), Authorities: roots}
	if key := text("private_key"); key != "" {
		issued.Key = secret.New(key)
	}
	return issued, nil
}

// split parts the authorities that a certificate is shown with from those to believe: the ones that made themselves, or
// the last where that one is not there.
func split(chain string) (between, roots []byte, err error) {
	var blocks [][]byte
	for rest := []byte(chain); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, nil, err
		}
		text := pem.EncodeToMemory(block)
		if bytes.Equal(c.RawSubject, c.RawIssuer) {
			roots = append(roots, text...)
		} else {
			blocks = append(blocks, text)
		}
	}
	if roots == nil && len(blocks) > 0 {
		roots = blocks[len(blocks)-1]
	}
	if roots == nil {
		return nil, nil, fmt.Errorf("no authority")
	}
	return bytes.Join(blocks, nil), roots, nil
}
