// Package process pauses the servers of tests.
package process

import (
	"errors"
	"os"
	"syscall"
	"time"
)

// Pause stops a process so that connections to it open and nothing answers. It returns when none of its threads runs any more,
// where the system tells.
func Pause(p *os.Process) error {
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	for limit := time.Now().Add(10 * time.Second); !stopped(p.Pid); time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			return errors.New("the process does not stop")
		}
	}
	return nil
}
