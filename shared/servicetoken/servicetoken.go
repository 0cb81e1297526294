// Package servicetoken finds the token (a JWT) with which a service says who it is, where the platform it runs on gives it
// one: a file, Kubernetes, AWS, Azure or Google.
//
// A token that the platform made for someone else is never used: whoever gets it could go there with it. So a token of a
// file counts only when it is for the audience that is asked for, except the one that PRISM_TOKEN_FILE names.
package servicetoken

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prism-gateway/prism/shared/secret"
)

// Kind is where a token comes from.
type Kind string

// The kinds, in the order in which they are looked for.
const (
	// File is the file that PRISM_TOKEN_FILE names.
	File Kind = "file"
	// Kubernetes is a token of the pod's service account: one that is projected to ProjectedFile, or the usual one.
	Kubernetes Kind = "kubernetes"
	// AWS is the file that AWS_WEB_IDENTITY_TOKEN_FILE names.
	AWS Kind = "aws"
	// Azure is the file that AZURE_FEDERATED_TOKEN_FILE names, else the metadata service of the machine.
	Azure Kind = "azure"
	// Google is the metadata server of the machine or container.
	Google Kind = "google"
)

const (
	// ProjectedFile is where a pod's specification can project a token for Prism to, so that nothing needs to name it.
	ProjectedFile = "/var/run/secrets/prism/token"

	serviceAccountFile = "/var/run/secrets/kubernetes.io/serviceaccount/token"
	productFile        = "/sys/class/dmi/id/product_name"
	chassisFile        = "/sys/class/dmi/id/chassis_asset_tag"
	azureChassis       = "7783-7084-3265-9085-8269-3286-77" // of all machines of Azure
)

// ErrNone is what Detect's error wraps when nothing gives a token.
var ErrNone = errors.New("nothing here gives this service a token")

// Config says what is looked for, and where.
type Config struct {
	// Audience is whom tokens must be for. Empty: only the file of PRISM_TOKEN_FILE is looked for.
	Audience string
	// Lookup finds a variable of the environment; nil means os.LookupEnv.
	Lookup func(string) (string, bool)
	// Root is the directory below which the files are that only a platform has; empty means /.
	Root string
	// Metadata is the URL of the machine's metadata server; empty means the address that the platform has.
	Metadata string
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Token is a token and its end.
type Token struct {
	// Text is the token.
	Text secret.Text
	// ExpiresAt is its end; zero when it does not say one.
	ExpiresAt time.Time
}

// Source gives a service's token. Its methods may be called concurrently.
type Source struct {
	kind Kind
	why  string
	read func(context.Context) (Token, error)
	now  func() time.Time

	turn chan struct{} // capacity 1: holds a value while one call reads
	held atomic.Pointer[held]
}

// held is what was read last.
type held struct {
	token Token
	err   error     // why there is no token
	again time.Time // when to read again
}

// Detect finds where this service's token comes from. It reads files and no metadata server, so it is quick. The error
// wraps ErrNone and says of each kind why not.
func Detect(cfg Config) (*Source, error) {
	if cfg.Lookup == nil {
		cfg.Lookup = os.LookupEnv
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	cfg.Root = cmp.Or(cfg.Root, "/")
	if path := cfg.variable("PRISM_TOKEN_FILE"); path != "" {
		return cfg.source(File, "PRISM_TOKEN_FILE is "+path, fileReader(path, "")), nil
	}
	if cfg.Audience == "" {
		return nil, fmt.Errorf("%w: PRISM_TOKEN_FILE is not set, and no audience is configured for what the platform gives", ErrNone)
	}
	var not []string
	for _, c := range cfg.candidates() {
		if c.file == "" {
			not = append(not, fmt.Sprintf("%s: %s", c.kind, c.where))
			continue
		}
		read := fileReader(c.file, cfg.Audience)
		if _, err := read(context.Background()); err != nil {
			not = append(not, fmt.Sprintf("%s: %v", c.kind, err))
			continue
		}
		return cfg.source(c.kind, c.where+" is for "+cfg.Audience, read), nil
	}
	client := metadataClient()
	if address, why := cfg.azure(); address != "" {
		id := cfg.variable("AZURE_CLIENT_ID")
		return cfg.source(Azure, why, func(ctx context.Context) (Token, error) { return azureToken(ctx, client, address, cfg.Audience, id) }), nil
	}
	not = append(not, "azure: the machine is none of Azure's")
	if address, why := cfg.google(); address != "" {
		return cfg.source(Google, why, func(ctx context.Context) (Token, error) { return googleToken(ctx, client, address, cfg.Audience) }), nil
	}
	not = append(not, "google: GCE_METADATA_HOST and K_SERVICE are not set, and the machine is none of Google's")
	return nil, fmt.Errorf("%w: file: PRISM_TOKEN_FILE is not set; %s", ErrNone, strings.Join(not, "; "))
}

// candidate is a file that may have the token.
type candidate struct {
	kind  Kind
	file  string // empty: not here
	where string // how it was found, or why not
}

func (cfg Config) candidates() []candidate {
	all := make([]candidate, 0, 4)
	for _, path := range []string{ProjectedFile, serviceAccountFile} {
		all = append(all, candidate{Kubernetes, filepath.Join(cfg.Root, path), "the token in " + path})
	}
	for _, v := range []struct {
		kind Kind
		name string
	}{{AWS, "AWS_WEB_IDENTITY_TOKEN_FILE"}, {Azure, "AZURE_FEDERATED_TOKEN_FILE"}} {
		c := candidate{v.kind, cfg.variable(v.name), "the token that " + v.name + " names"}
		if c.file == "" {
			c.where = v.name + " is not set"
		}
		all = append(all, c)
	}
	return all
}

// azure returns where the metadata service is; empty when the machine is none of Azure's.
func (cfg Config) azure() (address, why string) {
	if cfg.machine(chassisFile) != azureChassis {
		return "", ""
	}
	return cmp.Or(cfg.Metadata, "http://169.254.169.254"), "the machine is one of Azure's"
}

// google returns where the metadata server is; empty when neither the environment nor the machine is one of Google's.
func (cfg Config) google() (address, why string) {
	if host := cfg.variable("GCE_METADATA_HOST"); host != "" {
		return cmp.Or(cfg.Metadata, "http://"+host), "GCE_METADATA_HOST is " + host
	}
	address = cmp.Or(cfg.Metadata, "http://metadata.google.internal")
	if service := cfg.variable("K_SERVICE"); service != "" {
		return address, "K_SERVICE is " + service
	}
	if product := cfg.machine(productFile); product == "Google" || product == "Google Compute Engine" {
		return address, "the machine is one of Google's"
	}
	return "", ""
}

func (cfg Config) variable(name string) string {
	value, _ := cfg.Lookup(name)
	return value
}

// machine returns what a file of the kernel says of the machine; nothing where there is no such file.
func (cfg Config) machine(path string) string {
	text, err := os.ReadFile(filepath.Join(cfg.Root, path))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

func (cfg Config) source(kind Kind, why string, read func(context.Context) (Token, error)) *Source {
	return &Source{kind: kind, why: why, read: read, now: cfg.Now, turn: make(chan struct{}, 1)}
}

// Kind is where the token comes from.
func (s *Source) Kind() Kind { return s.kind }

// Why says by what it was found, for a log.
func (s *Source) Why() string { return s.why }

const (
	soonest = time.Second // after what time it is read again at the earliest
	opaque  = time.Minute // after what time a token is that does not say its end
)

// Token returns the token. It is read again at half of the life that it had left; while that does not succeed, the one that
// is held is returned until its end. It is read at most once a second, and for all who wait. The error tells nothing of the
// token.
func (s *Source) Token(ctx context.Context) (Token, error) {
	now := s.now()
	h := s.held.Load()
	good := h.good(now)
	if h != nil && now.Before(h.again) && (good || h.err != nil) {
		return h.token, h.err
	}
	select {
	case s.turn <- struct{}{}:
	default:
		if good {
			return h.token, nil // another call reads it
		}
		select {
		case s.turn <- struct{}{}:
		case <-ctx.Done():
			return Token{}, fmt.Errorf("token from %s: %w", s.kind, ctx.Err())
		}
	}
	defer func() { <-s.turn }()
	if newer := s.held.Load(); newer != h {
		return newer.token, newer.err // another call has read it
	}
	token, err := s.read(ctx)
	switch {
	case err == nil && !token.ExpiresAt.IsZero() && !now.Before(token.ExpiresAt):
		err = errors.New("has expired")
	case err != nil && ctx.Err() != nil && !good:
		return Token{}, fmt.Errorf("token from %s: %w", s.kind, ctx.Err()) // says nothing to others
	}
	next := &held{token: token, again: now.Add(opaque)}
	switch {
	case err == nil && !token.ExpiresAt.IsZero():
		next.again = now.Add(max(token.ExpiresAt.Sub(now)/2, soonest))
	case err != nil && good:
		next.token, next.again = h.token, now.Add(soonest)
	case err != nil:
		next = &held{err: fmt.Errorf("token from %s: %w", s.kind, err), again: now.Add(soonest)}
	}
	s.held.Store(next)
	return next.token, next.err
}

// good reports whether there is a token that has not ended.
func (h *held) good(now time.Time) bool {
	return h != nil && h.err == nil && (h.token.ExpiresAt.IsZero() || now.Before(h.token.ExpiresAt))
}

// metadataClient asks servers of the machine: through no proxy, and following no one elsewhere.
func metadataClient() *http.Client {
	return &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true},
		Timeout:       2 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}
