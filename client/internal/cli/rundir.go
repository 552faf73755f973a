package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// runDir is a 0700 folder for the socket of one run. The process keeps a file in
// it locked while it lives, so that the next run recognises the folder of a killed
// run.
type runDir struct {
	path string
	lock *os.File
}

const (
	lockName   = "lock"
	socketName = "engine.sock"
	// maxSocketPath is the size of sun_path on macOS without its NUL. On Linux
	// it is 107.
	maxSocketPath = 103
	// boundName has the length of the temporary name under which listenUnix binds
	// a socket, in the folder of its path.
	boundName = ".m0123456789/s"
	// abandoned is the age at which a folder without a lock has no owner. A run
	// makes and locks its folder within milliseconds.
	abandoned = time.Minute
)

// folderPrefix returns the prefix of this user's folders.
func folderPrefix() string { return "mayfly-" + strconv.Itoa(os.Getuid()) + "-" }

// folderBases returns the folders in which a run's folder may be made, best first:
// the user's run-time folder, the temporary folder, and /tmp.
func folderBases() []string {
	var bases []string
	for _, dir := range []string{os.Getenv("XDG_RUNTIME_DIR"), os.TempDir()} {
		if holdsSockets(dir) {
			bases = append(bases, dir)
		}
	}
	return append(bases, "/tmp")
}

// holdsSockets reports whether a run's folder in dir is private, and the path of
// its socket is short and needs no escaping in any tool.
func holdsSockets(dir string) bool {
	fi, err := os.Stat(dir)
	return err == nil && fi.IsDir() && (ownedBy(fi, os.Getuid()) || ownedBy(fi, 0)) && isPrivateDir(fi) &&
		filepath.IsAbs(dir) && plainPath(dir) &&
		len(filepath.Join(dir, folderPrefix()+"0123456789", boundName)) <= maxSocketPath
}

// plainPath reports whether path has only bytes that a URL, a shell and a list of
// options do not interpret.
func plainPath(path string) bool {
	return strings.IndexFunc(path, func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("/._-", r))
	}) < 0
}

// newRunFolder makes a folder in the first of folderBases where it can. It also
// removes the folders of killed runs there.
func newRunFolder() (*runDir, error) {
	var errs []error
	for _, base := range folderBases() {
		removeStaleDirs(base, time.Now())
		dir, err := os.MkdirTemp(base, folderPrefix()+"*") // 0700
		if err == nil {
			return lockFolder(dir)
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("make a folder for the socket: %w", errors.Join(errs...))
}

// lockFolder locks a new folder for as long as this process lives.
func lockFolder(dir string) (*runDir, error) {
	// Lock the file before the rename, so that no other process sees it unlocked.
	f, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err == nil {
		if err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err == nil {
			err = os.Rename(f.Name(), filepath.Join(dir, lockName))
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock the folder of the socket: %w", err), os.RemoveAll(dir))
	}
	fmt.Fprintf(f, "%d\n", os.Getpid())
	return &runDir{path: dir, lock: f}, nil
}

// Close removes the folder.
func (r *runDir) Close() error {
	err := os.RemoveAll(r.path)
	return errors.Join(err, r.lock.Close())
}

func (r *runDir) socket() string { return filepath.Join(r.path, socketName) }

// removeStaleDirs removes folders of this user whose process has ended. It leaves
// folders that it cannot read or lock.
func removeStaleDirs(base string, now time.Time) {
	entries, err := os.ReadDir(base)
	if err != nil {
		return
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), folderPrefix()) {
			sweepOne(filepath.Join(base, e.Name()), now)
		}
	}
}

func sweepOne(dir string, now time.Time) {
	fi, err := os.Lstat(dir)
	if err != nil || !fi.IsDir() || !ownedByUser(fi) {
		return // another user may make a folder with such a name
	}
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		if now.Sub(fi.ModTime()) > abandoned {
			os.RemoveAll(dir)
		}
		return
	}
	if err != nil {
		return
	}
	defer f.Close()
	if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
		os.RemoveAll(dir)
	}
}

// isPrivateDir reports whether other users cannot replace files that mayfly makes
// in the folder.
func isPrivateDir(fi fs.FileInfo) bool {
	return fi.Mode().Perm()&0o022 == 0 || fi.Mode()&fs.ModeSticky != 0
}

func ownedByUser(fi fs.FileInfo) bool { return ownedBy(fi, os.Getuid()) }

func ownedBy(fi fs.FileInfo, uid int) bool {
	st, ok := fi.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == uid
}

// listenUnix makes a 0600 socket at path. It binds the socket in a private folder
// and then moves it, so that path never has wider modes. It replaces a socket at
// path on which no program listens, and never replaces anything else.
func listenUnix(path string) (net.Listener, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if len(path) > maxSocketPath || len(filepath.Join(filepath.Dir(path), boundName)) > maxSocketPath {
		return nil, fmt.Errorf("%s is too long: the path of a socket holds %d bytes at most, and that of its folder %d", path, maxSocketPath, maxSocketPath-1-len(boundName))
	}
	if err := checkFree(path); err != nil {
		return nil, err
	}
	private, err := os.MkdirTemp(filepath.Dir(path), ".m")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(private)
	made := filepath.Join(private, "s")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: made, Net: "unix"})
	if err != nil {
		return nil, err
	}
	ln.SetUnlinkOnClose(false) // Close would remove the first name
	if err := errors.Join(os.Chmod(made, 0o600), os.Rename(made, path)); err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	return &unixListener{UnixListener: ln, path: path}, nil
}

// checkFree returns an error if path is in use.
func checkFree(path string) error {
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if fi.Mode().Type() != fs.ModeSocket || !ownedByUser(fi) {
		return fmt.Errorf("%s exists, and mayfly did not make it", path)
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		c.Close()
		return fmt.Errorf("%s: another program listens there", path)
	}
	return nil
}

// unixListener admits only this user and root. Its Close removes the socket.
type unixListener struct {
	*net.UnixListener
	path string
}

// Addr returns the address of the moved socket.
func (l *unixListener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

// Accept returns the next connection of this user or root. The socket's modes
// exclude other users; Accept also excludes them if the modes have no effect.
func (l *unixListener) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if uid, known := peerUID(c); known && !uidAllowed(uid) {
			c.Close()
			continue
		}
		return c, nil
	}
}

// Close removes the socket and stops listening.
func (l *unixListener) Close() error {
	os.Remove(l.path)
	return l.UnixListener.Close()
}

// uidAllowed reports whether a local user may use the tunnel: the owner, or root,
// who can bypass any check.
func uidAllowed(uid int) bool { return uid == os.Getuid() || uid == 0 }
