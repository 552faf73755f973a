package main

import "syscall"

// ownGroup puts a program into a process group of its own, where a terminal's
// interrupt does not reach it, and ends it with this one, however that ends.
func ownGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}
