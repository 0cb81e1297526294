package supervisor_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/local/supervisor"
)

// TestMain lets the test binary be the program that is supervised.
func TestMain(m *testing.M) {
	if len(os.Args) < 3 || os.Args[1] != "as" {
		os.Exit(m.Run())
	}
	switch os.Args[2] {
	case "polite": // ends when asked to
		asked := make(chan os.Signal, 1)
		signal.Notify(asked, syscall.SIGTERM)
		fmt.Println("up")
		<-asked
		fmt.Println("bye")
	case "stubborn": // ends only when killed
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("up")
		select {}
	case "broken":
		fmt.Println("cannot")
		os.Exit(3)
	case "parent": // supervises a polite one and says its pid
		s, err := supervisor.New(supervisor.Config{Path: os.Args[0], Args: []string{"as", "polite"}, Log: os.Args[3],
			Report: func(e supervisor.Event) { fmt.Println(e.Pid) }})
		if err != nil {
			panic(err)
		}
		panic(s.Run(context.Background()))
	}
	os.Exit(0)
}

// supervise runs the test binary in a role. The events come on the channel.
func supervise(t *testing.T, role string) (events chan supervisor.Event, log string, stop func() error) {
	t.Helper()
	events = make(chan supervisor.Event, 100)
	log = filepath.Join(t.TempDir(), "log")
	s, err := supervisor.New(supervisor.Config{
		Path: os.Args[0], Args: []string{"as", role}, Log: log, Report: func(e supervisor.Event) { events <- e },
		StopTimeout: 200 * time.Millisecond, MinPause: time.Millisecond, MaxPause: 4 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stopped := false
	stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		return <-done
	}
	t.Cleanup(func() { _ = stop() })
	return events, log, stop
}

// said waits until the log has a text.
func said(t *testing.T, log, text string) {
	t.Helper()
	for {
		data, err := os.ReadFile(log)
		if err == nil && strings.Contains(string(data), text) {
			return
		}
		select {
		case <-t.Context().Done():
			t.Fatalf("the log lacks %q: %s", text, data)
		case <-time.After(5 * time.Millisecond): // another process writes it: there is no channel to wait on
		}
	}
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

func TestAProgramThatIsKilledIsStartedAgain(t *testing.T) {
	events, log, stop := supervise(t, "polite")
	first := <-events
	said(t, log, "up")
	if err := syscall.Kill(first.Pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	ended := <-events
	if got := supervisor.Describe(ended.Ended); got != "killed by signal 9, killed" || ended.Again != time.Millisecond {
		t.Errorf("reported %q, again after %v", got, ended.Again)
	}
	second := <-events
	if second.Pid == 0 || second.Pid == first.Pid {
		t.Errorf("started as %d after %d", second.Pid, first.Pid)
	}
	said(t, log, "up\nup")
	if err := stop(); err != nil {
		t.Error(err)
	}
	said(t, log, "bye")
	if alive(second.Pid) {
		t.Error("the program outlived its supervisor")
	}
}

func TestAProgramThatDoesNotStopIsKilled(t *testing.T) {
	events, log, stop := supervise(t, "stubborn")
	pid := (<-events).Pid
	said(t, log, "up")
	if err := stop(); err != nil {
		t.Error(err)
	}
	if alive(pid) {
		t.Error("the program is still there")
	}
}

func TestPausesGrowUpToTheirBound(t *testing.T) {
	events, _, _ := supervise(t, "broken")
	for _, want := range []time.Duration{1, 2, 4, 4} {
		<-events
		ended := <-events
		if ended.Again != want*time.Millisecond || supervisor.Describe(ended.Ended) != "exit status 3" {
			t.Fatalf("got %v after %v, want %v", ended.Again, ended.Ended, want*time.Millisecond)
		}
	}
}

func TestAProgramThatCannotBeStartedIsAnError(t *testing.T) {
	s, err := supervisor.New(supervisor.Config{Path: "/nowhere/prog", Log: filepath.Join(t.TempDir(), "log"), Report: func(supervisor.Event) {}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context()); err == nil {
		t.Error("no error")
	}
	if _, err := supervisor.New(supervisor.Config{}); err == nil {
		t.Error("an empty config was taken")
	}
}

func TestTheProgramDiesWithASupervisorThatIsKilled(t *testing.T) {
	parent := exec.Command(os.Args[0], "as", "parent", filepath.Join(t.TempDir(), "log"))
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	child, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait() // it was killed
	for alive(child) && !zombie(child) {
		select {
		case <-t.Context().Done():
			t.Fatal("the program lives on")
		case <-time.After(5 * time.Millisecond): // a stranger's child: there is nothing to wait on
		}
	}
}

// zombie reports whether a process has ended and waits to be reaped by whoever inherited it.
func zombie(pid int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(data), ") ")
	return strings.HasPrefix(rest, "Z")
}
