package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestExitCodes(t *testing.T) {
	file := func(text string) string {
		path := filepath.Join(t.TempDir(), "proxy.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	taken := filepath.Join(t.TempDir(), "file") // a file where the state directory should be
	if err := os.WriteFile(taken, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name         string
		args         []string
		env          map[string]string
		code         int
		out, problem string
	}{
		{"help has an example", []string{"--help"}, nil, 0, "--state-dir /var/lib/prism", ""},
		{"version", []string{"--version"}, nil, 0, "prism-proxy version", ""},
		{"a good file", []string{"--check", "--config", file("id: proxy-1\nlisten: 127.0.0.1:1234\n")}, nil, 0, "good: it would listen on 127.0.0.1:1234 (calls)", ""},
		{"an unknown flag", []string{"--bogus"}, nil, exitUsage, "", "--bogus\nsee: prism-proxy --help\n"},
		{"an argument", []string{"bogus"}, nil, exitUsage, "", "takes no arguments\nsee: prism-proxy --help\n"},
		{"an unknown flag of a command below", []string{"simulate", "--bogus"}, nil, exitUsage, "", "--bogus\nsee: prism-proxy simulate --help\n"},
		{"a flag whose value is none", []string{"--check", "--log-level", "loud"}, nil, exitUsage, "", "want one of debug, info, warn, error"},
		{"no such file", []string{"--config", "/nowhere/proxy.yaml"}, nil, exitUsage, "", "/nowhere/proxy.yaml"},
		{"an unknown key, with its line", []string{"--check", "--config", file("id: proxy-1\ncolour: red\n")}, nil, exitUsage, "", "proxy.yaml:2"},
		{"a bad port from the environment", []string{"--check"}, map[string]string{"PRISM_DATA_PORT": "high"}, exitUsage, "", "PRISM_DATA_PORT"},
		{"an address that others reach", []string{"--check", "--listen", "0.0.0.0:8980"}, nil, exitUsage, "", "insecure_listen"},
		{"the same, meant", []string{"--check", "--listen", "0.0.0.0:8980", "--insecure-listen"}, nil, 0, "", ""},
		{"a state directory that is none", []string{"--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--state-dir", taken}, nil, exitFailed, "", "state directory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			env := func(name string) (string, bool) { v, ok := c.env[name]; return v, ok }
			code := program(t.Context(), c.args, env, &stdout, &stderr)
			if code != c.code || !strings.Contains(stdout.String(), c.out) || !strings.Contains(stderr.String(), c.problem) {
				t.Errorf("exit %d, stdout %q, stderr %q; want %d, %q, %q", code, stdout.String(), stderr.String(), c.code, c.out, c.problem)
			}
		})
	}
}
