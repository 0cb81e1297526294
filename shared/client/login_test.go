package client_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/client"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/fault/faultgrpc"
	"github.com/prism-gateway/prism/shared/servicetoken"
)

// keeper is a server with sessions of 300 ms, which answers refreshes with what is in refusals, and then well.
type keeper struct {
	shown
	datav1.UnimplementedSessionManagerServer
	mu       sync.Mutex
	made     int
	refusals []error
	calls    []string // what was done, and with which token
}

func (k *keeper) note(ctx context.Context, what string) {
	md, _ := metadata.FromIncomingContext(ctx)
	k.calls = append(k.calls, fmt.Sprintf("%s %s", what, md.Get("authorization")))
}

// session is one as of a clock that is an hour fast.
func (k *keeper) session() *datav1.Session {
	now := time.Now().Add(time.Hour)
	return &datav1.Session{Id: fmt.Sprint("session-", k.made), UsedAt: timestamppb.New(now), ExpireAt: timestamppb.New(now.Add(300 * time.Millisecond))}
}

func (k *keeper) CreateSession(ctx context.Context, _ *datav1.CreateSessionRequest) (*datav1.CreateSessionResponse, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.made++
	k.note(ctx, "create")
	return &datav1.CreateSessionResponse{Session: k.session()}, nil
}

func (k *keeper) RefreshSession(ctx context.Context, in *datav1.RefreshSessionRequest) (*datav1.RefreshSessionResponse, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.note(ctx, "refresh "+in.GetId())
	if len(k.refusals) > 0 {
		err := k.refusals[0]
		k.refusals = k.refusals[1:]
		return nil, err
	}
	return &datav1.RefreshSessionResponse{Session: k.session()}, nil
}

func (k *keeper) CloseSession(ctx context.Context, in *datav1.CloseSessionRequest) (*datav1.CloseSessionResponse, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.note(ctx, "close "+in.GetId())
	return &datav1.CloseSessionResponse{}, nil
}

func keepAt(t *testing.T, refusals ...error) (*keeper, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	k, server := &keeper{refusals: refusals}, grpc.NewServer()
	datav1.RegisterSessionManagerServer(server, k)
	datav1.RegisterKeyValueServer(server, &k.shown)
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Error(err)
		}
	})
	return k, l.Addr().String()
}

// numbered has another token each time.
func numbered() tokenFunc {
	var mu sync.Mutex
	n := 0
	return func() (servicetoken.Token, error) {
		mu.Lock()
		defer mu.Unlock()
		n++
		return fixed(fmt.Sprint("token-", n))()
	}
}

func TestALoginRefreshesItsSession(t *testing.T) {
	answer := func(code fault.Code, reason fault.Reason) error {
		return faultgrpc.Status(fault.New(code, reason, "as the test wants it").WithOutcome(fault.NotApplied), "").Err()
	}
	for name, tc := range map[string]struct {
		source   client.TokenSource
		refusals []error
		want     []string // until a refresh came of which nothing was refused
		session  string
		failures int
	}{
		"with a fresh token":            {numbered(), nil, []string{"create [Bearer token-1]", "refresh session-1 [Bearer token-2]"}, "session-1", 0},
		"with none, as a certificate's": {nil, nil, []string{"create []", "refresh session-1 []"}, "session-1", 0},
		"or makes another where it is lost": {numbered(), []error{answer(fault.NotFound, fault.Session)},
			[]string{"create [Bearer token-1]", "refresh session-1 [Bearer token-2]", "create [Bearer token-2]"}, "session-2", 0},
		"or makes another where it has ended": {numbered(), []error{answer(fault.Unauthenticated, fault.TokenExpired)},
			[]string{"create [Bearer token-1]", "refresh session-1 [Bearer token-2]", "create [Bearer token-2]"}, "session-2", 0},
		"again where that was refused": {numbered(), []error{answer(fault.PermissionDenied, fault.Namespace)},
			[]string{"create [Bearer token-1]", "refresh session-1 [Bearer token-2]", "refresh session-1 [Bearer token-3]"}, "session-1", 1},
	} {
		t.Run(name, func(t *testing.T) {
			k, address := keepAt(t, tc.refusals...)
			c := dial(t, client.Config{Endpoints: []string{address}, Token: tc.source, Attempts: 1, NoTokens: true})
			told := make(chan client.Refreshed, 100)
			l, err := c.Login(t.Context(), "orders", func(r client.Refreshed) { told <- r })
			if err != nil {
				t.Fatal(err)
			}
			for range tc.failures {
				if r := <-told; r.Err == nil || r.Session != nil {
					t.Errorf("told of %v, want a failure", r)
				}
				if _, err := l.KeyValue.Get(t.Context(), &datav1.GetRequest{Namespace: "orders"}); err != nil {
					t.Fatal(err)
				}
				if got := k.tokens(); !slices.Equal(got, []string{"Bearer token-1"}) { // the one that the session knows
					t.Errorf("a call showed %q after a refresh that failed", got)
				}
			}
			if r := <-told; r.Err != nil || r.Session.GetId() != tc.session || l.State().GetId() != tc.session {
				t.Errorf("told of %v, want %s", r, tc.session)
			}
			k.mu.Lock()
			if got := k.calls[:len(tc.want)]; !slices.Equal(got, tc.want) {
				t.Errorf("the server was asked for %q, want %q", got, tc.want)
			}
			k.mu.Unlock()
			if err := l.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			k.mu.Lock()
			defer k.mu.Unlock()
			if last := k.calls[len(k.calls)-1]; last[:len("close "+tc.session)] != "close "+tc.session {
				t.Errorf("the last call was to %s", last)
			}
			if _, err := l.KeyValue.Get(t.Context(), &datav1.GetRequest{Namespace: "orders"}); status.Code(err) != codes.Canceled {
				t.Errorf("a call after the login was closed: %v", err)
			}
		})
	}
}

func TestALoginEndsWithItsClient(t *testing.T) {
	_, address := keepAt(t)
	c, err := client.Dial(client.Config{Endpoints: []string{address}, Token: numbered()})
	if err != nil {
		t.Fatal(err)
	}
	told := make(chan client.Refreshed, 100)
	l, err := c.Login(t.Context(), "orders", func(r client.Refreshed) { told <- r })
	if err != nil {
		t.Fatal(err)
	}
	<-told
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	close(told) // whoever tells something now panics
	if _, err := l.KeyValue.Get(t.Context(), &datav1.GetRequest{Namespace: "orders"}); status.Code(err) != codes.Canceled {
		t.Errorf("a call: %v", err)
	}
	if err := l.Close(t.Context()); status.Code(err) != codes.Canceled {
		t.Errorf("close: %v", err)
	}
}
