package client

import (
	"context"
	"io"
	"iter"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/fault/faultgrpc"
	"github.com/prism-gateway/prism/shared/secret"
)

const (
	refreshTime  = 10 * time.Second       // that one refresh may take
	soonest      = 100 * time.Millisecond // after what time a session is refreshed at the earliest
	retryRefresh = 200 * time.Millisecond // after the first refresh that failed; twice as long after each further one
	retryLatest  = 10 * time.Second
)

// Refreshed is what came of keeping a session.
type Refreshed struct {
	// Session is its state; nil when Err is set. Its id is another than before where the session had to be made again: its
	// end could not be put off, or the proxy that had it is gone.
	Session *datav1.Session
	// Err is why it could not be refreshed; it is tried again, more and more seldom, until it succeeds.
	Err error
}

// Login keeps a caller's session with a namespace: it refreshes it at about half of its life with the token that the
// client's source has then, and makes it again where it is lost. Calls through it show the token that the session has
// last been refreshed with, so that no call begins a session of its own while tokens change. It is safe for concurrent use.
type Login struct {
	// KeyValue is the key-value service, for calls to this namespace.
	KeyValue datav1.KeyValueClient

	calls     *Client // through the login
	router    *router
	namespace string
	told      func(Refreshed)
	sessions  datav1.SessionManagerClient // shows the token that the context has
	token     atomic.Pointer[secret.Text] // nil: the client has no source
	session   atomic.Pointer[datav1.Session]

	ctx    context.Context // ends when the login is closed, or the client
	cancel context.CancelFunc
	done   chan struct{} // closed when nothing refreshes any more
}

// Login makes the caller's session with a namespace and keeps it until the login or the client is closed. told, when not
// nil, hears what comes of each refresh, one after the other; it must not block, nor close either. A session that is kept
// is never idle.
func (c *Client) Login(ctx context.Context, namespace string, told func(Refreshed)) (*Login, error) {
	if told == nil {
		told = func(Refreshed) {}
	}
	l := &Login{router: c.router, namespace: namespace, told: told, sessions: datav1.NewSessionManagerClient(c.router), done: make(chan struct{})}
	l.KeyValue = datav1.NewKeyValueClient(loginConn{l})
	l.calls = &Client{KeyValue: l.KeyValue, router: c.router}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	if err := l.begin(ctx); err != nil {
		l.cancel()
		return nil, err
	}
	if !c.router.keep(l) {
		l.cancel()
		return nil, errClosed
	}
	return l, nil
}

// Session begins a session of reading one's own writes, as Client.Session does, with calls through the login.
func (l *Login) Session() *Session { return newSession(loginConn{l}) }

// Watch is Client.Watch through the login.
func (l *Login) Watch(ctx context.Context, in *datav1.WatchRequest) iter.Seq2[*datav1.WatchEvent, error] {
	return l.calls.Watch(ctx, in)
}

// ReadValue is Client.ReadValue through the login.
func (l *Login) ReadValue(ctx context.Context, in *datav1.ReadValueRequest) (*Value, error) {
	return l.calls.ReadValue(ctx, in)
}

// WriteValue is Client.WriteValue through the login.
func (l *Login) WriteValue(ctx context.Context, put *datav1.PutRequest, from io.Reader) (*datav1.WriteValueResponse, error) {
	return l.calls.WriteValue(ctx, put, from)
}

// State is the caller's session as the last refresh left it. It must not be changed.
func (l *Login) State() *datav1.Session { return l.session.Load() }

// Close ends the session, and with it streams and the credentials that stores gave for it. Calls through the login fail from
// then on.
func (l *Login) Close(ctx context.Context) error {
	l.cancel()
	<-l.done
	_, err := l.sessions.CloseSession(l.as(ctx, l.token.Load()), &datav1.CloseSessionRequest{Namespace: l.namespace, Id: l.State().GetId()})
	if err != nil && faultgrpc.FromStatus(err).Code == fault.NotFound {
		return nil // it is over already
	}
	return err
}

// run refreshes the session until the login is closed.
func (l *Login) run() {
	defer close(l.done)
	failures := 0
	for {
		timer := time.NewTimer(l.wait(failures))
		select {
		case <-l.ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		err := l.refresh()
		switch {
		case l.ctx.Err() != nil:
			return
		case err != nil:
			failures++
			l.told(Refreshed{Err: err})
		default:
			failures = 0
			l.told(Refreshed{Session: l.State()})
		}
	}
}

// wait is how long to wait before the next refresh. The clocks of this machine and the proxies may differ: only times of
// theirs are compared.
func (l *Login) wait(failures int) time.Duration {
	if failures > 0 {
		wait := min(retryRefresh<<min(failures-1, 10), retryLatest)
		return wait/2 + rand.N(wait)
	}
	s := l.State()
	life := max(s.GetExpireAt().AsTime().Sub(s.GetUsedAt().AsTime()), 2*soonest)
	return life*2/5 + rand.N(life/5) // those who logged in together do not come together again
}

// begin makes the session.
func (l *Login) begin(ctx context.Context) error {
	token, err := l.fresh(ctx)
	if err != nil {
		return err
	}
	return l.create(ctx, token)
}

func (l *Login) create(ctx context.Context, token *secret.Text) error {
	made, err := l.sessions.CreateSession(l.as(ctx, token), &datav1.CreateSessionRequest{Namespace: l.namespace})
	if err == nil {
		l.keeps(made.GetSession(), token)
	}
	return err
}

// refresh lets the session live on with a fresh token, or makes another.
func (l *Login) refresh() error {
	ctx, cancel := context.WithTimeout(l.ctx, refreshTime)
	defer cancel()
	token, err := l.fresh(ctx)
	if err != nil {
		return err
	}
	kept, err := l.sessions.RefreshSession(l.as(ctx, token), &datav1.RefreshSessionRequest{Namespace: l.namespace, Id: l.State().GetId()})
	if err == nil {
		l.keeps(kept.GetSession(), token)
		return nil
	}
	if f := faultgrpc.FromStatus(err); f.Code == fault.NotFound || f.Code == fault.Unauthenticated {
		return l.create(ctx, token) // it is over, or its proxy is gone; if the token is what is bad, this says so too
	}
	return err
}

func (l *Login) keeps(s *datav1.Session, token *secret.Text) {
	l.session.Store(s)
	l.token.Store(token)
}

// fresh is the token that the source has now.
func (l *Login) fresh(ctx context.Context) (*secret.Text, error) {
	source := l.router.cfg.Token
	if source == nil {
		return nil, nil // the caller is known by its certificate
	}
	token, err := source.Token(ctx)
	if err != nil {
		return nil, status.Errorf(codes.Unavailable, "the caller has no token: %v", err)
	}
	return &token.Text, nil
}

// shownKey finds the token that a call through a router shows in its context.
type shownKey struct{ *router }

// as is the context of a call that shows a token.
func (l *Login) as(ctx context.Context, token *secret.Text) context.Context {
	if token == nil {
		return ctx
	}
	return context.WithValue(ctx, shownKey{l.router}, *token)
}

// loginConn shows a login's token with each call.
type loginConn struct{ login *Login }

// errLoggedOut is what calls through a closed login get.
var errLoggedOut = status.Error(codes.Canceled, "the login is closed")

// Invoke does one unary call.
func (c loginConn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	l := c.login
	if l.ctx.Err() != nil {
		return errLoggedOut
	}
	return l.router.Invoke(l.as(ctx, l.token.Load()), method, args, reply, opts...)
}

// NewStream opens a stream.
func (c loginConn) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	l := c.login
	if l.ctx.Err() != nil {
		return nil, errLoggedOut
	}
	return l.router.NewStream(l.as(ctx, l.token.Load()), desc, method, opts...)
}
