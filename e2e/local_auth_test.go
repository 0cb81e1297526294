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

// TestLocalAuth is a whole Prism whose callers log in, as a newcomer meets it: users may what the rules say, also after a restart
// and after OpenBao died, and a wipe leaves nothing.
func TestLocalAuth(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	home := t.TempDir()
	dir := filepath.Join(home, ".prism") // where prismctl looks for its context
	prismctl := harness.Program(t, "bin/prismctl", "make build")
	for _, name := range []string{"redis-server", "dex", "bao"} {
		harness.Program(t, ".cache/bin/"+name, "scripts/fetch redis openbao dex")
	}
	run := func(args ...string) string {
		cmd := exec.CommandContext(ctx, prismctl, args...)
		cmd.Dir = home
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Sprintf("%s(%v)", out, err)
		}
		return string(out)
	}
	expect := func(want string, args ...string) {
		t.Helper()
		if got := run(args...); !strings.Contains(got, want) {
			t.Errorf("prismctl %s says %q, want %q", strings.Join(args, " "), got, want)
		}
	}
	for life := range 2 {
		up := harness.Run(t, t.TempDir(), fmt.Sprint("local-up-", life), prismctl, "local", "--dir", dir, "up", "--auth", "--proxies", "2")
		harness.Eventually(t, 90*time.Second, "ready", func() error {
			if !up.Running() {
				t.Fatalf("prismctl local up --auth has ended:\n%s", up.Log())
			}
			if !strings.Contains(string(up.Log()), "local --dir") {
				return fmt.Errorf("it is starting")
			}
			return nil
		})
		expect("version", "kv", "put", "private", "greeting", "hello") // ann is logged in from the start
		expect("ben is logged in until", "local", "login", "ben")
		expect("hello", "kv", "get", "private", "greeting")
		expect("may read the namespace, and not do this", "kv", "put", "private", "greeting", "mine")
		expect("http://127.0.0.1:", "session", "list", "private") // the issuer's name for ben
		expect("is over", "session", "close", "private")
		expect("eve is logged in until", "local", "login", "eve")
		expect("or the principal may not use it", "kv", "get", "private", "greeting")
		expect("there is no user mallory", "local", "login", "mallory")
		expect("does not log ann in", "local", "login", "ann", "--password", "wrong")
		expect("version", "kv", "put", "sample", "a", "b") // it asks nobody
		expect("2 proxies", "fleet", "list")

		for pid, name := range processes(t, dir) {
			if strings.HasSuffix(name, "/bao") {
				if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
		}
		harness.Eventually(t, time.Minute, "OpenBao runs again", func() error {
			if !strings.Contains(string(up.Log()), "openbao runs again") {
				return fmt.Errorf("it does not yet")
			}
			return nil
		})
		expect("ann is logged in until", "local", "login", "ann")
		harness.Eventually(t, time.Minute, "ann writes with OpenBao back", func() error {
			if got := run("kv", "put", "private", "greeting", "hello"); !strings.Contains(got, "version") {
				return fmt.Errorf("%s", got)
			}
			return nil
		})
		if !up.Stop(60 * time.Second) {
			t.Error("it did not stop by itself")
		}
		if left := processes(t, dir); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
	expect("removed", "local", "down", "--wipe")
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("%s is left: %v", dir, err)
	}
}
