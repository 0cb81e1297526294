//go:build !unix

package credential

import (
	"fmt"
	"os"
	"runtime"
)

// lockExclusive refuses, because here nothing frees the lock of a process that dies.
func lockExclusive(path string) (*os.File, error) {
	return nil, fmt.Errorf("%s: a journal cannot be locked on %s", path, runtime.GOOS)
}
