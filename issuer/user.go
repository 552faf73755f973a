package issuer

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/mayfly-ca/mayfly/ca"
)

// dropPrivileges changes a root process to the user in spec. It first gives that user
// the SQLite store and its folder, as a fresh volume needs. A process that is not root
// keeps its user.
func dropPrivileges(spec, dsn string, logger *slog.Logger) error {
	if spec == "" {
		return nil
	}
	uid, gid, err := lookupUser(spec)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		if os.Geteuid() != uid {
			logger.Warn("run_as is ignored: only root can become another user", "run_as", spec)
		}
		return nil
	}
	if uid == 0 {
		return errors.New("names root: name a user without rights")
	}
	if !ca.IsPostgres(dsn) {
		if err := chownStore(dsn, uid, gid); err != nil {
			return err
		}
	}
	if err := syscall.Setgroups([]int{gid}); err != nil {
		return fmt.Errorf("setgroups: %w", err)
	}
	if err := syscall.Setgid(gid); err != nil {
		return fmt.Errorf("setgid: %w", err)
	}
	if err := syscall.Setuid(uid); err != nil {
		return fmt.Errorf("setuid: %w", err)
	}
	if os.Geteuid() != uid || syscall.Setuid(0) == nil {
		return errors.New("root's rights could not be given up")
	}
	return nil
}

// lookupUser parses a name, a uid, or uid:gid. A bare uid that the system does not
// know gets the group of the same number, as in images without /etc/passwd.
func lookupUser(spec string) (uid, gid int, err error) {
	u, g, pair := strings.Cut(spec, ":")
	if uid, err = strconv.Atoi(u); err == nil {
		gid = uid
		if pair {
			gid, err = strconv.Atoi(g)
		} else if known, lerr := user.LookupId(u); lerr == nil {
			gid, err = strconv.Atoi(known.Gid)
		}
		if err != nil || uid < 0 || gid < 0 {
			return 0, 0, fmt.Errorf("%q: want a name, a uid or uid:gid", spec)
		}
		return uid, gid, nil
	}
	if pair {
		return 0, 0, fmt.Errorf("%q: want a name, a uid or uid:gid", spec)
	}
	known, err := user.Lookup(spec)
	if err != nil {
		return 0, 0, err
	}
	if uid, err = strconv.Atoi(known.Uid); err != nil {
		return 0, 0, err
	}
	gid, err = strconv.Atoi(known.Gid)
	return uid, gid, err
}

// chownStore gives the store's folder and the store's own files to a user. It changes
// no other file there, and never the target of a symbolic link.
func chownStore(store string, uid, gid int) error {
	dir, base := filepath.Split(store)
	if dir == "" {
		dir = "."
	}
	if filepath.Clean(dir) == "/" {
		return fmt.Errorf("store %s lies in the root folder: give it a folder of its own", store)
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the store is missing: opening it returns an error with a hint
	}
	if err != nil {
		return err
	}
	if err := os.Lchown(dir, uid, gid); err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), base) || !e.Type().IsRegular() {
			continue
		}
		if err := os.Lchown(filepath.Join(dir, e.Name()), uid, gid); err != nil {
			return err
		}
	}
	return nil
}
