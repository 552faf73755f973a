package main_test

import "syscall"

// endWithParent kills the issuer when the test dies without doing so.
func endWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
