package oidcserver

import "syscall"

// dieWithParent has the kernel end the server when the test's process dies, also of SIGKILL.
func dieWithParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
