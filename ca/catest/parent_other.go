//go:build !linux

package catest

import "syscall"

// endWithParent does nothing: only Linux tells a child of its parent's end.
func endWithParent(*syscall.SysProcAttr) {}
