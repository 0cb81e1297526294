package keyvalue

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"maps"
	"slices"
	"time"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/shared/fault"
)

// The bounds of idempotency tokens.
const (
	// TokenWindow is how old a token may be.
	TokenWindow = 10 * time.Minute
	// tokenAhead is how far ahead of the proxy's clock its maker's may be.
	tokenAhead = 30 * time.Second
	// tokenSlack is how much longer a token is remembered than it is taken: proxies' clocks differ.
	tokenSlack = time.Minute
)

// Token makes a write be done once, however often it is sent.
type Token struct {
	Nonce  [16]byte
	MadeAt time.Time
}

// token checks a token and gives it the request that it stands for; nil stays nil.
func (s *Store) token(t *Token, request func(h hash.Hash)) (*driver.Token, error) {
	if t == nil {
		return nil, nil
	}
	if !s.idempotent {
		return nil, Missing(Idempotency)
	}
	now := s.cfg.Now()
	if age := now.Sub(t.MadeAt); age > TokenWindow || age < -tokenAhead {
		return nil, fault.Newf(fault.Invalid, fault.TokenClock, "the idempotency token was made %v ago by this proxy's clock, want at most %v, and at most %v ahead",
			age.Round(time.Millisecond), TokenWindow, tokenAhead).
			WithViolations([]fault.Violation{violation("token.made_at", "token.window", "is outside the window")}).WithOutcome(fault.NotApplied)
	}
	h := sha256.New()
	request(h)
	out := &driver.Token{Nonce: t.Nonce, Until: t.MadeAt.Add(TokenWindow + tokenSlack)}
	copy(out.Request[:], h.Sum(nil))
	return out, nil
}

// entry is the token of one entry of a batch: it is a write of its own, which may be done while others are not.
func (t *Token) entry(place int) *Token {
	if t == nil {
		return nil
	}
	sum := sha256.Sum256(binary.BigEndian.AppendUint32(append([]byte("batch"), t.Nonce[:]...), uint32(place)))
	return &Token{Nonce: [16]byte(sum[:]), MadeAt: t.MadeAt}
}

// digest writes what was asked for, as it was asked: a lifetime and not its end, which is another at each sending.
func (w Write) digest(h hash.Hash) {
	flags := byte(w.Op) | byte(w.Condition)<<2 | byte(w.Expiry.Kind)<<4
	previous := byte(0)
	if w.Previous {
		previous = 1
	}
	h.Write([]byte{'w', flags, previous})
	part(h, w.ID, w.Key, w.Value, w.Version, []byte(w.ContentType))
	w.Expiry.digest(h)
	number(h, uint64(len(w.Metadata)))
	for _, name := range slices.Sorted(maps.Keys(w.Metadata)) {
		part(h, []byte(name), []byte(w.Metadata[name]))
	}
}

func (e Expiry) digest(h hash.Hash) {
	number(h, uint64(e.Kind))
	number(h, uint64(e.TTL))
	if e.Kind == ExpiryAt {
		number(h, uint64(e.At.UnixNano()))
	}
}

func part(h hash.Hash, parts ...[]byte) {
	for _, p := range parts {
		number(h, uint64(len(p)))
		h.Write(p)
	}
}

func number(h hash.Hash, n uint64) {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], n)
	h.Write(b[:])
}
