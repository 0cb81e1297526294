package keyvalue

import (
	"context"
	"fmt"
	"time"

	"github.com/prism-gateway/prism/dataplane/breaker"
	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/shared/fault"
)

const ruleValueSize = "value.size"

// ExpiryKind is how the end of an item is told.
type ExpiryKind int

// The kinds.
const (
	ExpiryDefault ExpiryKind = iota // as the namespace says
	ExpiryAfter                     // TTL from now
	ExpiryAt                        // at At
	ExpiryKeep                      // as it was; for a new item the namespace's
	ExpiryNever                     // for ever
)

// Expiry says until when an item is visible.
type Expiry struct {
	Kind ExpiryKind
	TTL  time.Duration
	At   time.Time
}

// Write is one write.
type Write struct {
	Op driver.Op
	driver.Name
	Value       []byte
	ContentType string
	Metadata    map[string]string
	Condition   driver.Condition
	Version     []byte // for IfVersion
	Expiry      Expiry
	Previous    bool   // return the item as it was
	Token       *Token // nil: none
}

// Write does one write.
func (s *Store) Write(ctx context.Context, w Write) (driver.Written, error) {
	d, violations, err := s.prepare("", w)
	if err != nil {
		return driver.Written{}, err
	}
	if violations != nil {
		return driver.Written{}, invalid(violations)
	}
	if d.Token, err = s.token(w.Token, w.digest); err != nil {
		return driver.Written{}, err
	}
	if err := s.begin(ctx); err != nil {
		return driver.Written{}, err
	}
	release := s.hold(ctx, w.Name)
	done, err := s.base.Write(ctx, s.cfg.Space, d)
	s.cfg.Breaker.End(err)
	err = withOutcome(err)
	release(err)
	return done, err
}

// BatchWrite does several writes, of each item at most one, and answers in their order. An error means that none was
// done. With a token, which may be nil, each write is done once, by itself: what a repeat finds done it does not do again.
func (s *Store) BatchWrite(ctx context.Context, writes []Write, token *Token) ([]driver.WriteResult, error) {
	if v := checkCount("writes", len(writes)); v != nil {
		return nil, invalid(v)
	}
	var violations []fault.Violation
	prepared := make([]driver.Write, len(writes))
	for i, w := range writes {
		w.Token = token.entry(i)
		d, v, err := s.prepare("", w)
		if v != nil { // only then is the path worth making
			_, v, err = s.prepare(fmt.Sprintf("writes[%d].%s.", i, opName(w.Op)), w)
		}
		if err != nil {
			return nil, err
		}
		if d.Token, err = s.token(w.Token, w.digest); err != nil {
			return nil, err
		}
		violations = append(violations, v...)
		prepared[i] = d
	}
	if place, before := repeated(len(writes), func(i int) driver.Name { return writes[i].Name }); place > 0 {
		violations = append(violations, violation(fmt.Sprintf("writes[%d]", place), "batch.unique", fmt.Sprintf("writes the same item as writes[%d]", before)))
	}
	if violations != nil {
		return nil, invalid(violations)
	}
	if err := s.begin(ctx); err != nil {
		return nil, err
	}
	return s.writeAll(ctx, prepared), nil
}

// writeAll does writes that begin admitted.
func (s *Store) writeAll(ctx context.Context, writes []driver.Write) []driver.WriteResult {
	release := s.holdAll(ctx, writes)
	results := s.base.BatchWrite(ctx, s.cfg.Space, writes)
	var first, unknown error
	for i := range results {
		results[i].Err = withOutcome(results[i].Err)
		if first == nil || breaker.Failed(results[i].Err) {
			first = results[i].Err
		}
		if f := fault.From(results[i].Err); f != nil && f.Outcome != fault.NotApplied {
			unknown = f
		}
	}
	s.cfg.Breaker.End(first)
	release(unknown)
	return results
}

// prepare checks a write and works out until when its item is visible. An error is not about a field.
func (s *Store) prepare(path string, w Write) (driver.Write, []fault.Violation, error) {
	d := driver.Write{
		Op: w.Op, Name: w.Name, Value: w.Value, ContentType: w.ContentType, Metadata: w.Metadata,
		Condition: w.Condition, Version: w.Version, Previous: w.Previous,
	}
	if w.Condition != driver.Always && !s.version {
		return d, nil, Missing(Version)
	}
	if (w.Expiry.Kind != ExpiryDefault || w.Op == driver.Touch) && !s.ttl {
		return d, nil, Missing(TTL)
	}
	v := checkName(path, w.Name)
	if uint64(len(w.Value)) > s.cfg.MaxValueBytes {
		v = append(v, violation(path+"value", ruleValueSize, fmt.Sprintf("is %d bytes long, want at most %d", len(w.Value), s.cfg.MaxValueBytes)))
	}
	if len(w.ContentType) > MaxContentTypeBytes {
		v = append(v, violation(path+"content_type", "content_type.length", fmt.Sprintf("is %d bytes long, want at most %d", len(w.ContentType), MaxContentTypeBytes)))
	}
	if len(w.Metadata) > 0 {
		v = append(v, checkMetadata(path, w.Metadata)...)
	}
	if w.Condition == driver.IfVersion && (len(w.Version) == 0 || len(w.Version) > MaxVersionBytes) {
		v = append(v, violation(path+"condition.version", "version.length", fmt.Sprintf("is %d bytes long, want 1 to %d", len(w.Version), MaxVersionBytes)))
	}
	if w.Op == driver.Delete {
		return d, v, nil
	}
	now := s.cfg.Now()
	switch w.Expiry.Kind {
	case ExpiryDefault:
		d.ExpireAt = s.defaultExpiry(now)
	case ExpiryKeep:
		d.ExpireAt, d.KeepExpiry = s.defaultExpiry(now), true
	case ExpiryAfter:
		if w.Expiry.TTL <= 0 || w.Expiry.TTL > MaxTTL {
			v = append(v, violation(path+"expiry.ttl", "expiry.ttl", fmt.Sprintf("is %v, want more than 0 and at most 10 years", w.Expiry.TTL)))
		}
		d.ExpireAt = now.Add(w.Expiry.TTL)
	case ExpiryAt:
		if w.Token != nil && w.Token.MadeAt.Before(now) {
			now = w.Token.MadeAt // a repeat of a write that was done asks for a time that may be over
		}
		if !w.Expiry.At.After(now) || w.Expiry.At.Sub(now) > MaxTTL {
			v = append(v, violation(path+"expiry.at", "expiry.at", "must be in the future and at most 10 years away"))
		}
		d.ExpireAt = w.Expiry.At
	}
	return d, v, nil
}

func (s *Store) defaultExpiry(now time.Time) time.Time {
	if s.cfg.DefaultTTL == 0 {
		return time.Time{}
	}
	return now.Add(s.cfg.DefaultTTL)
}

func checkMetadata(path string, m map[string]string) (v []fault.Violation) {
	size := 0
	for name, value := range m {
		size += len(name) + len(value)
	}
	if len(m) > MaxMetadataPairs {
		v = append(v, violation(path+"metadata", "metadata.pairs", fmt.Sprintf("has %d entries, want at most %d", len(m), MaxMetadataPairs)))
	}
	if size > MaxMetadataBytes {
		v = append(v, violation(path+"metadata", "metadata.size", fmt.Sprintf("is %d bytes long, want at most %d", size, MaxMetadataBytes)))
	}
	return v
}

// withOutcome makes every error of a write tell its outcome: what a driver does not say is not known.
func withOutcome(err error) error {
	if err == nil {
		return nil
	}
	f := fault.From(err)
	if f.Outcome == "" {
		f = f.WithOutcome(fault.OutcomeUnknown)
	}
	return f
}
