package credential_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prism-gateway/prism/dataplane/credential"
)

// journaled runs a source with a journal; crash ends it as a crash would: nothing is revoked.
func journaled(t *testing.T, d *double, dir string) (s *credential.Source, crash func()) {
	t.Helper()
	s, err := credential.New(credential.Config{
		Providers: map[string]credential.Provider{"d": d}, JournalDir: dir, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Policy: credential.Policy{IssuesPerSecond: 100_000, RenewalsPerSecond: 100_000},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	return s, func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

func TestCR12TheNextProcessRevokesWhatIsLeft(t *testing.T) {
	for name, damage := range map[string]func(file []byte) []byte{
		"whole":                   func(file []byte) []byte { return file },
		"a torn last line":        func(file []byte) []byte { return append(file, `1234abcd {"n":99,"provider":"d","id":"torn`...) },
		"a line that is nonsense": func(file []byte) []byte { return append([]byte("nonsense\n"), file...) },
		"an empty line":           func(file []byte) []byte { return append(file, '\n') },
		"another sum": func(file []byte) []byte {
			return append(file, "00000000 {\"n\":99,\"provider\":\"d\",\"id\":\"x\"}\n"...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				dir := t.TempDir()
				d := newDouble(time.Hour, 24*time.Hour)
				s, crash := journaled(t, d, dir)
				for i := range 50 {
					acquire(t, s, fmt.Sprint("caller-", i))
				}
				acquire(t, s, "released").Release()
				time.Sleep(2 * time.Second)
				crash()
				path := filepath.Join(dir, "leases.journal")
				if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
					t.Fatalf("the journal may be read by others: %v, %v", info.Mode(), err)
				}
				file, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if strings.Contains(string(file), "canary-token") || strings.Contains(string(file), "canary-password") {
					t.Error("a token or a password is in the journal")
				}
				if err := os.WriteFile(path, damage(file), 0o600); err != nil {
					t.Fatal(err)
				}
				if d.alive(false) != 50 || d.alive(true) != 50 {
					t.Fatalf("%d leases and %d logins after the crash", d.alive(false), d.alive(true))
				}
				_, crash = journaled(t, d, dir)
				time.Sleep(2 * time.Second)
				synctest.Wait()
				if d.alive(false) != 0 || d.alive(true) != 1 {
					t.Errorf("%d leases and %d logins, want the new process' own", d.alive(false), d.alive(true))
				}
				crash()
				before := len(d.times("revoke"))
				_, crash = journaled(t, d, dir)
				time.Sleep(2 * time.Second)
				crash()
				if n := len(d.times("revoke")) - before; n != 1 { // the own login of the process before
					t.Errorf("the third process revokes %d", n)
				}
			})
		})
	}
}

func TestTheJournalStaysSmall(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dir := t.TempDir()
		s, crash := journaled(t, newDouble(time.Hour, 24*time.Hour), dir)
		defer crash()
		acquire(t, s, "stays")
		for i := range 600 {
			acquire(t, s, fmt.Sprint("caller-", i)).Release()
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		info, err := os.Stat(filepath.Join(dir, "leases.journal"))
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() > 160<<10 {
			t.Errorf("%d bytes for two leases", info.Size())
		}
	})
}

func TestTheJournalBelongsToOneProcess(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dir := t.TempDir()
		d := newDouble(time.Hour, time.Hour)
		s, crash := journaled(t, d, dir)
		defer crash()
		acquire(t, s, "ann")
		other, err := credential.New(credential.Config{Providers: map[string]credential.Provider{"d": d}, JournalDir: dir, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		if err := other.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "another proxy") {
			t.Errorf("a second process takes the journal: %v", err)
		}
		if d.alive(false) != 1 {
			t.Error("it revoked the leases of the first")
		}
	})
}

func TestWithoutAnIdentityWhatIsLeftIsLetGo(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dir := t.TempDir()
		d := newDouble(time.Hour, 24*time.Hour)
		d.noOwn = true
		s, crash := journaled(t, d, dir)
		acquire(t, s, "ann")
		crash()
		s, crash = journaled(t, d, dir)
		time.Sleep(time.Minute)
		acquire(t, s, "bob").Release()
		time.Sleep(time.Second)
		if n := len(d.times("revoke")); n != 1 {
			t.Errorf("revoked %d times", n)
		}
		crash()
	})
}
