// Package assembly makes the next table of routes from the configuration that came and the table before, and puts it
// into effect.
//
// Only partitions that changed are made anew, and in them only routes whose objects changed. What cannot be made is
// refused with its field and reason, and goes on as it was.
package assembly

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/prism-gateway/prism/dataplane/limit"
	"github.com/prism-gateway/prism/dataplane/pool"
	"github.com/prism-gateway/prism/dataplane/routing"
	"github.com/prism-gateway/prism/dataplane/subscribe"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/ident"
)

// The beginnings of resource names.
const (
	namespaceName = "ns/"
	backendName   = "backend/"
)

// VersionHeader is the metadata key of the version of a namespace's configuration in every answer.
const VersionHeader = "prism-config-version"

// Config makes an Assembler.
type Config struct {
	// Self is this proxy's id in the fleet. Required.
	Self string
	// Routes is where tables are published. Required; nobody else publishes there.
	Routes *routing.Routes
	// Pools opens backends. Required.
	Pools *pool.Set
	// Issuers reports whether the proxy believes an issuer of tokens; nil: none.
	Issuers func(url string) bool
	// Providers are the proxy's providers of credentials: by name, their addresses, where they have one.
	Providers map[string]string
	// Audits says that the proxy records access to data.
	Audits bool
	// Now is the proxy's clock; nil means time.Now.
	Now func() time.Time
	// Published is called after each table. Nil is allowed.
	Published func(*routing.Table)
	// Logger is required.
	Logger *slog.Logger
}

// Assembler makes tables. Apply is called by one goroutine at a time; the other methods by any.
type Assembler struct {
	cfg Config

	assignment *configv1.Assignment      // that the table's fleet was made from
	backends   map[ident.Hash]*pool.Spec // of the shared sets in use, by the object's hash

	suspect map[string]bool // names of members whose routes are made anew although their bytes are the same

	traffic map[ident.Partition]*routing.Traffic // of all that were ever held, so that counters never fall
}

// New makes an Assembler.
func New(cfg Config) (*Assembler, error) {
	if cfg.Self == "" || cfg.Routes == nil || cfg.Pools == nil || cfg.Logger == nil {
		return nil, errors.New("assembly: Self, Routes, Pools and Logger are required")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Issuers == nil {
		cfg.Issuers = func(string) bool { return false }
	}
	if cfg.Published == nil {
		cfg.Published = func(*routing.Table) {}
	}
	return &Assembler{cfg: cfg, backends: map[ident.Hash]*pool.Spec{}, suspect: map[string]bool{}, traffic: map[ident.Partition]*routing.Traffic{}}, nil
}

// Apply puts state into effect and returns when it is, with what was refused: a refused namespace keeps its former route.
func (a *Assembler) Apply(_ context.Context, state subscribe.State) []*configv1.Rejection {
	before := a.cfg.Routes.Current()
	fleet := before.Fleet()
	if state.Assignment != nil && state.Assignment != a.assignment {
		fleet = fleetOf(state.Assignment, a.cfg.Self)
		a.assignment = state.Assignment
	}
	if fleet == nil {
		return nil // without an assignment nobody knows how many partitions there are
	}
	c := change{assembler: a, fleet: fleet, shared: state.Shared}
	base := before
	if count := uint32(len(fleet.Owners)); count != before.Count() {
		base = routing.NewTable(count)
	}
	parts := map[ident.Partition]*routing.Partition{}
	for _, n := range c.toDo(state, base, before) {
		if uint32(n) >= base.Count() {
			c.partition(n, before.Partition(n), nil) // of a former numbering: what it had open is let go
			continue
		}
		parts[n] = c.partition(n, before.Partition(n), state.Partitions[n])
	}
	next := base.With(parts, fleet)
	a.cfg.Routes.Publish(next, c.gone)
	for limits, b := range c.bounds {
		limits.SetBounds(b)
	}
	if c.read {
		a.forget(state.Shared)
	}
	a.cfg.Published(next)
	return c.rejections
}

// toDo lists the partitions to make anew: those that changed, and all when they were renumbered.
func (c *change) toDo(state subscribe.State, base, before *routing.Table) []ident.Partition {
	if base == before {
		if was := before.Fleet(); was != nil && was != c.fleet {
			for n := range state.Partitions { // a share of a bound changes with the number of owners
				if p := before.Partition(n); p != nil && was.OwnerCount(n) != c.fleet.OwnerCount(n) {
					for _, r := range p.Routes {
						c.rebound(r, n)
					}
				}
			}
		}
		return state.Changed
	}
	all := slices.Sorted(maps.Keys(state.Partitions))
	for n := range before.Count() {
		if p := before.Partition(ident.Partition(n)); p != nil && state.Partitions[ident.Partition(n)] == nil {
			all = append(all, ident.Partition(n))
		}
	}
	return all
}

// rebound remembers the bounds of a route of partition n for when the table is in effect.
func (c *change) rebound(r *routing.Route, n ident.Partition) {
	if c.bounds == nil {
		c.bounds = map[*limit.Limiter]limit.Bounds{}
	}
	c.bounds[r.Limits] = bounds(r, c.fleet.OwnerCount(n))
}

// forget drops what was read of backends that no shared set has any more.
func (a *Assembler) forget(shared map[ident.Hash]map[string]subscribe.Object) {
	used := map[ident.Hash]bool{}
	for _, set := range shared {
		for name, o := range set {
			if strings.HasPrefix(name, backendName) {
				used[o.Hash] = true
			}
		}
	}
	maps.DeleteFunc(a.backends, func(h ident.Hash, _ *pool.Spec) bool { return !used[h] })
}

// Unready lists the namespaces of a partition in effect whose backends do not answer.
func (a *Assembler) Unready(n ident.Partition) (out []subscribe.Unready) {
	p := a.cfg.Routes.Current().Partition(n)
	if p == nil || a.cfg.Pools.Ready() { // the usual case, asked of every partition in each report
		return nil
	}
	for name, r := range p.Routes {
		for _, used := range r.Uses {
			if why := used.Unready(); why != "" {
				out = append(out, subscribe.Unready{Namespace: name, Reason: why})
				break
			}
		}
	}
	slices.SortFunc(out, func(a, b subscribe.Unready) int { return strings.Compare(a.Namespace, b.Namespace) })
	return out
}

// change is one Apply.
type change struct {
	assembler  *Assembler
	fleet      *routing.Fleet
	shared     map[ident.Hash]map[string]subscribe.Object
	gone       []*routing.Route
	bounds     map[*limit.Limiter]limit.Bounds // to be set when the table is in effect
	rejections []*configv1.Rejection
	read       bool // a backend was read that was not known
}

// partition makes one partition anew; nil when it is no longer held.
func (c *change) partition(n ident.Partition, before *routing.Partition, state *subscribe.Partition) *routing.Partition {
	was := map[string]*routing.Route{}
	if before != nil {
		was = before.Routes
	}
	if state == nil {
		for _, r := range was {
			c.gone = append(c.gone, r)
		}
		return nil
	}
	next := &routing.Partition{
		Number: n, Root: state.Root, SharedRoot: state.SharedRoot, Snapshot: state.Snapshot, CommittedAt: state.CommittedAt,
		Traffic: c.assembler.trafficOf(n), Routes: make(map[string]*routing.Route, len(state.Members)),
	}
	shared := c.shared[state.SharedRoot]
	for resource, object := range state.Members {
		name, ok := strings.CutPrefix(resource, namespaceName)
		if !ok {
			c.reject(resource, object.Hash, "", "not a resource of a partition")
			continue
		}
		old := was[name]
		suspect := c.assembler.suspect[resource]
		delete(c.assembler.suspect, resource)
		if old != nil && !suspect && old.Config.Hash == object.Hash && current(old.Backends, shared) {
			next.Routes[name] = old
			continue
		}
		r, refusal := c.route(name, object, shared, old, n)
		if refusal != nil {
			c.reject(resource, object.Hash, refusal.field, refusal.reason)
			if r = old; r == nil {
				continue
			}
		}
		next.Routes[name] = r
	}
	for name, old := range was {
		if next.Routes[name] != old {
			c.gone = append(c.gone, old)
		}
	}
	return next
}

func (a *Assembler) trafficOf(n ident.Partition) *routing.Traffic {
	t := a.traffic[n]
	if t == nil {
		t = &routing.Traffic{}
		a.traffic[n] = t
	}
	return t
}

// current reports whether all objects are still the same in a shared set.
func current(origins []routing.Origin, shared map[string]subscribe.Object) bool {
	for _, o := range origins {
		if shared[o.Name].Hash != o.Hash {
			return false
		}
	}
	return true
}

func (c *change) reject(resource string, version ident.Hash, field, reason string) {
	c.rejections = append(c.rejections, &configv1.Rejection{Resource: resource, Version: version.String(), Field: field, Reason: reason})
	c.assembler.cfg.Logger.Warn("a resource is refused and goes on as it was",
		"resource", resource, "version", version.String(), "field", field, "reason", reason)
}

// bounds are a route's limits on one of so many owners.
func bounds(r *routing.Route, owners int) limit.Bounds {
	if r.SingleOwner {
		owners = 1
	}
	return limit.Bounds{Rate: float64(r.Rate) / float64(max(1, owners)), Concurrency: int64(r.Concurrency)}
}

// backend reads a backend of a shared set, once for all routes that use it.
func (c *change) backend(name string, o subscribe.Object) (*pool.Spec, error) {
	if b, ok := c.assembler.backends[o.Hash]; ok {
		return b, nil
	}
	message := &configv1.Backend{}
	if err := proto.Unmarshal(o.Data, message); err != nil {
		return nil, errors.New("the bytes of backend " + name + " are not a Backend")
	}
	b := &pool.Spec{
		Backend: message.GetName(), Type: message.GetType(), Endpoints: message.GetEndpoints(), Settings: message.GetConfig(),
		MaxConnections: int(message.GetPool().GetMaxConnections()), DialTimeout: message.GetPool().GetDialTimeout().AsDuration(), CredentialPath: message.GetCredentialPath(),
	}
	c.assembler.backends[o.Hash], c.read = b, true
	return b, nil
}

func fleetOf(a *configv1.Assignment, self string) *routing.Fleet {
	f := &routing.Fleet{Epoch: a.GetEpoch(), Self: -1}
	for i, m := range a.GetMembers() {
		f.Members = append(f.Members, routing.Peer{ID: m.GetId(), Address: m.GetAddress(), Draining: m.GetDraining()})
		if m.GetId() == self {
			f.Self = i
		}
	}
	for _, p := range a.GetPartitions() {
		f.Owners = append(f.Owners, p.GetOwners())
		f.Loading = append(f.Loading, p.GetLoading())
	}
	return f
}
