package controller

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/release/gate"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
	"github.com/prism-gateway/prism/shared/telemetry"
)

// longestRetry bounds the waiting while the store does not take a step.
const longestRetry = 5 * time.Second

// Brake takes back what proxies refuse, at once and on whichever replica hears of it. Its methods may be called from any
// goroutine.
type Brake struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	wake    chan struct{}

	mu      sync.Mutex // guards waiting
	waiting []refusal
}

// refusal is what one proxy refused.
type refusal struct {
	proxy, build string
	partition    ident.Partition
	rejections   []*configv1.Rejection
	whole        string // why it refused all of the partition; empty when it did not
	at           time.Time
}

// NewBrake checks cfg and registers the metrics of releases. It does no I/O.
func NewBrake(cfg Config) (*Brake, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	m, err := newMetrics(cfg.Store, cfg.Registerer)
	if err != nil {
		return nil, err
	}
	return &Brake{cfg: cfg, log: cfg.Logger, metrics: m, wake: make(chan struct{}, 1)}, nil
}

// Refused takes note of what a proxy refused of a partition: single resources, and, unless whole is empty, everything,
// for that reason. It does not block.
func (b *Brake) Refused(proxy, build string, rejections []*configv1.Rejection, whole string, p ident.Partition) {
	b.mu.Lock()
	b.waiting = append(b.waiting, refusal{proxy: proxy, build: build, partition: p, rejections: rejections, whole: whole, at: time.Now()})
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default: // it is awake already
	}
}

// Run takes back what is refused until ctx ends, which is no error. It is for every replica.
func (b *Brake) Run(ctx context.Context) error {
	moved, stop := b.cfg.Store.Watch()
	defer stop()
	retry := time.NewTimer(longestRetry)
	defer retry.Stop()
	var refused []refusal // not dealt with yet
	after := time.Duration(0)
	for {
		select {
		case <-b.wake:
		case <-moved:
			b.metrics.count(b.cfg.Store)
			continue
		case <-retry.C:
		case <-ctx.Done():
			return nil
		}
		refused = append(refused, b.take()...)
		if len(refused) == 0 {
			continue
		}
		if err := b.obey(ctx, refused); err != nil {
			after = min(longestRetry, max(retryAfter/4, 2*after))
			retry.Reset(after)
			if ctx.Err() == nil {
				b.log.Warn("what proxies refuse was not taken back yet", telemetry.Error(err))
			}
			continue
		}
		refused, after = nil, 0
	}
}

func (b *Brake) take() []refusal {
	b.mu.Lock()
	defer b.mu.Unlock()
	taken := b.waiting
	b.waiting = nil
	return taken
}

// obey makes the steps that refusals call for, one for each release.
func (b *Brake) obey(ctx context.Context, refused []refusal) error {
	state := b.cfg.Store.Released()
	if state == nil {
		return nil
	}
	for _, r := range state.Active() {
		step := stepFor(state, r.GetSnapshot(), refused)
		if step.Do == 0 {
			continue
		}
		result, err := b.cfg.Store.Step(ctx, func(s *release.State) (release.Step, error) {
			if step = stepFor(s, r.GetSnapshot(), refused); step.Do == 0 {
				return step, errMoved // nothing of it is pending any more
			}
			return step, nil
		})
		if f := fault.From(err); err != nil && f.Reason != fault.Release && err != errMoved {
			return err
		}
		if err != nil || !result.Changed {
			continue
		}
		b.metrics.took.Observe(time.Since(refused[0].at).Seconds())
		b.log.Warn("release takes back what is refused", "snapshot", r.GetSnapshot(), "by_snapshot", result.Snapshot.GetVersion(),
			"all", step.Do == release.TakeBack, "objects", len(step.Objects), telemetry.KeyReason, step.Reason)
	}
	return nil
}

// stepFor is what refusals call for in one release; the zero Step when it does not hold what they are about.
func stepFor(s *release.State, snapshot uint64, refused []refusal) release.Step {
	step := release.Step{Release: snapshot}
	known := map[string]bool{}
	for _, f := range refused {
		if f.whole != "" && concerns(s, snapshot, f.partition) {
			step.Do, step.Objects = release.TakeBack, nil
			step.Reason = fmt.Sprintf("%s refused all of %s: %s", f.proxy, f.partition, f.whole)
			if f.build != "" {
				step.Reason += " (build " + f.build + ")"
			}
			return step
		}
		for _, r := range f.rejections {
			name := r.GetResource()
			if known[name] || !holds(s, snapshot, r) {
				continue
			}
			known[name] = true
			if step.Do == 0 {
				step.Reason = f.proxy + " refused " + gate.Refusal(r, f.build)
			}
			step.Do = release.Eject
			step.Objects = append(step.Objects, release.Ejected{Name: name, Rejection: r, Proxy: f.proxy, Build: f.build})
		}
	}
	if more := len(step.Objects) - 1; more > 0 {
		step.Reason = fmt.Sprintf("%s (and %d more)", step.Reason, more)
	}
	return step
}

// holds reports whether an object is pending in a release in the version that was rejected.
func holds(s *release.State, snapshot uint64, r *configv1.Rejection) bool {
	of, ok := s.Of(r.GetResource())
	if !ok || of.GetSnapshot() != snapshot {
		return false
	}
	newest, there := s.Head().Object(r.GetResource())
	return r.GetVersion() == "" || there && newest.Hash.String() == r.GetVersion()
}

// concerns reports whether a release under way concerns a partition and has begun there.
func concerns(s *release.State, snapshot uint64, p ident.Partition) bool {
	r, ok := s.Release(snapshot)
	if !ok || r.GetWave() == 0 {
		return false
	}
	for _, q := range s.Concerned(snapshot) {
		if q == p {
			return true
		}
	}
	return false
}
