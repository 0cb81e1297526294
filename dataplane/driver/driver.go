// Package driver is the contract between patterns and stores: what a driver declares, and the capabilities that it
// offers.
//
// A driver wraps one SDK, turns that SDK's errors into faults, and does nothing else: limits, retries, metrics, the
// names of namespaces and the rules of the API lie in the layers above. Every driver passes the suite in
// driver/conformance.
package driver

import (
	"context"
	"crypto/tls"
	"fmt"
	"time"

	"github.com/prism-gateway/prism/shared/secret"
)

// ClientCertificates are what to show in TLS: none without a certificate.
func (c Config) ClientCertificates() ([]tls.Certificate, error) {
	if len(c.Certificate) == 0 {
		return nil, nil
	}
	pair, err := tls.X509KeyPair(c.Certificate, []byte(c.PrivateKey.Reveal()))
	if err != nil {
		return nil, fmt.Errorf("backend %s: its client certificate: %w", c.Name, err)
	}
	return []tls.Certificate{pair}, nil
}

// Driver opens backends of one type.
type Driver interface {
	// Type is the backend type, such as redis.
	Type() string
	// Interfaces are the names of the capabilities that its instances offer, sorted: what the catalogue says, no more
	// and no fewer.
	Interfaces() []string
	// Open checks cfg and returns an instance. It does not wait for the backend, which may be down.
	Open(cfg Config) (Instance, error)
}

// Config says how to open one backend.
type Config struct {
	// Name is the backend's name, for errors and logs.
	Name string
	// Endpoints are host:port, or a file for stores in a file.
	Endpoints []string
	// Settings are the driver's own, such as database. An unknown one is an error of Open.
	Settings map[string]string
	// Username and Password open the backend; both empty when it needs none.
	Username string
	Password secret.Text
	// Token is for stores that take one: the session token of temporary access keys, or a user's JWT. PrivateKey signs for a
	// JWT, as an nkey's seed, or for Certificate, which is PEM, with its intermediates, and is shown in TLS.
	Token, PrivateKey secret.Text
	Certificate       []byte
	// MaxConnections bounds the connections of this instance; 0 means the driver's default.
	MaxConnections int
	// DialTimeout bounds the opening of a connection; 0 means 5 s.
	DialTimeout time.Duration
	// Now is the proxy's clock, by which items expire; nil means time.Now.
	Now func() time.Time
}

// Instance is one open backend. Its methods may be called concurrently. That the backend refuses the credential is the
// fault Unavailable, reason CREDENTIALS_UNAVAILABLE: the pool may have a newer one. A capability that is a Go interface of this
// package is offered by implementing it.
type Instance interface {
	// Ping reports whether the backend answers; the error is a fault.
	Ping(ctx context.Context) error
	// Close ends what Open and later calls began, and waits for it. Calls under way may fail. Closing again is no error.
	Close() error
}

// Space is what all keys of one namespace begin with in the store. No space is the beginning of another: drivers keep
// them apart by their length or by a byte that no space holds, never by trust in an id.
type Space string

// Name names an item within a space.
type Name struct {
	ID  []byte // 1 to 1,024 bytes, any
	Key []byte // 0 to 1,024 bytes, any
}

// Item is a stored item. The caller owns its slices.
type Item struct {
	Name
	Value       []byte
	Size        uint64            // of the value, in bytes, where it is left out; drivers need not say it of small values
	Version     []byte            // at most 64 bytes; never repeats for an item, also after delete and recreate
	ExpireAt    time.Time         // zero: never
	ModifiedAt  time.Time         // when last written, by the writer's clock
	ContentType string            // as the writer said
	Metadata    map[string]string // as the writer said
}

// Condition says what must hold for a write.
type Condition int

// The conditions.
const (
	Always    Condition = iota
	IfAbsent            // else fault Exists, reason KEY
	IfPresent           // else fault NotFound, reason KEY_REQUIRED
	IfVersion           // else fault Conflict, reason VERSION_MISMATCH, metadata version (base64 std) when there is an item
)

// Op is what a Write does.
type Op int

// The operations.
const (
	Put    Op = iota
	Delete    // an absent item is no error
	Touch     // changes expiry and version only; an absent item is NotFound, reason KEY_REQUIRED
)

// Write is one write to one item. An expired item counts as absent.
type Write struct {
	Op Op
	Name
	Value       []byte
	ContentType string
	Metadata    map[string]string
	Condition   Condition
	Version     []byte // for IfVersion; a version that no item can have matches none
	// ExpireAt is when the item ceases to be visible; zero means never. With KeepExpiry it applies only to an item
	// that did not exist.
	ExpireAt   time.Time
	KeepExpiry bool
	// Previous asks for the item as it was before.
	Previous bool
	// Token is for keyvalue.idempotency; nil: none.
	Token *Token
}

// Written is what a write did.
type Written struct {
	Version  []byte    // the item's version now; nil after a Delete
	ExpireAt time.Time // until when it is visible; zero: never
	Existed  bool      // whether there was an item before
	Previous *Item     // if asked for and there was one
	// Duplicate says that an earlier write with the same token did it; the rest is that one's result.
	Duplicate bool
}

// WriteResult is one entry's result of a batch.
type WriteResult struct {
	Written
	Err error // a fault; nil when done
}

// GetResult is one entry's result of a batch.
type GetResult struct {
	Item *Item // nil: absent
	Err  error // a fault; nil when read
}

// KeyValue is the capability keyvalue, and with it keyvalue.version and keyvalue.ttl where the driver declares them.
// Reads are strong: they see every write acknowledged before they began. Each error is a fault; that of a write tells
// its outcome.
type KeyValue interface {
	// Get returns nil for an absent or expired item. headOnly leaves out the value.
	Get(ctx context.Context, space Space, name Name, headOnly bool) (*Item, error)
	// Write does one write.
	Write(ctx context.Context, space Space, w Write) (Written, error)
	// BatchGet reads several items, each once, and answers in their order.
	BatchGet(ctx context.Context, space Space, names []Name, headOnly bool) []GetResult
	// BatchWrite does several writes, of each item at most one, and answers in their order. It is not atomic.
	BatchWrite(ctx context.Context, space Space, writes []Write) []WriteResult
}

// Range is a run of keys of one id.
type Range struct {
	ID       []byte
	Start    []byte // inclusive; empty: from the first
	End      []byte // exclusive; nil: to the last
	Reverse  bool   // from the last to the first
	KeysOnly bool   // leave out the values
	Limit    int    // the most items, at least 1
	MaxBytes int    // stop when ids, keys and values reach this; one item is always returned
}

// Scanner is the capability keyvalue.scan.
type Scanner interface {
	// Scan returns items in byte order of their keys, and whether there are more.
	Scan(ctx context.Context, space Space, r Range) (items []Item, more bool, err error)
}

// MaxCursor bounds the cursors of ListIDs, in bytes: a page token, which is not longer than 8 KiB, holds one.
const MaxCursor = 8000

// Lister is the capability keyvalue.list.
type Lister interface {
	// ListIDs returns ids that have items, in no order, each at least once over all pages. A nil cursor begins; a nil
	// next ends. A page has at most limit ids, unless the rest of what the store gave would make a cursor longer than
	// MaxCursor.
	ListIDs(ctx context.Context, space Space, cursor []byte, limit int) (ids [][]byte, next []byte, err error)
}
