package audit_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/audit"
	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/terminal"
	"github.com/prism-gateway/prism/shared/auditchain"
)

// files writes two chains, one of them over two files, and returns their directory.
func files(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, sizes := range map[string][]int{"proxy-1": {3, 2}, "proxy-1-b": {1}} {
		chain := auditchain.New(name, 0, "")
		for _, size := range sizes {
			number, _ := chain.Last()
			var text []byte
			for n := range size {
				var err error
				if text, err = chain.Append(text, &auditchain.Record{Time: time.Unix(int64(n), 0).UTC(), Principal: "p" + fmt.Sprint(n%2), Namespace: "orders", Result: "OK"}); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(filepath.Join(dir, auditchain.FileName(name, number+1)), text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}

// run runs a command line.
func run(t *testing.T, format terminal.Format, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	cmd := audit.New(&terminal.Terminal{Out: &out, Err: &out, Format: format})
	cmd.SetArgs(args)
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	err := cmd.Execute()
	return out.String(), err
}

func TestVerifyFailsExactlyWhenAChainIsNotWhole(t *testing.T) {
	first := auditchain.FileName("proxy-1", 1)
	second := auditchain.FileName("proxy-1", 4)
	for name, tc := range map[string]struct {
		change func(dir string) error
		fails  bool
		says   string
	}{
		"nothing":                {func(string) error { return nil }, false, "whole"},
		"the oldest is archived": {func(dir string) error { return os.Remove(filepath.Join(dir, first)) }, false, "whole"},
		"a record changed":       {edit(first, "p1", "p7"), true, "record 2: it was changed"},
		"a file in between is gone": {func(dir string) error {
			return os.Rename(filepath.Join(dir, second), filepath.Join(dir, auditchain.FileName("proxy-1", 9)))
		}, false, "whole"},
		"the last is being written": {cut(second), false, "being written"},
		"one in the middle is cut":  {cut(first), true, "in the middle of a record"},
		"renamed": {func(dir string) error {
			return os.Rename(filepath.Join(dir, first), filepath.Join(dir, auditchain.FileName("other", 1)))
		}, true, `holds the chain "proxy-1"`},
	} {
		t.Run(name, func(t *testing.T) {
			dir := files(t)
			if err := tc.change(dir); err != nil {
				t.Fatal(err)
			}
			out, err := run(t, terminal.Table, "verify", dir)
			if (err != nil) != tc.fails || !strings.Contains(out, tc.says) {
				t.Errorf("%v: %s", err, out)
			}
			out, _ = run(t, terminal.JSON, "verify", dir)
			if !json.Valid([]byte(out)) {
				t.Errorf("no JSON: %s", out)
			}
		})
	}
	if _, err := run(t, terminal.Table, "verify", t.TempDir()); err == nil || !strings.Contains(err.Error(), "audit.files.dir") {
		t.Errorf("a directory without records: %v", err)
	}
}

func edit(name, from, to string) func(string) error {
	return func(dir string) error {
		path := filepath.Join(dir, name)
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(path, bytes.Replace(text, []byte(from), []byte(to), 1), 0o600)
	}
}

func cut(name string) func(string) error {
	return func(dir string) error {
		path := filepath.Join(dir, name)
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		return os.Truncate(path, info.Size()-5)
	}
}

func TestListShowsTheNewestThatAreAskedFor(t *testing.T) {
	out, err := run(t, terminal.JSON, "list", files(t), "--principal", "p0", "--limit", "2")
	var got struct {
		Records []auditchain.Record `json:"records"`
	}
	if err == nil {
		err = json.Unmarshal([]byte(out), &got)
	}
	if err != nil || len(got.Records) != 2 || got.Records[0].Principal != "p0" {
		t.Errorf("%v: %s", err, out)
	}
	if _, err := run(t, terminal.Table, "list", files(t), "--limit", "0"); err == nil {
		t.Error("a limit of 0 is taken")
	}
}
