package store_test

import "syscall"

// dieWithParent makes the kernel kill a process when the tests die.
func dieWithParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
