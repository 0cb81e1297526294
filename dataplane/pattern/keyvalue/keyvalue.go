// Package keyvalue is the pattern KeyValue: a two-level map id -> sorted key -> value, with the rules of the API over
// what a driver can do.
//
// A Store belongs to one version of one namespace and does not change. Its errors are faults; those of writes tell the
// outcome.
package keyvalue

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"time"

	"github.com/prism-gateway/prism/dataplane/breaker"
	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/shared/fault"
)

// The interfaces that the pattern knows.
const (
	Base        = "keyvalue"
	Version     = "keyvalue.version"
	TTL         = "keyvalue.ttl"
	ScanKeys    = "keyvalue.scan"
	List        = "keyvalue.list"
	Counter     = "keyvalue.counter"
	Transact    = "keyvalue.transact"
	Watch       = "keyvalue.watch"
	Large       = "keyvalue.large"
	Idempotency = "keyvalue.idempotency"
)

// The bounds that hold for every namespace.
const (
	MaxIDBytes          = 1024
	MaxKeyBytes         = 1024
	MaxMetadataBytes    = 2 << 10
	MaxMetadataPairs    = 64
	MaxContentTypeBytes = 255
	MaxVersionBytes     = 64
	MaxCommitTokenBytes = 256
	MaxBatch            = 1000
	MaxAnswerBytes      = 4 << 20
	MaxTTL              = 10 * 365 * 24 * time.Hour
)

// answerReserve is what an answer's frame and the statuses in it may take besides items.
const answerReserve = 64 << 10

// Consistency is what a read must see.
type Consistency int

// The levels, weakest first.
const (
	DefaultConsistency Consistency = iota // the namespace's
	Eventual
	ReadYourWrites
	Strong
)

// Config makes a Store.
type Config struct {
	Namespace string
	// Space is what all keys of the namespace begin with in the store; unique to one life of the name.
	Space driver.Space
	// Instance is the backend; it stays open for as long as the Store is in use.
	Instance driver.Instance
	// Cache holds copies of items, for reads that may be as old as MaxStaleness; both are set, or none.
	Cache        driver.Instance
	MaxStaleness time.Duration
	// Breaker stands before the backend; nil lets every call pass.
	Breaker *breaker.Breaker
	// Interfaces are what the namespace asked for, sorted.
	Interfaces []string
	// Consistency is the strongest level that reads may ask for, and what they get when they ask for none.
	Consistency Consistency
	// DefaultTTL is the life of an item whose writer says nothing; 0 means for ever.
	DefaultTTL time.Duration
	// MaxValueBytes bounds values; it must be set.
	MaxValueBytes uint64
	// Now is the proxy's clock; nil means time.Now.
	Now func() time.Time
}

// Store serves one namespace.
type Store struct {
	cfg     Config
	base    driver.KeyValue
	scanner driver.Scanner // nil when not asked for
	lister  driver.Lister  // nil when not asked for
	// What follows is nil when not asked for.
	counter    driver.Counter
	transactor driver.Transactor
	watcher    driver.Watcher
	large      driver.LargeValues

	cache      *cache // nil: none
	version    bool
	ttl        bool
	idempotent bool
	tokens     tokens
}

// New checks that the backend offers what the namespace asked for.
func New(cfg Config) (*Store, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Consistency == DefaultConsistency {
		cfg.Consistency = Strong
	}
	s := &Store{cfg: cfg, tokens: tokens{space: cfg.Space}}
	var ok bool
	if s.base, ok = cfg.Instance.(driver.KeyValue); !ok {
		return nil, errors.New("the backend does not offer keyvalue")
	}
	if (cfg.Cache == nil) != (cfg.MaxStaleness == 0) {
		return nil, errors.New("a cache and how old its copies may be go together")
	}
	if cfg.Cache != nil {
		copies, ok := cfg.Cache.(driver.KeyValue)
		if !ok {
			return nil, errors.New("the cache does not offer keyvalue")
		}
		s.cache = &cache{store: copies, maxStaleness: cfg.MaxStaleness, now: cfg.Now}
	}
	if cfg.MaxValueBytes == 0 {
		return nil, errors.New("the largest value is not said")
	}
	for _, name := range cfg.Interfaces {
		offered := true
		switch name {
		case Base:
		case Version:
			s.version = true
		case TTL:
			s.ttl = true
		case Idempotency:
			s.idempotent = true
		case ScanKeys:
			s.scanner, offered = cfg.Instance.(driver.Scanner)
		case List:
			s.lister, offered = cfg.Instance.(driver.Lister)
		case Counter:
			s.counter, offered = cfg.Instance.(driver.Counter)
		case Transact:
			s.transactor, offered = cfg.Instance.(driver.Transactor)
		case Watch:
			s.watcher, offered = cfg.Instance.(driver.Watcher)
		case Large:
			s.large, offered = cfg.Instance.(driver.LargeValues)
		default:
			return nil, fmt.Errorf("this build does not offer %s", name)
		}
		if !offered {
			return nil, fmt.Errorf("the backend does not offer %s", name)
		}
	}
	if !slices.Contains(cfg.Interfaces, Base) {
		return nil, errors.New("the interface keyvalue is missing")
	}
	if cfg.DefaultTTL != 0 && !s.ttl {
		return nil, errors.New("a default life of items needs keyvalue.ttl")
	}
	return s, nil
}

// Offers reports whether the namespace asked for an interface.
func (s *Store) Offers(name string) bool { return slices.Contains(s.cfg.Interfaces, name) }

// Interfaces are what the namespace asked for, sorted. The caller must not change them.
func (s *Store) Interfaces() []string { return s.cfg.Interfaces }

// Space is what all keys of the namespace begin with in the store.
func (s *Store) Space() driver.Space { return s.cfg.Space }

// SameStore reports whether the other keeps the same items in the same open backend; other may be nil.
func (s *Store) SameStore(other *Store) bool {
	return s != nil && other != nil && s.cfg.Space == other.cfg.Space && s.cfg.Instance == other.cfg.Instance && s.cfg.Cache == other.cfg.Cache
}

// CommitToken is what a read that must see all writes that were acknowledged until now gives as at_least; nil where
// reads see them anyway.
func (s *Store) CommitToken() []byte {
	if s.cache == nil {
		return nil
	}
	return commitToken(s.cfg.Now())
}

// MaxStaleness is how old what an eventual read sees may be; 0 where it sees the newest.
func (s *Store) MaxStaleness() time.Duration { return s.cfg.MaxStaleness }

// MaxValueBytes is the largest value.
func (s *Store) MaxValueBytes() uint64 { return s.cfg.MaxValueBytes }

// DefaultTTL is the life of an item whose writer says nothing; 0 means for ever.
func (s *Store) DefaultTTL() time.Duration { return s.cfg.DefaultTTL }

// Consistency is the strongest level that reads may ask for.
func (s *Store) Consistency() Consistency { return s.cfg.Consistency }

// Missing is the fault of asking for an interface that is not there.
func Missing(name string) error {
	return fault.Newf(fault.FailedPrecondition, fault.InterfaceMissing, "the namespace does not offer the interface %s", name).
		With("interface", name).WithOutcome(fault.NotApplied)
}

// Read says how to read.
type Read struct {
	Consistency Consistency
	// AtLeast is the commit token of writes that the read must see; empty: none.
	AtLeast []byte
	// HeadOnly leaves out the value.
	HeadOnly bool
}

// fromCache reports whether copies may answer a read, and what they must have seen. Who wants to read their own writes
// says which by a commit token.
func (s *Store) fromCache(r Read) (seen time.Time, ok bool, err error) {
	if s.cache == nil {
		return seen, false, nil
	}
	if seen, err = parseCommitToken(r.AtLeast); err != nil {
		return seen, false, err
	}
	switch cmp.Or(r.Consistency, s.cfg.Consistency) {
	case Eventual:
		return seen, true, nil
	case ReadYourWrites:
		return seen, !seen.IsZero(), nil
	}
	return seen, false, nil
}

// Get reads one item; nil when there is none.
func (s *Store) Get(ctx context.Context, name driver.Name, r Read) (*driver.Item, error) {
	if v := checkName("", name); v != nil {
		return nil, invalid(v)
	}
	if err := s.checkConsistency(r.Consistency); err != nil {
		return nil, err
	}
	seen, cached, err := s.fromCache(r)
	if err != nil {
		return nil, err
	}
	if cached {
		return s.cache.get(ctx, s.cfg.Space, name, r.HeadOnly, seen, func(headOnly bool) (*driver.Item, error) { return s.get(ctx, name, headOnly) })
	}
	return s.get(ctx, name, r.HeadOnly)
}

// get asks the backend.
func (s *Store) get(ctx context.Context, name driver.Name, headOnly bool) (*driver.Item, error) {
	if err := s.begin(ctx); err != nil {
		return nil, err
	}
	item, err := s.base.Get(ctx, s.cfg.Space, name, headOnly)
	s.cfg.Breaker.End(err)
	return item, err
}

// BatchGet reads several items, each named once, and answers in their order. unprocessed are the places of those whose
// items did not fit into an answer; their results say nothing.
func (s *Store) BatchGet(ctx context.Context, names []driver.Name, r Read) (results []driver.GetResult, unprocessed []uint32, err error) {
	var violations []fault.Violation
	if v := checkCount("names", len(names)); v != nil {
		return nil, nil, invalid(v)
	}
	for i, n := range names {
		if v := checkName("", n); v != nil {
			violations = append(violations, checkName(fmt.Sprintf("names[%d].", i), n)...)
		}
	}
	if place, before := repeated(len(names), func(i int) driver.Name { return names[i] }); place > 0 {
		violations = append(violations, violation(fmt.Sprintf("names[%d]", place), "batch.unique", fmt.Sprintf("names the same item as names[%d]", before)))
	}
	if violations != nil {
		return nil, nil, invalid(violations)
	}
	if err := s.checkConsistency(r.Consistency); err != nil {
		return nil, nil, err
	}
	if err := s.begin(ctx); err != nil {
		return nil, nil, err
	}
	defer func() { s.cfg.Breaker.End(firstOf(results)) }()
	results = make([]driver.GetResult, 0, len(names))
	size, next := 0, 100
	for len(results) < len(names) {
		at := len(results)
		// Not all are read at once: a thousand large values would be in memory together to be thrown away.
		got := s.base.BatchGet(ctx, s.cfg.Space, names[at:min(at+next, len(names))], r.HeadOnly)
		for i, one := range got {
			bytes := sizeOf(one.Item)
			if size > 0 && size+bytes > MaxAnswerBytes-answerReserve {
				return append(results, make([]driver.GetResult, len(names)-at-i)...), places(at+i, len(names)), nil
			}
			size += bytes
			results = append(results, one)
		}
		next = max(1, (MaxAnswerBytes-size)/(size/len(results)+1))
	}
	return results, nil, nil
}

func places(from, to int) []uint32 {
	out := make([]uint32, 0, to-from)
	for i := from; i < to; i++ {
		out = append(out, uint32(i))
	}
	return out
}

// sizeOf is about what an item takes in an answer.
func sizeOf(item *driver.Item) int {
	if item == nil {
		return 8
	}
	n := len(item.ID) + len(item.Key) + len(item.Value) + len(item.Version) + len(item.ContentType) + 64
	for k, v := range item.Metadata {
		n += len(k) + len(v) + 8
	}
	return n
}

// checkConsistency refuses what is stronger than the namespace. Drivers read strongly, so any weaker level is had too.
func (s *Store) checkConsistency(c Consistency) error {
	if c > s.cfg.Consistency {
		return fault.New(fault.FailedPrecondition, fault.Consistency, "the namespace does not offer so strong a consistency").
			WithOutcome(fault.NotApplied)
	}
	return nil
}

// begin admits a call to the backend; its end is told to the breaker.
func (s *Store) begin(ctx context.Context) error {
	if err := notSent(ctx); err != nil {
		return err
	}
	return s.cfg.Breaker.Begin()
}

// firstOf is the first error of a batch's entries, of those that speak against the backend if there are any.
func firstOf(results []driver.GetResult) (first error) {
	for i := range results {
		if breaker.Failed(results[i].Err) {
			return results[i].Err
		}
		if first == nil {
			first = results[i].Err
		}
	}
	return first
}

// notSent tells a call that ended before anything was asked of the backend from one that ended while it worked.
func notSent(ctx context.Context) error {
	switch err := ctx.Err(); {
	case err == nil:
		return nil
	case errors.Is(err, context.DeadlineExceeded):
		return fault.Wrap(err, fault.DeadlineExceeded, fault.Queue, "the time ran out before the call began").WithOutcome(fault.NotApplied)
	default:
		return fault.Wrap(err, fault.Cancelled, fault.Client, "the caller gave up").WithOutcome(fault.NotApplied)
	}
}

// repeated finds the first item that a batch names again: its place, and where it stood before; 0 when all differ.
func repeated(n int, name func(i int) driver.Name) (place, before int) {
	seen := make(map[uint64]int, n)
	seed := maphash.MakeSeed()
	var h maphash.Hash
	for i := range n {
		h.SetSeed(seed) // and begin anew
		at := name(i)
		var length [8]byte
		binary.LittleEndian.PutUint64(length[:], uint64(len(at.ID)))
		h.Write(length[:])
		h.Write(at.ID)
		h.Write(at.Key)
		sum := h.Sum64()
		for { // names with the same hash stand behind each other
			before, ok := seen[sum]
			if !ok {
				break
			}
			if is := name(before); bytes.Equal(is.ID, at.ID) && bytes.Equal(is.Key, at.Key) {
				return i, before
			}
			sum++
		}
		seen[sum] = i
	}
	return 0, 0
}

func checkCount(field string, n int) []fault.Violation {
	if n == 0 || n > MaxBatch {
		return []fault.Violation{violation(field, "batch.size", fmt.Sprintf("has %d entries, want 1 to %d", n, MaxBatch))}
	}
	return nil
}

// checkName is nil for most names: it must not cost.
func checkName(path string, n driver.Name) (v []fault.Violation) {
	if len(n.ID) == 0 || len(n.ID) > MaxIDBytes {
		v = append(v, violation(path+"id", "id.length", fmt.Sprintf("is %d bytes long, want 1 to %d", len(n.ID), MaxIDBytes)))
	}
	if len(n.Key) > MaxKeyBytes {
		v = append(v, violation(path+"key", "key.length", fmt.Sprintf("is %d bytes long, want at most %d", len(n.Key), MaxKeyBytes)))
	}
	return v
}

func violation(field, rule, text string) fault.Violation {
	return fault.Violation{Field: field, Rule: rule, Text: text}
}

// Invalid is the fault of a request that breaks rules.
func Invalid(v ...fault.Violation) error { return invalid(v) }

func invalid(v []fault.Violation) error {
	reason, text := fault.Field, "the request breaks a rule: "+v[0].Field+" "+v[0].Text
	if len(v) > 1 {
		text = fmt.Sprintf("the request breaks %d rules; the first: %s %s", len(v), v[0].Field, v[0].Text)
	}
	is := func(rule string) func(fault.Violation) bool {
		return func(one fault.Violation) bool { return one.Rule == rule }
	}
	switch {
	case slices.ContainsFunc(v, is(ruleValueSize)):
		reason = fault.TooLarge
	case slices.ContainsFunc(v, is(ruleOtherID)):
		reason = fault.OtherID
	}
	return fault.New(fault.Invalid, reason, text).WithViolations(v).WithOutcome(fault.NotApplied)
}
