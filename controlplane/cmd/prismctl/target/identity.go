package target

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"google.golang.org/grpc/credentials"

	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/terminal"
	"github.com/prism-gateway/prism/shared/client"
	"github.com/prism-gateway/prism/shared/secret"
	"github.com/prism-gateway/prism/shared/servicetoken"
)

// Identity is who prismctl says that it is, and whom it believes. All fields name files; in a context file they are relative to
// that.
type Identity struct {
	CAFile    string `yaml:"ca_file,omitempty"`    // with it connections are TLS
	CertFile  string `yaml:"cert_file,omitempty"`  // shown to all programs
	KeyFile   string `yaml:"key_file,omitempty"`   // of the certificate
	TokenFile string `yaml:"token_file,omitempty"` // with a bearer token for proxies
}

// or fills in what is not said.
func (i Identity) or(other Identity) Identity {
	own := i
	if i.CertFile == "" && i.KeyFile == "" {
		own.CertFile, own.KeyFile = other.CertFile, other.KeyFile
	}
	own.CAFile, own.TokenFile = cmp.Or(i.CAFile, other.CAFile), cmp.Or(i.TokenFile, other.TokenFile)
	return own
}

// below is the identity with relative names taken from a directory.
func (i Identity) below(dir string) Identity {
	for _, name := range []*string{&i.CAFile, &i.CertFile, &i.KeyFile, &i.TokenFile} {
		if *name != "" && !filepath.IsAbs(*name) {
			*name = filepath.Join(dir, *name)
		}
	}
	return i
}

// client is how to call endpoints with the identity.
func (i Identity) client(endpoints []string) (client.Config, error) {
	cfg := client.Config{Endpoints: endpoints}
	if i.TokenFile != "" {
		cfg.Token = tokenFile(i.TokenFile)
	}
	switch {
	case (i.CertFile == "") != (i.KeyFile == ""):
		return cfg, terminal.Misusef("a certificate and its key go together: name both --cert-file and --key-file")
	case i.CAFile == "" && i.CertFile != "":
		return cfg, terminal.Misusef("--cert-file needs --ca-file: the authorities of the programs that it is shown to")
	case i.CAFile == "":
		return cfg, nil
	}
	pem, err := os.ReadFile(i.CAFile)
	if err != nil {
		return cfg, terminal.Misuse{Err: err}
	}
	config := &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12}
	if !config.RootCAs.AppendCertsFromPEM(pem) {
		return cfg, terminal.Misusef("%s holds no certificate (PEM)", i.CAFile)
	}
	if i.CertFile != "" {
		own, err := tls.LoadX509KeyPair(i.CertFile, i.KeyFile)
		if err != nil {
			return cfg, terminal.Misusef("%s: %v", i.CertFile, err)
		}
		config.Certificates = []tls.Certificate{own}
	}
	cfg.Credentials = credentials.NewTLS(config)
	return cfg, nil
}

// tokenFile is a file with a token, which somebody else may renew.
type tokenFile string

// Token reads the file.
func (f tokenFile) Token(context.Context) (servicetoken.Token, error) {
	data, err := os.ReadFile(string(f))
	if err != nil {
		return servicetoken.Token{}, err
	}
	text := strings.TrimSpace(string(data))
	if text == "" || strings.ContainsAny(text, " \t\r\n") {
		return servicetoken.Token{}, fmt.Errorf("%s holds no token: want its text and nothing else", string(f))
	}
	return servicetoken.Token{Text: secret.New(text)}, nil
}
