package keyvalue

import (
	"context"
	"io"

	"github.com/prism-gateway/prism/dataplane/driver"
)

// ReadValue opens an item's value from a byte on, whatever its size; nil when there is no item. The caller closes it.
func (s *Store) ReadValue(ctx context.Context, name driver.Name, offset uint64) (*driver.Value, error) {
	if s.large == nil {
		return nil, Missing(Large)
	}
	if v := checkName("", name); v != nil {
		return nil, invalid(v)
	}
	if err := s.begin(ctx); err != nil {
		return nil, err
	}
	v, err := s.large.ReadValue(ctx, s.cfg.Space, name, offset)
	s.cfg.Breaker.End(err)
	return v, err
}

// WriteValue writes an item whose value is what r yields up to io.EOF. It is visible when it is complete; when r fails,
// nothing changes and the error is r's.
func (s *Store) WriteValue(ctx context.Context, w Write, r io.Reader) (driver.Written, error) {
	if s.large == nil {
		return driver.Written{}, Missing(Large)
	}
	d, violations, err := s.prepare("put.", w)
	if err != nil {
		return driver.Written{}, err
	}
	if violations != nil {
		return driver.Written{}, invalid(violations)
	}
	if err := s.begin(ctx); err != nil {
		return driver.Written{}, err
	}
	release := s.hold(ctx, w.Name)
	done, err := s.large.WriteValue(ctx, s.cfg.Space, d, r)
	s.cfg.Breaker.End(err)
	err = withOutcome(err)
	release(err)
	return done, err
}
