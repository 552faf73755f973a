//go:build linux

package supervise

import (
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func init() {
	// cgroup2 FLAGS BASE ACTOR ARGS...: runs ACTOR in cgroup BASE of a cgroup
	// v2 hierarchy, mounted as on a machine with no other hierarchy.
	actors["cgroup2"] = func(args []string) int {
		runtime.LockOSThread() // a mount namespace belongs to a thread until it executes
		var flags uintptr
		if args[0] == "ro" {
			flags = unix.MS_RDONLY
		}
		base := filepath.Join(cgroupRoot, args[1])
		for _, step := range []func() error{
			func() error { return unix.Unshare(unix.CLONE_NEWNS) },
			func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") },
			func() error { return unix.Mount("cgroup2", cgroupRoot, "cgroup2", 0, "") },
			func() error { return os.MkdirAll(base, 0o755) },
			func() error { return enterCgroup(base, os.Getpid()) },
			func() error { return unix.Mount("", cgroupRoot, "", unix.MS_REMOUNT|unix.MS_BIND|flags, "") },
			func() error { return syscall.Exec(os.Args[0], actor(args[2], args[3:]...), os.Environ()) },
		} {
			if err := step(); err != nil {
				return complain(err)
			}
		}
		return 0
	}
}

// daggerEntrypoint does the cgroup steps of the entrypoint of Dagger's image,
// on kernels with and without controllers in the v2 hierarchy.
const daggerEntrypoint = `set -e
cat /proc/self/cgroup
cd /sys/fs/cgroup
ls -d */ 2>/dev/null || echo no cgroup but the root
mkdir -p init
xargs -rn1 < cgroup.procs > init/cgroup.procs || :
if [ -s cgroup.controllers ]; then
	sed -e 's/ / +/g' -e 's/^/+/' < cgroup.controllers > cgroup.subtree_control
fi
mkdir -p buildkit/step
echo members of the root: $(cat cgroup.procs)
`

// delegate enables every controller below the hierarchy's root, as systemd does,
// until the test ends. Tests that use it do not run in parallel.
func delegate(t *testing.T, hierarchy string) {
	t.Helper()
	read := func(name string) []string {
		text, err := os.ReadFile(filepath.Join(hierarchy, name))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Fields(string(text))
	}
	control := filepath.Join(hierarchy, "cgroup.subtree_control")
	present := read("cgroup.subtree_control")
	for _, name := range read("cgroup.controllers") {
		if slices.Contains(present, name) || os.WriteFile(control, []byte("+"+name), 0) != nil {
			continue
		}
		t.Cleanup(func() { _ = os.WriteFile(control, []byte("-"+name), 0) })
	}
}

// cgroup2Base returns the name and the folder of a cgroup for actor cgroup2.
func cgroup2Base(t *testing.T) (name, base string) {
	t.Helper()
	needRoot(t)
	name = "mayfly-test-" + rand.Text()
	hierarchy := t.TempDir()
	if err := unix.Mount("cgroup2", hierarchy, "cgroup2", 0, ""); err != nil {
		t.Fatal(err)
	}
	base = filepath.Join(hierarchy, name)
	t.Cleanup(func() {
		if err := unix.Unmount(hierarchy, 0); err != nil {
			t.Error(err)
		}
	})
	delegate(t, hierarchy)
	t.Cleanup(func() { removeCgroup(base) })
	return name, base
}

// inCgroup2 runs engine, a shell script, under a supervising actor in its own
// cgroup. It returns the script's output and the folder of that cgroup.
func inCgroup2(t *testing.T, flags, engine string) (out, base string) {
	t.Helper()
	name, base := cgroup2Base(t)
	pid := filepath.Join(t.TempDir(), "pid")
	args := actor("cgroup2", flags, name, "sidecar", "isolate", "-", pid, "sh", "-c", engine, base)
	text, err := exec.CommandContext(patience(t), args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return string(text), base
}

func foldersIn(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if entry.IsDir() {
			names = append(names, entry.Name())
		}
	}
	return names
}

// TestEngineCgroup: the engine sees its own cgroup as the root, with all of
// the sidecar's controllers, as Dagger's entrypoint needs it. Afterwards
// everything is as before.
func TestEngineCgroup(t *testing.T) {
	out, base := inCgroup2(t, "rw", `echo controllers of the sidecar: $(cat "$0"/cgroup.controllers)
echo controllers of the engine: $(cat /sys/fs/cgroup/cgroup.controllers)
`+daggerEntrypoint)
	for _, want := range []string{"0::/\n", "no cgroup but the root\n", "members of the root:\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("the engine did not say %q:\n%s", want, out)
		}
	}
	said := strings.SplitN(out, "\n", 3)
	_, sidecars, _ := strings.Cut(said[0], ":")
	_, engines, _ := strings.Cut(said[1], ":")
	t.Logf("controllers:%s", sidecars)
	if sidecars != engines {
		t.Errorf("the engine has the controllers%s, want%s", engines, sidecars)
	}
	if left := foldersIn(t, base); len(left) > 0 {
		t.Errorf("after the engine there are %q", left)
	}
	if enabled, err := os.ReadFile(filepath.Join(base, "cgroup.subtree_control")); err != nil || len(strings.TrimSpace(string(enabled))) > 0 {
		t.Errorf("controllers are still enabled: %s%v", enabled, err)
	}
}

// TestAnotherProgramsCgroup: while the engine runs, another program makes a
// cgroup next to the engine's. It stays, with its controllers.
func TestAnotherProgramsCgroup(t *testing.T) {
	_, base := inCgroup2(t, "rw", daggerEntrypoint+`mkdir -p "$0"/another-program/below`)
	left := slices.DeleteFunc(foldersIn(t, base), func(name string) bool { return strings.HasPrefix(name, "mayfly-sidecar-") })
	if !slices.Equal(left, []string{"another-program"}) {
		t.Errorf("after the engine there are %q", left)
	}
	if below := foldersIn(t, filepath.Join(base, "another-program")); !slices.Equal(below, []string{"below"}) {
		t.Errorf("below the other program's cgroup there are %q", below)
	}
	own, err := os.ReadFile(filepath.Join(base, "cgroup.controllers"))
	if err != nil {
		t.Fatal(err)
	}
	if enabled, err := os.ReadFile(filepath.Join(base, "cgroup.subtree_control")); err != nil || string(enabled) != string(own) {
		t.Errorf("the other program has the controllers %q, want %q: %v", enabled, own, err)
	}
}

// TestEngineCgroupReadOnly: where no cgroup can be created, nothing changes
// and the engine runs.
func TestEngineCgroupReadOnly(t *testing.T) {
	out, base := inCgroup2(t, "ro", `cat /proc/self/cgroup; mkdir "$0"/left-by-the-engine`)
	if want := fmt.Sprintf("0::/%s\n", filepath.Base(base)); !strings.Contains(out, want) {
		t.Errorf("the engine did not say %q:\n%s", want, out)
	}
	if left := foldersIn(t, base); !slices.Equal(left, []string{"left-by-the-engine"}) {
		t.Errorf("after the engine there are %q", left)
	}
}

// TestNoEngineCgroup: on cgroup v1 nothing is created or removed.
func TestNoEngineCgroup(t *testing.T) {
	t.Parallel()
	if c, err := newEngineCgroup(t.TempDir()); c != nil || err == nil {
		t.Errorf("a cgroup outside of any hierarchy: %v, %v", c, err)
	}
}
