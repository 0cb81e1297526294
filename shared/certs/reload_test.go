package certs_test

import (
	"crypto/tls"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	bootstrapv1 "github.com/prism-gateway/prism/protos/prism/bootstrap/v1"
	"github.com/prism-gateway/prism/shared/certs"
	"github.com/prism-gateway/prism/shared/certs/authority"
	"github.com/prism-gateway/prism/shared/principal"
)

// shows is the serial number of the certificate that a server shows now.
func (s *server) shows(t testing.TB, cfg *tls.Config) string {
	t.Helper()
	conn, err := s.dial(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
}

func TestAReplacedCertificateIsUsedFromTheNextHandshakeOn(t *testing.T) {
	ca, dir := newAuthority(t), t.TempDir()
	w := load(t, ofFiles(filed(t, dir, issue(t, ca, program("proxy")))), func(c *certs.Config) { c.PollEvery = time.Hour }) // so that it is told
	w.run(t)
	s := serve(t, w.Server(certs.ServerConfig{}))
	cfg := w.Client(certs.ClientConfig{ServerName: "localhost"})
	open, err := s.dial(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	next := issue(t, ca, program("proxy"))
	filed(t, dir, next)
	eventually(t, "the new certificate is in use", func() bool { return s.shows(t, cfg) == next.Leaf.SerialNumber.String() })
	if !w.Certificate().Leaf.Equal(next.Leaf) {
		t.Error("Certificate is another")
	}
	if err := echo(open); err != nil {
		t.Errorf("the open connection was harmed: %v", err)
	}
}

// Both sides take up a new authority, and cease to believe the old one.
func TestAuthoritiesAreReplaced(t *testing.T) {
	old, next, dir := newAuthority(t), newAuthority(t), t.TempDir()
	w := load(t, ofFiles(filed(t, dir, issue(t, old, program("proxy")))))
	w.run(t)
	s := serve(t, w.Server(certs.ServerConfig{}))
	before := &tls.Config{RootCAs: pool(append(old.PEM(), next.PEM()...)), Certificates: []tls.Certificate{pair(t, issue(t, old, program("api")))}}
	after := before.Clone()
	after.Certificates = []tls.Certificate{pair(t, issue(t, next, program("api")))}
	s.shows(t, before)
	filed(t, dir, issue(t, next, program("proxy")))
	eventually(t, "the new authority is believed", func() bool {
		conn, err := s.dial(after)
		if err != nil {
			return false
		}
		return conn.Close() == nil
	})
	if conn, err := s.dial(before); err == nil {
		conn.Close()
		t.Error("the old authority is believed still")
	}
	s.shows(t, w.Client(certs.ClientConfig{ServerName: "localhost"}))
}

// A revocation takes effect with the list.
func TestARevocationTakesEffect(t *testing.T) {
	ca, dir := newAuthority(t), t.TempDir()
	files := filed(t, dir, issue(t, ca, program("proxy")))
	files.CrlFile = filepath.Join(dir, "crl.pem")
	put(t, files.CrlFile, revoke(t, ca, time.Hour))
	w := load(t, ofFiles(files))
	w.run(t)
	caller := issue(t, ca, program("api"))
	s := serve(t, w.Server(certs.ServerConfig{}))
	cfg := &tls.Config{RootCAs: pool(ca.PEM()), Certificates: []tls.Certificate{pair(t, caller)}}
	s.shows(t, cfg)
	put(t, files.CrlFile, revoke(t, ca, time.Hour, caller.Leaf))
	eventually(t, "the caller is refused", func() bool {
		conn, err := s.dial(cfg)
		if err != nil {
			return certs.Reason(<-s.refused) == "revoked"
		}
		return conn.Close() != nil
	})
}

func TestWhatIsBrokenKeepsTheLastGood(t *testing.T) {
	ca := newAuthority(t)
	good, next := issue(t, ca, program("proxy")), issue(t, ca, program("proxy"))
	for name, damage := range map[string]func(t *testing.T, f *bootstrapv1.CertificateFiles){
		"no PEM":             func(t *testing.T, f *bootstrapv1.CertificateFiles) { put(t, f.CertFile, []byte("canary-certificate")) },
		"empty":              func(t *testing.T, f *bootstrapv1.CertificateFiles) { put(t, f.CertFile, nil) },
		"half a certificate": func(t *testing.T, f *bootstrapv1.CertificateFiles) { put(t, f.CertFile, half(next.Certificate)) },
		"a certificate and a half": func(t *testing.T, f *bootstrapv1.CertificateFiles) {
			put(t, f.CertFile, append(good.Certificate, half(ca.PEM())...))
		},
		"half a key": func(t *testing.T, f *bootstrapv1.CertificateFiles) {
			put(t, f.KeyFile, half([]byte(good.Key.Reveal())))
		},
		"the key of another":         func(t *testing.T, f *bootstrapv1.CertificateFiles) { put(t, f.KeyFile, []byte(next.Key.Reveal())) },
		"the certificate of another": func(t *testing.T, f *bootstrapv1.CertificateFiles) { put(t, f.CertFile, next.Certificate) },
		"the key for a certificate":  func(t *testing.T, f *bootstrapv1.CertificateFiles) { put(t, f.CertFile, []byte(good.Key.Reveal())) },
		"the key for an authority":   func(t *testing.T, f *bootstrapv1.CertificateFiles) { put(t, f.CaFile, []byte(good.Key.Reveal())) },
		"an authority and a half": func(t *testing.T, f *bootstrapv1.CertificateFiles) {
			put(t, f.CaFile, append(ca.PEM(), half(ca.PEM())...))
		},
		"an authority that is none": func(t *testing.T, f *bootstrapv1.CertificateFiles) {
			put(t, f.CaFile, []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
		},
		"no authority":        func(t *testing.T, f *bootstrapv1.CertificateFiles) { put(t, f.CaFile, []byte("\n")) },
		"a list that is none": func(t *testing.T, f *bootstrapv1.CertificateFiles) { put(t, f.CrlFile, ca.PEM()) },
		"half a list":         func(t *testing.T, f *bootstrapv1.CertificateFiles) { put(t, f.CrlFile, half(revoke(t, ca, time.Hour))) },
		"a file is away":      func(t *testing.T, f *bootstrapv1.CertificateFiles) { remove(t, f.KeyFile) },
		"a file is a directory": func(t *testing.T, f *bootstrapv1.CertificateFiles) {
			remove(t, f.CertFile)
			if err := os.Mkdir(f.CertFile, 0o700); err != nil {
				t.Fatal(err)
			}
		},
		"an expired one": func(t *testing.T, f *bootstrapv1.CertificateFiles) {
			r := program("proxy")
			r.TTL = -time.Second
			filed(t, filepath.Dir(f.CertFile), issue(t, ca, r))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			files := filed(t, dir, good)
			files.CrlFile = filepath.Join(dir, "crl.pem")
			put(t, files.CrlFile, revoke(t, ca, time.Hour))
			w := load(t, ofFiles(files))
			w.run(t)
			s := serve(t, w.Server(certs.ServerConfig{}))
			cfg := w.Client(certs.ClientConfig{ServerName: "localhost"})
			damage(t, files)
			eventually(t, "it is tried again and again", func() bool { return w.metric(t, "prism_certs_failures_total") >= 5 })
			if got := s.shows(t, cfg); got != good.Leaf.SerialNumber.String() {
				t.Errorf("the certificate in use is %s", got)
			}
			told := strings.Count(w.log.String(), "certificates cannot be used")
			if told != 1 || w.metric(t, "prism_certs_broken") != 1 {
				t.Errorf("told %d times, broken %v: %s", told, w.metric(t, "prism_certs_broken"), w.log)
			}
			for _, secret := range []string{"canary", keyText(good), keyText(next)} {
				if strings.Contains(w.log.String(), secret) {
					t.Errorf("the log tells what the files hold: %s", w.log)
				}
			}
			_ = os.Remove(files.CertFile) // the directory
			put(t, files.CrlFile, revoke(t, ca, time.Hour))
			filed(t, dir, next)
			eventually(t, "a good one is taken up", func() bool { return s.shows(t, cfg) == next.Leaf.SerialNumber.String() })
			eventually(t, "it is broken no more", func() bool { return w.metric(t, "prism_certs_broken") == 0 })
		})
	}
}

func half(b []byte) []byte { return b[:len(b)/2] }

// keyText is a part of a private key as the file has it.
func keyText(p authority.Pair) string { return strings.Split(p.Key.Reveal(), "\n")[1] }

func remove(t testing.TB, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// Kubernetes swaps a link to a directory, which the files are links into.
func TestKubernetesSwapsADirectory(t *testing.T) {
	ca, dir := newAuthority(t), t.TempDir()
	swap := func(version string) authority.Pair {
		p := issue(t, ca, program("proxy"))
		if err := os.Mkdir(filepath.Join(dir, version), 0o700); err != nil {
			t.Fatal(err)
		}
		filed(t, filepath.Join(dir, version), p)
		if err := os.Symlink(version, filepath.Join(dir, "..data_tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
		return p
	}
	swap("..1")
	files := &bootstrapv1.CertificateFiles{CertFile: filepath.Join(dir, "own.pem"), KeyFile: filepath.Join(dir, "own-key.pem"), CaFile: filepath.Join(dir, "ca.pem")}
	for _, path := range []string{files.CertFile, files.KeyFile, files.CaFile} {
		if err := os.Symlink(filepath.Join("..data", filepath.Base(path)), path); err != nil {
			t.Fatal(err)
		}
	}
	w := load(t, ofFiles(files), func(c *certs.Config) { c.PollEvery = time.Hour }) // so that it is told
	w.run(t)
	for _, version := range []string{"..2", "..3", "..4"} {
		next := swap(version)
		eventually(t, "the new directory is in use", func() bool { return w.Certificate().Leaf.Equal(next.Leaf) })
	}
	if strings.Contains(w.log.String(), "cannot be used") {
		t.Errorf("a swap was seen half: %s", w.log)
	}
}

func TestWhatChangedBeforeTheWatchBeganIsTakenUp(t *testing.T) {
	ca, dir := newAuthority(t), t.TempDir()
	w := load(t, ofFiles(filed(t, dir, issue(t, ca, program("proxy")))), func(c *certs.Config) { c.PollEvery = time.Hour })
	next := issue(t, ca, program("proxy"))
	filed(t, dir, next)
	w.run(t)
	eventually(t, "it is in use", func() bool { return w.Certificate().Leaf.Equal(next.Leaf) })
}

func TestADirectoryThatIsMadeAnewIsFound(t *testing.T) {
	ca, dir := newAuthority(t), filepath.Join(t.TempDir(), "tls")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	w := load(t, ofFiles(filed(t, dir, issue(t, ca, program("proxy")))))
	w.run(t)
	for range 2 {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it is missed", func() bool { return w.metric(t, "prism_certs_broken") == 1 })
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		next := issue(t, ca, program("proxy"))
		filed(t, dir, next)
		eventually(t, "it is found", func() bool { return w.Certificate().Leaf.Equal(next.Leaf) })
	}
}

// S2-I5: certificates and the authority are replaced while calls go on over old and new connections, and none fails.
func TestReplacingUnderLoadHarmsNoCall(t *testing.T) {
	ca, dir := newAuthority(t), t.TempDir()
	w := load(t, ofFiles(filed(t, dir, issue(t, ca, program("proxy")))))
	w.run(t)
	addr := serveGRPC(t, w.ServerCredentials(certs.ServerConfig{}))
	dial := func() (*grpc.ClientConn, error) {
		return grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(w.ClientCredentials(certs.ClientConfig{
			Verify: func(p *principal.Principal) error {
				if p.Node() != "proxy" {
					return errOther
				}
				return nil
			},
		})))
	}
	call := func(conn *grpc.ClientConn) error {
		_, err := healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{})
		return err
	}
	var stop atomic.Bool
	var calls atomic.Int64
	var handshakes [4]atomic.Int64
	var callers sync.WaitGroup
	var broken atomic.Pointer[string]
	told := func(err error) bool {
		if err != nil {
			text := err.Error()
			broken.CompareAndSwap(nil, &text)
			stop.Store(true)
		}
		return err != nil
	}
	for i := range handshakes {
		callers.Go(func() { // one connection throughout
			conn, err := dial()
			if told(err) {
				return
			}
			defer conn.Close()
			for !stop.Load() && !told(call(conn)) {
				calls.Add(1)
			}
		})
		callers.Go(func() { // a new one for each call
			for !stop.Load() {
				conn, err := dial()
				if told(err) || told(call(conn)) {
					return
				}
				conn.Close()
				handshakes[i].Add(1)
			}
		})
	}
	// The authority changes as it should: first the new one is believed as well, then it signs, then the old one goes.
	for range 4 {
		next := newAuthority(t)
		both := append(append([]byte{}, ca.PEM()...), next.PEM()...)
		for _, step := range []struct {
			by      *authority.Authority
			believe []byte
		}{{ca, both}, {next, both}, {next, next.PEM()}} {
			p := issue(t, step.by, program("proxy"))
			p.Authority = step.believe
			filed(t, dir, p)
			eventually(t, "it is in use", func() bool { return w.Certificate().Leaf.Equal(p.Leaf) })
			for i := range handshakes { // so that no handshake is older than the step before
				before := handshakes[i].Load()
				eventually(t, "it is tried", func() bool { return stop.Load() || handshakes[i].Load() >= before+2 })
			}
		}
		ca = next
	}
	stop.Store(true)
	callers.Wait()
	connections := int64(0)
	for i := range handshakes {
		connections += handshakes[i].Load()
	}
	if text := broken.Load(); text != nil {
		t.Fatalf("after %d calls and %d connections: %s\n%s", calls.Load(), connections, *text, w.log)
	}
	if w.metric(t, "prism_certs_loads_total") < 13 {
		t.Errorf("certificates were replaced %v times", w.metric(t, "prism_certs_loads_total")-1)
	}
	t.Logf("%d calls, %d connections", calls.Load(), connections)
}

// serveGRPC answers with grpc's health service and returns its address.
func serveGRPC(t testing.TB, creds credentials.TransportCredentials) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(grpc.Creds(creds))
	healthv1.RegisterHealthServer(g, health.NewServer())
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	t.Cleanup(func() {
		g.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

// grpc dials addresses as well as names.
func TestAServerIsKnownByTheAddressThatIsDialled(t *testing.T) {
	ca := newAuthority(t)
	changed := program("admin")
	changed.IPs, changed.DNS = nil, []string{"localhost"}
	for name, tc := range map[string]struct {
		server authority.Request
		cfg    certs.ClientConfig
		want   codes.Code
	}{
		"it carries the address":       {program("admin"), certs.ClientConfig{}, codes.OK},
		"it does not":                  {changed, certs.ClientConfig{}, codes.Unavailable},
		"but the name that is told":    {changed, certs.ClientConfig{ServerName: "localhost"}, codes.OK},
		"or the principal that is":     {changed, takes("spiffe://example.org/admin"), codes.OK},
		"another principal is awaited": {program("admin"), takes("spiffe://example.org/proxy"), codes.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			addr := serveGRPC(t, load(t, ofFiles(filed(t, t.TempDir(), issue(t, ca, tc.server)))).ServerCredentials(certs.ServerConfig{}))
			own := load(t, ofFiles(filed(t, t.TempDir(), issue(t, ca, program("proxy")))))
			conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(own.ClientCredentials(tc.cfg)))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{}); status.Code(err) != tc.want {
				t.Errorf("%v, want %s", err, tc.want)
			}
		})
	}
}

// Who is refused is counted, and told by the name that the certificate bears.
func TestRefusedCallersAreTold(t *testing.T) {
	ca := newAuthority(t)
	files := filed(t, t.TempDir(), issue(t, ca, program("admin")))
	revoked := issue(t, ca, program("gone"))
	files.CrlFile = files.GetCaFile() + ".crl"
	put(t, files.GetCrlFile(), revoke(t, ca, time.Hour, revoked.Leaf))
	for reason, p := range map[string]authority.Pair{
		"unknown_authority": issue(t, newAuthority(t), program("stranger")),
		"revoked":           revoked,
		"expired":           issue(t, ca, authority.Request{CommonName: "late.prod", Client: true, TTL: -time.Second}),
		"no_certificate":    {},
	} {
		t.Run(reason, func(t *testing.T) {
			w := load(t, ofFiles(files))
			cfg := &tls.Config{RootCAs: pool(ca.PEM())}
			if p.Certificate != nil {
				c := pair(t, p)
				cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &c, nil }
			}
			conn, err := grpc.NewClient("passthrough:///"+serveGRPC(t, w.ServerCredentials(certs.ServerConfig{})), grpc.WithTransportCredentials(credentials.NewTLS(cfg)))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			for range 3 {
				if _, err := healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{}); status.Code(err) != codes.Unavailable {
					t.Fatal(err)
				}
			}
			eventually(t, "it is counted", func() bool { return w.refused(t)[reason] >= 1 })
			if counts := w.refused(t); len(counts) != 1 {
				t.Errorf("counted as %v", counts)
			}
			name := map[string]string{"unknown_authority": "spiffe://example.org/stranger", "revoked": "spiffe://example.org/gone", "expired": "late.prod"}[reason]
			eventually(t, "it is told", func() bool { return strings.Contains(w.log.String(), `"caller":"`+name+`"`) })
			if text := w.log.String(); !strings.Contains(text, `"reason":"`+reason+`"`) {
				t.Errorf("told as %s", text)
			}
		})
	}
}

func TestTheFirstLoadMustWork(t *testing.T) {
	ca := newAuthority(t)
	dir := t.TempDir()
	files := filed(t, dir, issue(t, ca, program("proxy")))
	put(t, files.KeyFile, []byte("-----BEGIN PRIVATE KEY-----\ncanary\n-----END PRIVATE KEY-----\n"))
	s, err := certs.New(certs.Config{Name: "test", Certificates: ofFiles(files)})
	if err != nil {
		t.Fatal(err)
	}
	err = s.Load(t.Context())
	if err == nil || !strings.Contains(err.Error(), files.CertFile) || strings.Contains(err.Error(), "canary") {
		t.Errorf("Load: %v", err)
	}
	if s.Certificate() != nil || s.Run(t.Context()) == nil {
		t.Error("it runs without a certificate")
	}
	client, server := net.Pipe()
	go func() {
		_, _ = io.Copy(io.Discard, tls.Client(client, s.Client(certs.ClientConfig{ServerName: "localhost"})))
		client.Close()
	}()
	if err := tls.Server(server, s.Server(certs.ServerConfig{})).HandshakeContext(t.Context()); err == nil {
		t.Error("a handshake without a certificate passes")
	}
	server.Close()
}

func TestConfigIsChecked(t *testing.T) {
	for name, cfg := range map[string]certs.Config{
		"no name":           {Certificates: ofFiles(&bootstrapv1.CertificateFiles{})},
		"no certificates":   {Name: "a"},
		"no source":         {Name: "a", Certificates: &bootstrapv1.Certificates{}},
		"nobody to ask":     {Name: "a", Certificates: &bootstrapv1.Certificates{Source: &bootstrapv1.Certificates_VaultPki{VaultPki: &bootstrapv1.VaultPki{}}}},
		"a bad socket":      {Name: "a", Certificates: ofWorkload("http://example.org")},
		"a relative socket": {Name: "a", Certificates: ofWorkload("unix:agent.sock")},
	} {
		if _, err := certs.New(cfg); err == nil {
			t.Errorf("%s: New takes it", name)
		}
	}
}

func ofWorkload(address string) *bootstrapv1.Certificates {
	return &bootstrapv1.Certificates{Source: &bootstrapv1.Certificates_WorkloadApi{WorkloadApi: &bootstrapv1.WorkloadApi{Address: address}}}
}
