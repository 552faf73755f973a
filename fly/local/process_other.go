//go:build !linux

package main

import "syscall"

// ownGroup puts a program into its own process group. A machine other than Linux
// cannot run an engine: see able.
func ownGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
