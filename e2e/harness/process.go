package harness

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"
)

// T is the part of testing.TB that the harness needs; benches bring their own.
type T interface {
	Helper()
	Fatalf(format string, args ...any)
	Logf(format string, args ...any)
	Cleanup(func())
	TempDir() string
	Failed() bool
}

// Process is one running program. It dies with the test, also when the test itself is killed.
type Process struct {
	t    T
	name string
	path string
	args []string
	env  []string
	work string // the directory it runs in, its own
	log  string

	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{}
}

// start runs a program with its output in a file of dir, which is shown when the test fails.
func start(t T, dir, name, path string, env []string, args ...string) *Process {
	t.Helper()
	p := &Process{
		t: t, name: name, path: path, args: args, env: env, work: filepath.Join(dir, name+".work"), log: filepath.Join(dir, name+".log"),
	}
	if err := os.MkdirAll(p.work, 0o700); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("%s printed at the end:\n%s", name, p.tail(4000))
		}
	})
	p.Start()
	return p
}

// Replace makes the next Start run another program with the same arguments, as an upgrade does.
func (p *Process) Replace(path string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.path = path
}

// created makes every further Start go without --create, as the installation is there.
func (p *Process) created() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.args = slices.DeleteFunc(p.args, func(arg string) bool { return arg == "--create" })
}

// Start starts the program, also again after it ended.
func (p *Process) Start() {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		p.t.Fatalf("%s: %v", p.name, err)
	}
	defer out.Close()
	cmd := exec.Command(p.path, p.args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = p.work, out, out
	cmd.Env = append(os.Environ(), p.env...)
	cmd.SysProcAttr = dieWithParent()
	started, done := make(chan error), make(chan struct{})
	go func() {
		// The kernel sends the death signal when the starting thread ends, not when the process does: the thread is kept.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // how it ended stands in its log
			close(done)
		}
	}()
	if err := <-started; err != nil {
		p.t.Fatalf("%s: %v", p.name, err)
	}
	p.cmd, p.done = cmd, done
}

// Kill ends the program as kill -9 does and waits for it. Killing it again is no error.
func (p *Process) Kill() { p.signal(syscall.SIGKILL) }

// Stop asks the program to end, waits for it, and reports whether it ended by itself within the time.
func (p *Process) Stop(within time.Duration) bool {
	p.mu.Lock()
	cmd, done := p.cmd, p.done
	p.mu.Unlock()
	_ = cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-done:
		return true
	case <-time.After(within):
		p.Kill()
		return false
	}
}

// Pause stops the program from running without ending it; Resume lets it go on.
func (p *Process) Pause() { _ = p.cmd.Process.Signal(syscall.SIGSTOP) }

// Resume lets a paused program go on.
func (p *Process) Resume() { _ = p.cmd.Process.Signal(syscall.SIGCONT) }

// Name is what the harness calls the program.
func (p *Process) Name() string { return p.name }

// Pid is the program's process id.
func (p *Process) Pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cmd.Process.Pid
}

// Running reports whether the program has not ended.
func (p *Process) Running() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Log returns what the program has printed so far.
func (p *Process) Log() []byte {
	data, err := os.ReadFile(p.log)
	if err != nil {
		p.t.Fatalf("%s: %v", p.name, err)
	}
	return data
}

func (p *Process) signal(s syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Signal(s) // an ended process needs none
	<-p.done
}

func (p *Process) tail(n int) []byte {
	data := p.Log()
	if len(data) > n {
		data = data[len(data)-n:]
		if i := bytes.IndexByte(data, '\n'); i >= 0 {
			data = data[i+1:]
		}
	}
	return data
}

// handedOut are the ports that FreeAddress has given to somebody. Ports are the machine's, so it is one for the process.
var handedOut sync.Map

// FreeAddress returns a loopback address where nothing listens, and which is given to nobody else. Its port is below those
// that systems give to connections and to listeners that ask for any.
func FreeAddress(t T) string {
	t.Helper()
	const lowest, highest = 10_000, 32_000
	for range 1000 {
		port := lowest + rand.IntN(highest-lowest)
		if _, taken := handedOut.LoadOrStore(port, true); taken {
			continue
		}
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			_ = l.Close()
			return l.Addr().String()
		}
	}
	t.Fatalf("no free port")
	return ""
}

// Eventually waits until check returns nil, and fails with its last error when that takes longer than within.
func Eventually(t T, within time.Duration, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v: %v", what, within, err)
		}
		time.Sleep(20 * time.Millisecond) // the other side is another program: there is no channel to wait on
	}
}

// CPUTime returns the processor time that a process has used, user and system.
func CPUTime(pid int) (time.Duration, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The second field is the name in brackets and may hold anything; what follows is plain numbers.
	rest := data[bytes.LastIndexByte(data, ')')+1:]
	fields := bytes.Fields(rest)
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat: %d fields", pid, len(fields))
	}
	var ticks int64
	for _, f := range fields[11:13] {
		var n int64
		if _, err := fmt.Sscan(string(f), &n); err != nil {
			return 0, err
		}
		ticks += n
	}
	const perSecond = 100 // USER_HZ on every Linux that Go runs on
	return time.Duration(ticks) * time.Second / perSecond, nil
}

// RSS returns the resident memory of a process in bytes.
func RSS(pid int) (int64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0, err
	}
	var size, resident int64
	if _, err := fmt.Sscan(string(data), &size, &resident); err != nil {
		return 0, err
	}
	return resident * int64(os.Getpagesize()), nil
}

// Run starts a program with its output in dir.
func Run(t T, dir, name, path string, args ...string) *Process {
	t.Helper()
	return start(t, dir, name, path, nil, args...)
}

// Build compiles a package of the module to a file, with further flags for go build, and returns the file.
func Build(t T, out, pkg string, flags ...string) string {
	t.Helper()
	cmd := exec.Command("go", append(append([]string{"build", "-trimpath", "-o", out}, flags...), pkg)...)
	cmd.Dir = Root(t)
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build %s: %v\n%s", pkg, err, text)
	}
	return out
}
