package natsserver

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// dieWithParent has the kernel end the server when the test's process dies, also of SIGKILL.
func dieWithParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }

// untilStopped waits until no thread of a process runs any more: the signal takes its time.
func untilStopped(pid int) {
	for ; ; time.Sleep(time.Millisecond) {
		threads, err := filepath.Glob(filepath.Join("/proc", strconv.Itoa(pid), "task", "*", "stat"))
		if err != nil {
			return
		}
		running := false
		for _, thread := range threads {
			stat, err := os.ReadFile(thread)
			// The state stands behind the name, which is in brackets.
			if _, state, _ := bytes.Cut(stat, []byte(") ")); err == nil && !bytes.HasPrefix(state, []byte("T")) {
				running = true
			}
		}
		if !running {
			return
		}
	}
}
