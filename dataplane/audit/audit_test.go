package audit_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prism-gateway/prism/dataplane/audit"
	"github.com/prism-gateway/prism/shared/auditchain"
	"github.com/prism-gateway/prism/shared/fault"
)

// start runs a log over files until the test, or stop, ends it.
func start(t *testing.T, dir string, buffer int) (l *audit.Log, stop func()) {
	t.Helper()
	l, err := audit.New(audit.Config{Proxy: "proxy-1", Sink: audit.NewFiles(dir, "proxy-1", 4096), Buffer: buffer, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return l, stop
}

// reserve waits until the log takes records.
func reserve(t *testing.T, l *audit.Log) audit.Slot {
	t.Helper()
	for until := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		s, err := l.Reserve()
		if err == nil {
			return s
		}
		if time.Now().After(until) {
			t.Fatal(err)
		}
	}
}

func record(n int) *auditchain.Record {
	return &auditchain.Record{Time: time.Unix(int64(n), 0).UTC(), Principal: fmt.Sprint("https://idp#user", n), Kind: "user", Namespace: "orders", Operation: "KeyValue/Get", Result: "OK"}
}

// verify reads all files as one chain.
func verify(t *testing.T, dir string) (v auditchain.Verifier, err error) {
	t.Helper()
	files, err := auditchain.Files(dir, "proxy-1")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		_, err = v.Read(f, nil)
		_ = f.Close()
		if err != nil {
			return v, fmt.Errorf("%s: %w", filepath.Base(name), err)
		}
	}
	return v, nil
}

// SE-16
func TestEachAccessHasARecordInAChainOverFilesAndRestarts(t *testing.T) {
	dir := t.TempDir()
	for life := range 3 {
		l, stop := start(t, dir, 0)
		var wg sync.WaitGroup
		for w := range 4 {
			wg.Go(func() {
				for n := range 50 {
					s := reserve(t, l)
					if n%10 == 0 {
						if err := s.WriteThrough(t.Context(), record(n)); err != nil {
							t.Error(err)
						}
						continue
					}
					s.Write(record(w*100 + n))
				}
			})
		}
		wg.Wait()
		reserve(t, l).Cancel()
		stop()
		v, err := verify(t, dir)
		if err != nil || v.Count != uint64(200*(life+1)) {
			t.Fatalf("after life %d: %d records, %v", life, v.Count, err)
		}
	}
	if files, _ := auditchain.Files(dir, "proxy-1"); len(files) < 10 {
		t.Errorf("only %d files", len(files))
	}
}

// SE-18
func TestWhatIsChangedRemovedOrMovedShows(t *testing.T) {
	dir := t.TempDir()
	l, stop := start(t, dir, 0)
	for n := range 5 {
		reserve(t, l).Write(record(n))
	}
	stop()
	files, err := auditchain.Files(dir, "proxy-1")
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	whole, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.SplitAfter(whole, []byte("\n"))[:5]
	join := func(l ...[]byte) []byte { return bytes.Join(l, nil) }
	for name, tc := range map[string]struct {
		text []byte
		want string
	}{
		"whole":             {whole, ""},
		"changed":           {bytes.Replace(whole, []byte("user2"), []byte("user9"), 1), "record 3: it was changed"},
		"a result changed":  {bytes.Replace(whole, []byte(`"result":"OK"`), []byte(`"result":"NO"`), 1), "record 1: it was changed"},
		"removed":           {join(lines[0], lines[1], lines[3], lines[4]), "record 4: the records from 3 to 3 before it are missing"},
		"moved":             {join(lines[0], lines[2], lines[1], lines[3], lines[4]), "record 3: the records from 2 to 2"},
		"twice":             {join(lines[0], lines[1], lines[1], lines[2]), "record 2: it is out of order"},
		"the last cut":      {whole[:len(whole)-10], "not whole"},
		"something between": {join(lines[0], []byte("{}\n"), lines[1]), "line 2"},
		"a field more":      {bytes.Replace(whole, []byte(`{"hash"`), []byte(`{"more":1,"hash"`), 1), "line 1"},
	} {
		v := auditchain.Verifier{}
		_, err := v.Read(bytes.NewReader(tc.text), nil)
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
	// The first can be archived; who forges a whole chain must forge what comes after, too.
	v := auditchain.Verifier{}
	if _, err := v.Read(bytes.NewReader(join(lines[2:]...)), nil); err != nil || v.Count != 3 {
		t.Errorf("without what was archived: %v", err)
	}
}

// SE-17: a disk that takes nothing, and a buffer that is full, refuse calls, and nothing is lost.
func TestWhatCannotBeRecordedIsRefused(t *testing.T) {
	l, stop := start(t, t.TempDir(), 3)
	slots := []audit.Slot{reserve(t, l), reserve(t, l), reserve(t, l)}
	_, err := l.Reserve()
	if f := fault.From(err); !fault.Is(err, fault.AuditUnavailable) || f.Code != fault.Unavailable || f.Outcome != fault.NotApplied || f.RetryAfter == 0 {
		t.Errorf("a fourth: %v", err)
	}
	for n, s := range slots {
		if err := s.WriteThrough(t.Context(), record(n)); err != nil {
			t.Error(err)
		}
	}
	reserve(t, l).Cancel()
	stop()

	broken := &brokenSink{}
	broken.set(errors.New("no space left on device"))
	l, err = audit.New(audit.Config{Proxy: "p", Sink: broken, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	if _, err := l.Reserve(); !fault.Is(err, fault.AuditUnavailable) {
		t.Errorf("before the sink is open: %v", err)
	}
	broken.set(nil)
	s := reserve(t, l)
	broken.set(errors.New("no space left on device"))
	short, over := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer over()
	if err := s.WriteThrough(short, record(1)); !fault.Is(err, fault.AuditUnavailable) {
		t.Errorf("a record that is not safe: %v", err)
	}
	if _, err := l.Reserve(); !fault.Is(err, fault.AuditUnavailable) {
		t.Errorf("while the sink is broken: %v", err)
	}
	broken.set(nil)
	reserve(t, l).Cancel()
	cancel()
	<-done
	if broken.lines != 1 {
		t.Errorf("%d records were kept", broken.lines)
	}
}

// brokenSink fails when it is told to: a disk that is full cannot be had in a test.
type brokenSink struct {
	mu    sync.Mutex
	err   error
	lines int
}

func (b *brokenSink) set(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err = err
}

func (b *brokenSink) Open(context.Context) (uint64, string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return 0, "", b.err
}

func (b *brokenSink) Write(_ context.Context, lines [][]byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == nil {
		b.lines += len(lines)
	}
	return b.err
}

func (*brokenSink) Close() error { return nil }

// A writer that is killed leaves whole records, and the next goes on after them.
func TestAKilledWriterLeavesWholeRecords(t *testing.T) {
	if dir := os.Getenv("PRISM_AUDIT_TEST_DIR"); dir != "" {
		l, _ := start(t, dir, 0)
		for n := 0; ; n++ {
			_ = reserve(t, l).WriteThrough(t.Context(), record(n))
		}
	}
	dir := t.TempDir()
	for range 3 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestAKilledWriter")
		cmd.Env = append(os.Environ(), "PRISM_AUDIT_TEST_DIR="+dir)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		before, _ := verify(t, dir)
		for until := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			if now, _ := verify(t, dir); now.Count > before.Count+20 || time.Now().After(until) {
				break
			}
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	l, stop := start(t, dir, 0)
	if err := reserve(t, l).WriteThrough(t.Context(), record(1)); err != nil {
		t.Fatal(err)
	}
	stop()
	if v, err := verify(t, dir); err != nil || v.Count < 60 {
		t.Errorf("%d records, %v", v.Count, err)
	}
}

// BenchmarkRecord is what a call waits for: the writing is done by another goroutine, which has ended here.
func BenchmarkRecord(b *testing.B) {
	l, err := audit.New(audit.Config{Proxy: "p", Sink: &brokenSink{}, Buffer: 1 << 30, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan struct{})
	go func() { _ = l.Run(ctx); close(ended) }()
	for {
		if s, err := l.Reserve(); err == nil {
			s.Cancel()
			break
		}
	}
	cancel()
	<-ended
	r := record(1)
	b.ReportAllocs()
	for b.Loop() {
		s, err := l.Reserve()
		if err != nil {
			b.Fatal(err)
		}
		own := *r
		s.Write(&own)
	}
}
