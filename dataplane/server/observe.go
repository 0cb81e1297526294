package server

import (
	"encoding/json"
	"maps"
	"net/http"
	"runtime/metrics"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/prism-gateway/prism/dataplane/breaker"
	"github.com/prism-gateway/prism/dataplane/pool"
	"github.com/prism-gateway/prism/dataplane/subscribe"
	"github.com/prism-gateway/prism/shared/ident"
	"github.com/prism-gateway/prism/shared/lifecycle"
)

// facts are what the fleet is told of the proxy.
type facts struct{ s *Server }

// Readiness is whether the proxy takes calls, and how many.
func (f facts) Readiness() subscribe.Readiness {
	state, _ := f.s.ready.State()
	return subscribe.Readiness{
		Ready: state.Ready, Reasons: state.Reasons(), Draining: f.s.draining.Load(),
		CallsPerSecond: f.s.rate.of(f.s.metrics.Calls(), time.Now()), Load: f.s.load(),
	}
}

// Traffic counts the calls of a partition that this proxy answered.
func (f facts) Traffic(n ident.Partition) subscribe.Traffic {
	p := f.s.routes.Current().Partition(n)
	if p == nil {
		return subscribe.Traffic{}
	}
	t := subscribe.Traffic{Since: f.s.since}
	t.Calls, t.Failed, t.Took = p.Traffic.Totals()
	return t
}

// load is what the proxy carries.
func (s *Server) load() subscribe.Load {
	l := subscribe.Load{
		CallsInFlight: uint64(max(s.metrics.UnderWay(), 0)), Connections: uint32(max(s.connections.open.Load(), 0)),
	}
	sample := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(sample)
	l.MemoryBytes = sample[0].Value.Uint64() - sample[1].Value.Uint64()
	l.CPU = cpuTime()
	return l
}

// Unready lists the namespaces of a partition that cannot serve.
func (f facts) Unready(n ident.Partition) []subscribe.Unready { return f.s.assembly.Unready(n) }

// following is how new the configuration here is.
func (s *Server) following() lifecycle.Following {
	status := s.client.Status()
	f := lifecycle.Following{Who: status.Endpoint, Since: status.ConnectedSince, Heard: status.Heard, Revision: status.Revision}
	for _, c := range status.Cells {
		f.Snapshot = max(f.Snapshot, c.Snapshot)
	}
	return f
}

// rate turns a count into a rate. Looks that follow each other closely get the rate of the last whole stretch.
type rate struct {
	mu    sync.Mutex // guards what follows
	count uint64
	at    time.Time
	last  float64
}

func (r *rate) of(count uint64, now time.Time) float64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	passed := now.Sub(r.at).Seconds()
	if passed < 0.5 {
		return r.last
	}
	if !r.at.IsZero() {
		r.last = float64(count-r.count) / passed
	}
	r.count, r.at = count, now
	return r.last
}

var (
	swapsDesc     = prometheus.NewDesc("prism_proxy_table_swaps_total", "Tables put into effect.", nil, nil)
	ageDesc       = prometheus.NewDesc("prism_proxy_table_age_seconds", "Time since the table in effect came into effect.", nil, nil)
	undrainedDesc = prometheus.NewDesc("prism_proxy_tables_undrained", "Replaced tables that calls may still use.", nil, nil)
	poolsDesc     = prometheus.NewDesc("prism_proxy_pools", "Open backends, by type and state.", []string{"type", "state"}, nil)
	breakersDesc  = prometheus.NewDesc("prism_proxy_breakers_open", "Backends whose calls are refused because they do not answer, by type.", []string{"type"}, nil)
	grantedDesc   = prometheus.NewDesc("prism_proxy_pool_connections", "Connections granted to the credentials of a backend's callers.", []string{"backend"}, nil)
	budgetDesc    = prometheus.NewDesc("prism_proxy_pool_connections_limit", "The most connections that the credentials of a backend's callers may have together.", []string{"backend"}, nil)
	openDesc      = prometheus.NewDesc("prism_proxy_pool_credentials", "Credentials that have connections to a backend, or wait for some.", []string{"backend"}, nil)
	peersDesc     = prometheus.NewDesc("prism_proxy_peer_connections", "Connections to other proxies.", nil, nil)
)

// collector reads metrics of things that keep their own count.
type collector struct{ server *Server }

// Describe names the metrics.
func (c *collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{swapsDesc, ageDesc, undrainedDesc, poolsDesc, breakersDesc, peersDesc, grantedDesc, budgetDesc, openDesc} {
		out <- d
	}
}

// Collect reads them.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	s := c.server
	out <- prometheus.MustNewConstMetric(swapsDesc, prometheus.CounterValue, float64(s.routes.Swaps()))
	out <- prometheus.MustNewConstMetric(ageDesc, prometheus.GaugeValue, time.Since(s.routes.Current().Published()).Seconds())
	out <- prometheus.MustNewConstMetric(undrainedDesc, prometheus.GaugeValue, float64(s.routes.Undrained()))
	out <- prometheus.MustNewConstMetric(peersDesc, prometheus.GaugeValue, float64(s.forward.Connections()))
	type label struct {
		backendType string
		state       pool.State
	}
	counts, refusing := map[label]int{}, map[string]int{}
	for _, p := range s.pools.Snapshot() {
		counts[label{p.Type, p.Status.State}]++
		if refusing[p.Type] += 0; p.Breaker != breaker.Closed {
			refusing[p.Type]++
		}
	}
	for backendType, n := range refusing {
		out <- prometheus.MustNewConstMetric(breakersDesc, prometheus.GaugeValue, float64(n), backendType)
	}
	for l, n := range counts {
		out <- prometheus.MustNewConstMetric(poolsDesc, prometheus.GaugeValue, float64(n), l.backendType, l.state.String())
	}
	for backend, b := range s.pools.Budgets() {
		out <- prometheus.MustNewConstMetric(grantedDesc, prometheus.GaugeValue, float64(b.Connections), backend)
		out <- prometheus.MustNewConstMetric(budgetDesc, prometheus.GaugeValue, float64(b.Limit), backend)
		out <- prometheus.MustNewConstMetric(openDesc, prometheus.GaugeValue, float64(b.Credentials), backend)
	}
}

// dump is what /config_dump answers. It names backends and never where they are or what opens them.
type dump struct {
	Proxy        string          `json:"proxy"`
	Epoch        uint64          `json:"epoch"`
	TableSwaps   uint64          `json:"table_swaps"`
	PublishedAt  time.Time       `json:"published_at"`
	StaleSeconds float64         `json:"stale_seconds"`
	Pools        []dumpPool      `json:"pools"`
	Partitions   []dumpPartition `json:"partitions"`
}

type dumpPool struct {
	Backend string    `json:"backend"`
	Type    string    `json:"type"`
	State   string    `json:"state"`
	Reason  string    `json:"reason,omitempty"`
	Breaker string    `json:"breaker"`
	Since   time.Time `json:"since"`
	Routes  int       `json:"routes"`
}

type dumpPartition struct {
	Partition  string          `json:"partition"`
	Rank       int             `json:"rank"` // -1: not an owner
	Root       string          `json:"root"`
	SharedRoot string          `json:"shared_root"`
	Snapshot   uint64          `json:"snapshot"`
	Namespaces []dumpNamespace `json:"namespaces"`
}

type dumpNamespace struct {
	Name        string   `json:"name"`
	Version     string   `json:"version"`
	Backends    []string `json:"backends"`
	Interfaces  []string `json:"interfaces,omitempty"`
	SingleOwner bool     `json:"single_owner,omitempty"`
	Draining    bool     `json:"draining,omitempty"`
	CallsNow    int64    `json:"calls_under_way"`
}

func (s *Server) configDump(w http.ResponseWriter, _ *http.Request) {
	t := s.routes.Current()
	d := dump{
		Proxy: s.cfg.Settings.GetId(), TableSwaps: s.routes.Swaps(), PublishedAt: t.Published(),
		StaleSeconds: s.client.Staleness().Seconds(), Pools: []dumpPool{}, Partitions: []dumpPartition{},
	}
	for _, p := range s.pools.Snapshot() {
		d.Pools = append(d.Pools, dumpPool{p.Backend, p.Type, p.Status.State.String(), p.Status.Reason, p.Breaker.String(), p.Status.Since, p.Routes})
	}
	slices.SortFunc(d.Pools, func(a, b dumpPool) int { return strings.Compare(a.Backend, b.Backend) })
	for n := range t.Count() {
		p := t.Partition(ident.Partition(n))
		if p == nil {
			continue
		}
		one := dumpPartition{
			Partition: p.Number.String(), Rank: t.Fleet().Rank(p.Number), Root: p.Root.String(), SharedRoot: p.SharedRoot.String(),
			Snapshot: p.Snapshot, Namespaces: []dumpNamespace{},
		}
		for _, name := range slices.Sorted(maps.Keys(p.Routes)) {
			r := p.Routes[name]
			ns := dumpNamespace{Name: name, Version: r.Version, SingleOwner: r.SingleOwner, Draining: r.Draining, CallsNow: r.Limits.Underway()}
			for _, b := range r.Backends {
				ns.Backends = append(ns.Backends, b.Name)
			}
			if r.KeyValue != nil {
				ns.Interfaces = r.KeyValue.Interfaces()
			}
			one.Namespaces = append(one.Namespaces, ns)
		}
		d.Partitions = append(d.Partitions, one)
	}
	if t.Fleet() != nil {
		d.Epoch = t.Fleet().Epoch
	}
	w.Header().Set("Content-Type", "application/json")
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	_ = encoder.Encode(d) // the reader went away
}
