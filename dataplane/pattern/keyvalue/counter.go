package keyvalue

import (
	"context"
	"hash"

	"github.com/prism-gateway/prism/dataplane/driver"
)

// Increment is an addition to a counter.
type Increment struct {
	driver.Name
	Delta int64
	// Initial is what an absent counter counts as.
	Initial int64
	Expiry  Expiry
	Token   *Token // nil: none
}

// Increment adds to a counter, exactly once with a token.
func (s *Store) Increment(ctx context.Context, i Increment) (driver.Incremented, error) {
	if s.counter == nil {
		return driver.Incremented{}, Missing(Counter)
	}
	// A counter's name and expiry follow the rules of a write's.
	w, violations, err := s.prepare("", Write{Op: driver.Put, Name: i.Name, Expiry: i.Expiry, Token: i.Token})
	if err != nil {
		return driver.Incremented{}, err
	}
	if violations != nil {
		return driver.Incremented{}, invalid(violations)
	}
	token, err := s.token(i.Token, func(h hash.Hash) {
		h.Write([]byte{'i'})
		part(h, i.ID, i.Key)
		number(h, uint64(i.Delta))
		number(h, uint64(i.Initial))
		i.Expiry.digest(h)
	})
	if err != nil {
		return driver.Incremented{}, err
	}
	if err := s.begin(ctx); err != nil {
		return driver.Incremented{}, err
	}
	release := s.hold(ctx, i.Name)
	done, err := s.counter.Increment(ctx, s.cfg.Space, driver.Increment{
		Name: i.Name, Delta: i.Delta, Initial: i.Initial, ExpireAt: w.ExpireAt, KeepExpiry: w.KeepExpiry, Token: token,
	})
	s.cfg.Breaker.End(err)
	err = withOutcome(err)
	release(err)
	return done, err
}
