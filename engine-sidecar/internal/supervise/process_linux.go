package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Harden makes this process's memory unreadable for others. It is not
// dumpable, so ptrace, /proc/PID/mem and core files do not reveal its keys.
// Children that execute a program are not affected.
func Harden() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("make process non-dumpable: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("forbid core files: %w", err)
	}
	return nil
}

// orphanGrace is how long a child must be dead until ReapOrphans takes it for
// an orphan. The children that this process starts are waited for at once.
const orphanGrace = 2 * time.Second

// ReapOrphans waits for dead children that this process did not start. Only
// the first process of a PID namespace or a subreaper has them. It returns
// when ctx ends, and at once in any other process.
func ReapOrphans(ctx context.Context) {
	if os.Getpid() != 1 && !isSubreaper() {
		return
	}
	deaths := make(chan os.Signal, 1)
	signal.Notify(deaths, syscall.SIGCHLD)
	defer signal.Stop(deaths)
	suspects := map[int]bool{}
	var again <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-deaths:
			if again == nil {
				again = time.After(orphanGrace)
			}
		case <-again:
			again = nil
			if suspects = reapKnown(suspects); len(suspects) > 0 {
				again = time.After(orphanGrace)
			}
		}
	}
}

// reapKnown waits for the dead children in before, and returns the other dead
// ones.
func reapKnown(before map[int]bool) map[int]bool {
	now := map[int]bool{}
	for _, pid := range children() {
		switch {
		case !isZombie(pid):
		case before[pid]:
			_, _ = syscall.Wait4(pid, nil, syscall.WNOHANG, nil)
		default:
			now[pid] = true
		}
	}
	return now
}

// children returns the children of all threads of this process.
func children() []int {
	files, _ := filepath.Glob("/proc/self/task/*/children")
	var pids []int
	for _, name := range files {
		list, _ := os.ReadFile(name)
		for _, field := range strings.Fields(string(list)) {
			if pid, err := strconv.Atoi(field); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

func isZombie(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	// The name, in brackets, may hold any characters. The state follows it.
	_, after, ok := strings.Cut(string(stat[strings.LastIndexByte(string(stat), ')')+1:]), " ")
	return ok && strings.HasPrefix(after, "Z")
}

// killDescendants kills every process below a subreaper. When one dies, the
// subreaper adopts its children, until none are left.
func killDescendants() {
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		for _, pid := range children() {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		if _, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); errors.Is(err, syscall.ECHILD) {
			return
		}
	}
}
