// Package supervisor keeps one program running: it starts it again when it dies, with growing pauses, and stops it in
// good order. The program dies with its supervisor, also when that is killed.
package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// Event is something that happened to the program.
type Event struct {
	// Pid is set when the program was started.
	Pid int
	// Ended is how it ended, when it did so unasked; it is started again after Again.
	Ended error
	Again time.Duration
}

// Config says what to run.
type Config struct {
	Path string // required
	Args []string
	// Log is the file that takes what the program prints; required. It is appended to.
	Log string
	// Report is told of every start and end; required. It is called from one goroutine.
	Report func(Event)
	// StopTimeout is how long the program may take to stop before it is killed; 0 means 10 s.
	StopTimeout time.Duration
	// MinPause and MaxPause bound the pause before another start, which doubles each time; 0 means 200 ms and 10 s.
	MinPause, MaxPause time.Duration
}

// steady is how long a program must have run for the pauses to begin anew.
const steady = 10 * time.Second

// Supervisor runs one program.
type Supervisor struct{ cfg Config }

// New checks what to run.
func New(cfg Config) (*Supervisor, error) {
	if cfg.Path == "" || cfg.Log == "" || cfg.Report == nil {
		return nil, errors.New("supervisor: Config needs Path, Log and Report")
	}
	if cfg.StopTimeout == 0 {
		cfg.StopTimeout = 10 * time.Second
	}
	if cfg.MinPause == 0 {
		cfg.MinPause = 200 * time.Millisecond
	}
	if cfg.MaxPause == 0 {
		cfg.MaxPause = 10 * time.Second
	}
	return &Supervisor{cfg: cfg}, nil
}

// Run keeps the program running until ctx is done, and returns after it has ended. An error means that it could not be
// started at all.
func (s *Supervisor) Run(ctx context.Context) error {
	pause := s.cfg.MinPause
	for {
		began := time.Now()
		ended, err := s.once(ctx)
		if err != nil || ctx.Err() != nil {
			return err
		}
		if time.Since(began) > steady {
			pause = s.cfg.MinPause
		}
		s.cfg.Report(Event{Ended: ended, Again: pause})
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		pause = min(2*pause, s.cfg.MaxPause)
	}
}

// once runs the program to its end and returns how that was.
func (s *Supervisor) once(ctx context.Context) (ended, err error) {
	log, err := os.OpenFile(s.cfg.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(s.cfg.Path, s.cfg.Args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = dieWithUs()

	// Linux kills the program when the thread that started it ends, so this thread must last as long as the program.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s.cfg.Report(Event{Pid: cmd.Process.Pid})
	exited, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		select {
		case <-ctx.Done():
			s.stop(cmd.Process, exited)
		case <-exited:
		}
	}()
	ended = cmd.Wait()
	close(exited)
	<-stopped
	if ended == nil {
		ended = errors.New("exit status 0")
	}
	return ended, nil
}

// stop asks the program to end, and kills it when it takes too long.
func (s *Supervisor) stop(p *os.Process, exited <-chan struct{}) {
	_ = p.Signal(syscall.SIGTERM) // it may have ended already
	timer := time.NewTimer(s.cfg.StopTimeout)
	defer timer.Stop()
	select {
	case <-exited:
	case <-timer.C:
		_ = p.Kill() // likewise
	}
}

// Describe says for people how a program ended.
func Describe(ended error) string {
	exit, ok := errors.AsType[*exec.ExitError](ended)
	if !ok {
		return ended.Error()
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return fmt.Sprintf("killed by signal %d, %s", status.Signal(), status.Signal())
	}
	return exit.Error()
}
