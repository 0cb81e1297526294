package journal_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/prism-gateway/prism/controlplane/fleet/journal"
	"github.com/prism-gateway/prism/shared/ident"
)

// open runs a journal until the test or the returned function ends it.
func open(t *testing.T, dir string, maxBytes int64) (*journal.Journal, func()) {
	t.Helper()
	j, err := journal.New(journal.Config{Dir: dir, MaxBytes: maxBytes, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- j.Run(ctx) }()
	stop := func() {
		t.Helper()
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
		ended <- nil
	}
	t.Cleanup(stop)
	return j, stop
}

func root(s string) ident.Hash { return ident.HashOf([]byte(s)) }

func cell(p ident.Partition, s string) journal.Cell {
	return journal.Cell{Partition: p, Root: root(s), Shared: root("shared"), Snapshot: 7}
}

func at(t *testing.T, j *journal.Journal, proxy string, when time.Time) journal.Served {
	t.Helper()
	s, err := j.At(t.Context(), proxy, when)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// told is what is expected of a cell.
type told struct {
	Partition    ident.Partition
	Root         ident.Hash
	Since, Other int // minutes after the first; -1 is not known
}

func compare(t *testing.T, what string, s journal.Served, first time.Time, want ...told) {
	t.Helper()
	minutes := func(x time.Time) int {
		if x.IsZero() {
			return -1
		}
		return int(x.Sub(first) / time.Minute)
	}
	var got []told
	for _, c := range s.Cells {
		got = append(got, told{c.Partition, c.Root, minutes(c.Since), minutes(c.Other)})
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// first is after the journals of a test have begun, so that all of it is told by their first segments.
func first() time.Time { return time.Now().Add(time.Hour).Truncate(time.Second) }

func TestWhatAProxyServedIsTold(t *testing.T) {
	dir := t.TempDir()
	j, stop := open(t, dir, 0)
	t0 := first()
	minute := func(n int) time.Time { return t0.Add(time.Duration(n) * time.Minute) }
	j.Note(journal.Entry{Proxy: "a", At: minute(0), Begins: true, Cells: []journal.Cell{cell(1, "one"), cell(2, "two")}})
	j.Note(journal.Entry{Proxy: "b", At: minute(0), Begins: true, Cells: []journal.Cell{cell(1, "one")}})
	j.Note(journal.Entry{Proxy: "a", At: minute(2), Cells: []journal.Cell{cell(1, "ONE")}})
	j.Note(journal.Entry{Proxy: "a", At: minute(4), Dropped: []ident.Partition{2}})
	j.Note(journal.Entry{Proxy: "a", At: minute(6), Begins: true, Cells: []journal.Cell{cell(1, "ONE"), cell(3, "three")}})
	j.Note(journal.Entry{Proxy: "b", At: minute(6), Gone: true})
	check := func(t *testing.T, j *journal.Journal) {
		compare(t, "before it was heard of", at(t, j, "a", minute(-1)), t0)
		compare(t, "at first", at(t, j, "a", minute(1)), t0, told{1, root("one"), 0, -1}, told{2, root("two"), 0, -1})
		compare(t, "after a change", at(t, j, "a", minute(2)), t0, told{1, root("ONE"), 2, 2}, told{2, root("two"), 0, -1})
		compare(t, "after it let one go", at(t, j, "a", minute(5)), t0, told{1, root("ONE"), 2, 2})
		compare(t, "after it came back", at(t, j, "a", minute(9)), t0, told{1, root("ONE"), 2, 2}, told{3, root("three"), 6, -1})
		compare(t, "another", at(t, j, "b", minute(5)), t0, told{1, root("one"), 0, -1})
		compare(t, "another after it left", at(t, j, "b", minute(7)), t0)
		compare(t, "one that never was", at(t, j, "c", minute(7)), t0)
		if s := at(t, j, "a", minute(9)); !s.Begun.Equal(minute(6)) || s.Oldest.IsZero() {
			t.Errorf("begun %v, oldest %v", s.Begun, s.Oldest)
		}
	}
	check(t, j)
	stop()

	t.Run("after a restart", func(t *testing.T) {
		again, _ := open(t, dir, 0)
		check(t, again)
		again.Note(journal.Entry{Proxy: "a", At: minute(12), Begins: true, Cells: []journal.Cell{cell(1, "ONE")}})
		compare(t, "what stayed the same over it", at(t, again, "a", minute(13)), t0, told{1, root("ONE"), 2, 2})
	})
}

func TestADirectoryIsOneProcesss(t *testing.T) {
	dir := t.TempDir()
	j, _ := open(t, dir, 0)
	at(t, j, "a", time.Now()) // it runs
	second, err := journal.New(journal.Config{Dir: dir, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Run(t.Context()); err == nil {
		t.Error("two use one directory")
	}
	if _, err := second.At(t.Context(), "a", time.Now()); err == nil {
		t.Error("one that does not run answers")
	}
}

func TestWhatWasTornOrDamagedEndsASegment(t *testing.T) {
	for name, damage := range map[string]func([]byte) []byte{
		"the last record was not written whole":   func(b []byte) []byte { return b[:len(b)-3] },
		"the last record's length was not either": func(b []byte) []byte { return append(b[:len(b):len(b)], 0, 0) },
		"a length that nobody wrote":              func(b []byte) []byte { return append(b[:len(b):len(b)], 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0) },
		"bytes of the last record have changed":   func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			j, stop := open(t, dir, 0)
			t0 := first()
			j.Note(journal.Entry{Proxy: "a", At: t0, Begins: true, Cells: []journal.Cell{cell(1, "one")}})
			at(t, j, "a", t0)
			j.Note(journal.Entry{Proxy: "a", At: t0.Add(time.Minute), Cells: []journal.Cell{cell(1, "ONE")}})
			stop()
			files := segments(t, dir)
			data, err := os.ReadFile(files[len(files)-1])
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(files[len(files)-1], damage(data), 0o600); err != nil {
				t.Fatal(err)
			}
			again, _ := open(t, dir, 0)
			if s := at(t, again, "a", t0); len(s.Cells) != 1 || s.Cells[0].Root != root("one") {
				t.Errorf("what was whole is not told: %v", s)
			}
			again.Note(journal.Entry{Proxy: "a", At: t0.Add(2 * time.Minute), Cells: []journal.Cell{cell(1, "new")}})
			if s := at(t, again, "a", t0.Add(2*time.Minute)); len(s.Cells) != 1 || s.Cells[0].Root != root("new") {
				t.Errorf("what was noted after it is not told: %v", s)
			}
		})
	}
	t.Run("a segment of nothing", func(t *testing.T) {
		dir := t.TempDir()
		j, stop := open(t, dir, 0)
		t0 := first()
		j.Note(journal.Entry{Proxy: "a", At: t0, Begins: true, Cells: []journal.Cell{cell(1, "one")}})
		stop()
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%020d.journal", 2)), []byte{1, 2}, 0o600); err != nil {
			t.Fatal(err)
		}
		again, _ := open(t, dir, 0)
		if s := at(t, again, "a", t0); len(s.Cells) != 1 {
			t.Errorf("told %v", s)
		}
	})
}

func segments(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.journal"))
	if err != nil || len(files) == 0 {
		t.Fatalf("segments %v, %v", files, err)
	}
	return files
}

func TestSpaceIsBoundedAndWhatIsKeptIsWhole(t *testing.T) {
	const maxBytes = 64 << 10
	dir := t.TempDir()
	j, _ := open(t, dir, maxBytes)
	quiet := cell(9, "quiet")
	at(t, j, "quiet", time.Now()) // it runs
	began := time.Now()
	j.Note(journal.Entry{Proxy: "quiet", At: began, Begins: true, Cells: []journal.Cell{quiet}})
	for i := range 4000 {
		j.Note(journal.Entry{Proxy: "busy", At: time.Now(), Begins: i == 0, Cells: []journal.Cell{cell(1, fmt.Sprint(i))}})
		if i%100 == 0 {
			at(t, j, "busy", time.Now()) // so that it is written in many steps
		}
	}
	now := time.Now()
	if s := at(t, j, "busy", now); len(s.Cells) != 1 || s.Cells[0].Root != root("3999") {
		t.Errorf("busy serves %v", s)
	}
	s := at(t, j, "quiet", now)
	if len(s.Cells) != 1 || s.Cells[0].Root != quiet.Root || !s.Cells[0].Since.Equal(began) {
		t.Errorf("what did not change for long is told as %v", s)
	}
	if !s.Oldest.After(began) {
		t.Errorf("nothing was removed: oldest %v, began %v", s.Oldest, began)
	}
	if gone := at(t, j, "quiet", began); len(gone.Cells) != 0 {
		t.Errorf("of what was removed, %v is told", gone)
	}
	var bytes int64
	for _, f := range segments(t, dir) {
		info, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		bytes += info.Size()
	}
	if bytes > maxBytes*3/2 {
		t.Errorf("%d bytes are kept", bytes)
	}
}
