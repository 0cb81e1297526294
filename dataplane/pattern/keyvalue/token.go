package keyvalue

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"time"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/shared/fault"
)

// A page token is: its form (1 byte), the second it was made (8), the query's digest (16), the position, a MAC (16).
const (
	tokenForm   = 1
	tokenHead   = 1 + 8 + digestSize
	digestSize  = 16
	macSize     = 16
	maxPosition = driver.MaxCursor
	tokenLife   = 24 * time.Hour
)

// tokens makes and checks page tokens.
//
// The key is derived from what all owners of the namespace know and no other namespace has, nor a later namespace of
// the same name: its space. That is no secret from the platform's people, and needs not be: a token holds nothing that
// its bearer could not ask for (the query is checked against the request as every query is, a position only narrows
// it), so forging one gains nothing but a longer life for it. What the MAC is for is that tokens of another namespace,
// life or query, and damaged ones, are refused instead of giving wrong pages.
type tokens struct{ space driver.Space }

func (t tokens) mac(body []byte) []byte {
	key, err := hkdf.Key(sha256.New, []byte(t.space), nil, "prism page token 1", sha256.Size)
	if err != nil {
		panic(err) // only for a key length that SHA-256 cannot give
	}
	h := hmac.New(sha256.New, key)
	h.Write(body)
	return h.Sum(nil)[:macSize]
}

func (t tokens) seal(digest [digestSize]byte, position []byte, now time.Time) []byte {
	b := make([]byte, 0, tokenHead+len(position)+macSize)
	b = append(b, tokenForm)
	b = binary.BigEndian.AppendUint64(b, uint64(now.Unix()))
	b = append(b, digest[:]...)
	b = append(b, position...)
	return append(b, t.mac(b)...)
}

// open returns the position, never nil.
func (t tokens) open(token []byte, digest [digestSize]byte, now time.Time) ([]byte, error) {
	n := len(token) - macSize
	if n < tokenHead || n-tokenHead > maxPosition || token[0] != tokenForm || !hmac.Equal(token[n:], t.mac(token[:n])) ||
		[digestSize]byte(token[9:tokenHead]) != digest {
		return nil, fault.New(fault.Invalid, fault.PageToken, "the page token is not of this query").WithOutcome(fault.NotApplied)
	}
	made := time.Unix(int64(binary.BigEndian.Uint64(token[1:])), 0)
	if now.Sub(made) > tokenLife {
		return nil, fault.New(fault.OutOfRange, fault.PageTokenExpired, "the page token is older than 24 hours; begin again").WithOutcome(fault.NotApplied)
	}
	return append([]byte{}, token[tokenHead:n]...), nil
}

// digest tells queries apart; the size of pages may change between them.
func (q Scan) digest() [digestSize]byte {
	h := sha256.New()
	kind, flags := byte('s'), byte(0)
	if q.deletes {
		kind = 'd'
	}
	if q.Reverse {
		flags |= 1
	}
	if q.KeysOnly {
		flags |= 2
	}
	h.Write([]byte{kind, flags})
	for _, part := range [][]byte{q.ID, q.Prefix, q.Start, q.End} {
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(part))))
		h.Write(part)
	}
	return [digestSize]byte(h.Sum(nil))
}

// listDigest stands for the one query of ListIDs.
var listDigest = [digestSize]byte{'l'}
