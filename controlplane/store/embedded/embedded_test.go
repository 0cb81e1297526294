package embedded_test

import (
	"io"
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/prism-gateway/prism/controlplane/store/embedded"
)

func start(t *testing.T, dir string) *embedded.Server {
	t.Helper()
	s, err := embedded.Start(embedded.Config{Dir: dir, Volatile: true, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestDataOutlivesARestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "etcd")
	for _, want := range []string{"", "1"} {
		s := start(t, dir)
		if fresh := want == ""; s.Fresh() != fresh {
			t.Errorf("fresh is %v, want %v", s.Fresh(), fresh)
		}
		client, err := s.Client()
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Get(t.Context(), "key")
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, kv := range resp.Kvs {
			got = string(kv.Value)
		}
		if got != want {
			t.Errorf("found %q, want %q", got, want)
		}
		if _, err := client.Put(t.Context(), "key", "1"); err != nil {
			t.Fatal(err)
		}
		if err := client.Close(); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestAnEmptiedDirectoryIsNotFresh(t *testing.T) {
	if start(t, t.TempDir()).Fresh() {
		t.Error("it is")
	}
}

func TestTwoRunBesideEachOther(t *testing.T) {
	if a, b := start(t, t.TempDir()), start(t, t.TempDir()); a.Endpoint() == b.Endpoint() {
		t.Errorf("both at %s", a.Endpoint())
	}
}

func TestStartRefuses(t *testing.T) {
	for name, dir := range map[string]string{"no directory": "", "a directory that cannot be": "/dev/null/etcd"} {
		if s, err := embedded.Start(embedded.Config{Dir: dir, Log: slog.New(slog.NewTextHandler(io.Discard, nil))}); err == nil {
			t.Errorf("%s: no error", name)
			s.Close()
		}
	}
}
