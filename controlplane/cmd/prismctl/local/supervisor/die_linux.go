package supervisor

import "syscall"

// dieWithUs makes the kernel kill the program when its supervisor dies, and keeps Ctrl-C at the terminal for the
// supervisor alone, which stops the programs in order.
func dieWithUs() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}
