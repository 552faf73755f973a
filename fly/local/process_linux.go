package main

import "syscall"

// ownGroup puts a program into its own process group, which a terminal's interrupt
// does not reach. The program ends with this process, whatever ended it.
func ownGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}
