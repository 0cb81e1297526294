// Command soak runs a whole Prism for a long time, breaks it in every way that the harness can, and checks all along
// that what Prism promises holds:
//
//   - A data call fails only in ways that trying again excuses: it answers UNAVAILABLE, or nothing within its deadline of
//     3 s, and succeeds through some proxy within 30 s. A read returns the last acknowledged value, or one whose write
//     nobody was told the outcome of, and never another namespace's or key's.
//   - Each acknowledged change of a namespace is in the history exactly once, each refused one never, and every
//     namespace's history is linearizable.
//   - No cell serves what a release has not brought to its rank.
//   - When the faults have ended, every proxy's roots are those of the control plane.
//   - No program grows without bound, panics or, when built for it, has a data race.
//
// The seed that it prints gives the same choices again, not the same interleaving.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/prism-gateway/prism/e2e/harness"
	bootstrapv1 "github.com/prism-gateway/prism/protos/prism/bootstrap/v1"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	"github.com/prism-gateway/prism/shared/testserver/redisserver"
)

func main() {
	duration := flag.Duration("duration", 30*time.Minute, "how long faults go on")
	seed := flag.Uint64("seed", uint64(time.Now().UnixNano()), "of the choices")
	race := flag.Bool("race", false, "build the programs with the race detector")
	hosts := flag.Bool("hosts", false, "give every program a network namespace of its own instead of links that break; needs root and iproute2")
	only := flag.String("only", "", "break the cluster in this way only")
	flag.Parse()
	fmt.Printf("soak: %v, seed %d\n", *duration, *seed)
	s := &soak{seed: *seed}
	if !s.Do(func() { s.run(*duration, *race, *hosts, *only) }) || s.report() > 0 {
		fmt.Printf("soak: failed, seed %d\n", *seed)
		os.Exit(1)
	}
	fmt.Println("soak: all held")
}

// soak is one run.
type soak struct {
	harness.Bench
	seed    uint64
	cluster *harness.Cluster
	hosts   *harness.Hosts // nil: all on loopback, with links

	mu       sync.Mutex // guards what follows
	proxies  []*harness.Proxy
	problems []string
	counts   map[string]int
}

// bad notes that something did not hold.
func (s *soak) bad(format string, args ...any) {
	text := time.Now().UTC().Format("15:04:05 ") + fmt.Sprintf(format, args...)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.problems = append(s.problems, text); len(s.problems) <= 100 {
		fmt.Println("PROBLEM", text)
	}
}

// count counts what was done, to be printed at the end.
func (s *soak) count(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts[what]++
}

// takers are the proxies that take calls or did.
func (s *soak) takers() []*harness.Proxy {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.proxies
}

// Failed reports whether something did not hold, so that the programs' last words are shown.
func (s *soak) Failed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.Bench.Failed() || len(s.problems) > 0
}

func (s *soak) report() int {
	fmt.Printf("soak: %v\n%d problems\n", s.counts, len(s.problems))
	return len(s.problems)
}

const (
	proxies    = 4
	partitions = 64
	dataSpaces = 12
)

func (s *soak) run(duration time.Duration, race, hosts bool, only string) {
	s.counts = map[string]int{}
	redis := redisserver.Start(s, redisserver.Options{}).Addr()
	if hosts {
		s.hosts = harness.NewHosts(s)
		redis = harness.NewRelayAt(s, s.hosts.Gateway, redis).Address
	}
	soakTime := durationpb.New(1500 * time.Millisecond)
	waves := &configv1.ReleasePolicy{FirstPercent: 20, Soak: soakTime, Silence: durationpb.New(8 * time.Second), MaxFailedPoints: 50, MaxLatencyFactor: 1000}
	options := harness.Options{
		Admins: 3, Etcd: 3, Proxies: proxies, Validators: 1, Partitions: partitions, Relays: !hosts, Hosts: s.hosts,
		Backends: []*configv1.Backend{
			{Name: "redis-main", Type: "redis", Endpoints: []string{redis}},
			{Name: "sqlite-bad", Type: "sqlite", Endpoints: []string{"/nonexistent-directory/of/prism.db"}},
		},
		Configure: func(c *bootstrapv1.AdminConfig) {
			c.Release = &bootstrapv1.ReleaseConfig{Scoped: waves, Shared: waves, Rollback: waves}
			c.History = &bootstrapv1.HistoryConfig{Snapshots: 100_000}
		},
	}
	if race {
		options.AdminProgram = s.build("./controlplane/cmd/prism-admin")
		options.ProxyProgram = s.build("./dataplane/cmd/prism-proxy")
	}
	s.cluster = harness.Start(s, options)
	s.proxies = append(s.proxies, s.cluster.Proxies...)
	s.work(duration, only)
	s.readLogs()
}

func (s *soak) build(pkg string) string {
	return harness.Build(s, filepath.Join(s.TempDir(), filepath.Base(pkg)), pkg, "-race")
}

// readLogs looks for what no program may ever print.
func (s *soak) readLogs() {
	for _, p := range s.programs() {
		for _, never := range []string{"WARNING: DATA RACE", "panic: ", "fatal error: ", "goroutine 1 ["} {
			if log := p.Log(); bytes.Contains(log, []byte(never)) {
				at := bytes.Index(log, []byte(never))
				s.bad("%s: %s", p.Name(), log[at:min(len(log), at+3000)])
			}
		}
	}
}

func (s *soak) programs() (all []*harness.Process) {
	for _, a := range s.cluster.Admins {
		all = append(all, a.Process)
	}
	for _, p := range append(s.takers(), s.cluster.Validators...) {
		all = append(all, p.Process)
	}
	return all
}

func onRedis(name string) *configv1.NamespaceRequest { return request(name, "redis-main", "redis") }

func request(name, backend, backendType string) *configv1.NamespaceRequest {
	return &configv1.NamespaceRequest{Namespace: name, Team: "soak", Patterns: []*configv1.Pattern{{
		Name: "data", Type: "keyvalue", Needs: &configv1.Needs{Durability: configv1.Durability_DURABILITY_RELAXED},
		Slots: []*configv1.Slot{{Name: "storage-" + backendType, Prefer: &configv1.Preference{Backend: backend}}},
	}}}
}

func atOnce() *controlv1.ReleaseOptions { return &controlv1.ReleaseOptions{AtOnce: true} }
