package harness

import (
	"fmt"
	"os"
)

// Bench is one part of a bench under way; to the harness it is what a test is. It is used from one goroutine.
type Bench struct {
	failed  bool
	cleanup []func()
}

type benchFailure struct{}

// Do runs a part and cleans up after it. It reports whether the part came to its end.
func (b *Bench) Do(part func()) (ok bool) {
	defer func() {
		for i := len(b.cleanup) - 1; i >= 0; i-- {
			b.cleanup[i]()
		}
		b.cleanup = nil
		if p := recover(); p != nil {
			if _, is := p.(benchFailure); !is {
				panic(p)
			}
			ok = false
		}
	}()
	part()
	return true
}

// Helper does nothing: a bench prints no lines of its source.
func (b *Bench) Helper() {}

// Fatalf ends the part.
func (b *Bench) Fatalf(format string, args ...any) {
	b.failed = true
	fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...)
	panic(benchFailure{})
}

// Fatal ends the part.
func (b *Bench) Fatal(args ...any) { b.Fatalf("%s", fmt.Sprint(args...)) }

// Logf prints to standard error.
func (b *Bench) Logf(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

// Cleanup runs f at the end of the part.
func (b *Bench) Cleanup(f func()) { b.cleanup = append(b.cleanup, f) }

// Failed reports whether the part has failed.
func (b *Bench) Failed() bool { return b.failed }

// TempDir makes a directory that goes with the part.
func (b *Bench) TempDir() string {
	dir, err := os.MkdirTemp("", "prism-bench-")
	if err != nil {
		b.Fatalf("%v", err)
	}
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
