//go:build unix

package subscribe_test

import (
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prism-gateway/prism/dataplane/subscribe"
)

// TestDiskFull runs itself in a process whose files may not grow over 2 KiB.
func TestDiskFull(t *testing.T) {
	const marker = "PRISM_TEST_DISK_FULL"
	if os.Getenv(marker) == "" {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestDiskFull$")
		cmd.Env = append(os.Environ(), marker+"=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	signal.Ignore(syscall.SIGXFSZ) // so that a write fails as on a full disk
	var unlimited syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &unlimited); err != nil {
		t.Fatal(err)
	}
	limit := func(l syscall.Rlimit) {
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &l); err != nil {
			t.Fatal(err)
		}
	}
	one, large := nsIn(1, 0), strings.Repeat("large", 2000)
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		keep := func(cfg *subscribe.Config, _ *proxy) { cfg.StateDir = dir }
		p, _, s := running(t, members{one: "1"}, keep)
		time.Sleep(3 * time.Second) // the disk rests between two saves

		full := unlimited
		full.Cur = 2048
		limit(full)
		s.ack(s.send(subscribe.NamespaceType, content("p/0001", members{one: "1"}, members{one: large}, backends)))
		has(t, p.state(), 1, members{one: large}, backends) // serving goes on
		time.Sleep(3 * time.Second)                         // the disk rests between two saves
		if p.client.Status().PersistError == "" || p.counter("persist_errors_total") == 0 || !strings.Contains(p.log.String(), "not kept on disk") {
			t.Fatalf("nothing is said: %s", p.log)
		}
		if n, problems, log := loadedCopy(t, dir, members{one: "1"}); n != 1 || problems != 0 {
			t.Fatalf("the last state that had room is gone: %d partitions, %v problems: %s", n, problems, log)
		}

		limit(unlimited)
		time.Sleep(time.Minute) // tried again without a change
		if got := p.client.Status().PersistError; got != "" {
			t.Fatalf("still %s", got)
		}
		p.stop()
		p = start(t, nil, keep)
		has(t, p.state(), 1, members{one: large}, backends)
	})
}

// loadedCopy starts a proxy on a copy of the directory.
func loadedCopy(t *testing.T, dir string, want members) (count int, problems float64, log string) {
	t.Helper()
	copied := directory(t, files(t, dir))
	p := start(t, nil, func(cfg *subscribe.Config, _ *proxy) { cfg.StateDir = copied })
	s := p.state()
	has(t, s, 1, want, backends)
	p.stop()
	return len(s.Partitions), p.counter("persist_errors_total"), p.log.String()
}
