package supervise

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// isolate sets up the mounts of the engine's namespaces from the inside, and
// checks the result. On failure op names the step.
func isolate(hide []string) (op string, err error) {
	if os.Getpid() != 1 {
		return "namespaces", errors.New("not the first process of a PID namespace")
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return "make mounts private", err
	}
	for _, path := range hide {
		if err := hidePaths(path); err != nil {
			return "cover " + path, err
		}
	}
	if err := freshProc(); err != nil {
		return "mount /proc", err
	}
	return "", nil
}

// hidePaths mounts an empty read-only folder over a folder, and /dev/null over
// anything else. It skips a path that does not exist.
func hidePaths(path string) error {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return unix.Mount("/dev/null", path, "", unix.MS_BIND, "")
	}
	flags := uintptr(unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	if err := unix.Mount("mayfly-hidden", path, "tmpfs", flags, "size=4k,nr_inodes=1,mode=0555"); err != nil {
		return err
	}
	left, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	if len(left) > 0 {
		return errors.New("is not empty under its cover")
	}
	return nil
}

// freshProc unmounts every proc of the outer PID namespace, at any mount
// point, and mounts the proc of this namespace.
func freshProc() error {
	outer, err := procMounts("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for i := len(outer) - 1; i >= 0; i-- { // the last mounted is on top
		// If this fails at /proc, the mount below covers it. Elsewhere the check
		// below finds it.
		_ = unix.Unmount(outer[i], unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	}
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	if err := unix.Mount("proc", "/proc", "proc", flags, ""); err != nil {
		return err
	}
	if self, err := os.Readlink("/proc/self"); err != nil || self != "1" {
		return fmt.Errorf("it is not this PID namespace's: self is %q, %w", self, err)
	}
	left, err := procMounts("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for _, path := range left {
		if path != "/proc" {
			return fmt.Errorf("another one stays mounted at %s", path)
		}
	}
	return nil
}

// procMounts returns the mount points of type proc (proc(5), mountinfo).
func procMounts(mountinfo string) ([]string, error) {
	f, err := os.Open(mountinfo)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var points []string
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if ok && len(fields) >= 5 && len(kind) > 0 && kind[0] == "proc" {
			points = append(points, unescapeMount(fields[4]))
		}
	}
	return points, lines.Err()
}

// unescapeMount undoes mountinfo's octal escapes of space, tab, line feed and
// backslash.
var unescapeMount = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace
