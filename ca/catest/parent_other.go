//go:build !linux

package catest

import "syscall"

// endWithParent does nothing: only Linux signals a child when its parent ends.
func endWithParent(*syscall.SysProcAttr) {}
