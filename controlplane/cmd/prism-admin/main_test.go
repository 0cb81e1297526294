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
		path := filepath.Join(t.TempDir(), "admin.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	taken := filepath.Join(t.TempDir(), "file") // a file where the data directory should be
	if err := os.WriteFile(taken, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	const anywhere = "listen: 127.0.0.1:0\nfleet_listen: 127.0.0.1:0\nhttp_listen: 127.0.0.1:0\n"
	for _, c := range []struct {
		name         string
		args         []string
		env          map[string]string
		code         int
		out, problem string
	}{
		{"help has an example", []string{"--help"}, nil, 0, "admin.yaml --create", ""},
		{"version", []string{"--version"}, nil, 0, "prism-admin version", ""},
		{"a good file", []string{"--check", "--config", file("listen: 127.0.0.1:1234\n")}, nil, 0, "good: it would listen on 127.0.0.1:1234 (calls), 127.0.0.1:18000 (proxies)", ""},
		{"an unknown flag", []string{"--bogus"}, nil, exitUsage, "", "--bogus\nsee: prism-admin --help\n"},
		{"an argument", []string{"bogus"}, nil, exitUsage, "", "takes no arguments\nsee: prism-admin --help\n"},
		{"no such file", []string{"--config", "/nowhere/admin.yaml"}, nil, exitUsage, "", "/nowhere/admin.yaml"},
		{"an unknown key, with its line", []string{"--check", "--config", file("owners: 2\ncolour: red\n")}, nil, exitUsage, "", "admin.yaml:2"},
		{"a bad port from the environment", []string{"--check"}, map[string]string{"PRISM_ADMIN_PORT": "high"}, exitUsage, "", "PRISM_ADMIN_PORT"},
		{"an address that others reach", []string{"--check", "--config", file("listen: 0.0.0.0:8981\n")}, nil, exitUsage, "", "insecure_listen"},
		{"the same, meant", []string{"--check", "--insecure-listen", "--config", file("listen: 0.0.0.0:8981\n")}, nil, 0, "good", ""},
		{"a data directory that is none", []string{"--config", file(anywhere + "etcd: {data_dir: " + taken + "}\n")}, nil, exitFailed, "", taken},
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
