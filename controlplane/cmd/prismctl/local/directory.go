package local

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// directory is where a local Prism keeps everything.
type directory string

// State is what a running local Prism says of itself, in a file that status reads.
type State struct {
	Pid      int       `json:"pid"`
	Started  time.Time `json:"started"`
	Programs []Program `json:"programs"`
}

// Program is one program of a local Prism.
type Program struct {
	Name     string `json:"name"`
	Pid      int    `json:"pid"`
	Address  string `json:"address"`        // gRPC; of NATS its own protocol
	HTTP     string `json:"http,omitempty"` // /readyz, /metrics
	Log      string `json:"log,omitempty"`
	Restarts int    `json:"restarts"`
	State    string `json:"state"` // filled in by status
}

func openDirectory(path string) (directory, error) {
	abs, err := filepath.Abs(path)
	return directory(abs), err
}

func (d directory) file(name string) string { return filepath.Join(string(d), name) }

// contents are the names of everything that a local Prism makes in its directory: all that a wipe removes.
var contents = []string{
	"state.json*", "context.yaml", "sample.yaml", "data.db*", "etcd", "journal", "nats",
	"prism-admin.*", "proxy-[0-9]*", "identity", "redis.log*", "dex.log*", "openbao.log*",
	"lock", // the last: what has a lock file is a local Prism's directory
}

// errRuns says that another prismctl holds the directory.
type errRuns struct{ pid int }

func (e errRuns) Error() string {
	return fmt.Sprintf("a local Prism runs there already (pid %d); see: prismctl local status", e.pid)
}

// lock takes the directory for this process, which holds it until it ends, however it ends. The kernel keeps the lock,
// so that a file left behind by a dead process locks nothing.
func (d directory) lock() (release func(), err error) {
	f, err := os.OpenFile(d.file("lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, err
		}
		data, err := os.ReadFile(d.file("lock"))
		if err != nil {
			return nil, err
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
		if err != nil {
			return nil, fmt.Errorf("%s is locked and holds no process id", d.file("lock"))
		}
		return nil, errRuns{pid}
	}
	if err := errors.Join(f.Truncate(0), write(f, strconv.Itoa(os.Getpid()))); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

func write(f *os.File, text string) error {
	_, err := f.WriteAt([]byte(text+"\n"), 0)
	return err
}

// running returns the process id of the supervisor that holds the directory, 0 when there is none.
func (d directory) running() (int, error) {
	if _, err := os.Stat(d.file("lock")); errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	release, err := d.lock()
	if runs, ok := errors.AsType[errRuns](err); ok {
		return runs.pid, nil
	}
	if err != nil {
		return 0, err
	}
	release()
	return 0, nil
}

func (d directory) saveState(s State) error {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(d.file("state.json.new"), data, 0o600); err != nil {
		return err
	}
	return os.Rename(d.file("state.json.new"), d.file("state.json"))
}

func (d directory) loadState() (State, error) {
	var s State
	data, err := os.ReadFile(d.file("state.json"))
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(data, &s)
}

// wipe removes what a local Prism made, and the directory when nothing else is in it.
func (d directory) wipe() error {
	if _, err := os.Stat(d.file("lock")); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, pattern := range contents {
		matches, err := filepath.Glob(d.file(pattern))
		if err != nil {
			return err
		}
		for _, m := range matches {
			if err := os.RemoveAll(m); err != nil {
				return err
			}
		}
	}
	err := os.Remove(string(d))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTEMPTY) {
		return nil
	}
	return err
}

// tail returns the last lines of a log.
func tail(path string, lines int) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	all := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
