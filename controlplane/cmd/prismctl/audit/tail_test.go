package audit_test

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/audit"
	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/terminal"
	"github.com/prism-gateway/prism/shared/auditchain"
)

func TestTailShowsWhatIsAddedAndEndsWhereTheChainIsBroken(t *testing.T) {
	dir := t.TempDir()
	chain := auditchain.New("proxy-1", 0, "")
	add := func(name, principal, result string) (line []byte) {
		line, err := chain.Append(nil, &auditchain.Record{Time: time.Unix(1, 0).UTC(), Principal: principal, Namespace: "orders", Result: result})
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, name), line)
		return line
	}
	first, second := auditchain.FileName("proxy-1", 1), auditchain.FileName("proxy-1", 4)
	add(first, "before", "OK")

	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	out, in := io.Pipe()
	cmd := audit.New(&terminal.Terminal{Out: in, Err: io.Discard, Format: terminal.JSON})
	cmd.SetArgs([]string{"tail", dir, "--denied"})
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	done := make(chan error, 1)
	go func() {
		done <- cmd.ExecuteContext(ctx)
		in.Close()
	}()
	shown := make(chan string)
	go func() {
		defer close(shown)
		for text := bufio.NewScanner(out); text.Scan(); {
			var r auditchain.Record
			if err := json.Unmarshal(text.Bytes(), &r); err != nil {
				t.Errorf("%q: %v", text.Text(), err)
			}
			shown <- r.Principal
		}
	}()
	// What is there at the start is not shown, so one is added until it is.
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	for begun := false; !begun; {
		add(first, "one", "PERMISSION_DENIED")
		select {
		case principal, ok := <-shown:
			if begun = true; !ok || principal != "one" {
				t.Fatalf("shows %q", principal)
			}
		case <-again.C:
		}
	}
	add(first, "unseen", "OK")
	line := add(second, "two", "UNAUTHENTICATED")
	for principal := range shown {
		if principal == "two" {
			break
		} else if principal != "one" {
			t.Fatalf("shows %q", principal)
		}
	}
	write(t, filepath.Join(dir, second), line)
	for principal := range shown {
		t.Errorf("it shows %s", principal)
	}
	if err := <-done; err == nil || !strings.Contains(err.Error(), "out of order") {
		t.Errorf("a record that is there twice: %v", err)
	}
}

func write(t *testing.T, path string, text []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(text); err != nil {
		t.Fatal(err)
	}
}

func TestRecordsAreInADirectoryOrInADatabase(t *testing.T) {
	for _, args := range [][]string{{"verify"}, {"list"}, {"tail"}, {"verify", "dir", "--postgres", "postgres://h/db"}, {"tail", "--postgres", "postgres://user:canary@[h/db"}} {
		out, err := run(t, terminal.Table, args...)
		if err == nil || strings.Contains(out+err.Error(), "canary") {
			t.Errorf("%v: %v", args, err)
		}
	}
}
