// Program probe does what a hostile build step would: it looks for the
// machine's API socket, for the sidecar's environment and memory, and for
// descriptors left open, and for the sidecar's token file. It writes one line per
// find to the file of its first argument. The second is the secret to look for,
// reversed, so that no copy of it is in the probe's own arguments. The third is
// the path of the token file.
package main

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

func main() {
	secret := []byte(os.Args[2])
	slices.Reverse(secret)
	var finds []string
	for _, dir := range flyDirs() {
		if conn, err := net.Dial("unix", filepath.Join(dir, "api")); err == nil {
			conn.Close()
			finds = append(finds, "machine API at "+dir)
		}
		if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
			finds = append(finds, "entries in "+dir)
		}
	}
	own := strconv.Itoa(os.Getpid())
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range processes {
		if filepath.Base(p) == own {
			continue
		}
		if env, err := os.ReadFile(p + "/environ"); err == nil && bytes.Contains(env, secret) {
			finds = append(finds, "secret in environment of "+name(p))
		}
		if inMemory(p, secret) {
			finds = append(finds, "secret in memory of "+name(p))
		}
	}
	if bytes.Contains([]byte(strings.Join(os.Environ(), "\n")), secret) {
		finds = append(finds, "secret in own environment")
	}
	finds = append(finds, descriptors(secret)...)
	finds = append(finds, token(os.Args[3], secret)...)
	text := strings.Join(append(finds, "done"), "\n")
	if err := os.WriteFile(os.Args[1], []byte(text), 0o600); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func flyDirs() []string {
	roots, _ := filepath.Glob("/proc/[0-9]*/root")
	tasks, _ := filepath.Glob("/proc/[0-9]*/task/*/root")
	dirs := []string{"/.fly"}
	for _, r := range append(roots, tasks...) {
		dirs = append(dirs, r+"/.fly")
	}
	return dirs
}

func name(process string) string {
	comm, _ := os.ReadFile(process + "/comm")
	return strings.TrimSpace(string(comm))
}

// inMemory reads every writable mapping of a process.
func inMemory(process string, secret []byte) bool {
	maps, err := os.Open(process + "/maps")
	if err != nil {
		return false
	}
	defer maps.Close()
	mem, err := os.Open(process + "/mem")
	if err != nil {
		return false
	}
	defer mem.Close()
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		var from, to int64
		var mode string
		fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &mode)
		if !strings.HasPrefix(mode, "rw") || to-from > 64<<20 {
			continue
		}
		region := make([]byte, to-from)
		n, _ := mem.ReadAt(region, from)
		if bytes.Contains(region[:n], secret) {
			return true
		}
	}
	return false
}

// descriptors reads what is open above the standard three.
func descriptors(secret []byte) []string {
	var finds []string
	fds, _ := filepath.Glob("/proc/self/fd/*")
	for _, fd := range fds {
		target, err := os.Readlink(fd)
		n, _ := strconv.Atoi(filepath.Base(fd))
		if err != nil || n < 3 {
			continue
		}
		if data, err := os.ReadFile(fd); err == nil && strings.HasPrefix(target, "/") && bytes.Contains(data, secret) {
			finds = append(finds, "secret behind descriptor of "+target)
		}
	}
	return finds
}

// token reads the token file, where it is and after moving or linking it to
// another place.
func token(file string, secret []byte) []string {
	var finds []string
	other := filepath.Dir(os.Args[1])
	for way, get := range map[string]func(to string) error{
		"where it is": func(to string) error { return os.Symlink(file, to) },
		"by a link":   func(to string) error { return os.Link(file, to) },
		"renamed":     func(to string) error { return os.Rename(file, to) },
		"in its folder, renamed": func(to string) error {
			if err := os.Rename(filepath.Dir(file), to+".folder"); err != nil {
				return err
			}
			return os.Symlink(filepath.Join(to+".folder", filepath.Base(file)), to)
		},
	} {
		to := filepath.Join(other, "stolen "+way)
		if get(to) != nil {
			continue
		}
		if data, err := os.ReadFile(to); err == nil && bytes.Contains(data, secret) {
			finds = append(finds, "token "+way)
		}
	}
	return finds
}
