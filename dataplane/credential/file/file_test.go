package file_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/prism-gateway/prism/dataplane/credential"
	"github.com/prism-gateway/prism/dataplane/credential/conformance"
	"github.com/prism-gateway/prism/dataplane/credential/file"
)

func TestConformance(t *testing.T) {
	dir := t.TempDir()
	conformance.Run(t, conformance.Subject{
		Provider: provider(t, dir), Type: "file",
		Put: func(t *testing.T, path, text string) { write(t, filepath.Join(dir, path), text, 0o600) },
	})
}

func provider(t *testing.T, dir string) *file.Provider {
	t.Helper()
	p, err := file.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func TestFilesAreReadWhereTheyMayBe(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	const good = `{"password":"p"}`
	write(t, filepath.Join(dir, "..2026", "orders"), good, 0o400)
	write(t, filepath.Join(dir, "team", "orders"), good, 0o600)
	write(t, filepath.Join(dir, "group"), good, 0o640)
	write(t, filepath.Join(dir, "world"), good, 0o604)
	write(t, filepath.Join(outside, "orders"), good, 0o600)
	for name, to := range map[string]string{"..data": "..2026", "orders": "..data/orders", "away": filepath.Join(outside, "orders")} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for name, tc := range map[string]struct {
		path string
		ok   bool
	}{
		"below a directory":                 {"team/orders", true},
		"as Kubernetes mounts secrets":      {"orders", true},
		"one that the group may read":       {"group", false},
		"one that everybody may read":       {"world", false},
		"a link that leads out of the dir":  {"away", false},
		"a directory":                       {"team", false},
		"what is below a file is not there": {"team/orders/x", false},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := provider(t, dir).Fetch(t.Context(), credential.Request{Path: tc.path})
			if tc.ok && err != nil || !tc.ok && !errors.Is(err, credential.ErrRefused) {
				t.Errorf("%v, want it read: %v", err, tc.ok)
			}
		})
	}
}

func TestADirectoryThatIsNotThereYetIsNoRefusal(t *testing.T) {
	_, err := provider(t, filepath.Join(t.TempDir(), "later")).Fetch(t.Context(), credential.Request{Path: "orders"})
	if err == nil || errors.Is(err, credential.ErrRefused) {
		t.Error(err)
	}
}
