package fleet

import (
	"bytes"
	"context"
	"sync"
	"time"

	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"

	"github.com/prism-gateway/prism/shared/ident"
)

const (
	// driftLook is how often cells that have changed are looked at.
	driftLook = 500 * time.Millisecond
	// driftPatience is for how long a proxy may serve another state than it accepted: the two are told on two streams.
	driftPatience = 5 * time.Second
	// driftRetry is after how long a partition is sent in full again when that has not helped.
	driftRetry = 30 * time.Second
)

// drift is what proxies serve that is not what they ought to have by what they accepted.
type drift struct {
	mu       sync.Mutex // guards suspects
	suspects map[cellKey]*suspect
}

// cellKey is one partition on one proxy.
type cellKey struct {
	partition ident.Partition
	proxy     string
}

// suspect is a cell that may have drifted.
type suspect struct {
	since    time.Time
	names    int // of resources that the proxy says have drifted; 0: it serves another state than it accepted
	repaired time.Time
}

// certain reports whether the cell has drifted: a proxy that says so itself is believed.
func (s *suspect) certain(now time.Time) bool { return s.names > 0 || now.Sub(s.since) > driftPatience }

// count is how many resources have drifted.
func (d *drift) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, now := 0, time.Now()
	for _, s := range d.suspects {
		if s.certain(now) {
			n += max(1, s.names)
		}
	}
	return n
}

// has reports whether a cell has drifted.
func (d *drift) has(p ident.Partition, proxy string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.suspects[cellKey{p, proxy}]
	return s != nil && s.certain(time.Now())
}

// repair looks for drift in what proxies report to this replica, and has it repaired, until ctx ends.
func (f *Fleet) repair(ctx context.Context) {
	changed := f.here.followAll()
	defer f.here.end(changed)
	look := time.NewTicker(driftLook)
	defer look.Stop()
	for {
		select {
		case now := <-look.C:
			for _, p := range f.here.take(changed) {
				f.suspect(p, now)
			}
			for key, names := range f.drift.due(now) {
				f.log.Warn("a proxy serves what has drifted; it is sent the partition in full",
					"proxy", key.proxy, "partition", key.partition.String(), "resources", names)
				f.metrics.resyncs.Inc()
				f.resync(ctx, key)
			}
		case <-ctx.Done():
			return
		}
	}
}

// suspect looks at a partition of which something has changed.
func (f *Fleet) suspect(p ident.Partition, now time.Time) {
	cells := f.local(p)
	f.drift.mu.Lock()
	defer f.drift.mu.Unlock()
	for key := range f.drift.suspects {
		if key.partition == p && cells[key.proxy] == nil {
			delete(f.drift.suspects, key)
		}
	}
	for proxy, c := range cells {
		key := cellKey{p, proxy}
		if len(c.GetDrifted()) == 0 && !diverged(c) {
			delete(f.drift.suspects, key)
			continue
		}
		s := f.drift.suspects[key]
		if s == nil {
			s = &suspect{since: now}
			f.drift.suspects[key] = s
		}
		s.names = len(c.GetDrifted())
	}
}

// diverged reports whether a cell serves another state than it accepted, where both are known.
func diverged(c *controlv1.CellState) bool {
	return len(c.GetAcceptedRoot()) > 0 && reported(c) &&
		(!bytes.Equal(c.GetAcceptedRoot(), c.GetServingRoot()) || !bytes.Equal(c.GetAcceptedSharedRoot(), c.GetServingSharedRoot()))
}

// due are the cells to repair now, with how many resources in each have drifted.
func (d *drift) due(now time.Time) map[cellKey]int {
	d.mu.Lock()
	defer d.mu.Unlock()
	var due map[cellKey]int
	for key, s := range d.suspects {
		if !s.certain(now) || now.Sub(s.repaired) < driftRetry {
			continue
		}
		s.repaired = now
		if due == nil {
			due = map[cellKey]int{}
		}
		due[key] = s.names
	}
	return due
}

// resync has a partition sent to a proxy in full, by the replica that its stream is at.
func (f *Fleet) resync(ctx context.Context, key cellKey) {
	if f.cfg.Resync == nil || f.cfg.Resync(key.proxy, key.partition) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, peerPatience)
	defer cancel()
	request := &controlv1.ResyncRequest{Proxy: key.proxy, Partition: uint32(key.partition)}
	for id, client := range f.peers.clients() {
		if out, err := client.Resync(ctx, request); err != nil {
			f.log.Warn("another replica was not asked to send a partition in full", "replica", id, "error", err)
		} else if out.GetAsked() {
			return
		}
	}
}

// Resync has a partition sent in full to a proxy whose stream is at this replica.
func (f *Fleet) Resync(_ context.Context, in *controlv1.ResyncRequest) (*controlv1.ResyncResponse, error) {
	if err := f.checkPartition(in.GetPartition()); err != nil {
		return nil, invalid("partition", err)
	}
	return &controlv1.ResyncResponse{Asked: f.cfg.Resync != nil && f.cfg.Resync(in.GetProxy(), ident.Partition(in.GetPartition()))}, nil
}
