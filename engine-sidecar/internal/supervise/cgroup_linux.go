package supervise

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// cgroupRoot is where cgroups are mounted (cgroups(7)).
const cgroupRoot = "/sys/fs/cgroup"

// engineCgroup is the cgroup v2 of an isolated engine. In its own cgroup
// namespace the engine sees it as the root. Dagger's entrypoint needs that: it
// empties the root and enables every controller there.
type engineCgroup struct {
	dir     string   // the engine's
	base    string   // the sidecar's at its start
	own     string   // the sidecar's after its move; empty when it stayed in base
	enabled []string // controllers that were enabled below base
}

// newEngineCgroup creates a cgroup for the engine below the sidecar's own. It
// returns nil and the reason where that is not possible: on cgroup v1, on a
// read-only mount, or where other processes share the sidecar's cgroup, which
// then cannot have controllers below it. In these cases it changes nothing.
func newEngineCgroup(root string) (*engineCgroup, error) {
	base, err := ownCgroup(root)
	if err != nil {
		return nil, err
	}
	c := &engineCgroup{base: base, dir: filepath.Join(base, fmt.Sprint("mayfly-engine-", os.Getpid()))}
	_ = removeCgroup(c.dir) // of a killed sidecar with the same PID
	if err := os.Mkdir(c.dir, 0o755); err != nil {
		return nil, err
	}
	if err := c.enable(); err != nil {
		c.remove()
		return nil, err
	}
	return c, nil
}

// ownCgroup returns the folder of this process's cgroup in the pure v2 hierarchy
// that is mounted at root.
func ownCgroup(root string) (string, error) {
	var mount unix.Statfs_t
	if err := unix.Statfs(root, &mount); err != nil {
		return "", err
	}
	if mount.Type != unix.CGROUP2_SUPER_MAGIC {
		return "", errors.New("not cgroup v2")
	}
	lines, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	for line := range bytes.Lines(lines) {
		path, ok := strings.CutPrefix(strings.TrimSuffix(string(line), "\n"), "0::")
		if !ok {
			continue
		}
		// The mount may show a different part of the hierarchy than the path.
		dir := filepath.Join(root, path)
		members, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err == nil && slices.Contains(strings.Fields(string(members)), strconv.Itoa(os.Getpid())) {
			return dir, nil
		}
	}
	return "", errors.New("the sidecar's own cgroup is not mounted")
}

// enable makes every controller of base available to the engine's cgroup.
// Except in the real root of the hierarchy, base must then hold no processes.
// So elsewhere the sidecar moves to its own cgroup.
func (c *engineCgroup) enable() error {
	controllers, err := os.ReadFile(filepath.Join(c.base, "cgroup.controllers"))
	if err != nil {
		return err
	}
	present, err := os.ReadFile(filepath.Join(c.base, "cgroup.subtree_control"))
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(controllers)) {
		if slices.Contains(strings.Fields(string(present)), name) {
			continue
		}
		err := c.control("+" + name)
		if errors.Is(err, syscall.EBUSY) && c.own == "" {
			if err := c.moveAway(); err != nil {
				return err
			}
			err = c.control("+" + name)
		}
		switch {
		case err == nil:
			c.enabled = append(c.enabled, name)
		case errors.Is(err, syscall.EBUSY):
			return errors.New("other processes share the sidecar's cgroup")
		}
		// A controller that the kernel does not enable is missing for the engine.
	}
	return nil
}

// moveAway moves this process from base into a cgroup next to the engine's.
func (c *engineCgroup) moveAway() error {
	own := filepath.Join(c.base, fmt.Sprint("mayfly-sidecar-", os.Getpid()))
	if err := os.Mkdir(own, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	c.own = own
	return enterCgroup(own, os.Getpid())
}

// control enables ("+cpu") or disables ("-cpu") a controller below base.
func (c *engineCgroup) control(change string) error {
	return os.WriteFile(filepath.Join(c.base, "cgroup.subtree_control"), []byte(change), 0)
}

// add moves the engine's first process into the cgroup.
func (c *engineCgroup) add(pid int) error { return enterCgroup(c.dir, pid) }

func enterCgroup(dir string, pid int) error {
	return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
}

// remove undoes newEngineCgroup after the engine's end. It changes no cgroup
// but the engine's and the sidecar's.
func (c *engineCgroup) remove() {
	// The kernel keeps a cgroup until its last process is reaped.
	for deadline := time.Now().Add(250 * time.Millisecond); !removeCgroup(c.dir) && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	// Other cgroups that have appeared in base may use the controllers.
	if entries, err := os.ReadDir(c.base); err == nil && !slices.ContainsFunc(entries, func(entry fs.DirEntry) bool {
		return entry.IsDir() && filepath.Join(c.base, entry.Name()) != c.own
	}) {
		for _, name := range c.enabled {
			_ = c.control("-" + name)
		}
	}
	if c.own != "" && enterCgroup(c.base, os.Getpid()) == nil {
		_ = removeCgroup(c.own)
	}
}

// removeCgroup removes a cgroup and those below it, the deepest first. It
// reports whether the cgroup is gone.
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

// enterCgroupNamespace makes the calling thread's cgroup the root of a cgroup
// namespace. It mounts that namespace's view in place of the outer one.
func enterCgroupNamespace() error {
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return err
	}
	_ = unix.Unmount(cgroupRoot, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) // a mount that stays is covered
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	if err := unix.Mount("cgroup2", cgroupRoot, "cgroup2", flags, ""); err != nil {
		return err
	}
	members, err := os.ReadFile(filepath.Join(cgroupRoot, "cgroup.procs"))
	if err != nil {
		return err
	}
	if !slices.Contains(strings.Fields(string(members)), strconv.Itoa(os.Getpid())) {
		return errors.New("it is not this cgroup namespace's")
	}
	return nil
}
