// Package memory keeps items in the proxy's own memory. It is the specification of the contract: what another driver
// does differently is that driver's defect.
//
// Each Open makes a store of its own, also under the same name, and its data dies with Close.
package memory

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/shared/fault"
)

// shards is how many locks the items are spread over: all items of one id are behind one.
const shards = 64

// Driver returns the driver.
func Driver() driver.Driver { return memory{} }

type memory struct{}

func (memory) Type() string { return "memory" }

func (memory) Interfaces() []string {
	return []string{
		"keyvalue", "keyvalue.counter", "keyvalue.idempotency", "keyvalue.large", "keyvalue.list", "keyvalue.scan",
		"keyvalue.transact", "keyvalue.ttl", "keyvalue.version", "keyvalue.watch",
	}
}

// Open makes an empty store. Settings: sweep, how often expired items are removed (default 10s).
func (memory) Open(cfg driver.Config) (driver.Instance, error) {
	i := &Instance{now: cfg.Now, seed: maphash.MakeSeed(), versions: driver.NewVersions(), stop: make(chan struct{})}
	if i.now == nil {
		i.now = time.Now
	}
	if len(cfg.Endpoints) != 0 {
		return nil, fmt.Errorf("backend %s: memory takes no endpoint", cfg.Name)
	}
	sweep := 10 * time.Second
	for name, value := range cfg.Settings {
		if name != "sweep" {
			return nil, fmt.Errorf("backend %s: unknown setting %q", cfg.Name, name)
		}
		var err error
		if sweep, err = time.ParseDuration(value); err != nil || sweep <= 0 {
			return nil, fmt.Errorf("backend %s: setting sweep %q: want a positive duration such as 10s", cfg.Name, value)
		}
	}
	for s := range i.shards {
		i.shards[s].ids, i.shards[s].tokens, i.shards[s].logs = map[string]*run{}, map[token]remembered{}, map[string]*log{}
	}
	i.done.Go(func() { i.sweeper(sweep) })
	return i, nil
}

// Instance is one store.
type Instance struct {
	now      func() time.Time
	seed     maphash.Seed
	versions *driver.Versions
	shards   [shards]shard

	closing sync.Once
	closed  atomic.Bool
	stop    chan struct{}
	done    sync.WaitGroup
}

// Ping answers while the store is open.
func (i *Instance) Ping(ctx context.Context) error { return i.usable(ctx) }

// Close ends the sweeper; no call finds the items any more.
func (i *Instance) Close() error {
	i.closing.Do(func() {
		i.closed.Store(true)
		close(i.stop)
		i.done.Wait()
	})
	return nil
}

// usable is the fault of a call that cannot begin, or nil.
func (i *Instance) usable(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fault.From(err).WithOutcome(fault.NotApplied)
	}
	if i.closed.Load() {
		return fault.New(fault.Unavailable, fault.Draining, "the backend is closed").WithOutcome(fault.NotApplied)
	}
	return nil
}

// place is where the items of an id are: its shard and its name there.
func (i *Instance) place(space driver.Space, id []byte) (*shard, string) {
	b := make([]byte, 0, 128)
	b = binary.AppendUvarint(b, uint64(len(space)))
	b = append(b, space...)
	b = append(b, id...)
	return &i.shards[maphash.Bytes(i.seed, b)%shards], string(b)
}

// sweeper removes expired items until Close, one shard at a time.
func (i *Instance) sweeper(every time.Duration) {
	t := time.NewTicker(max(every/shards, time.Microsecond))
	defer t.Stop()
	for s := 0; ; s = (s + 1) % shards {
		select {
		case <-i.stop:
			return
		case <-t.C:
			i.shards[s].sweep(i, i.now())
		}
	}
}

// Sweep removes all expired items now and says how many there were.
func (i *Instance) Sweep(ctx context.Context) (int, error) {
	n := 0
	for s := range i.shards {
		if err := i.usable(ctx); err != nil {
			return n, err
		}
		n += i.shards[s].sweep(i, i.now())
	}
	return n, nil
}
