//go:build !linux

package flytest

import (
	"errors"
	"syscall"
)

const ownRootPossible = false

func enterOwnRoot(string, string) error { return errors.ErrUnsupported }

func commandAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

func isFirstThread() bool { return false }
