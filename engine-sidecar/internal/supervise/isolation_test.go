//go:build linux

package supervise

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mayfly-ca/mayfly/fly/flytest"
)

func init() {
	// sidecar ISOLATE SOCKET PIDFILE ENGINE...: a process with a secret in its
	// environment, memory and an inherited descriptor. It supervises ENGINE as
	// the sidecar does, and hides the folder token next to PIDFILE. With "-"
	// as SOCKET it does not wait until the engine is ready.
	actors["sidecar"] = func(args []string) int {
		ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer cancel()
		if err := Harden(); err != nil {
			return complain(err)
		}
		socket := args[1]
		if socket == "-" {
			socket = "/nonexistent"
		}
		e, err := Start(ctx, Options{
			Args: args[3:], Socket: socket, Isolate: args[0] == "isolate", Hide: []string{filepath.Join(filepath.Dir(args[2]), "token")}, Stdout: os.Stdout, Stderr: os.Stderr,
		})
		if err != nil {
			return complain(err)
		}
		if args[1] != "-" {
			if err := e.Ready(ctx); err != nil {
				return complain(err)
			}
		}
		if err := os.WriteFile(args[2], fmt.Append(nil, e.process.Pid), 0o600); err != nil {
			return complain(err)
		}
		select {
		case <-e.Done():
		case <-ctx.Done():
			stop, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			if err := e.Stop(stop); err != nil {
				return complain(err)
			}
			return 0 // like the sidecar: it ordered the stop
		}
		return e.ExitCode()
	}
	// shim RUNC ARGS...: removes seccomp from the bundle's configuration,
	// which this test does not need. See the facts on runc without seccomp.
	actors["shim"] = func(args []string) int {
		for i, arg := range args {
			if (arg == "--bundle" || arg == "-b") && i+1 < len(args) {
				if err := withoutSeccomp(filepath.Join(args[i+1], "config.json")); err != nil {
					return complain(err)
				}
			}
		}
		return complain(syscall.Exec(args[0], args, os.Environ()))
	}
}

func complain(err error) int {
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// machine runs a sidecar actor on its own machine with a /.fly/api.
type machine struct {
	*flytest.Machine
	dir      string
	pidFile  string
	secret   string
	reversed string
	token    string // the sidecar's token file, which holds the secret
}

// replaceToken replaces the token file like programs that renew a token.
func (m *machine) replaceToken(t *testing.T, byLink bool) {
	t.Helper()
	next := m.token + ".next"
	err := os.WriteFile(next, []byte(m.secret+" renewed"), 0o600)
	if err == nil && byLink {
		err = os.Remove(m.token)
		if err == nil {
			err = os.Link(next, m.token)
		}
	} else if err == nil {
		err = os.Rename(next, m.token)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// newMachine starts the actor with a secret around it. A shell, which does not
// use close-on-exec, leaves the descriptor open.
func newMachine(t *testing.T, isolate bool, socket string, engine ...string) *machine {
	t.Helper()
	return newMachineBehind(t, nil, isolate, socket, engine...)
}

// newMachineBehind is newMachine with an actor that another program starts.
func newMachineBehind(t *testing.T, starter []string, isolate bool, socket string, engine ...string) *machine {
	t.Helper()
	needRoot(t)
	dir, err := os.MkdirTemp("", "supervise-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	m := &machine{dir: dir, pidFile: filepath.Join(dir, "pid"), secret: "canary-" + rand.Text()}
	leak := filepath.Join(dir, "leak")
	if err := os.WriteFile(leak, []byte(m.secret), 0o600); err != nil {
		t.Fatal(err)
	}
	m.token = filepath.Join(dir, "token", "jwt")
	if err := os.Mkdir(filepath.Dir(m.token), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(m.token, []byte(m.secret), 0o600); err != nil {
		t.Fatal(err)
	}
	m.reversed = reverse(m.secret)
	mode := "isolate"
	if !isolate {
		mode = "unsafe"
	}
	for i := range engine {
		engine[i] = strings.NewReplacer("{reversed}", m.reversed, "{dir}", dir).Replace(engine[i])
	}
	socket = strings.ReplaceAll(socket, "{dir}", dir)
	script := []string{"sh", "-c", `exec 7<"$0"; exec "$@"`, leak}
	command := actor("sidecar", mode, socket, m.pidFile)
	if starter != nil {
		command = append(starter, command[2:]...)
	}
	app, err := flytest.ParseApp([]byte("app = \"engine\"\nkill_signal = \"SIGTERM\"\nkill_timeout = 30\n[[restart]]\npolicy = \"never\""))
	if err != nil {
		t.Fatal(err)
	}
	m.Machine, err = flytest.NewMachine(flytest.MachineConfig{
		App: app, Dir: dir, Stdout: logWriter{t}, Stderr: logWriter{t},
		Command: slices.Concat(script, command, engine),
		Env:     []string{"MAYFLY_SIDECAR_SECRET=" + m.secret, "ACTIONS_ID_TOKEN_REQUEST_TOKEN=" + m.secret, "FLY_API_TOKEN=" + m.secret},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	if err := m.Start(patience(t)); err != nil {
		t.Fatal(err)
	}
	return m
}

type logWriter struct{ t *testing.T }

func (w logWriter) Write(p []byte) (int, error) {
	if os.Getenv("SUPERVISE_TEST_LOG") != "" {
		fmt.Fprintf(os.Stderr, "%s", p)
	}
	return len(p), nil
}

func reverse(s string) string {
	b := []byte(s)
	slices.Reverse(b)
	return string(b)
}

// child waits for the actor's engine and returns its child's PID.
func (m *machine) child(t *testing.T) int {
	t.Helper()
	var pid int
	await(t, "the engine's start", func() bool {
		if m.State() == flytest.StateStopped {
			t.Fatalf("sidecar ended with %d", m.ExitCode())
		}
		data, err := os.ReadFile(m.pidFile)
		_, err2 := fmt.Sscan(string(data), &pid)
		return err == nil && err2 == nil
	})
	return pid
}

// await polls every few milliseconds, as long as a slow machine needs.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(60 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// buildProbe compiles the probe as a static program.
func buildProbe(t *testing.T, dir string) string {
	t.Helper()
	file := filepath.Join(dir, "probe")
	cmd := exec.Command("go", "build", "-o", file, "./testdata/probe")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build probe: %v\n%s", err, out)
	}
	return file
}

// TestEngineCannotReachSidecar: a hostile engine searches for everything that
// the sidecar and the machine hold. The same engine without isolation finds
// it, which shows that the probe works.
func TestEngineCannotReachSidecar(t *testing.T) {
	t.Parallel()
	probe := buildProbe(t, t.TempDir())
	for _, c := range []struct{ isolate, byLink bool }{{true, false}, {true, true}, {false, false}} {
		isolate := c.isolate
		t.Run(fmt.Sprintf("isolate=%v, token replaced by a hard link=%v", isolate, c.byLink), func(t *testing.T) {
			t.Parallel()
			m := newMachine(t, isolate, "-", "sh", "-c", `echo > "$0"/up; until [ -e "$0"/go ]; do sleep 0.01; done; exec "$@"`,
				"{dir}", probe, "{dir}/report", "{reversed}", "{dir}/token/jwt")
			await(t, "engine", func() bool { _, err := os.Stat(filepath.Join(m.dir, "up")); return err == nil })
			m.replaceToken(t, c.byLink)
			if err := os.WriteFile(filepath.Join(m.dir, "go"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := m.Wait(patience(t)); err != nil || m.ExitCode() != 0 {
				t.Fatalf("%v, exit code %d", err, m.ExitCode())
			}
			report, err := os.ReadFile(filepath.Join(m.dir, "report"))
			if err != nil {
				t.Fatal(err)
			}
			finds := string(report)
			if isolate {
				if finds != "done" {
					t.Errorf("a hostile engine found:\n%s", finds)
				}
				return
			}
			for _, want := range []string{"machine API at /.fly\n", "secret in environment of", "secret in memory of", "token "} {
				if !strings.Contains(finds, want) {
					t.Errorf("the probe does not find %q outside of isolation:\n%s", want, finds)
				}
			}
		})
	}
}

// TestNothingIsLeft kills the sidecar, so that it cannot clean up, or stops
// it. It then looks for the engine's processes, namespaces and mounts.
func TestNothingIsLeft(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, isolate bool) {
		ways := []string{"killed", "stopped", "engine crashed"}
		if isolate {
			ways = append(ways, "child killed") // only a namespace cleans up after that
		}
		for _, how := range ways {
			t.Run(how, func(t *testing.T) {
				t.Parallel()
				// An engine with a child in another session, and an orphan.
				m := newMachine(t, isolate, "-", "sh", "-c",
					`trap 'exit 0' TERM; (setsid sleep 1000 &); sleep 1000 & echo > {dir}/up; wait`)
				await(t, "engine", func() bool { _, err := os.Stat(filepath.Join(m.dir, "up")); return err == nil })
				child := m.child(t)
				mounts := namespace(t, child, "mnt")
				pids := descendants(child)
				if len(pids) < 3 {
					t.Fatalf("engine has only the processes %v", pids)
				}
				switch how {
				case "killed":
					_ = syscall.Kill(m.PID(), syscall.SIGKILL)
				case "stopped":
					if err := m.Stop(patience(t)); err != nil || m.ExitCode() != 0 {
						t.Errorf("stop: %v, exit code %d", err, m.ExitCode())
					}
				case "engine crashed":
					_ = syscall.Kill(childrenOf(child)[0], syscall.SIGSEGV)
				case "child killed":
					_ = syscall.Kill(child, syscall.SIGKILL)
				}
				if _, err := m.Wait(patience(t)); err != nil {
					t.Fatal(err)
				}
				if how == "engine crashed" && m.ExitCode() != 139 {
					t.Errorf("exit code %d, want 139", m.ExitCode())
				}
				await(t, "the end of the engine's processes", func() bool {
					return !slices.ContainsFunc(pids, alive)
				})
				if isolate {
					await(t, "the end of the namespace "+mounts, func() bool { return !inUse(mounts) })
				}
				if left, _ := os.ReadFile("/proc/self/mountinfo"); bytes.Contains(left, []byte(m.dir)) || bytes.Contains(left, []byte("mayfly-hidden")) {
					t.Error("mounts are left")
				}
			})
		}
	})
}

func namespace(t *testing.T, pid int, kind string) string {
	t.Helper()
	name, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// inUse reports whether any process is in the mount namespace.
func inUse(ns string) bool {
	links, _ := filepath.Glob("/proc/[0-9]*/ns/mnt")
	return slices.ContainsFunc(links, func(link string) bool {
		name, _ := os.Readlink(link)
		return name == ns
	})
}

func alive(pid int) bool { return unix.Kill(pid, 0) == nil && !isZombie(pid) }

func childrenOf(pid int) []int {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	var pids []int
	for _, file := range files {
		data, _ := os.ReadFile(file)
		for _, field := range strings.Fields(string(data)) {
			var n int
			fmt.Sscan(field, &n)
			pids = append(pids, n)
		}
	}
	return pids
}

// descendants returns pid and all its descendants.
func descendants(pid int) []int {
	all := []int{pid}
	for _, c := range childrenOf(pid) {
		all = append(all, descendants(c)...)
	}
	return all
}
