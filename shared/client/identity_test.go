package client_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/certs/authority"
	"github.com/prism-gateway/prism/shared/client"
	"github.com/prism-gateway/prism/shared/secret"
	"github.com/prism-gateway/prism/shared/servicetoken"
)

const canary = "canary-90ab"

// tokenFunc is a source of tokens.
type tokenFunc func() (servicetoken.Token, error)

func (f tokenFunc) Token(context.Context) (servicetoken.Token, error) { return f() }

func fixed(text string) tokenFunc {
	return func() (servicetoken.Token, error) { return servicetoken.Token{Text: secret.New(text)}, nil }
}

// shown is a server that remembers what callers showed.
type shown struct {
	datav1.UnimplementedKeyValueServer
	mu  sync.Mutex
	got []string
}

func (s *shown) Get(ctx context.Context, _ *datav1.GetRequest) (*datav1.GetResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got = append(s.got, strings.Join(md.Get("authorization"), ","))
	return &datav1.GetResponse{}, nil
}

func (s *shown) tokens() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.got)
}

func showTo(t *testing.T, opts ...grpc.ServerOption) (*shown, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server, s := grpc.NewServer(opts...), &shown{}
	datav1.RegisterKeyValueServer(server, s)
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil && !errors.Is(err, grpc.ErrServerStopped) { // stopped before it served
			t.Error(err)
		}
	})
	return s, l.Addr().String()
}

// overTLS returns the options of a server and the credentials of its clients.
func overTLS(t *testing.T) (grpc.ServerOption, credentials.TransportCredentials) {
	t.Helper()
	ca, err := authority.New("test", time.Now)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.Issue(authority.Request{CommonName: "proxy.test", IPs: []net.IP{net.IPv4(127, 0, 0, 1)}, TTL: time.Hour, Server: true})
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := tls.X509KeyPair(pair.Certificate, []byte(pair.Key.Reveal()))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.Certificate())
	return grpc.Creds(credentials.NewServerTLSFromCert(&certificate)), credentials.NewTLS(&tls.Config{RootCAs: roots, ServerName: "127.0.0.1"})
}

func TestEachCallShowsTheToken(t *testing.T) {
	server, clients := overTLS(t)
	for name, tc := range map[string]struct {
		options     []grpc.ServerOption
		credentials credentials.TransportCredentials
	}{
		"over TLS":               {[]grpc.ServerOption{server}, clients},
		"to this machine, plain": {nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			s, address := showTo(t, tc.options...)
			turn := 0
			c := dial(t, client.Config{Endpoints: []string{address}, Credentials: tc.credentials, Token: tokenFunc(func() (servicetoken.Token, error) {
				turn++
				return fixed(fmt.Sprint("token-", turn))()
			})})
			for range 2 {
				if _, err := c.KeyValue.Get(t.Context(), &datav1.GetRequest{}); err != nil {
					t.Fatal(err)
				}
			}
			if got := s.tokens(); !slices.Equal(got, []string{"Bearer token-1", "Bearer token-2"}) {
				t.Errorf("shown %q, want each call's own", got)
			}
		})
	}
}

func TestATokenDoesNotLeaveTheMachineWithoutTLS(t *testing.T) {
	s, address := showTo(t)
	_, err := client.Dial(client.Config{Endpoints: []string{address, "192.0.2.1:8980"}, Token: fixed(canary)})
	if err == nil || !strings.Contains(err.Error(), "without TLS") || strings.Contains(err.Error(), canary) {
		t.Errorf("dial: %v, want that another machine is refused", err)
	}
	server, clients := overTLS(t)
	behind, behindAddress := showTo(t, server)
	// Whatever the connections are made with, it is the connection that decides.
	for name, tc := range map[string]struct {
		credentials credentials.TransportCredentials
		server      *shown
		to          string
		want        codes.Code
		calls       int
	}{
		"without TLS": {insecure.NewCredentials(), s, address, codes.Unauthenticated, 0},
		"with TLS":    {clients, behind, behindAddress, codes.OK, 1},
	} {
		t.Run(name, func(t *testing.T) {
			to := grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "tcp", tc.to)
			})
			c := dial(t, client.Config{Endpoints: []string{"192.0.2.1:8980"}, Credentials: tc.credentials, Token: fixed(canary), Options: []grpc.DialOption{to}})
			_, err := c.KeyValue.Get(t.Context(), &datav1.GetRequest{})
			if status.Code(err) != tc.want || strings.Contains(fmt.Sprint(err), canary) {
				t.Errorf("error %v, want %s", err, tc.want)
			}
			if got := tc.server.tokens(); len(got) != tc.calls {
				t.Errorf("%d calls arrived, want %d", len(got), tc.calls)
			}
		})
	}
}

func TestWithoutATokenNoCallIsMade(t *testing.T) {
	s, address := showTo(t)
	c := dial(t, client.Config{Endpoints: []string{address}, Attempts: 1, Token: tokenFunc(func() (servicetoken.Token, error) {
		return servicetoken.Token{}, errors.New("the metadata server did not answer")
	})})
	_, err := c.KeyValue.Get(t.Context(), &datav1.GetRequest{})
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "the metadata server did not answer") {
		t.Errorf("error %v, want UNAVAILABLE and why", err)
	}
	if got := s.tokens(); len(got) != 0 {
		t.Errorf("%d calls arrived", len(got))
	}
}
