// Package certs is a program's own certificate and the authorities that it believes: PEM files, what a SPIFFE Workload API
// gives, or what a PKI secrets engine issues.
//
// What changes there is used from the next handshake on; connections that are open stay as they are. What is broken there
// is told, and the last good stays.
package certs

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	bootstrapv1 "github.com/prism-gateway/prism/protos/prism/bootstrap/v1"
	"github.com/prism-gateway/prism/shared/telemetry"
)

const (
	defaultPoll  = 30 * time.Second
	firstBackoff = 200 * time.Millisecond
	atFirst      = 5 * time.Second // the longest wait between two attempts while there is nothing yet
	later        = time.Minute
)

// Config makes a Source.
type Config struct {
	// Name tells the source from others of the program in logs and metrics, such as data or control. Required.
	Name string
	// Certificates say where they come from. Required, and not to be changed afterwards.
	Certificates *bootstrapv1.Certificates
	// Issue asks a PKI secrets engine. Required for vault_pki.
	Issue Issue
	// PollEvery is how often files are looked at even when nothing tells of a change; default 30 s.
	PollEvery time.Duration
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Logger is told of certificates that were replaced and of those that cannot be used. Nil: nobody is.
	Logger *slog.Logger
	// Registerer takes the metrics; nil: none.
	Registerer prometheus.Registerer
}

// Source has the certificates that are in use. Its methods may be called concurrently.
type Source struct {
	cfg     Config
	origin  origin
	metrics *metrics
	current atomic.Pointer[material] // nil until loaded

	mu     sync.Mutex // guards what follows
	broken string     // what was told last; empty while all is well
}

// origin is where certificates come from.
type origin interface {
	// load gets them once.
	load(ctx context.Context) (*material, error)
	// watch gives what comes after, good or not, until ctx is done.
	watch(ctx context.Context, since *material, take func(*material, error) error) error
	// patient origins are others' servers: one that does not answer yet is waited for.
	patient() bool
}

// material is what handshakes use. It does not change.
type material struct {
	own         *tls.Certificate
	loadedAt    time.Time
	authorities []*x509.Certificate
	roots       *x509.CertPool
	// domains are the roots of each trust domain, by the SHA-256 of their certificates. Nil: every root speaks for every name.
	domains map[string]map[[sha256.Size]byte]bool
	lists   []*revoked
	sum     [sha256.Size]byte // of all that it was made of
}

// New checks the Config.
func New(cfg Config) (*Source, error) {
	if cfg.Name == "" || cfg.Certificates == nil {
		return nil, errors.New("certs: Config.Name and Config.Certificates are required")
	}
	cfg.PollEvery = cmp.Or(cfg.PollEvery, defaultPoll)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Source{cfg: cfg}
	switch from := cfg.Certificates.GetSource().(type) {
	case *bootstrapv1.Certificates_Files:
		s.origin = &files{paths: from.Files, every: cfg.PollEvery, now: cfg.Now, logger: cfg.Logger.With(telemetry.KeyName, cfg.Name)}
	case *bootstrapv1.Certificates_WorkloadApi:
		w, err := newWorkload(from.WorkloadApi, cfg.Now)
		if err != nil {
			return nil, err
		}
		s.origin = w
	case *bootstrapv1.Certificates_VaultPki:
		if cfg.Issue == nil {
			return nil, errors.New("certs: Config.Issue is required for vault_pki")
		}
		s.origin = &engine{want: from.VaultPki, issue: cfg.Issue, now: cfg.Now}
	default:
		return nil, errors.New("certs: Config.Certificates name no source")
	}
	var err error
	if s.metrics, err = newMetrics(cfg.Registerer, s); err != nil {
		return nil, err
	}
	return s, nil
}

// Name is Config.Name.
func (s *Source) Name() string { return s.cfg.Name }

// Load gets the certificates for the first time. Files must be good at once; a server that does not answer yet is asked
// again until ctx is done.
func (s *Source) Load(ctx context.Context) error {
	if !s.origin.patient() {
		if _, err := s.use(s.origin.load(ctx)); err != nil {
			return fmt.Errorf("certs: %s: %w", s.cfg.Name, err)
		}
		return nil
	}
	for n := 0; ; n++ {
		err := s.take(s.origin.load(ctx))
		if err == nil {
			return nil
		}
		if !pause(ctx, backoff(n, atFirst)) {
			return fmt.Errorf("certs: %s: %w", s.cfg.Name, err)
		}
	}
}

// Run takes up what changes until ctx is done. Load comes first.
func (s *Source) Run(ctx context.Context) error {
	m := s.current.Load()
	if m == nil {
		return errors.New("certs: Run before Load")
	}
	return s.origin.watch(ctx, m, s.take)
}

// Certificate is the program's own, with its key and the parsed leaf; the same pointer until it is replaced. Nil before
// Load. It is not to be changed.
func (s *Source) Certificate() *tls.Certificate {
	if m := s.current.Load(); m != nil {
		return m.own
	}
	return nil
}

// take puts what came from the origin into use and tells of it. What was told is not told again.
func (s *Source) take(m *material, err error) error {
	replaced, err := s.use(m, err)
	s.mu.Lock()
	was := s.broken
	s.broken = ""
	if err != nil {
		s.broken = err.Error()
	}
	s.mu.Unlock()
	switch {
	case err != nil && err.Error() != was:
		s.cfg.Logger.Warn("certificates cannot be used", telemetry.KeyName, s.cfg.Name, telemetry.Error(err))
	case err == nil && (replaced || was != ""):
		s.cfg.Logger.Info("certificates are in use", telemetry.KeyName, s.cfg.Name)
	}
	return err
}

// use puts material into use unless it is in use already, or says why it cannot be used.
func (s *Source) use(m *material, err error) (replaced bool, _ error) {
	if err == nil {
		err = m.problem(s.cfg.Now())
	}
	if err != nil {
		s.metrics.failures.Inc()
		return false, err
	}
	if was := s.current.Load(); was != nil && was.sum == m.sum {
		return false, nil
	}
	s.current.Store(m)
	s.metrics.loads.Inc()
	return true, nil
}

// isBroken reports whether what is at the origin now cannot be used.
func (s *Source) isBroken() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.broken != ""
}

// problem says why the program cannot show this certificate.
func (m *material) problem(now time.Time) error {
	leaf := m.own.Leaf
	switch {
	case now.Before(leaf.NotBefore):
		return fmt.Errorf("the certificate is not good before %s", leaf.NotBefore.Format(time.RFC3339))
	case now.After(leaf.NotAfter):
		return fmt.Errorf("the certificate has expired at %s", leaf.NotAfter.Format(time.RFC3339))
	}
	return nil
}

// trust makes the pool of the authorities.
func (m *material) trust() {
	m.roots = x509.NewCertPool()
	for _, c := range m.authorities {
		m.roots.AddCert(c)
	}
}

// backoff is how long to wait after the nth failure, counted from 0: full jitter over a time that doubles up to most.
func backoff(n int, most time.Duration) time.Duration {
	most = min(firstBackoff<<min(n, 20), most)
	return most/10 + rand.N(most)
}

// pause waits, and reports false when ctx is done.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
