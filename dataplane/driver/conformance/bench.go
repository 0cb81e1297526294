package conformance

import (
	"bytes"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/prism-gateway/prism/dataplane/driver"
)

// Bench measures reads and writes of 256 byte values, by 1, 16 and 64 callers at once.
func Bench(b *testing.B, backend Backend) {
	inst, err := backend.Driver.Open(backend.Config)
	if err != nil {
		b.Fatal(err)
	}
	defer inst.Close()
	kv := inst.(driver.KeyValue)
	space := NewSpace()
	const ids = 1000
	value := bytes.Repeat([]byte("v"), 256)
	names := make([]driver.Name, ids)
	for n := range names {
		names[n] = name(fmt.Sprintf("id-%04d", n), "")
		if _, err := kv.Write(b.Context(), space, driver.Write{Op: driver.Put, Name: names[n], Value: value}); err != nil {
			b.Fatal(show(err))
		}
	}
	for _, callers := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("get/%d", callers), func(b *testing.B) {
			many(b, callers, func(n int) error {
				it, err := kv.Get(b.Context(), space, names[n%ids], false)
				if err == nil && (it == nil || len(it.Value) != len(value)) {
					return fmt.Errorf("got %+v", it)
				}
				return err
			})
		})
		b.Run(fmt.Sprintf("put/%d", callers), func(b *testing.B) {
			many(b, callers, func(n int) error {
				_, err := kv.Write(b.Context(), space, driver.Write{Op: driver.Put, Name: names[n%ids], Value: value})
				return err
			})
		})
	}
}

// many runs a function by several callers until b.N calls are done.
func many(b *testing.B, callers int, f func(n int) error) {
	b.ReportAllocs()
	var next atomic.Int64
	done := make(chan error, callers)
	b.ResetTimer()
	for range callers {
		go func() {
			for {
				n := next.Add(1)
				if n > int64(b.N) {
					done <- nil
					return
				}
				if err := f(int(n)); err != nil {
					done <- err
					return
				}
			}
		}()
	}
	for range callers {
		if err := <-done; err != nil {
			b.Error(show(err))
		}
	}
}

// BenchBatch measures reads of a hundred items of 256 bytes at once.
func BenchBatch(b *testing.B, backend Backend) {
	inst, err := backend.Driver.Open(backend.Config)
	if err != nil {
		b.Fatal(err)
	}
	defer inst.Close()
	kv := inst.(driver.KeyValue)
	space := NewSpace()
	names := make([]driver.Name, 100)
	for n := range names {
		names[n] = name(fmt.Sprintf("id-%04d", n), "")
		if _, err := kv.Write(b.Context(), space, driver.Write{Op: driver.Put, Name: names[n], Value: bytes.Repeat([]byte("v"), 256)}); err != nil {
			b.Fatal(show(err))
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		for _, r := range kv.BatchGet(b.Context(), space, names, false) {
			if r.Err != nil || r.Item == nil {
				b.Fatal(show(r.Err))
			}
		}
	}
}
