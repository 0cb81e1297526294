package e2e_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/prism-gateway/prism/e2e/harness"
	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"
)

// TestBrokenRequestsChangeNothing files every broken request there is with prismctl: each is answered by a message that
// names file and line, and nothing is recorded.
func TestBrokenRequestsChangeNothing(t *testing.T) {
	c := harness.Start(t, harness.Options{Proxies: 1, Backends: backends(t)})
	prismctl := harness.Program(t, "bin/prismctl", "make build")
	files, err := filepath.Glob(filepath.Join(harness.Root(t), "controlplane/admission/testdata/broken/*.yaml"))
	if err != nil || len(files) < 30 {
		t.Fatalf("%d broken files, %v; want 30", len(files), err)
	}
	big := filepath.Join(t.TempDir(), "ten-mebibytes.yaml")
	if err := os.WriteFile(big, []byte("namespace: big\ndescription: "+strings.Repeat("x", 10<<20)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	before, err := c.Admin().Operator.GetSnapshot(t.Context(), &adminv1.GetSnapshotRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range append(files, big) {
		t.Run(filepath.Base(file), func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), prismctl, "--admin", c.Admin().Address, "namespace", "apply", "-f", file)
			out, err := cmd.CombinedOutput()
			if err == nil {
				t.Fatalf("accepted: %s", out)
			}
			place := regexp.MustCompile(regexp.QuoteMeta(filepath.Base(file)) + `(:\d+)?`)
			if !place.Match(out) || strings.Contains(string(out), "panic") || len(out) > 4000 {
				t.Errorf("the message does not help:\n%.4000s", out)
			}
			t.Logf("%s", out)
		})
	}
	after, err := c.Admin().Operator.GetSnapshot(t.Context(), &adminv1.GetSnapshotRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if before.GetSnapshot().GetVersion() != after.GetSnapshot().GetVersion() {
		t.Errorf("the snapshot went from %d to %d", before.GetSnapshot().GetVersion(), after.GetSnapshot().GetVersion())
	}
}
