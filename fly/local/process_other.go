//go:build !linux

package main

import "syscall"

// ownGroup is for a machine that cannot run an engine, and is told so: see able.
func ownGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
