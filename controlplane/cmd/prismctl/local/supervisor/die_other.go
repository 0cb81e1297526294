//go:build !linux

package supervisor

import "syscall"

// dieWithUs keeps Ctrl-C at the terminal for the supervisor alone, which stops the programs in order. Only Linux can
// tie a program's life to its supervisor's: elsewhere the programs outlive a supervisor that is killed by SIGKILL.
func dieWithUs() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
