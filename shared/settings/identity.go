package settings

import (
	"fmt"
	"slices"
	"strings"

	bootstrapv1 "github.com/prism-gateway/prism/protos/prism/bootstrap/v1"
)

// Exposed reports whether the data services of a proxy may be reached from other machines: nobody gets in there who is not
// known, or the configuration says that it is meant all the same.
func Exposed(c *bootstrapv1.ProxyConfig) bool {
	return c.GetInsecureListen() || certified(c.GetTls()) || c.GetTls() != nil && c.GetAuthentication().GetRequired()
}

// certified reports whether every caller of an address shows a certificate.
func certified(tls *bootstrapv1.ListenerTls) bool {
	return tls != nil && tls.GetClientCertificates() != bootstrapv1.ClientCertificates_CLIENT_CERTIFICATES_OPTIONAL
}

// schemes are what the names of providers begin with, by their type.
var schemes = map[string]string{
	"vault": "vault", "aws_secrets_manager": "awssm", "google_secret_manager": "gcpsm", "azure_key_vault": "azurekv", "file": "file", "environment": "env",
}

// providers checks the names of providers, with which paths of credentials begin: requests take those of known schemes only.
func (c *checks) providers(all []*bootstrapv1.CredentialProvider) {
	var seen []string
	for i, p := range all {
		at := fmt.Sprintf("credential_providers[%d].name", i)
		m := p.ProtoReflect()
		if set := m.WhichOneof(m.Descriptor().Oneofs().ByName("type")); set != nil {
			scheme := schemes[string(set.Name())]
			if first, _, _ := strings.Cut(p.GetName(), "-"); first != scheme {
				c.field(at, fmt.Errorf("%q: want %s, or %s and a name of its own such as %s-eu, for a provider of type %s", p.GetName(), scheme, scheme, scheme, set.Name()))
			}
		}
		if slices.Contains(seen, p.GetName()) {
			c.field(at, fmt.Errorf("%q is the name of another provider too", p.GetName()))
		}
		seen = append(seen, p.GetName())
	}
}
