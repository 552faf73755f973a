//go:build !linux

package main

import (
	"errors"
	"runtime"
	"syscall"
	"time"
)

var errLinux = errors.New("the bench reads /proc: it needs Linux, this is " + runtime.GOOS)

func endWithParent() *syscall.SysProcAttr        { return nil }
func cpuOf(int) (time.Duration, error)           { return 0, errLinux }
func cpuOfTree(int) (time.Duration, error)       { return 0, errLinux }
func memoryOf(int) (int64, error)                { return 0, errLinux }
func ownCPU() (time.Duration, error)             { return 0, errLinux }
func folderSize(string) (total int64, err error) { return 0, errLinux }
func machine() string                            { return "unknown" }
