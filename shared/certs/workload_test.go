package certs_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/prism-gateway/prism/shared/certs"
	"github.com/prism-gateway/prism/shared/certs/authority"
	"github.com/prism-gateway/prism/shared/principal"
)

// agent gives identities by the SPIFFE Workload API, as SPIRE's does: it answers at once, and again when something changed.
type agent struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	socket string

	mu      sync.Mutex // guards what follows
	answer  *workload.X509SVIDResponse
	changed chan struct{} // closed when answer is another, or the streams are to end
	ending  bool
	server  *grpc.Server
	streams int
}

func newAgent(t testing.TB) *agent {
	t.Helper()
	dir, err := os.MkdirTemp("", "agent") // the name of a socket is short
	if err != nil {
		t.Fatal(err)
	}
	a := &agent{socket: filepath.Join(dir, "s"), changed: make(chan struct{})}
	t.Cleanup(func() {
		a.stop()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return a
}

func (a *agent) start(t testing.TB) {
	t.Helper()
	_ = os.Remove(a.socket) // of the one before
	l, err := net.Listen("unix", a.socket)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	workload.RegisterSpiffeWorkloadAPIServer(g, a)
	a.mu.Lock()
	a.server, a.ending = g, false
	a.mu.Unlock()
	go func() { _ = g.Serve(l) }() // stop ends it
}

func (a *agent) stop() {
	a.mu.Lock()
	g := a.server
	a.mu.Unlock()
	if g != nil {
		g.Stop()
	}
}

func (a *agent) address() string { return "unix://" + a.socket }

// give changes the identity: the pair's, with the authorities of its trust domain and of others.
func (a *agent) give(t testing.TB, id string, p authority.Pair, own *authority.Authority, others map[string][]byte) {
	t.Helper()
	key, _ := pem.Decode([]byte(p.Key.Reveal()))
	a.mu.Lock()
	defer a.mu.Unlock()
	a.answer = &workload.X509SVIDResponse{
		Svids:            []*workload.X509SVID{{SpiffeId: id, X509Svid: ders(p.Certificate), X509SvidKey: key.Bytes, Bundle: own.Certificate().Raw}},
		FederatedBundles: others,
	}
	close(a.changed)
	a.changed = make(chan struct{})
}

// cancel ends all streams the way an agent does that stops politely.
func (a *agent) cancel() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ending = true
	close(a.changed)
	a.changed = make(chan struct{})
}

func (a *agent) opened() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.streams
}

// FetchX509SVID is what the Workload API has.
func (a *agent) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	if md, _ := metadata.FromIncomingContext(stream.Context()); len(md["workload.spiffe.io"]) != 1 {
		return status.Error(codes.InvalidArgument, "the security header is missing")
	}
	a.mu.Lock()
	a.streams++
	a.mu.Unlock()
	for {
		a.mu.Lock()
		answer, changed, ending := a.answer, a.changed, a.ending
		a.ending = false
		a.mu.Unlock()
		switch {
		case ending:
			return status.Error(codes.Canceled, "the agent stops")
		case answer == nil:
			return status.Error(codes.PermissionDenied, "no identity issued")
		}
		if err := stream.Send(answer); err != nil {
			return err
		}
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-changed:
		}
	}
}

// ders are the certificates of PEM, one after the other.
func ders(text []byte) (all []byte) {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		all = append(all, block.Bytes...)
	}
	return all
}

func workloadOf(id string) authority.Request {
	return authority.Request{URIs: []string{id}, Client: true, Server: true}
}

func takes(id string) certs.ClientConfig {
	return certs.ClientConfig{Verify: func(p *principal.Principal) error {
		if p.SPIFFE != id {
			return errOther
		}
		return nil
	}}
}

func TestIdentitiesOfAWorkloadAPI(t *testing.T) {
	const proxy, admin, foreign = "spiffe://example.org/proxy/1", "spiffe://example.org/admin", "spiffe://partner.org/api"
	ca, partner := newAuthority(t), newAuthority(t)
	below := intermediate(t, ca, "node")
	a, b, c := newAgent(t), newAgent(t), newAgent(t)
	for _, one := range []struct {
		agent *agent
		id    string
		by    *authority.Authority
		root  *authority.Authority
		other map[string][]byte
	}{
		{a, proxy, below, ca, map[string][]byte{"spiffe://partner.org": partner.Certificate().Raw}},
		{b, admin, ca, ca, nil},
		{c, foreign, partner, partner, map[string][]byte{"spiffe://example.org": ca.Certificate().Raw}},
	} {
		one.agent.start(t)
		one.agent.give(t, one.id, issue(t, one.by, workloadOf(one.id)), one.root, one.other)
	}
	self, other, far := load(t, ofWorkload(a.address())), load(t, ofWorkload(b.address())), load(t, ofWorkload(c.address()))
	s := serve(t, self.Server(certs.ServerConfig{}))
	for name, tc := range map[string]struct {
		cfg  *tls.Config
		want string
	}{
		"of the trust domain":                  {other.Client(takes(proxy)), ""},
		"of another trust domain":              {far.Client(takes(proxy)), ""},
		"another is awaited":                   {other.Client(takes(admin)), "client"},
		"without a certificate":                {&tls.Config{InsecureSkipVerify: true}, "no_certificate"},
		"without a SPIFFE id":                  {shown(t, issue(t, ca, authority.Request{CommonName: "api.prod", Client: true})), "wrong_name"},
		"with two":                             {shown(t, issue(t, ca, authority.Request{URIs: []string{proxy, admin}, Client: true})), "wrong_name"},
		"another domain's id by our authority": {shown(t, issue(t, ca, workloadOf(foreign))), "unknown_authority"},
		"our id by another domain's authority": {shown(t, issue(t, partner, workloadOf(admin))), "unknown_authority"},
		"a domain that nobody speaks for":      {shown(t, issue(t, ca, workloadOf("spiffe://example.com/x"))), "unknown_authority"},
		"an authority of nobody":               {shown(t, issue(t, newAuthority(t), workloadOf(admin))), "unknown_authority"},
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := s.dial(tc.cfg)
			if tc.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				conn.Close()
				return
			}
			if err == nil {
				conn.Close()
				t.Fatal("the connection comes about")
			}
			if refused := <-s.refused; tc.want != "client" && certs.Reason(refused) != tc.want {
				t.Errorf("refused as %s, want %s: %v", certs.Reason(refused), tc.want, refused)
			}
		})
	}
}

func shown(t testing.TB, p authority.Pair) *tls.Config {
	t.Helper()
	c := pair(t, p)
	return &tls.Config{InsecureSkipVerify: true, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &c, nil }}
}

// An identity is replaced while it is used, by an agent that goes away and comes back in every way there is.
func TestAWorkloadAPIRotatesAndComesAndGoes(t *testing.T) {
	const id = "spiffe://example.org/proxy/1"
	ca, a := newAuthority(t), newAgent(t)
	give := func() *x509.Certificate {
		p := issue(t, ca, workloadOf(id))
		a.give(t, id, p, ca, nil)
		return p.Leaf
	}
	give()
	a.start(t)
	w := load(t, ofWorkload(a.address()))
	w.run(t)
	uses := func(leaf *x509.Certificate) func() bool {
		return func() bool { return w.Certificate().Leaf.Equal(leaf) }
	}
	eventually(t, "the second is in use", uses(give()))

	a.stop()
	eventually(t, "it is told that nobody answers", func() bool { return w.metric(t, "prism_certs_broken") == 1 })
	third := give()
	a.start(t)
	eventually(t, "the agent is found again", uses(third))

	streams := a.opened()
	a.cancel()
	eventually(t, "a stream that was cancelled is opened again", func() bool { return a.opened() > streams })
	eventually(t, "the fourth is in use", uses(give()))
	eventually(t, "nothing is broken", func() bool { return w.metric(t, "prism_certs_broken") == 0 })

	last := give()
	eventually(t, "the last is in use", uses(last))
	expired := workloadOf(id)
	expired.TTL = -time.Second
	a.give(t, id, issue(t, ca, expired), ca, nil)
	eventually(t, "an expired one is told", func() bool { return strings.Contains(w.log.String(), "has expired") })
	if !uses(last)() {
		t.Error("the last good is not in use")
	}
}

func TestAnAgentThatIsNotThereYetIsWaitedFor(t *testing.T) {
	const id = "spiffe://example.org/proxy/1"
	ca, a := newAuthority(t), newAgent(t)
	registry := &log{}
	s, err := certs.New(certs.Config{Name: "test", Certificates: ofWorkload(a.address()), Logger: logger(registry)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	loaded := make(chan error, 1)
	go func() { loaded <- s.Load(ctx) }()
	eventually(t, "it is told that nobody is there", func() bool { return strings.Contains(registry.String(), "cannot be used") })
	a.start(t)
	eventually(t, "it is told that there is no identity yet", func() bool { return strings.Contains(registry.String(), "no identity issued") })
	a.give(t, id, issue(t, ca, workloadOf(id)), ca, nil)
	if err := <-loaded; err != nil {
		t.Fatal(err)
	}
	a.stop()
	go func() { loaded <- s.Load(ctx) }()
	cancel()
	if err := <-loaded; err == nil || !strings.Contains(err.Error(), "Workload API") {
		t.Errorf("Load: %v", err)
	}
}

func TestTheEnvironmentNamesTheSocket(t *testing.T) {
	const id = "spiffe://example.org/proxy/1"
	ca, a := newAuthority(t), newAgent(t)
	a.start(t)
	p := issue(t, ca, workloadOf(id))
	a.give(t, id, p, ca, nil)
	t.Setenv("SPIFFE_ENDPOINT_SOCKET", a.address())
	if w := load(t, ofWorkload("")); !w.Certificate().Leaf.Equal(p.Leaf) {
		t.Error("it is another")
	}
	t.Setenv("SPIFFE_ENDPOINT_SOCKET", "")
	if _, err := certs.New(certs.Config{Name: "test", Certificates: ofWorkload("")}); err == nil || !strings.Contains(err.Error(), "SPIFFE_ENDPOINT_SOCKET") {
		t.Errorf("without an address: %v", err)
	}
}

// What is a SPIFFE id to us is one to SPIFFE's own library, and the other way round.
func FuzzSPIFFE(f *testing.F) {
	for _, seed := range []string{
		"spiffe://example.org/ns/prod/sa/api", "spiffe://x", "spiffe://x/", "spiffe://X/a", "SPIFFE://x/a", "spiffe://x//a", "spiffe://x/./a", "spiffe://x/..", "spiffe://x/%61",
		"spiffe://x:1/a", "spiffe://u@x/a", "spiffe://x/a?b", "spiffe://x/a#b", "spiffe://x/\u0430", "spiffe://x/a\x00", "spiffe:///a", "spiffe://x/*", "",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, id string) {
		if len(id) > 2048 {
			return // which only we bound for paths
		}
		_, theirs := spiffeid.FromString(id)
		if ours := principal.CheckSPIFFE(id); (ours == nil) != (theirs == nil) {
			t.Fatalf("%q: %v, but SPIFFE's own library says %v", id, ours, theirs)
		}
	})
}
