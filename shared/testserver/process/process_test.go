package process_test

import (
	"bufio"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/prism-gateway/prism/shared/testserver/process"
)

func TestAPausedProcessDoesNothing(t *testing.T) {
	cmd := exec.Command("sh", "-c", "while :; do echo x; done")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	}()
	lines := make(chan struct{}, 1)
	go func() {
		for scan := bufio.NewScanner(out); scan.Scan(); {
			select {
			case lines <- struct{}{}:
			default:
			}
		}
	}()
	<-lines
	if err := process.Pause(cmd.Process); err != nil {
		t.Fatal(err)
	}
	for quiet := false; !quiet; { // what is in the pipe still comes
		select {
		case <-lines:
		case <-time.After(200 * time.Millisecond):
			quiet = true
		}
	}
	if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	<-lines
}
