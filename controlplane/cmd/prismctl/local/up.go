package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/local/supervisor"
	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/terminal"
	"github.com/prism-gateway/prism/shared/lifecycle"
)

const (
	startTimeout = time.Minute
	stopTimeout  = 10 * time.Second // of one program
)

// prism is a running local Prism.
type prism struct {
	plan *plan
	term *terminal.Terminal

	// mu guards what follows and keeps lines on the terminal whole.
	mu       sync.Mutex
	state    State
	progress *terminal.Progress
	up       bool // everything was started once
}

// up runs a local Prism until ctx is done.
func up(ctx context.Context, term *terminal.Terminal, p *plan, admin, proxy string) error {
	for _, text := range p.taken {
		term.Note("%s", text)
	}
	r := &prism{plan: p, term: term, progress: term.Progress(), state: State{Pid: os.Getpid(), Started: time.Now(), Programs: p.programs()}}
	if err := r.plan.dir.saveState(r.state); err != nil {
		return err
	}
	var parts []lifecycle.Part
	for i, program := range r.state.Programs {
		part, err := r.part(i, program, admin, proxy)
		if err != nil {
			return err
		}
		parts = append(parts, part)
	}
	parts = append(parts, lifecycle.Part{
		Name:    "sample",
		Started: r.introduce,
		Run: func(ctx context.Context) error {
			<-ctx.Done()
			r.mu.Lock()
			defer r.mu.Unlock()
			term.Note("stopping")
			return nil
		},
	})
	group, err := lifecycle.New(lifecycle.Config{
		Log: slog.New(slog.DiscardHandler), StopTimeout: time.Duration(len(parts)) * stopTimeout,
	}, parts...)
	if err != nil {
		return err
	}
	if err := group.Run(ctx); err != nil {
		return err
	}
	term.Note("stopped; everything is kept in %s", p.dir)
	return os.Remove(p.dir.file("state.json"))
}

// part makes a program a part of the whole.
func (r *prism) part(i int, program Program, admin, proxy string) (lifecycle.Part, error) {
	if program.Name == r.plan.nats.Name {
		part, err := broker(program.Address, r.plan.dir.file("nats"))
		started := part.Started
		part.Started = func(ctx context.Context) error {
			err := started(ctx)
			if err == nil {
				r.show(program.Name, "ready at "+program.Address)
			}
			return err
		}
		return part, err
	}
	path, args := proxy, []string{"--config", r.plan.dir.file(program.Name + ".yaml")}
	ready := func(ctx context.Context) string { return readiness(ctx, program.HTTP) }
	switch auth := r.plan.auth; {
	case program.Name == r.plan.admin.Name:
		path, args = admin, append(args, "--create") // also when it died before it had
	case auth != nil && auth.paths[program.Name] != "":
		path, args = auth.paths[program.Name], auth.args(program.Name)
		ready = func(ctx context.Context) string { return auth.ready(ctx, program.Name) }
	}
	err := os.Rename(program.Log, program.Log+".old") // one run, one log; the one before is kept
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return lifecycle.Part{}, err
	}
	died := make(chan error, 1)
	s, err := supervisor.New(supervisor.Config{
		Path: path, Args: args, Log: program.Log, StopTimeout: stopTimeout,
		Report: func(e supervisor.Event) { r.report(i, e, died) },
	})
	if err != nil {
		return lifecycle.Part{}, err
	}
	return lifecycle.Part{
		Name: program.Name,
		Run:  s.Run,
		Started: func(ctx context.Context) error {
			if err := r.awaitReady(ctx, program, ready, died); err != nil || r.plan.auth == nil || program.Name != r.plan.auth.bao.Name {
				return err
			}
			return r.plan.auth.setUp(ctx)
		},
	}, nil
}

// report takes note of a start or an end of a program.
func (r *prism) report(i int, e supervisor.Event, died chan<- error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	program := &r.state.Programs[i]
	switch {
	case e.Pid != 0:
		program.Pid = e.Pid
		if program.Restarts > 0 {
			r.term.Note("%s runs again, as process %d", program.Name, e.Pid)
		}
	case !r.up:
		select {
		case died <- e.Ended:
		default: // reported once already
		}
		return
	default:
		program.Restarts++
		r.term.Note("%s (process %d) died: %s; starting it again in %v", program.Name, program.Pid, supervisor.Describe(e.Ended), e.Again)
	}
	if err := r.plan.dir.saveState(r.state); err != nil {
		r.term.Note("status will be out of date: %v", err)
	}
}

// awaitReady waits until a program says that it is ready. One that dies on the way has something wrong with it, which
// starting it again does not mend.
func (r *prism) awaitReady(ctx context.Context, program Program, ready func(context.Context) string, died <-chan error) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	ticker := time.NewTicker(50 * time.Millisecond) // another process: there is no channel to wait on
	defer ticker.Stop()
	for {
		reason := ready(ctx)
		if reason == "" {
			r.show(program.Name, "ready at "+program.Address)
			return nil
		}
		if reason == silent {
			r.show(program.Name, "starting")
		} else {
			r.show(program.Name, reason)
		}
		select {
		case ended := <-died:
			return fmt.Errorf("%s; its log %s ends:\n%s", supervisor.Describe(ended), program.Log, tail(program.Log, 10))
		case <-ctx.Done():
			return fmt.Errorf("%s after %v; its log is %s", reason, startTimeout, program.Log)
		case <-ticker.C:
		}
	}
}

func (r *prism) show(name, text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.progress.Show(name, text)
}

// silent is the reason of a program that is not asked with success: at first it has not begun to listen.
const silent = "does not answer"

// readiness asks a program whether it is ready; empty when it is, else why not.
func readiness(ctx context.Context, address string) string {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/readyz", nil)
	if err != nil {
		return err.Error()
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return silent
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		return ""
	}
	var state lifecycle.State
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&state); err != nil || len(state.Reasons()) == 0 {
		return "not ready"
	}
	return strings.Join(state.Reasons(), "; ")
}
