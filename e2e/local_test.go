package e2e_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prism-gateway/prism/e2e/harness"
)

// TestLocal starts a whole Prism as `make run` does: the sample namespace answers through each proxy, a killed process
// comes back, and nothing is left behind.
func TestLocal(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	dir := filepath.Join(t.TempDir(), "local")
	prismctl := harness.Program(t, "bin/prismctl", "make build")
	up := harness.Run(t, t.TempDir(), "local-up", prismctl, "local", "up", "--dir", dir)
	printed := func(what string) func() error {
		return func() error {
			if !up.Running() {
				t.Fatalf("prismctl local up has ended:\n%s", up.Log())
			}
			if !strings.Contains(string(up.Log()), what) {
				return fmt.Errorf("%q is not printed yet", what)
			}
			return nil
		}
	}
	harness.Eventually(t, 60*time.Second, "ready", printed("prismctl kv put"))
	status := func() string {
		out, err := exec.CommandContext(ctx, prismctl, "local", "status", "--dir", dir).CombinedOutput()
		if err != nil {
			t.Fatalf("status: %v\n%s", err, out)
		}
		return string(out)
	}
	for _, want := range []string{"prism-admin", "proxy-1", "proxy-2", "proxy-3"} {
		if !strings.Contains(status(), want) {
			t.Errorf("status does not show %s:\n%s", want, status())
		}
	}
	children := processes(t, dir)
	if len(children) < 4 {
		t.Fatalf("%d processes: %v", len(children), children)
	}
	for pid, name := range children {
		if strings.Contains(name, "prism-proxy") {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			break
		}
	}
	harness.Eventually(t, 30*time.Second, "the killed proxy is restarted", printed("runs again"))
	if !up.Stop(30 * time.Second) {
		t.Error("prismctl local up did not stop by itself")
	}
	if left := processes(t, dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// processes returns the programs whose command line names dir.
func processes(t *testing.T, dir string) map[int]string {
	t.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	found := map[int]string{}
	for _, path := range lines {
		data, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended meanwhile
		}
		args := strings.Split(string(data), "\x00")
		if strings.Contains(string(data), dir) && !strings.Contains(args[0], "prismctl") {
			var pid int
			if _, err := fmt.Sscanf(path, "/proc/%d/", &pid); err == nil {
				found[pid] = args[0]
			}
		}
	}
	return found
}
