package main

import (
	"os"
	"syscall"
)

// becomeProgram replaces this process. It returns only on failure.
func becomeProgram(path string, argv []string) error {
	return syscall.Exec(path, argv, os.Environ())
}
