package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prism-gateway/prism/e2e/harness"
	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"
)

const (
	look = 1500 * time.Millisecond
	// lag is how many looks in a row a cell may be ahead: one that changes its rank is told so before it is given what
	// belongs to it.
	lag = 3
)

// underWay is a version of a namespace that a release brings.
type underWay struct {
	release uint64
	wave    uint32
}

// watchCells checks that no cell serves what its release has not brought to its rank.
func (s *soak) watchCells(ctx context.Context) {
	every := time.NewTicker(look)
	defer every.Stop()
	ahead := map[string]int{} // by proxy, epoch and version: looks in a row
	for {
		select {
		case <-ctx.Done():
			return
		case <-every.C:
		}
		dumps := map[*harness.Proxy]harness.Dump{}
		for _, p := range append(s.takers(), s.cluster.Validators...) {
			if d, err := p.Dump(); err == nil {
				dumps[p] = d
			}
		}
		releases, err := s.releases(ctx) // after the dumps, so that what they reached is not missed
		if err != nil {
			continue // a replica that is away may have gone further than the others know
		}
		now := map[string]int{}
		for p, d := range dumps {
			validator := slices.Contains(s.cluster.Validators, p)
			for _, part := range d.Partitions {
				for _, ns := range part.Namespaces {
					u, ok := releases[ns.Name+" "+ns.Version]
					if !ok {
						continue
					}
					if u.wave >= waveOf(validator, part.Rank) {
						s.count("cells seen serving a release under way")
						continue
					}
					key := fmt.Sprintf("%s %d %s", p.ID, d.Epoch, ns.Version)
					if now[key] = ahead[key] + 1; now[key] == lag {
						s.bad("%s, rank %d of %s, serves %s of release %d, which is at wave %d", p.ID, part.Rank, part.Partition, ns.Name, u.release, u.wave)
					}
				}
			}
		}
		ahead = now
	}
}

// waveOf is the first wave that may reach a cell.
func waveOf(validator bool, rank int) uint32 {
	switch {
	case validator:
		return 1
	case rank == 0:
		return 2
	case rank == 1:
		return 4
	}
	return 5
}

// releases returns what is under way, by namespace and version, each as far as the replica that is farthest knows. It
// fails unless all answer.
func (s *soak) releases(ctx context.Context) (map[string]underWay, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	found := map[string]underWay{}
	ended := map[uint64]bool{}
	waves := map[uint64]uint32{}
	for _, a := range s.cluster.Admins {
		out, err := a.Operator.ListReleases(ctx, &adminv1.ListReleasesRequest{PageSize: 100})
		if err != nil {
			return nil, err
		}
		for _, r := range out.GetReleases() {
			waves[r.GetSnapshot()] = max(waves[r.GetSnapshot()], r.GetWave())
			ended[r.GetSnapshot()] = ended[r.GetSnapshot()] || r.GetEndedAt() != nil
		}
	}
	for release, wave := range waves {
		if ended[release] {
			continue
		}
		out, err := s.cluster.Admins[0].Operator.GetSnapshot(ctx, &adminv1.GetSnapshotRequest{Version: release})
		if err != nil {
			return nil, err
		}
		for _, c := range out.GetSnapshot().GetChanges() {
			if name, ok := strings.CutPrefix(c.GetName(), "ns/"); ok && c.GetKind() == "update" && strings.HasPrefix(c.GetMessage(), inWaves) {
				found[name+" "+c.GetAfter()] = underWay{release, wave}
			}
		}
	}
	return found, nil
}

// size is what a program takes.
type size struct{ rss, goroutines int64 }

const (
	mostRSS        = 600 << 20
	mostGoroutines = 5000
)

// watchSizes notes what programs take, and checks that it stays below what no program of this size of cluster needs.
func (s *soak) watchSizes(ctx context.Context) {
	every := time.NewTicker(10 * time.Second)
	defer every.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-every.C:
		}
		for name, now := range s.sizes() {
			if now.rss > mostRSS || now.goroutines > mostGoroutines {
				s.bad("%s takes %d MiB and %d goroutines", name, now.rss>>20, now.goroutines)
			}
		}
	}
}

func (s *soak) sizes() map[string]size {
	addresses := map[string]string{}
	for _, a := range s.cluster.Admins {
		addresses[a.Name()] = a.HTTPAddress
	}
	for _, p := range append(s.takers(), s.cluster.Validators...) {
		addresses[p.Name()] = p.HTTPAddress
	}
	found := map[string]size{}
	for _, p := range s.programs() {
		rss, err := harness.RSS(p.Pid())
		if err != nil || !p.Running() {
			continue
		}
		goroutines, err := metric(addresses[p.Name()], "go_goroutines")
		if err != nil {
			continue // it is frozen or about to start
		}
		found[p.Name()] = size{rss, goroutines}
	}
	return found
}

func metric(address, name string) (int64, error) {
	client := http.Client{Timeout: time.Second}
	resp, err := client.Get("http://" + address + "/metrics")
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(body)) {
		if text, ok := strings.CutPrefix(line, name+" "); ok {
			return strconv.ParseInt(strings.TrimSpace(text), 10, 64)
		}
	}
	return 0, errors.New(name + " is not there")
}

// rootsAgree fails unless every proxy that runs serves what the control plane wants it to, and owns something.
func (s *soak) rootsAgree(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for _, p := range append(s.takers(), s.cluster.Validators...) {
		if !p.Running() {
			continue
		}
		want, err := s.cluster.Admins[0].Operator.GetProxy(ctx, &adminv1.GetProxyRequest{Id: p.ID})
		if err != nil {
			return err
		}
		got, err := p.Dump()
		if err != nil {
			return err
		}
		roots := map[string]string{}
		for _, part := range got.Partitions {
			roots[part.Partition] = part.Root
		}
		if len(want.GetPartitions()) == 0 {
			return fmt.Errorf("%s has no partitions", p.ID)
		}
		for _, part := range want.GetPartitions() {
			name := fmt.Sprintf("p/%04d", part.GetPartition())
			if roots[name] != part.GetWantRoot() || part.GetServingRoot() != part.GetWantRoot() {
				return fmt.Errorf("%s serves %q of %s and says %q; %q is wanted", p.ID, roots[name], name, part.GetServingRoot(), part.GetWantRoot())
			}
		}
	}
	return nil
}
