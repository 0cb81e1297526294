package admission_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"pgregory.net/rapid"

	"github.com/prism-gateway/prism/controlplane/admission"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/strictyaml"
)

var update = flag.Bool("update", false, "write the golden files")

// admit does what the whole stage does with a file: parse, validate, and refuse what is not offered.
func admit(name string, data []byte) string {
	docs, err := admission.ParseYAML(name, data)
	if err != nil {
		return err.Error() + "\n"
	}
	var found admission.Problems
	for _, d := range docs {
		violations := admission.Validate(d.Request)
		if len(violations) == 0 {
			violations = admission.NotOffered(d.Request)
		}
		found = append(found, d.Problems(violations)...)
	}
	if len(found) == 0 {
		return ""
	}
	return found.Error() + "\n"
}

func TestBrokenFilesAreExplained(t *testing.T) {
	files, err := filepath.Glob("testdata/broken/*.yaml")
	if err != nil || len(files) < 30 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := admit(filepath.Base(file), data)
			if got == "" {
				t.Error("the file is taken")
			}
			if strings.Contains(got, "hunter2") || strings.Contains(got, "p4ssw0rd") {
				t.Errorf("the message repeats a credential:\n%s", got)
			}
			golden(t, strings.TrimSuffix(file, ".yaml")+".golden", got)
		})
	}
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Error(diff)
	}
}

func TestGoodFilesAreRead(t *testing.T) {
	for name, want := range map[string][]*configv1.NamespaceRequest{
		"windows.yaml": {
			{Namespace: "orders", Team: "payments", Pattern: "keyvalue"},
			{Namespace: "bills", Team: "payments", Pattern: "keyvalue"},
		},
		"request.json": {{
			Namespace: "orders", Team: "payments", Pattern: "keyvalue", Description: "naïve \"quotes\" and a / slash 🙂 \ufffd \\/",
			Needs: &configv1.Needs{
				Durability: configv1.Durability_DURABILITY_RELAXED, ReadRps: 100,
				Ttl: durationpb.New(24 * time.Hour), MaxValueSize: "64KiB",
			},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			data, err := os.ReadFile("testdata/good/" + name)
			if err != nil {
				t.Fatal(err)
			}
			docs, err := admission.ParseYAML(name, data)
			if err != nil {
				t.Fatal(err)
			}
			var got []*configv1.NamespaceRequest
			for _, d := range docs {
				got = append(got, d.Request)
				if v := admission.Validate(d.Request); len(v) > 0 {
					t.Error(v)
				}
			}
			if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestTheExamplesOfTheDesignAreWellFormed(t *testing.T) {
	data, err := os.ReadFile("testdata/good/design.yaml")
	if err != nil {
		t.Fatal(err)
	}
	docs, err := admission.ParseYAML("design.yaml", data)
	if err != nil || len(docs) != 2 {
		t.Fatalf("%d documents, %v", len(docs), err)
	}
	var exported bytes.Buffer
	for _, d := range docs {
		if v := admission.Validate(d.Request); len(v) > 0 {
			t.Error(d.Problems(v))
		}
		text, err := admission.FormatYAML(d.Request)
		if err != nil {
			t.Fatal(err)
		}
		exported.WriteString("---\n")
		exported.Write(text)
	}
	golden(t, "testdata/good/design.golden", exported.String())
}

func TestLargeFilesAreRefused(t *testing.T) {
	valid := "namespace: orders\nteam: payments\npattern: keyvalue\n"
	var many strings.Builder
	for i := range admission.MaxDocuments + 1 {
		fmt.Fprintf(&many, "---\nnamespace: n%05d\n", i)
	}
	for name, tc := range map[string]struct{ data, want string }{
		"10 MiB": {valid + strings.Repeat("#", 10<<20), "f.yaml:1:1: the file has 10485811 bytes; at most 4194304 are read, so split it"},
		"too many documents": {many.String(),
			"f.yaml:20002:1: the file holds 10001 documents; at most 10000 are read, so split it"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := admission.ParseYAML("f.yaml", []byte(tc.data)); err == nil || err.Error() != tc.want {
				t.Errorf("got %v, want %s", err, tc.want)
			}
		})
	}
}

func TestPositions(t *testing.T) {
	docs, err := admission.ParseYAML("f.yaml", []byte("# first\nnamespace: orders\nteam: payments\npatterns:\n- name: state\n  type: keyvalue\n  needs:\n    ttl: 1h\n"))
	if err != nil {
		t.Fatal(err)
	}
	for field, want := range map[string]int{
		"": 2, "namespace": 2, "patterns": 4, "patterns[0]": 5, "patterns[0].type": 6, "patterns[0].needs.ttl": 8,
		"patterns[0].needs.data_size": 7, "limits.rps": 2,
	} {
		if found := docs[0].Problems([]fault.Violation{{Field: field, Text: "is wrong"}}); len(found) != 1 || found[0].Line != want {
			t.Errorf("%q: %v, want line %d", field, found, want)
		}
	}
}

func TestBackendsAreRead(t *testing.T) {
	docs, err := admission.ParseBackendsYAML("b.yaml", []byte(`name: cache
type: redis
endpoints: ["cache.example.org:6379"]
capacity: {read_rps: 1000, data_size: 1GiB}
labels: {region: eu-west-1}
config: {database: 3}
pool: {dial_timeout: 2s}
---
name: scratch
type: memory
`))
	if err != nil {
		t.Fatal(err)
	}
	want := []*configv1.Backend{
		{
			Name: "cache", Type: "redis", Endpoints: []string{"cache.example.org:6379"},
			Capacity: &configv1.Capacity{ReadRps: 1000, DataSize: "1GiB"}, Labels: map[string]string{"region": "eu-west-1"},
			Config: map[string]string{"database": "3"}, Pool: &configv1.PoolPolicy{DialTimeout: durationpb.New(2 * time.Second)},
		},
		{Name: "scratch", Type: "memory"},
	}
	for i, d := range docs {
		if diff := cmp.Diff(want[i], d.Backend, protocmp.Transform()); diff != "" {
			t.Error(diff)
		}
		if v := admission.ValidateBackend(d.Backend); len(v) > 0 {
			t.Error(v)
		}
		text, err := strictyaml.Format(d.Backend)
		if err != nil {
			t.Fatal(err)
		}
		again, err := admission.ParseBackendsYAML("again.yaml", text)
		if err != nil || !proto.Equal(again[0].Backend, d.Backend) {
			t.Errorf("exported and read again: %v\n%s", err, text)
		}
	}
	if _, err := admission.ParseBackendsYAML("b.yaml", []byte("name: a\n---\nname: a\n")); err == nil || err.Error() != `b.yaml:3:1: name: "a" stands twice in this file, first on line 1` {
		t.Error(err)
	}
}

func TestExportReadsBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		req := anyRequest(t)
		text, err := admission.FormatYAML(req)
		if err != nil {
			t.Fatal(err)
		}
		docs, err := admission.ParseYAML("export.yaml", text)
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		if len(docs) != 1 || !proto.Equal(docs[0].Request, req) {
			t.Fatalf("read back differently:\n%s\n%s", text, cmp.Diff(req, docs[0].Request, protocmp.Transform()))
		}
	})
}

// FuzzParseYAML holds the reader to three promises: it never panics, what it refuses it explains with a place, and what
// it takes it can write so that it reads the same again.
func FuzzParseYAML(f *testing.F) {
	for _, dir := range []string{"broken", "good"} {
		files, err := filepath.Glob("testdata/" + dir + "/*")
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		docs, err := admission.ParseYAML("fuzz.yaml", data)
		if err != nil {
			problems, ok := errors.AsType[admission.Problems](err)
			if !ok || len(problems) == 0 {
				t.Fatalf("%T: %v", err, err)
			}
			for _, p := range problems {
				if p.Line < 1 || p.Column < 1 || p.Text == "" {
					t.Errorf("%+v", p)
				}
			}
			return
		}
		for _, d := range docs {
			admission.Validate(d.Request)
			text, err := admission.FormatYAML(d.Request)
			if err != nil {
				t.Fatalf("%v\n%v", err, d.Request)
			}
			again, err := admission.ParseYAML("again.yaml", text)
			if err != nil || !proto.Equal(again[0].Request, d.Request) {
				t.Fatalf("%v\n%s\n%v", err, text, d.Request)
			}
		}
	})
}

func BenchmarkAdmitOneDocument(b *testing.B) {
	data, err := os.ReadFile("testdata/good/request.json")
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		docs, err := admission.ParseYAML("b.json", data)
		if err != nil {
			b.Fatal(err)
		}
		admission.Validate(docs[0].Request)
	}
}
