package conformance

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/shared/fault"
)

func (e *Env) large() driver.LargeValues { return e.inst.(driver.LargeValues) }

// noise is size bytes that a seed determines.
func noise(seed uint64, size int64) io.Reader {
	var key [32]byte
	key[0] = byte(seed)
	return io.LimitReader(rand.NewChaCha8(key), size)
}

// wrote writes a large value of the id a.
func (e *Env) wrote(w driver.Write, seed uint64, size int64) driver.Written {
	e.t.Helper()
	done, err := e.large().WriteValue(context.Background(), e.Space, w, noise(seed, size))
	if err != nil {
		e.t.Fatal(show(err))
	}
	return done
}

// reads demands that a value is what wrote wrote, from a byte on.
func (e *Env) reads(key string, seed uint64, size int64, offset uint64) *driver.Value {
	e.t.Helper()
	v, err := e.large().ReadValue(context.Background(), e.Space, name("a", key), offset)
	if err != nil || v == nil {
		e.t.Fatalf("got %v, %s", v, show(err))
	}
	defer v.Close()
	want := noise(seed, size)
	if _, err := io.CopyN(io.Discard, want, int64(offset)); err != nil && !errors.Is(err, io.EOF) {
		e.t.Fatal(err)
	}
	a, b := sha256.New(), sha256.New()
	n, err := io.Copy(a, v)
	if err != nil {
		e.t.Fatalf("after %d bytes: %s", n, show(err))
	}
	m, _ := io.Copy(b, want)
	if n != m || !bytes.Equal(a.Sum(nil), b.Sum(nil)) || v.Size != uint64(size) {
		e.t.Fatalf("read %d bytes of %d, want %d of %d; equal: %v", n, v.Size, m, size, bytes.Equal(a.Sum(nil), b.Sum(nil)))
	}
	return v
}

func largeCases() []Case {
	const size = 20<<20 + 12345
	return in("keyvalue.large",
		Case{ID: "KC-10", Name: "large_roundtrip", Run: func(t *testing.T, e *Env) {
			w := put("a", "k", "")
			w.ContentType, w.Metadata = "video/mp4", map[string]string{"a": "b"}
			done := e.wrote(w, 1, size)
			v := e.reads("k", 1, size, 0)
			if !bytes.Equal(v.Version, done.Version) || v.ContentType != "video/mp4" || v.Metadata["a"] != "b" || !bytes.Equal(v.Key, []byte("k")) {
				t.Errorf("got %+v, want version %x", v.Item, done.Version)
			}
			for _, offset := range []uint64{1, 1 << 20, 5<<20 + 1, size - 1, size, size + 10} {
				e.reads("k", 1, size, min(offset, size))
			}
			if it, err := e.Get(t.Context(), e.Space, name("a", "k"), true); err != nil || it == nil || it.Size != size || it.Value != nil {
				t.Errorf("head: %+v, %s", it, show(err))
			}
			if _, err := e.Get(t.Context(), e.Space, name("a", "k"), false); !fault.Is(err, fault.TooLarge) {
				t.Errorf("get: %s", show(err))
			}
			if got := e.BatchGet(t.Context(), e.Space, []driver.Name{name("a", "k")}, false); !fault.Is(got[0].Err, fault.TooLarge) {
				t.Errorf("batch: %s", show(got[0].Err))
			}
			if sc, ok := e.inst.(driver.Scanner); ok {
				items, _, err := sc.Scan(t.Context(), e.Space, driver.Range{ID: []byte("a"), Limit: 10, MaxBytes: 1 << 20})
				if err != nil || len(items) != 1 || items[0].Size != size || len(items[0].Value) != 0 {
					t.Errorf("scan: %d items, %s", len(items), show(err))
				}
			}
		}},
		Case{ID: "KC-10", Name: "values_of_all_sizes", Run: func(t *testing.T, e *Env) {
			for n, size := range []int64{0, 1, 1000, 1<<18 - 1, 1 << 18, 1 << 20, 1<<20 + 1} {
				e.wrote(put("a", "k", ""), uint64(n), size)
				e.reads("k", uint64(n), size, 0)
			}
			e.must(put("a", "small", "value"))
			v, err := e.large().ReadValue(t.Context(), e.Space, name("a", "small"), 2)
			if err != nil || v == nil || v.Size != 5 {
				t.Fatalf("got %+v, %s", v, show(err))
			}
			defer v.Close()
			if b, err := io.ReadAll(v); string(b) != "lue" || err != nil {
				t.Errorf("got %q, %v", b, err)
			}
			if v, err := e.large().ReadValue(t.Context(), e.Space, name("a", "absent"), 0); v != nil || err != nil {
				t.Errorf("absent: %v, %s", v, show(err))
			}
		}},
		Case{ID: "KC-11", Name: "large_incomplete_invisible", Run: func(t *testing.T, e *Env) {
			e.must(put("a", "k", "old"))
			broken := fault.New(fault.DataLoss, fault.Checksum, "broken").WithOutcome(fault.NotApplied)
			_, err := e.large().WriteValue(t.Context(), e.Space, put("a", "k", ""), io.MultiReader(noise(1, size), failing{broken}))
			if !fault.Is(err, fault.Checksum) {
				t.Errorf("got %s, want the reader's", show(err))
			}
			e.holds("a", "k", "old")
			_, err = e.large().WriteValue(t.Context(), e.Space, put("a", "new", ""), io.MultiReader(noise(1, size), failing{broken}))
			if !fault.Is(err, fault.Checksum) {
				t.Errorf("got %s, want the reader's", show(err))
			}
			e.holds("a", "new", nil)
			pause, going := make(chan struct{}), make(chan struct{})
			done := make(chan error, 1)
			go func() {
				_, err := e.large().WriteValue(context.Background(), e.Space, put("a", "k", ""), io.MultiReader(noise(1, size), waiting{going, pause}))
				done <- err
			}()
			<-going
			e.holds("a", "k", "old")
			close(pause)
			if err := <-done; err != nil {
				t.Fatal(show(err))
			}
			e.reads("k", 1, size, 0)
		}},
		Case{ID: "KC-12", Name: "large_overwrite_atomic", Run: func(t *testing.T, e *Env) {
			e.wrote(put("a", "k", ""), 1, size)
			v, err := e.large().ReadValue(t.Context(), e.Space, name("a", "k"), 0)
			if err != nil {
				t.Fatal(show(err))
			}
			defer v.Close()
			head := make([]byte, 1000)
			if _, err := io.ReadFull(v, head); err != nil {
				t.Fatal(err)
			}
			e.wrote(put("a", "k", ""), 2, size/2)
			e.reads("k", 2, size/2, 0)
			// Who had begun reads on in what he began, or is told.
			rest, err := io.ReadAll(v)
			want, _ := io.ReadAll(noise(1, size))
			if err == nil && !bytes.Equal(append(head, rest...), want) || err != nil && !fault.Is(err, fault.VersionMismatch) {
				t.Errorf("read %d bytes, %s", len(rest), show(err))
			}
			e.must(put("a", "k", "small"))
			e.holds("a", "k", "small")
			e.wrote(put("a", "k", ""), 3, size)
			e.must(remove("a", "k"))
			e.holds("a", "k", nil)
		}},
		Case{ID: "KC-12", Name: "large_and_conditions", Needs: versioned, Run: func(t *testing.T, e *Env) {
			first := e.wrote(onlyIf(put("a", "k", ""), driver.IfAbsent, nil), 1, size)
			_, err := e.large().WriteValue(t.Context(), e.Space, onlyIf(put("a", "k", ""), driver.IfAbsent, nil), noise(2, size))
			if !fault.Is(err, fault.Key) {
				t.Errorf("got %s", show(err))
			}
			second := e.wrote(onlyIf(put("a", "k", ""), driver.IfVersion, first.Version), 3, size)
			_, err = e.large().WriteValue(t.Context(), e.Space, onlyIf(put("a", "k", ""), driver.IfVersion, first.Version), noise(4, size))
			if !fault.Is(err, fault.VersionMismatch) {
				t.Errorf("got %s", show(err))
			}
			if bytes.Equal(first.Version, second.Version) || !second.Existed {
				t.Errorf("got %+v after %+v", second, first)
			}
			e.reads("k", 3, size, 0)
		}},
		Case{ID: "KC-12", Name: "large_and_expiry", Needs: expires, Run: func(t *testing.T, e *Env) {
			e.wrote(until(put("a", "k", ""), e.Clock.Now().Add(time.Hour)), 1, size)
			e.reads("k", 1, size, 0)
			e.Clock.Move(2 * time.Hour)
			if v, err := e.large().ReadValue(t.Context(), e.Space, name("a", "k"), 0); v != nil || err != nil {
				t.Errorf("got %v, %s", v, show(err))
			}
		}},
	)
}

// failing is a reader that fails.
type failing struct{ err error }

// Read fails.
func (f failing) Read([]byte) (int, error) { return 0, f.err }

// waiting is a reader that tells when it is reached, and ends when it may.
type waiting struct{ reached, may chan struct{} }

// Read waits.
func (w waiting) Read([]byte) (int, error) {
	close(w.reached)
	<-w.may
	return 0, io.EOF
}
