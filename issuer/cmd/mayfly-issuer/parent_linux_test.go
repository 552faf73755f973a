package main_test

import "syscall"

// endWithParent makes the kernel kill the issuer when the test process dies.
func endWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
