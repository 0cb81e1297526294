package sqlite_test

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/dataplane/driver/sqlite"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/secret"
)

// TestMain lets the test binary be another process that uses the file; as "limited" it may not make it large.
func TestMain(m *testing.M) {
	if path := os.Getenv("PRISM_TEST_SQLITE_FILE"); path != "" {
		if err := otherProcess(path, os.Getenv("PRISM_TEST_SQLITE_ID")); err != nil {
			fmt.Fprintln(os.Stderr, err, errors.Unwrap(err))
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// otherProcess writes items under an id and prints the key of each when it is acknowledged, until it has written 200 or
// is killed.
func otherProcess(path, id string) error {
	s, err := sqlite.Driver().Open(driver.Config{Name: "local", Endpoints: []string{path}})
	if err != nil {
		return err
	}
	defer s.Close()
	value := "v"
	if id == "limited" {
		signal.Ignore(syscall.SIGXFSZ)
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 1 << 20, Max: 1 << 20}); err != nil {
			return err
		}
		value = strings.Repeat("v", 20_000)
	}
	for n := range 200 {
		key := fmt.Sprint(n)
		if _, err := s.(driver.KeyValue).Write(context.Background(), "s.1", put(id, key, value)); err != nil {
			return fmt.Errorf("fault %s: %w", fault.From(err).Reason, err)
		}
		fmt.Println(key)
	}
	return nil
}

func startOther(t *testing.T, path, id string) (*exec.Cmd, *bufio.Scanner, *strings.Builder) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "PRISM_TEST_SQLITE_FILE="+path, "PRISM_TEST_SQLITE_ID="+id)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	said := &strings.Builder{}
	cmd.Stderr = said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, bufio.NewScanner(out), said
}

// store is what the driver's instances are.
type store interface {
	driver.Instance
	driver.KeyValue
	driver.Scanner
	driver.Lister
}

func open(t *testing.T, path string, settings map[string]string) store {
	t.Helper()
	s, err := sqlite.Driver().Open(driver.Config{Name: "local", Endpoints: []string{path}, Settings: settings})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s.(store)
}

func put(id, key, value string) driver.Write {
	return driver.Write{Name: driver.Name{ID: []byte(id), Key: []byte(key)}, Value: []byte(value)}
}

func is(err error, code fault.Code, reason fault.Reason, outcome fault.Outcome) error {
	f, ok := errors.AsType[*fault.Fault](err)
	if !ok || f.Code != code || f.Reason != reason || f.Outcome != outcome {
		return fmt.Errorf("got %#v, want code %d, reason %s, outcome %s", err, code, reason, outcome)
	}
	return nil
}

// TestProcessesStartTogether has several processes make the file's schema at once and write into it (LF-08).
func TestProcessesStartTogether(t *testing.T) {
	path := filepath.Join(t.TempDir(), "items.db")
	var wait sync.WaitGroup
	for n := range 4 {
		cmd, out, said := startOther(t, path, fmt.Sprint(n))
		wait.Go(func() {
			for out.Scan() {
			}
			if err := cmd.Wait(); err != nil {
				t.Errorf("process %d: %v: %s", n, err, said)
			}
		})
	}
	wait.Wait()
	s := open(t, path, nil)
	for id := range 4 {
		items, more, err := s.Scan(t.Context(), "s.1", driver.Range{ID: []byte(fmt.Sprint(id)), Limit: 1000, MaxBytes: 1 << 20})
		if err != nil || more || len(items) != 200 {
			t.Errorf("process %d left %d items, %v; want 200", id, len(items), err)
		}
	}
}

// TestAcknowledgedSurvivesKill kills a process while it writes.
func TestAcknowledgedSurvivesKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "items.db")
	for round := range 5 {
		id := fmt.Sprint(round)
		cmd, out, _ := startOther(t, path, id)
		var acknowledged []string
		for out.Scan() {
			if acknowledged = append(acknowledged, out.Text()); len(acknowledged) == 20+round {
				cmd.Process.Kill()
			}
		}
		cmd.Wait()
		s := open(t, path, nil)
		for _, key := range acknowledged {
			if it, err := s.Get(t.Context(), "s.1", put(id, key, "").Name, false); it == nil || err != nil {
				t.Errorf("round %d: %s was acknowledged: %v, %v", round, key, it, err)
			}
		}
	}
}

// TestAnotherProcessWrites has somebody else hold the write lock.
func TestAnotherProcessWrites(t *testing.T) {
	path := filepath.Join(t.TempDir(), "items.db")
	s := open(t, path, nil)
	if _, err := s.Write(t.Context(), "s.1", put("a", "k", "v")); err != nil {
		t.Fatal(err)
	}
	conn := raw(t, path)
	execute(t, conn, "BEGIN IMMEDIATE")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := s.Write(ctx, "s.1", put("a", "late", "v"))
	if err := is(err, fault.DeadlineExceeded, fault.Pool, fault.NotApplied); err != nil {
		t.Error(err)
	}
	if it, err := s.Get(t.Context(), "s.1", put("a", "k", "").Name, false); it == nil || err != nil {
		t.Errorf("a read waits for a writer: %v, %v", it, err)
	}
	patient := make(chan error, 1)
	go func() {
		_, err := s.Write(context.Background(), "s.1", put("a", "patient", "v"))
		patient <- err
	}()
	execute(t, conn, "COMMIT")
	if err := <-patient; err != nil {
		t.Errorf("the patient write: %v", err)
	}
	if it, err := s.Get(t.Context(), "s.1", put("a", "late", "").Name, false); it != nil || err != nil {
		t.Errorf("the late write was not applied, yet there is %v, %v", it, err)
	}
}

// raw is a connection to the file beside the driver.
func raw(t *testing.T, path string) *sql.Conn {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func execute(t *testing.T, conn *sql.Conn, text string) {
	t.Helper()
	if _, err := conn.ExecContext(t.Context(), text); err != nil {
		t.Fatal(err)
	}
}

func TestFileThatCannotBeUsed(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(t *testing.T, path string)
		code    fault.Code
		reason  fault.Reason
	}{
		"its directory is not there": {func(t *testing.T, path string) {
			os.RemoveAll(filepath.Dir(path))
		}, fault.Unavailable, fault.BackendDown},
		"it is a directory": {func(t *testing.T, path string) {
			os.Mkdir(path, 0o700)
		}, fault.Unavailable, fault.BackendDown},
		"it is no database": {func(t *testing.T, path string) {
			os.WriteFile(path, []byte(strings.Repeat("no database ", 1000)), 0o600)
		}, fault.DataLoss, fault.Checksum},
		"it has another program's table": {func(t *testing.T, path string) {
			execute(t, raw(t, path), "CREATE TABLE item (name TEXT)")
		}, fault.DataLoss, fault.Checksum},
		"it counts its version as we do": {func(t *testing.T, path string) {
			execute(t, raw(t, path), "PRAGMA user_version = 1")
		}, fault.DataLoss, fault.Checksum},
		"it is of a newer Prism": {func(t *testing.T, path string) {
			execute(t, raw(t, path), "PRAGMA user_version = 99")
		}, fault.FailedPrecondition, fault.Backend},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "sub", "items.db")
			os.Mkdir(filepath.Dir(path), 0o700)
			c.prepare(t, path)
			s := open(t, path, nil)
			_, err := s.Write(t.Context(), "s.1", put("a", "k", "v"))
			if err := is(err, c.code, c.reason, fault.NotApplied); err != nil {
				t.Errorf("write: %v", err)
			}
			if err := s.Ping(t.Context()); err == nil {
				t.Error("ping succeeds")
			}
			if f := fault.From(err); strings.Contains(f.Text, path) {
				t.Errorf("the path is in %q", f.Text)
			}
		})
	}
}

// TestDirectoryComesLater is LF-01 for a store without a server.
func TestDirectoryComesLater(t *testing.T) {
	path := filepath.Join(t.TempDir(), "later", "items.db")
	s := open(t, path, nil)
	if err := s.Ping(t.Context()); !fault.Is(err, fault.BackendDown) {
		t.Errorf("ping: %v", err)
	}
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Write(t.Context(), "s.1", put("a", "k", "v")); err != nil {
		t.Errorf("write: %v", err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file: %v, %v; want it for its owner only", info.Mode(), err)
	}
}

// TestFileThatCannotGrow has a process write until the system lets its files grow no more (LF-11): the write that failed
// says so, and those before it are there.
func TestFileThatCannotGrow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "items.db")
	cmd, out, said := startOther(t, path, "limited")
	acknowledged := 0
	for out.Scan() {
		acknowledged++
	}
	cmd.Wait()
	if !strings.Contains(said.String(), "fault BACKEND_DOWN") || acknowledged == 0 || acknowledged == 200 {
		t.Fatalf("%d writes, then %q; want some writes and a fault", acknowledged, said)
	}
	s := open(t, path, nil)
	items, more, err := s.Scan(t.Context(), "s.1", driver.Range{ID: []byte("limited"), Limit: 1000, MaxBytes: 16 << 20})
	if err != nil || more || len(items) < acknowledged || len(items) > acknowledged+1 {
		t.Errorf("%d items, %v; %d were acknowledged", len(items), err, acknowledged)
	}
}

// TestSweeperRuns waits until what expired is gone from the file.
func TestSweeperRuns(t *testing.T) {
	path := filepath.Join(t.TempDir(), "items.db")
	s := open(t, path, map[string]string{"sweep": "1ms"})
	w := put("a", "k", "v")
	w.ExpireAt = time.Now().Add(time.Millisecond)
	for _, w := range []driver.Write{w, put("a", "stays", "v")} {
		if _, err := s.Write(t.Context(), "s.1", w); err != nil {
			t.Fatal(err)
		}
	}
	conn := raw(t, path)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for rows := 0; rows != 1; {
		if err := conn.QueryRowContext(ctx, "SELECT count(*) FROM item").Scan(&rows); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	for name, cfg := range map[string]driver.Config{
		"no endpoint":     {},
		"empty endpoint":  {Endpoints: []string{""}},
		"two endpoints":   {Endpoints: []string{"a", "b"}},
		"a credential":    {Endpoints: []string{"a"}, Password: secret.New("x")},
		"unknown setting": {Endpoints: []string{"a"}, Settings: map[string]string{"sync": "full"}},
		"synchronous off": {Endpoints: []string{"a"}, Settings: map[string]string{"synchronous": "off"}},
		"sweep of 0":      {Endpoints: []string{"a"}, Settings: map[string]string{"sweep": "0s"}},
	} {
		t.Run(name, func(t *testing.T) {
			if s, err := sqlite.Driver().Open(cfg); err == nil {
				s.Close()
				t.Error("opened")
			}
		})
	}
}
