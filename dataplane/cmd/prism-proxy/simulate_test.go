package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/prism-gateway/prism/dataplane/simulate"
)

func TestFlagsOfASimulationAreChecked(t *testing.T) {
	for _, c := range []struct {
		name, args, problem string
	}{
		{"no proxies", "--proxies 0", "--proxies 0"},
		{"a port is missing", "--admin-endpoint localhost", "--admin-endpoint"},
		{"more stalled than there are", "--proxies 3 --stall 4", "--stall 4"},
		{"a share above all", "--nack-rate 2", "--nack-rate"},
		{"no regular expression", "--nack (", "--nack"},
		{"an unknown format", "-o yaml", "yaml"},
		{"a negative time", "--jitter -1s", "negative"},
		{"an unknown level", "--log-level loud", "--log-level"},
		{"too many validators", "--validators 1000", "--validators"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			code := program(t.Context(), append([]string{"simulate"}, strings.Fields(c.args)...), func(string) (string, bool) { return "", false }, &stdout, &stderr)
			if code != exitUsage || !strings.Contains(stderr.String(), c.problem) {
				t.Errorf("exit %d, %q; want %d and %q", code, stderr.String(), exitUsage, c.problem)
			}
		})
	}
}

func TestASimulationThatNobodyAnswersFails(t *testing.T) {
	var stdout, stderr bytes.Buffer
	args := strings.Fields("simulate --proxies 1 --admin-endpoint 127.0.0.1:1 --duration 1ms")
	code := program(t.Context(), args, func(string) (string, bool) { return "", false }, &stdout, &stderr)
	if code != exitFailed || !strings.Contains(stderr.String(), "nothing came from a control plane at 127.0.0.1:1") || !strings.Contains(stdout.String(), "0 connected") {
		t.Errorf("exit %d: %s%s", code, stdout.String(), stderr.String())
	}
}

func TestReportsOfASimulation(t *testing.T) {
	step := simulate.Report{Elapsed: 1, Proxies: 3, Connected: 2, Cells: 7, Applied: 4, Received: 3 << 20}
	end := step
	end.Final = true
	end.InEffect = simulate.Latency{Count: 9, P50: 0.0012345, P99: 0.2, Max: 12.3456}
	end.Partitions = []simulate.Partition{{Partition: 5, Proxies: 3, Roots: 1}}
	for _, c := range []struct {
		name    string
		watched bool
		want    []string
		without string
	}{
		{"where a person looks each second is told", true, []string{"CONNECTED", "2/3", "3.0 MiB", "n 9  p50 1.23ms  p99 200ms  max 12.35s", "PARTITION"}, ""},
		{"elsewhere only the summary", false, []string{"3 proxies for 1s: 2 connected", "n 0  p50 -"}, "CONNECTED"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			r := &tableReports{w: &out, watched: c.watched, proxies: 3}
			if err := r.step(step); err != nil {
				t.Fatal(err)
			}
			if err := r.summary(end); err != nil {
				t.Fatal(err)
			}
			for _, want := range c.want {
				if !strings.Contains(out.String(), want) {
					t.Errorf("no %q in:\n%s", want, out.String())
				}
			}
			if c.without != "" && strings.Contains(out.String(), c.without) {
				t.Errorf("%q in:\n%s", c.without, out.String())
			}
		})
	}
	t.Run("as JSON each is a line", func(t *testing.T) {
		var out bytes.Buffer
		r := printer("json", &out, 3)
		if err := r.step(step); err != nil {
			t.Fatal(err)
		}
		if err := r.summary(end); err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		var last simulate.Report
		if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || len(lines) != 2 || !last.Final || last.InEffect != end.InEffect {
			t.Errorf("%d lines, %v, %+v", len(lines), err, last)
		}
	})
}
