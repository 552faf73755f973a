//go:build !linux

package main_test

import "syscall"

// endWithParent does nothing: only Linux can signal a child when its parent ends.
func endWithParent() *syscall.SysProcAttr { return nil }
