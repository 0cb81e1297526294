package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/prism-gateway/prism/e2e/harness"
	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"
)

// report is the part of prism-proxy's reports that is used here.
type report struct {
	Connected    int     `json:"connected"`
	Owning       int     `json:"owning"`
	Cells        int     `json:"cells"`
	Snapshot     uint64  `json:"snapshot"`
	Resources    uint64  `json:"resources"`
	Resumed      uint64  `json:"resumed_resources"`
	ResumedBytes uint64  `json:"resumed_bytes"`
	AskedMax     uint64  `json:"asked_bytes_max"`
	Received     uint64  `json:"received_bytes"`
	Nacks        uint64  `json:"nacks"`
	Reconnects   uint64  `json:"reconnects"`
	Away         latency `json:"away"`
	Everywhere   latency `json:"everywhere"`

	Snapshots []spread `json:"snapshots"`
}

type latency struct {
	Count uint64  `json:"count"`
	P50   float64 `json:"p50_seconds"`
	P99   float64 `json:"p99_seconds"`
	Max   float64 `json:"max_seconds"`
}

func (l latency) times() (p50, p99, highest time.Duration) {
	return seconds(l.P50), seconds(l.P99), seconds(l.Max)
}

// spread is how a snapshot came into effect.
type spread struct {
	Snapshot  uint64    `json:"snapshot"`
	Committed time.Time `json:"committed_at"`
	Cells     int       `json:"cells"`
	First     time.Time `json:"first_at"`
	Last      time.Time `json:"last_at"`
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// simulator is a process of simulated proxies, and what it has told.
type simulator struct {
	*harness.Process
	r       *run
	proxies int

	mu      sync.Mutex // guards what follows
	last    report
	spreads map[uint64]spread
}

// simulate starts proxies at all replicas of a cluster. They end with the part.
func (r *run) simulate(c *harness.Cluster, name string, proxies int, more ...string) *simulator {
	args := []string{"simulate", "-o", "json", "--proxies", strconv.Itoa(proxies), "--id-prefix", name + "-"}
	for _, a := range c.Admins {
		args = append(args, "--admin-endpoint", a.FleetAddress)
	}
	s := &simulator{r: r, proxies: proxies, spreads: map[uint64]spread{}}
	s.Process = harness.Run(r, c.Dir, name, harness.Program(r, "bin/prism-proxy", "make build"), append(args, more...)...)
	stop := make(chan struct{})
	done := make(chan struct{})
	r.Cleanup(func() { close(stop); <-done })
	go func() { defer close(done); s.follow(filepath.Join(c.Dir, name+".log"), stop) }()
	return s
}

// follow reads what the process writes until stop.
func (s *simulator) follow(path string, stop <-chan struct{}) {
	f, err := os.Open(path)
	if err != nil {
		s.r.Logf("%v", err)
		return
	}
	defer f.Close()
	lines, rest := bufio.NewReaderSize(f, 1<<20), ""
	for {
		line, err := lines.ReadString('\n')
		rest += line
		if errors.Is(err, io.EOF) {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond): // the other side is another program: there is no channel to wait on
			}
			continue
		}
		s.take(rest)
		rest = ""
	}
}

// take notes one line. What is no report is what the program complains of.
func (s *simulator) take(line string) {
	var r report
	if err := json.Unmarshal([]byte(line), &r); err != nil {
		s.r.Logf("simulate: %s", line)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = r
	for _, sp := range r.Snapshots {
		if former, ok := s.spreads[sp.Snapshot]; ok { // the rest of it came later
			sp.Cells += former.Cells
			sp.First = former.First
		}
		s.spreads[sp.Snapshot] = sp
	}
}

func (s *simulator) report() report {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

// await waits until a report satisfies ok.
func (s *simulator) await(within time.Duration, what string, ok func(report) error) {
	harness.Eventually(s.r, within, what, func() error { return ok(s.report()) })
}

// spread returns how a snapshot came into effect. One whose cells were all given a newer one at once is that newer one.
func (s *simulator) spread(snapshot, newest uint64) (spread, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ; snapshot <= newest; snapshot++ {
		if sp, ok := s.spreads[snapshot]; ok {
			return sp, true
		}
	}
	return spread{}, false
}

// awaitSpread waits until a snapshot is everywhere.
func (s *simulator) awaitSpread(within time.Duration, snapshot uint64) spread {
	var out spread
	harness.Eventually(s.r, within, "snapshot in effect", func() error {
		var ok bool
		if out, ok = s.spread(snapshot, snapshot); !ok {
			return errors.New("it is not everywhere yet")
		}
		return nil
	})
	return out
}

// settledWith waits until no partition moves any more after another process of proxies has come.
func (s *simulator) settledWith(c *harness.Cluster, other *simulator) {
	harness.Eventually(s.r, patience, "partitions settled", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		out, err := c.Admin().Operator.ListProxies(ctx, &adminv1.ListProxiesRequest{PageSize: 1})
		if cells := s.report().Cells + other.report().Cells; err == nil && (out.GetMoving() || cells != 3*1024) {
			err = fmt.Errorf("moving %v, %d cells", out.GetMoving(), cells)
		}
		return err
	})
}
