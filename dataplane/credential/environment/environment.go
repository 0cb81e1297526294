// Package environment is the provider of credentials that stand, as JSON, in environment variables.
package environment

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/prism-gateway/prism/dataplane/credential"
)

// DefaultPrefix is what the variables' names begin with.
const DefaultPrefix = "PRISM_SECRET_"

// Provider reads variables. Its methods may be called concurrently.
type Provider struct {
	credential.Static
	prefix string
	lookup func(string) (string, bool)
}

// New makes a Provider of the variables whose names begin with prefix; empty means DefaultPrefix. lookup finds a variable;
// nil means os.LookupEnv.
func New(prefix string, lookup func(string) (string, bool)) *Provider {
	if lookup == nil {
		lookup = os.LookupEnv
	}
	return &Provider{prefix: cmp.Or(prefix, DefaultPrefix), lookup: lookup}
}

// Type returns environment.
func (*Provider) Type() string { return "environment" }

// Fetch reads the variable of a path: its letters in upper case, and '_' for '-', '.' and '/'.
func (p *Provider) Fetch(ctx context.Context, r credential.Request) (credential.Issued, error) {
	if err := ctx.Err(); err != nil {
		return credential.Issued{}, err
	}
	name, ok := p.variable(r.Path)
	if !ok {
		return credential.Issued{}, fmt.Errorf("%q is no name of a variable: %w", r.Path, credential.ErrRefused)
	}
	text, ok := p.lookup(name)
	if !ok {
		return credential.Issued{}, fmt.Errorf("%s: the variable is not set: %w", name, credential.ErrRefused)
	}
	c, err := credential.Parse([]byte(text))
	if err != nil {
		return credential.Issued{}, fmt.Errorf("%s: %w", name, err)
	}
	return credential.Issued{Credential: c}, nil
}

func (p *Provider) variable(path string) (string, bool) {
	if path == "" || len(path) > 256 {
		return "", false
	}
	var name strings.Builder
	name.WriteString(p.prefix)
	for _, c := range []byte(path) {
		switch {
		case c >= 'a' && c <= 'z':
			c -= 'a' - 'A'
		case c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '_':
		case c == '-' || c == '.' || c == '/':
			c = '_'
		default:
			return "", false
		}
		name.WriteByte(c)
	}
	return name.String(), true
}
