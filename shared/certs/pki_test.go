package certs_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	bootstrapv1 "github.com/prism-gateway/prism/protos/prism/bootstrap/v1"
	"github.com/prism-gateway/prism/shared/certs"
	"github.com/prism-gateway/prism/shared/certs/authority"
)

// patience is how long a test waits for what must come.
const patience = 30 * time.Second

func newAuthority(t testing.TB) *authority.Authority {
	t.Helper()
	a, err := authority.New("test", nil)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func issue(t testing.TB, a *authority.Authority, r authority.Request) authority.Pair {
	t.Helper()
	p, err := a.Issue(r)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func intermediate(t testing.TB, a *authority.Authority, name string) *authority.Authority {
	t.Helper()
	below, err := a.Intermediate(name)
	if err != nil {
		t.Fatal(err)
	}
	return below
}

func revoke(t testing.TB, a *authority.Authority, ttl time.Duration, revoked ...*x509.Certificate) []byte {
	t.Helper()
	list, err := a.Revoke(ttl, revoked...)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// program is what a program of ours is issued: it serves and calls.
func program(name string) authority.Request {
	return authority.Request{
		CommonName: name, URIs: []string{"spiffe://example.org/" + name}, DNS: []string{"localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)},
		Client: true, Server: true,
	}
}

func pair(t testing.TB, p authority.Pair) tls.Certificate {
	t.Helper()
	c, err := tls.X509KeyPair(p.Certificate, []byte(p.Key.Reveal()))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// filed puts a pair into a directory and names the files.
func filed(t testing.TB, dir string, p authority.Pair) *bootstrapv1.CertificateFiles {
	t.Helper()
	if err := p.Write(dir, "own"); err != nil {
		t.Fatal(err)
	}
	return &bootstrapv1.CertificateFiles{
		CertFile: filepath.Join(dir, "own.pem"), KeyFile: filepath.Join(dir, "own-key.pem"), CaFile: filepath.Join(dir, "ca.pem"),
	}
}

func put(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func ofFiles(f *bootstrapv1.CertificateFiles) *bootstrapv1.Certificates {
	return &bootstrapv1.Certificates{Source: &bootstrapv1.Certificates_Files{Files: f}}
}

// watched is a Source with what it tells.
type watched struct {
	*certs.Source
	log      *log
	registry *prometheus.Registry
}

// load makes a Source and loads it.
func load(t testing.TB, from *bootstrapv1.Certificates, change ...func(*certs.Config)) watched {
	t.Helper()
	w := watched{log: &log{}, registry: prometheus.NewRegistry()}
	cfg := certs.Config{
		Name: "test", Certificates: from, PollEvery: 20 * time.Millisecond, Logger: slog.New(slog.NewJSONHandler(w.log, nil)), Registerer: w.registry,
	}
	for _, c := range change {
		c(&cfg)
	}
	var err error
	if w.Source, err = certs.New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := w.Load(ctx); err != nil {
		t.Fatal(err)
	}
	return w
}

// run has a Source watch until the test ends.
func (w watched) run(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

// metric is the value of a counter or gauge.
func (w watched) metric(t testing.TB, name string) float64 {
	t.Helper()
	families, err := w.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetCounter().GetValue() + f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

// refused are the counts of refused connections by their reasons, without those that are 0.
func (w watched) refused(t testing.TB) map[string]float64 {
	t.Helper()
	families, err := w.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	counts := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if n := m.GetCounter().GetValue(); f.GetName() == "prism_certs_refused_total" && n > 0 {
				for _, l := range m.GetLabel() {
					if l.GetName() == "reason" {
						counts[l.GetValue()] = n
					}
				}
			}
		}
	}
	return counts
}

// eventually waits until what holds, looking again and again.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	late := time.After(patience)
	for !holds() {
		select {
		case <-look.C:
		case <-late:
			t.Fatal("in vain: " + what)
		}
	}
}

// log collects what is logged.
type log struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// server answers every connection with what it is sent.
type server struct {
	addr    string
	refused chan error // why handshakes failed
}

func serve(t testing.TB, cfg *tls.Config) *server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{addr: l.Addr().String(), refused: make(chan error, 1000)}
	var running sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() {
		cancel()
		l.Close()
		running.Wait()
	})
	running.Go(func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				stop := context.AfterFunc(ctx, func() { raw.Close() })
				defer stop()
				conn := tls.Server(raw, cfg)
				defer conn.Close()
				if err := conn.Handshake(); err != nil {
					s.refused <- err
					return
				}
				_, _ = io.Copy(conn, conn) // until the other side has enough
			})
		}
	})
	return s
}

// dial connects and makes sure that the server has taken the connection: in TLS 1.3 the client is done before it has.
func (s *server) dial(cfg *tls.Config) (*tls.Conn, error) {
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", s.addr, cfg)
	if err != nil {
		return nil, err
	}
	if err := echo(conn); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

func echo(conn net.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("x")); err != nil {
		return err
	}
	var b [1]byte
	if _, err := io.ReadFull(conn, b[:]); err != nil {
		return err
	}
	if b[0] != 'x' {
		return errors.New("the echo is another")
	}
	return nil
}

func pemOf(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

func pool(text []byte) *x509.CertPool {
	p := x509.NewCertPool()
	p.AppendCertsFromPEM(text)
	return p
}
