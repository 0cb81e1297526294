//go:build !linux

package harness

import "syscall"

// dieWithParent has no equal here: only the test's own clean-up ends the program.
func dieWithParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
