package authn

import (
	"crypto/sha256"
	"encoding/binary"
	"sync"
	"time"
)

// How long what was found of a token is remembered.
const (
	goodFor = 5 * time.Minute
	badFor  = 5 * time.Second
	parts   = 64
)

// cache remembers tokens by their hash. It is in parts, so that callers do not wait for each other.
type cache struct {
	most  int // of a part
	parts [parts]cachePart
}

type cachePart struct {
	mu   sync.RWMutex
	have map[[sha256.Size]byte]found
}

type found struct {
	token *Token
	err   error
	until time.Time
}

func newCache(size int) *cache {
	c := &cache{most: max(1, size/parts)}
	for i := range c.parts {
		c.parts[i].have = map[[sha256.Size]byte]found{}
	}
	return c
}

func (c *cache) part(hash [sha256.Size]byte) *cachePart {
	return &c.parts[binary.LittleEndian.Uint64(hash[:])%parts]
}

func (c *cache) get(hash [sha256.Size]byte, now time.Time) (*Token, error, bool) {
	p := c.part(hash)
	p.mu.RLock()
	defer p.mu.RUnlock()
	f, ok := p.have[hash]
	if !ok || !now.Before(f.until) {
		return nil, nil, false
	}
	return f.token, f.err, true
}

func (c *cache) put(hash [sha256.Size]byte, t *Token, err error, now time.Time) {
	f := found{token: t, err: err, until: now.Add(badFor)}
	if t != nil {
		f.until = now.Add(goodFor)
		if t.ExpiresAt.Before(f.until) {
			f.until = t.ExpiresAt
		}
	}
	p := c.part(hash)
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.have) >= c.most {
		for h, old := range p.have { // what is over goes first, and else whatever comes: it is verified again
			if !now.Before(old.until) {
				delete(p.have, h)
			}
		}
		for h := range p.have {
			if len(p.have) < c.most {
				break
			}
			delete(p.have, h)
		}
	}
	p.have[hash] = f
}
