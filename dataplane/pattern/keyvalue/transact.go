package keyvalue

import (
	"bytes"
	"context"
	"fmt"
	"hash"

	"github.com/prism-gateway/prism/dataplane/driver"
)

// Transaction is checks and writes of one id, done all or not at all.
type Transaction struct {
	ID     []byte
	Checks []driver.Check
	// Writes are puts and deletes of items of ID, one after the other.
	Writes []Write
	Token  *Token // nil: none
}

// Transact does a transaction. The results are those of the writes, in order.
func (s *Store) Transact(ctx context.Context, t Transaction) (driver.Transacted, error) {
	if s.transactor == nil {
		return driver.Transacted{}, Missing(Transact)
	}
	if len(t.Checks) > 0 && !s.version {
		return driver.Transacted{}, Missing(Version)
	}
	writes, err := s.prepareAll(t)
	if err != nil {
		return driver.Transacted{}, err
	}
	token, err := s.token(t.Token, t.digest)
	if err != nil {
		return driver.Transacted{}, err
	}
	if err := s.begin(ctx); err != nil {
		return driver.Transacted{}, err
	}
	release := s.holdAll(ctx, writes)
	done, err := s.transactor.Transact(ctx, s.cfg.Space, driver.Transaction{ID: t.ID, Checks: t.Checks, Writes: writes, Token: token})
	s.cfg.Breaker.End(err)
	err = withOutcome(err)
	release(err)
	return done, err
}

const ruleOtherID = "transaction.id"

// prepareAll checks a transaction and works out its writes.
func (s *Store) prepareAll(t Transaction) ([]driver.Write, error) {
	violations := checkName("", driver.Name{ID: t.ID})
	if n := len(t.Checks) + len(t.Writes); n == 0 || n > driver.MaxOperations {
		violations = append(violations, violation("writes", "transaction.size",
			fmt.Sprintf("and checks are %d together, want 1 to %d", n, driver.MaxOperations)))
	}
	for i, c := range t.Checks {
		path := fmt.Sprintf("checks[%d].", i)
		if len(c.Key) > MaxKeyBytes {
			violations = append(violations, violation(path+"key", "key.length", fmt.Sprintf("is %d bytes long, want at most %d", len(c.Key), MaxKeyBytes)))
		}
		switch {
		case c.Condition == driver.Always:
			violations = append(violations, violation(path+"condition", "required", "is missing"))
		case c.Condition == driver.IfVersion && (len(c.Version) == 0 || len(c.Version) > MaxVersionBytes):
			violations = append(violations, violation(path+"condition.version", "version.length", fmt.Sprintf("is %d bytes long, want 1 to %d", len(c.Version), MaxVersionBytes)))
		}
	}
	writes := make([]driver.Write, len(t.Writes))
	for i, w := range t.Writes {
		path := fmt.Sprintf("writes[%d].%s.", i, opName(w.Op))
		w.Token = t.Token
		prepared, v, err := s.prepare(path, w)
		if err != nil {
			return nil, err
		}
		if !bytes.Equal(w.ID, t.ID) {
			v = append(v, violation(path+"id", ruleOtherID, "is not the id of the transaction"))
		}
		violations = append(violations, v...)
		writes[i] = prepared
	}
	if violations != nil {
		return nil, invalid(violations)
	}
	return writes, nil
}

// opName is how a request calls the write.
func opName(op driver.Op) string {
	if op == driver.Delete {
		return "delete"
	}
	return "put"
}

func (t Transaction) digest(h hash.Hash) {
	h.Write([]byte{'t'})
	part(h, t.ID)
	number(h, uint64(len(t.Checks)))
	for _, c := range t.Checks {
		number(h, uint64(c.Condition))
		part(h, c.Key, c.Version)
	}
	for _, w := range t.Writes {
		w.digest(h)
	}
}
