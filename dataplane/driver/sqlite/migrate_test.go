package sqlite_test

import (
	"database/sql"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/dataplane/driver/sqlite"
	"github.com/prism-gateway/prism/shared/fault"
)

// firstFormat is a file as the first build made it, with one item.
const firstFormat = `
CREATE TABLE item (
	space BLOB NOT NULL, id BLOB NOT NULL, key BLOB NOT NULL, version BLOB NOT NULL, expire INTEGER NOT NULL, modified INTEGER NOT NULL,
	type TEXT NOT NULL, metadata BLOB NOT NULL, value BLOB NOT NULL, PRIMARY KEY (space, id, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX item_expire ON item (expire) WHERE expire > 0;
INSERT INTO item VALUES (CAST('s.1' AS BLOB), x'61', x'', x'0102', 0, 1000000, '', x'', CAST('41' AS BLOB));
PRAGMA user_version = 1;
`

// TestFilesOfTheFirstFormat are taken over with what they hold.
func TestFilesOfTheFirstFormat(t *testing.T) {
	path := filepath.Join(t.TempDir(), "old")
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(firstFormat); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	s, err := sqlite.Driver().Open(driver.Config{Name: "local", Endpoints: []string{path}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	done, err := s.(driver.Counter).Increment(t.Context(), "s.1", driver.Increment{Name: driver.Name{ID: []byte("a")}, Delta: 1})
	if err != nil || done.Value != 42 || !done.Existed {
		t.Errorf("got %+v, %v", done, err)
	}
}

// TestUnfinishedValuesAreSwept leaves no part of a large value that did not come to its end.
func TestUnfinishedValuesAreSwept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	now := time.Now()
	s, err := sqlite.Driver().Open(driver.Config{Name: "local", Endpoints: []string{path}, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	parts := func() (n int) {
		db, err := sql.Open("sqlite", path)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		if err := db.QueryRow("SELECT count(*) FROM part").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	name, broken := driver.Name{ID: []byte("a")}, errors.New("broken")
	big := strings.Repeat("x", 2<<20)
	values := s.(driver.LargeValues)
	if _, err := values.WriteValue(t.Context(), "s.1", driver.Write{Name: name}, io.MultiReader(strings.NewReader(big), iotest.ErrReader(broken))); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	if n := parts(); n != 0 {
		t.Errorf("%d parts are left of a value that broke off", n)
	}
	// A value whose writer is gone: its time runs out while it comes.
	hour := &slow{Reader: strings.NewReader(big), before: func() { now = now.Add(2 * time.Hour) }, after: func() {
		if _, err := s.(*sqlite.Instance).Sweep(t.Context()); err != nil {
			t.Error(err)
		}
	}}
	if _, err := values.WriteValue(t.Context(), "s.1", driver.Write{Name: name}, hour); !fault.Is(err, fault.Backend) {
		t.Errorf("got %v, want that it took too long", err)
	}
	if n := parts(); n != 0 {
		t.Errorf("%d parts are left of a value that was too slow", n)
	}
	if _, err := values.WriteValue(t.Context(), "s.1", driver.Write{Name: name}, strings.NewReader(big)); err != nil || parts() != 4 {
		t.Errorf("%d parts, %v", parts(), err)
	}
	if _, err := s.(driver.KeyValue).Write(t.Context(), "s.1", driver.Write{Op: driver.Delete, Name: name}); err != nil || parts() != 0 {
		t.Errorf("KC-14 chunks_removed_on_delete: %d parts are left, %v", parts(), err)
	}
}

// slow lets time go by in the middle.
type slow struct {
	io.Reader
	read          int
	before, after func()
}

// Read reads.
func (s *slow) Read(p []byte) (int, error) {
	if s.read++; s.read == 40 {
		s.before()
		s.after()
	}
	return s.Reader.Read(p[:min(len(p), 32<<10)])
}

// TestDamagedLargeValue is told of.
func TestDamagedLargeValue(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	s, err := sqlite.Driver().Open(driver.Config{Name: "local", Endpoints: []string{path}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	name := driver.Name{ID: []byte("a")}
	if _, err := s.(driver.LargeValues).WriteValue(t.Context(), "s.1", driver.Write{Name: name}, strings.NewReader(strings.Repeat("x", 2<<20))); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec("UPDATE part SET data = CAST(replace(CAST(data AS TEXT), 'xx', 'xy') AS BLOB) WHERE number = 2"); err != nil {
		t.Fatal(err)
	}
	v, err := s.(driver.LargeValues).ReadValue(t.Context(), "s.1", name, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if n, err := io.Copy(io.Discard, v); n != 1<<20 || !fault.Is(err, fault.Checksum) {
		t.Errorf("KC-13 large_checksum_mismatch_data_loss: read %d bytes, %v", n, err)
	}
}
