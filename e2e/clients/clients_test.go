//go:build clients

// Package clients_test has programs that know nothing of Prism but its protos call a real one.
package clients_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prism-gateway/prism/e2e/harness"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/testserver/redisserver"
)

const how = "make e2e-clients"

// start runs a control plane and two proxies, with a namespace in a Redis and two in memory.
func start(t *testing.T) *harness.Cluster {
	t.Helper()
	redis := redisserver.Start(t, redisserver.Options{})
	c := harness.Start(t, harness.Options{Proxies: 2, Backends: []*configv1.Backend{
		{Name: "redis", Type: "redis", Endpoints: []string{redis.Addr()}}, {Name: "memory", Type: "memory"},
	}})
	c.Apply(t.Context(),
		&configv1.NamespaceRequest{
			Namespace: "orders", Team: "e2e", Pattern: "keyvalue", Needs: &configv1.Needs{Durability: configv1.Durability_DURABILITY_RELAXED},
		},
		everything("sample-0"), everything("sample-1"))
	return c
}

// everything is a namespace that offers all that the sample application uses.
func everything(name string) *configv1.NamespaceRequest {
	return &configv1.NamespaceRequest{Namespace: name, Team: "e2e", Pattern: "keyvalue", Needs: &configv1.Needs{
		Durability: configv1.Durability_DURABILITY_NONE,
		Interfaces: []string{"keyvalue.counter", "keyvalue.idempotency", "keyvalue.large", "keyvalue.scan", "keyvalue.version", "keyvalue.watch"},
	}}
}

// run runs a program until it ends or is given up.
func run(t *testing.T, dir, program string, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Dir, cmd.WaitDelay = dir, time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", filepath.Base(program), err, out)
	}
	return out
}

// protoFolders are the two folders that a program needs to know the API: ours, and what it imports from elsewhere.
func protoFolders(t *testing.T) (ours, others string) {
	root := harness.Root(t)
	return filepath.Join(root, "protos"), filepath.Dir(filepath.Dir(filepath.Dir(harness.Program(t, ".cache/protodeps/buf/validate/validate.proto", how))))
}

// TestPython runs the sample application through each proxy, with the code that grpcio-tools generates.
func TestPython(t *testing.T) {
	c := start(t)
	python := harness.Program(t, ".cache/python/bin/python", how)
	ours, others := protoFolders(t)
	generated := t.TempDir()
	for _, folder := range []string{ours, others} {
		var files []string
		err := filepath.WalkDir(folder, func(path string, _ os.DirEntry, err error) error {
			if strings.HasSuffix(path, ".proto") && (strings.Contains(path, "/data/v1/") || strings.Contains(path, "/buf/validate/")) {
				files = append(files, path)
			}
			return err
		})
		if err != nil || len(files) == 0 {
			t.Fatalf("no protos in %s: %v", folder, err)
		}
		run(t, generated, python, append([]string{
			"-m", "grpc_tools.protoc", "-I", ours, "-I", others, "--python_out=.", "--grpc_python_out=.",
		}, files...)...)
	}
	sample := filepath.Join(harness.Root(t), "e2e", "clients", "python", "keyvalue.py")
	for n, proxy := range c.Proxies {
		// Its first steps want an empty namespace.
		cmd := exec.CommandContext(t.Context(), python, sample, proxy.Address, fmt.Sprintf("sample-%d", n))
		cmd.Env = append(os.Environ(), "PYTHONPATH="+generated, "PYTHONDONTWRITEBYTECODE=1")
		out, err := cmd.CombinedOutput()
		if t.Logf("through %s:\n%s", proxy.ID, out); err != nil {
			t.Fatal(err)
		}
		if steps := strings.Count(string(out), "\n"); steps != 7 {
			t.Errorf("%d steps, want 7", steps)
		}
	}
}

// report is the part of ghz's that is looked at.
type report struct {
	Count        int
	Rps          float64
	StatusCodes  map[string]int `json:"statusCodeDistribution"`
	Errors       map[string]int `json:"errorDistribution"`
	Distribution []struct {
		Percentage int           `json:"percentage"`
		Latency    time.Duration `json:"latency"`
	} `json:"latencyDistribution"`
}

// TestGhz loads each proxy with ghz, which learns the API from the protos.
func TestGhz(t *testing.T) {
	c := start(t)
	ghz := harness.Program(t, ".cache/bin/ghz", how)
	ours, others := protoFolders(t)
	const calls = 5000
	for _, proxy := range c.Proxies {
		for _, method := range []string{"Put", "Get"} {
			var messages []map[string]any // which ghz sends in turn
			for n := range 500 {
				m := map[string]any{"namespace": "orders", "id": fmt.Appendf(nil, "id-%d", n)}
				if method == "Put" {
					m["value"] = make([]byte, 64)
				}
				messages = append(messages, m)
			}
			data, err := json.Marshal(messages)
			if err != nil {
				t.Fatal(err)
			}
			out := run(t, t.TempDir(), ghz, "--insecure", "--proto", filepath.Join(ours, "prism/data/v1/keyvalue.proto"), "--import-paths", ours+","+others,
				"--call", "prism.data.v1.KeyValue."+method, "--total", fmt.Sprint(calls), "--concurrency", "64", "--connections", "4", "--data", string(data), "--format", "json",
				proxy.Address)
			var r report
			if err := json.Unmarshal(out, &r); err != nil {
				t.Fatalf("%v in %s", err, out)
			}
			if r.Count != calls || r.StatusCodes["OK"] != calls || len(r.Errors) > 0 {
				t.Errorf("%s through %s: %d calls, %v, %v", method, proxy.ID, r.Count, r.StatusCodes, r.Errors)
			}
			t.Logf("%s through %s: %.0f/s, %v", method, proxy.ID, r.Rps, r.Distribution)
		}
	}
}
