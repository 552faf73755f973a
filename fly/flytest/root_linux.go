package flytest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

const ownRootPossible = true

// enterOwnRoot gives the calling thread, and the programs it executes, a root
// folder like this host's, but with flyDir as /.fly. The host does not see the
// change, and the machine does not see the host's path of flyDir. scratch is an
// empty folder.
func enterOwnRoot(scratch, flyDir string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("new mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("fly-root", scratch, "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount root: %w", err)
	}
	entries, err := os.ReadDir("/")
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.Name() == ".fly" {
			continue
		}
		if err := repeat("/"+entry.Name(), filepath.Join(scratch, entry.Name())); err != nil {
			return fmt.Errorf("repeat /%s: %w", entry.Name(), err)
		}
	}
	fly := filepath.Join(scratch, ".fly")
	if err := os.Mkdir(fly, 0o700); err != nil {
		return err
	}
	if err := unix.Mount(flyDir, fly, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount /.fly: %w", err)
	}
	if err := unix.Mount("fly-hidden", filepath.Join(scratch, flyDir), "tmpfs", unix.MS_RDONLY, "size=4k"); err != nil {
		return fmt.Errorf("hide %s: %w", flyDir, err)
	}
	return changeRoot(scratch)
}

// repeat makes the file or folder at from also appear at to.
func repeat(from, to string) error {
	info, err := os.Lstat(from)
	if err != nil {
		return err
	}
	switch {
	case info.Mode()&os.ModeSymlink != 0:
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		return os.Symlink(target, to)
	case info.IsDir():
		if err := os.Mkdir(to, 0o755); err != nil {
			return err
		}
	case info.Mode().IsRegular():
		if err := os.WriteFile(to, nil, 0o600); err != nil {
			return err
		}
	default:
		return nil
	}
	return unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, "")
}

// changeRoot makes root the root folder and unmounts the old one. If that is not
// possible (the old root is an initial ramdisk), the old one stays below, out of
// reach.
func changeRoot(root string) error {
	if err := unix.Chdir(root); err != nil {
		return err
	}
	err := unix.PivotRoot(".", ".")
	switch {
	case err == nil:
		err = unix.Unmount(".", unix.MNT_DETACH)
	case errors.Is(err, unix.EINVAL):
		err = unix.Chroot(".")
	}
	if err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	return unix.Chdir("/")
}

func commandAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

func isFirstThread() bool { return unix.Gettid() == os.Getpid() }
