package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// endWithParent makes the kernel kill a server whose bench process has ended.
func endWithParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }

// tick is the unit of CPU times in /proc, 1/100 s on every Linux (USER_HZ).
const tick = 10 * time.Millisecond

// cpuOf returns the CPU time of process pid.
func cpuOf(pid int) (time.Duration, error) {
	p, err := readStat(pid)
	return p.cpu, err
}

// cpuOfTree returns the CPU time of a process and its children, also of ended ones.
func cpuOfTree(pid int) (time.Duration, error) {
	top, err := readStat(pid)
	if err != nil {
		return 0, err
	}
	total := top.cpu + top.ended
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return 0, err
	}
	for field := range strings.FieldsSeq(string(children)) {
		child, err := strconv.Atoi(field)
		if err != nil {
			return 0, err
		}
		p, err := readStat(child)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // the process has ended
		}
		if err != nil {
			return 0, err
		}
		total += p.cpu
	}
	return total, nil
}

// stat is part of proc_pid_stat(5).
type stat struct {
	cpu   time.Duration // utime + stime
	ended time.Duration // cutime + cstime
}

func readStat(pid int) (stat, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, err
	}
	// The name, in parentheses, may hold any character.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	var sum [4]time.Duration // fields 14 to 17; the first here is field 3
	for i := range sum {
		n, err := strconv.ParseInt(fields[11+i], 10, 64)
		if err != nil {
			return stat{}, err
		}
		sum[i] = time.Duration(n) * tick
	}
	return stat{cpu: sum[0] + sum[1], ended: sum[2] + sum[3]}, nil
}

// memoryOf returns the resident memory of process pid, in bytes.
func memoryOf(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, err := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			return n << 10, err
		}
	}
	return 0, fmt.Errorf("process %d has no VmRSS", pid)
}

// ownCPU returns the CPU time of this process.
func ownCPU() (time.Duration, error) {
	var u syscall.Rusage
	err := syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), err
}

// machine returns the processor's name, for the table.
func machine() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown"
	}
	for line := range strings.Lines(string(text)) {
		if name, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(v)
		}
	}
	return "unknown"
}

// folderSize returns the size of a folder's files on disk.
func folderSize(dir string) (total int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		i, err := e.Info()
		if err != nil {
			return err
		}
		st, ok := i.Sys().(*syscall.Stat_t)
		if !ok {
			return errors.New("no block count")
		}
		total += st.Blocks * 512
		return nil
	})
	return total, err
}
