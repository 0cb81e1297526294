// Package lifecycle starts the parts of a program in order, stops them in reverse, and says whether the program is ready.
package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"
)

// Part is one thing that runs for as long as the program does.
type Part struct {
	// Name is for logs and errors.
	Name string
	// Run blocks until ctx is done and returns after its last goroutine has. Returning before is a failure, also
	// without an error.
	Run func(ctx context.Context) error
	// Started blocks until what comes after this part may start. Nil: at once.
	Started func(ctx context.Context) error
	// Drain finishes what is under way before Run's context ends; its own ends with the time to stop. Nil: nothing to
	// finish.
	Drain func(ctx context.Context) error
}

// Config configures a Group.
type Config struct {
	Log *slog.Logger // required
	// StopTimeout is how long all parts together may take to drain and stop; 0 means 10 s.
	StopTimeout time.Duration
}

// Group runs parts.
type Group struct {
	cfg   Config
	parts []Part
}

// New makes a group of parts, which start in this order.
func New(cfg Config, parts ...Part) (*Group, error) {
	if cfg.Log == nil {
		return nil, errors.New("lifecycle: Config.Log is required")
	}
	for _, p := range parts {
		if p.Name == "" || p.Run == nil {
			return nil, fmt.Errorf("lifecycle: part %q needs a name and Run", p.Name)
		}
	}
	if cfg.StopTimeout == 0 {
		cfg.StopTimeout = 10 * time.Second
	}
	return &Group{cfg: cfg, parts: parts}, nil
}

// running is a part that was started.
type running struct {
	Part
	cancel context.CancelFunc
	done   chan struct{}
	err    error // after done
}

// Run starts the parts and blocks until ctx is done or a part fails; then it stops those that were started, the last
// first. It returns what failed first, and parts that did not stop in time; nil after an orderly stop.
func (g *Group) Run(ctx context.Context) error {
	ended := make(chan *running, len(g.parts))
	var started []*running
	failure := func() error {
		for _, p := range g.parts {
			if ctx.Err() != nil {
				return nil // told to stop while starting
			}
			r := g.start(ctx, p, ended)
			started = append(started, r)
			if err := g.await(ctx, r, ended); err != nil {
				return err
			}
			g.cfg.Log.DebugContext(ctx, "part started", slog.String("part", p.Name))
		}
		select {
		case <-ctx.Done():
			return nil
		case r := <-ended:
			return r.failure()
		}
	}()
	if failure == nil {
		g.cfg.Log.InfoContext(ctx, "told to stop", slog.Any("cause", context.Cause(ctx))) // which signal it was
	}
	return errors.Join(failure, g.stop(ctx, started))
}

// start runs one part under a context of its own, which outlives ctx until the part's turn to stop.
func (g *Group) start(ctx context.Context, p Part, ended chan<- *running) *running {
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	r := &running{Part: p, cancel: cancel, done: make(chan struct{})}
	go func() {
		r.err = p.Run(own)
		close(r.done)
		ended <- r
	}()
	return r
}

// await waits until a part has started. It returns an error when any part ended first, and nil when ctx did.
func (g *Group) await(ctx context.Context, r *running, ended <-chan *running) error {
	if r.Started == nil {
		return nil
	}
	starting, cancel := context.WithCancel(ctx)
	up := make(chan error, 1)
	go func() { up <- r.Started(starting) }()
	select {
	case err := <-up:
		cancel()
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("%s did not start: %w", r.Name, err)
		}
		return nil
	case failed := <-ended:
		cancel()
		<-up
		return failed.failure()
	}
}

func (r *running) failure() error {
	if r.err == nil {
		return fmt.Errorf("%s ended by itself", r.Name)
	}
	return fmt.Errorf("%s: %w", r.Name, r.err)
}

// stop drains and ends the parts, the last first. When the time is up it ends all that are left at once.
func (g *Group) stop(ctx context.Context, started []*running) error {
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), g.cfg.StopTimeout)
	defer cancel()
	var errs []error
	for _, r := range slices.Backward(started) {
		errs = append(errs, g.stopOne(stopping, r))
	}
	if stopping.Err() == nil {
		return errors.Join(errs...)
	}
	var stuck []string
	for _, r := range started {
		select {
		case <-r.done:
		default:
			stuck = append(stuck, r.Name)
		}
	}
	if len(stuck) > 0 {
		errs = append(errs, fmt.Errorf("not stopped within %v: %s", g.cfg.StopTimeout, strings.Join(stuck, ", ")))
	}
	return errors.Join(errs...)
}

func (g *Group) stopOne(ctx context.Context, r *running) error {
	defer r.cancel()
	select {
	case <-r.done: // what ended before its turn was reported as the failure
		return nil
	default:
	}
	var drain error
	if r.Drain != nil && ctx.Err() == nil {
		if err := r.Drain(ctx); err != nil {
			drain = fmt.Errorf("draining %s: %w", r.Name, err)
		}
	}
	r.cancel()
	select {
	case <-r.done:
	case <-ctx.Done():
		return drain // stop names it
	}
	g.cfg.Log.DebugContext(ctx, "part stopped", slog.String("part", r.Name))
	if r.err != nil && !errors.Is(r.err, context.Canceled) {
		return errors.Join(drain, fmt.Errorf("stopping %s: %w", r.Name, r.err))
	}
	return drain
}
