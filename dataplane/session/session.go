// Package session keeps authenticated principals' times with namespaces.
//
// A session belongs to one namespace and to what the caller showed: a bearer token, or a certificate. It ends at the first
// of: its absolute limit, the end of the token, too long without a call, a close, or that it was taken away. What was
// opened for it is let go then. Proxies keep sessions in memory only: one that is lost is made again by the next call.
package session

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/principal"
	"github.com/prism-gateway/prism/shared/secret"
)

// Claim is what a call shows of its caller, verified.
type Claim struct {
	// Principal is who calls. Required.
	Principal *principal.Principal
	// Token is the SHA-256 of the bearer token; zero when the caller is known by its certificate alone.
	Token [sha256.Size]byte
	// Login is the bearer token, to log in elsewhere as the caller; empty without one.
	Login secret.Text
	// Ends is when the token or the certificate does; zero: never.
	Ends time.Time
}

// Policy is how long the sessions of a namespace live.
type Policy struct {
	// TTL is the absolute limit, Idle the longest time without a call.
	TTL, Idle time.Duration
}

// key finds a session by what its caller shows.
type key struct {
	namespace string
	shown     [sha256.Size]byte
}

func (c Claim) key(namespace string) key {
	k := key{namespace: namespace, shown: c.Token}
	if k.shown == [sha256.Size]byte{} {
		k.shown = sha256.Sum256([]byte("principal:" + c.Principal.ID)) // its certificate is renewed, and it stays
	}
	return k
}

// Session is one. Its methods may be called concurrently.
type Session struct {
	id        string
	namespace string
	owner     *principal.Principal
	created   time.Time
	policy    Policy
	bearer    bool // it was made by a token, and not by a certificate alone

	used atomic.Int64 // Unix nanoseconds
	busy atomic.Int64 // streams that are open
	ends atomic.Int64 // Unix nanoseconds: the absolute limit or the token's end
	over atomic.Pointer[fault.Fault]
	done chan struct{}

	mu      sync.Mutex // guards what follows
	keys    []key      // under which it is found: several after a refresh
	login   secret.Text
	since   time.Time // when its life began or was prolonged
	warned  bool      // that it ends soon
	held    map[any]Held
	watches map[chan Event]bool
}

// Key finds the session of a call in its context.
type Key struct{}

// From returns the session of a call; nil when it has none.
func From(ctx context.Context) *Session {
	s, _ := ctx.Value(Key{}).(*Session)
	return s
}

// Held is what was opened for a session.
type Held interface {
	// Release lets it go. It is called once, when the session is over, and must not block.
	Release()
	// Ends is when its credential does, unless that is renewed; zero: never, or it has none now.
	Ends() time.Time
}

// newID is 128 random bits: it names a session and opens nothing.
func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // it never fails
	return hex.EncodeToString(b[:])
}

func open(namespace string, p Policy, c Claim, now time.Time) *Session {
	s := &Session{
		id: newID(), namespace: namespace, owner: c.Principal, created: now, policy: p, done: make(chan struct{}),
		bearer: c.Token != [sha256.Size]byte{}, login: c.Login, since: now,
	}
	s.used.Store(now.UnixNano())
	s.ends.Store(s.limit(c.Ends).UnixNano())
	return s
}

// limit is when a session ends whose token ends at a time.
func (s *Session) limit(token time.Time) time.Time {
	limit := s.created.Add(s.policy.TTL)
	if !token.IsZero() && token.Before(limit) {
		return token
	}
	return limit
}

// ID names it.
func (s *Session) ID() string { return s.id }

// Namespace is the namespace that it belongs to.
func (s *Session) Namespace() string { return s.namespace }

// Principal is whose it is.
func (s *Session) Principal() *principal.Principal { return s.owner }

// CreatedAt is when it was made.
func (s *Session) CreatedAt() time.Time { return s.created }

// UsedAt is when it was last used.
func (s *Session) UsedAt() time.Time { return time.Unix(0, s.used.Load()) }

// ExpiresAt is when it ends if it is neither used nor refreshed.
func (s *Session) ExpiresAt() time.Time {
	ends := time.Unix(0, s.ends.Load())
	if idle := s.UsedAt().Add(s.policy.Idle); idle.Before(ends) && s.busy.Load() == 0 {
		return idle
	}
	return ends
}

// Busy says that a stream is open, during which the session is in use; done is called once, at its end.
func (s *Session) Busy(now func() time.Time) (done func()) {
	s.busy.Add(1)
	return func() {
		s.used.Store(now().UnixNano())
		s.busy.Add(-1)
	}
}

// Login is the caller's newest bearer token, to log in elsewhere; empty when it has none.
func (s *Session) Login() secret.Text {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.login
}

// Done is closed when the session is over.
func (s *Session) Done() <-chan struct{} { return s.done }

// Err is why the session is over; nil while it is not.
func (s *Session) Err() error {
	if f := s.over.Load(); f != nil {
		return f
	}
	return nil
}

// use notes a call, and reports why the session cannot serve it.
func (s *Session) use(now time.Time) error {
	if f := s.over.Load(); f != nil {
		return f
	}
	at := now.UnixNano()
	used := s.used.Load()
	if at >= s.ends.Load() || at-used >= int64(s.policy.Idle) && s.busy.Load() == 0 {
		return ended
	}
	if at-used > int64(time.Millisecond) { // callers at once do not fight for it
		s.used.Store(at)
	}
	return nil
}

// Hold returns what was opened for the session under a key, opening it at first use. It fails when the session is over.
func (s *Session) Hold(key any, open func() (Held, error)) (Held, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.over.Load(); f != nil {
		return nil, f
	}
	if h, ok := s.held[key]; ok {
		return h, nil
	}
	h, err := open()
	if err != nil {
		return nil, err
	}
	if s.held == nil {
		s.held = map[any]Held{}
	}
	s.held[key] = h
	return h, nil
}

// CredentialEnds is when the first of the credentials that were opened for the session ends, unless it is renewed; zero: none does.
func (s *Session) CredentialEnds() time.Time {
	s.mu.Lock()
	held := slices.Collect(maps.Values(s.held))
	s.mu.Unlock()
	var first time.Time
	for _, h := range held {
		if ends := h.Ends(); !ends.IsZero() && (first.IsZero() || ends.Before(first)) {
			first = ends
		}
	}
	return first
}

// Drop lets go what was opened under a key, if it is still the one given.
func (s *Session) Drop(key any, h Held) {
	s.mu.Lock()
	if s.held[key] != h {
		s.mu.Unlock()
		return
	}
	delete(s.held, key)
	s.mu.Unlock()
	h.Release()
}

// end ends it, once, and says under which keys it was found.
func (s *Session) end(why *fault.Fault) (keys []key, first bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.over.CompareAndSwap(nil, why) {
		return nil, false
	}
	close(s.done)
	for _, h := range s.held {
		h.Release()
	}
	s.held, s.login = nil, secret.Text{}
	s.tell(Event{Kind: Ended})
	return s.keys, true
}
