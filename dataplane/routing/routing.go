// Package routing holds the table a proxy serves from and replaces it whole.
//
// A Table does not change once published, so readers take no lock. A call pins the table it uses; what a replaced table
// alone still used is let go after the last pin of it and of all older tables.
package routing

import (
	"context"
	"time"

	"github.com/prism-gateway/prism/dataplane/authz"
	"github.com/prism-gateway/prism/dataplane/limit"
	"github.com/prism-gateway/prism/dataplane/pattern/keyvalue"
	"github.com/prism-gateway/prism/dataplane/session"
	"github.com/prism-gateway/prism/shared/ident"
)

// Use is something that a route holds open, such as a pool.
type Use interface {
	// Retain takes it once more, for someone who holds it already and will Release it.
	Retain()
	// Release gives it back, when the last table with the route is drained.
	Release()
	// Unready says why calls that need it would fail now; empty when they would not.
	Unready() string
}

// Traits are what a caller may know of the backend behind a pattern.
type Traits struct {
	// TTLGranularity is the finest step of expiries.
	TTLGranularity time.Duration
	// Durability is none, relaxed or strong.
	Durability string
	// Notes are for people.
	Notes []string
}

// Callers say who may call a namespace.
type Callers struct {
	// Known says that every call needs to say whose it is.
	Known bool
	// Issuer and Audience are what a bearer token must name; empty means any that the proxy believes.
	Issuer, Audience string
	// Policy is who may do what. Required; it counts for callers that must be known.
	Policy *authz.Policy
	// Session is how long sessions live, where callers are known.
	Session session.Policy
	// Login is how the proxy logs in for a caller where the credentials are.
	Login Login
}

// Login is where callers log in to get credentials of their own.
type Login struct {
	// Address is that of the server; empty means the provider's, whatever it is.
	Address string
	// AuthPath is the mount, Role the role, Namespace the Vault namespace.
	AuthPath, Role, Namespace string
}

// Origin names an object that a route was made from, and its bytes.
type Origin struct {
	Name string
	Hash ident.Hash
}

// Route is all that a call needs to know of its namespace. It does not change once in a table.
type Route struct {
	Namespace string
	// Version is the configuration's version, in text.
	Version string
	// Header is the metadata sent with every answer; it is shared and not to be changed.
	Header map[string][]string
	// Draining says that the namespace takes no new work.
	Draining bool
	// SingleOwner says that only the owner of rank 0 may serve.
	SingleOwner bool
	// DefaultDeadline is for calls that bring none, MaxDeadline bounds all; 0 means without bound.
	DefaultDeadline, MaxDeadline time.Duration
	// Callers are who may call.
	Callers Callers
	// Affine says that callers have credentials of their own: a principal's calls go to one owner by preference.
	Affine bool
	// Strict says that a call whose record cannot be written first is refused.
	Strict bool
	// KeyValue serves the pattern keyvalue; nil when the namespace has none.
	KeyValue *keyvalue.Store
	// Traits are what Describe tells of the backend.
	Traits Traits
	// Limits outlives the route: the next route of the namespace has the same.
	Limits *limit.Limiter
	// Rate is the namespace's bound in calls per second over all owners; 0 means without bound.
	Rate uint32
	// Concurrency bounds the calls under way on this proxy; 0 means without bound.
	Concurrency uint32
	// Uses is what the route holds open; whoever publishes the route gives it over to the table.
	Uses []Use
	// Traffic counts the calls of its partition that are answered here; nil counts none.
	Traffic *Traffic
	// Config is what the route was made from, Backends are the shared objects that it refers to.
	Config   Origin
	Backends []Origin

	seal uint64
	gone chan struct{} // closed when a table without the route is published
}

// Open makes ready what the calls of a session need: its credential, where callers have their own.
func (r *Route) Open(ctx context.Context) error {
	for _, used := range r.Uses {
		if o, ok := used.(interface{ Open(context.Context) error }); ok {
			if err := o.Open(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// Gone is closed when the route is not in the table in effect any more.
func (r *Route) Gone() <-chan struct{} { return r.gone }

// Hold keeps what the route uses open after its table is let go, for a stream: a pin of a table would keep all that
// later tables replaced. The table must be pinned; release is called once.
func (r *Route) Hold() (release func()) {
	for _, used := range r.Uses {
		used.Retain()
	}
	return func() {
		for _, used := range r.Uses {
			used.Release()
		}
	}
}

// Partition is one partition's part of a table.
type Partition struct {
	Number ident.Partition
	// Root and SharedRoot name the state that the routes were made from.
	Root, SharedRoot ident.Hash
	// Snapshot is the snapshot's version, CommittedAt its time by the sender's clock.
	Snapshot    uint64
	CommittedAt time.Time
	// Traffic counts its calls; nil when none are counted.
	Traffic *Traffic
	// Routes are by namespace.
	Routes map[string]*Route
}

// Peer is a proxy of the fleet.
type Peer struct {
	ID, Address string
	Draining    bool
}

// Fleet says who owns what. It does not change.
type Fleet struct {
	Epoch uint64
	// Self is this proxy's place among Members, or -1.
	Self int
	// Members are the proxies.
	Members []Peer
	// Owners are, for each partition, places among Members by rank.
	Owners [][]uint32
	// Loading are, for each partition, those that will be owners, as places among Members.
	Loading [][]uint32
}

// Assigned reports whether this proxy is, or will be, an owner of p.
func (f *Fleet) Assigned(p ident.Partition) bool { return f.Rank(p) >= 0 || f.in(f.Loading, p) >= 0 }

// OwnerCount is how many proxies own p.
func (f *Fleet) OwnerCount(p ident.Partition) int {
	if int(p) >= len(f.Owners) {
		return 0
	}
	return len(f.Owners[p])
}

// Rank is this proxy's rank among the owners of p, or -1.
func (f *Fleet) Rank(p ident.Partition) int { return f.in(f.Owners, p) }

func (f *Fleet) in(lists [][]uint32, p ident.Partition) int {
	if f.Self < 0 || int(p) >= len(lists) {
		return -1
	}
	for i, m := range lists[p] {
		if int(m) == f.Self {
			return i
		}
	}
	return -1
}

// Table is what a proxy serves from.
type Table struct {
	count      uint32
	partitions []*Partition // by number; nil: not held
	fleet      *Fleet       // nil until there is an assignment
	published  time.Time

	stripes []stripe
	retired retirement
}

// Answer is what a table knows of a namespace.
type Answer int

// The answers.
const (
	// Starting: the table is empty, nothing is known yet.
	Starting Answer = iota
	// NotOwned: the partition is not held here; others own it.
	NotOwned
	// Absent: the partition is held and has no such namespace.
	Absent
	// Found: the route is there.
	Found
)

// NewTable makes a table of count partitions that holds none.
func NewTable(count uint32) *Table {
	return &Table{count: count, partitions: make([]*Partition, count)}
}

// With returns a table in which the partitions named have been replaced, or are gone where nil. It shares all others.
func (t *Table) With(parts map[ident.Partition]*Partition, fleet *Fleet) *Table {
	next := &Table{count: t.count, partitions: make([]*Partition, t.count), fleet: fleet}
	copy(next.partitions, t.partitions)
	for n, p := range parts {
		next.partitions[n] = p
	}
	return next
}

// Lookup answers for a namespace. The route may be used for as long as the table is pinned.
func (t *Table) Lookup(namespace string) (*Route, ident.Partition, Answer) {
	if t.count == 0 {
		return nil, 0, Starting
	}
	n := ident.PartitionOf(namespace, t.count)
	p := t.partitions[n]
	if p == nil {
		if t.fleet == nil {
			return nil, n, Starting
		}
		return nil, n, NotOwned
	}
	if r, ok := p.Routes[namespace]; ok {
		return r, n, Found
	}
	return nil, n, Absent
}

// Count is the number of partitions of the installation; 0 while nothing is known.
func (t *Table) Count() uint32 { return t.count }

// Partition returns a partition, or nil when it is not held.
func (t *Table) Partition(n ident.Partition) *Partition {
	if int(n) >= len(t.partitions) {
		return nil
	}
	return t.partitions[n]
}

// Fleet returns who owns what; nil while nobody has told.
func (t *Table) Fleet() *Fleet { return t.fleet }

// Published is when the table came into effect.
func (t *Table) Published() time.Time { return t.published }
