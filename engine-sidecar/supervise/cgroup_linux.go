package supervise

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// cgroupRoot is where cgroups are mounted (cgroups(7)); a pure v2 hierarchy is
// told by its cgroup.controllers file.
const cgroupRoot = "/sys/fs/cgroup"

// ownCgroup is where the sidecar goes out of the engine's way.
const ownCgroup = "mayfly-sidecar"

// leaveRootCgroup moves this process from the root of its cgroup namespace
// into a child cgroup, and returns what moves it back. Dagger's entrypoint
// empties the root by the PIDs that it can see, which from a PID namespace are
// not ours, and then fails to enable controllers. On cgroup v1, or anywhere but
// at the root, nothing needs to move.
func leaveRootCgroup(root string) (back func(), err error) {
	stay := func() {}
	if _, err := os.Stat(filepath.Join(root, "cgroup.controllers")); errors.Is(err, fs.ErrNotExist) {
		return stay, nil
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return stay, err
	}
	if !slices.Contains(strings.Split(string(own), "\n"), "0::/") {
		return stay, nil
	}
	child := filepath.Join(root, ownCgroup)
	if err := os.Mkdir(child, 0o755); err != nil {
		if errors.Is(err, syscall.EROFS) {
			return stay, nil // nor can the entrypoint write there
		}
		if !errors.Is(err, fs.ErrExist) {
			return stay, err
		}
	}
	if err := enterCgroup(child); err != nil {
		return stay, err
	}
	return func() {
		_ = enterCgroup(root) // refused where controllers were enabled below it
		_ = os.Remove(child)
	}, nil
}

func enterCgroup(dir string) error {
	return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0)
}

// cgroups are the cgroups that were there before the engine, below the root of
// each hierarchy.
type cgroups map[string]bool

// listCgroups lists them by path. v1 has a folder per controller.
func listCgroups(root string) cgroups {
	all := cgroups{}
	hierarchies := []string{root}
	if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err != nil {
		hierarchies, _ = filepath.Glob(filepath.Join(root, "*"))
	}
	for _, h := range hierarchies {
		entries, _ := os.ReadDir(h)
		for _, entry := range entries {
			if entry.IsDir() {
				all[filepath.Join(h, entry.Name())] = true
			}
		}
	}
	return all
}

// sweep removes the cgroups that appeared since and are empty, as the engine's
// are once all of its processes have ended. The kernel keeps those with a
// process in them, whosever it is. A name with a dot is a unit of systemd's.
func (before cgroups) sweep(root string) {
	for deadline := time.Now().Add(250 * time.Millisecond); ; time.Sleep(10 * time.Millisecond) {
		left := 0
		for dir := range listCgroups(root) {
			name := filepath.Base(dir)
			if !before[dir] && name != ownCgroup && !strings.Contains(name, ".") && !removeCgroup(dir) {
				left++
			}
		}
		if left == 0 || time.Now().After(deadline) {
			return
		}
	}
}

// removeCgroup removes a cgroup and those below it, the deepest first.
func removeCgroup(dir string) bool {
	entries, _ := os.ReadDir(dir)
	for _, entry := range entries {
		if entry.IsDir() {
			removeCgroup(filepath.Join(dir, entry.Name()))
		}
	}
	err := syscall.Rmdir(dir)
	return err == nil || errors.Is(err, fs.ErrNotExist)
}
