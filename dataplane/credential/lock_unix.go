//go:build unix

package credential

import (
	"fmt"
	"os"
	"syscall"
)

// lockExclusive opens a file that only one process has open. The kernel gives it free when the process dies.
func lockExclusive(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: another proxy uses this directory: %w", path, err)
	}
	return f, nil
}
