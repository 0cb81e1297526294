//go:build !linux

package store_test

import "syscall"

// dieWithParent is for Linux; elsewhere only the end of a test kills its processes.
func dieWithParent() *syscall.SysProcAttr { return nil }
