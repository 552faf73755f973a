package cli_test

import (
	"bytes"
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/client/wire"
)

// start starts mayfly and waits until its stdout or stderr contains a text.
func (s *stand) start(until string, args ...string) (*exec.Cmd, *syncBuffer) {
	s.tb.Helper()
	cmd := exec.Command("mayfly", args...)
	cmd.Env = s.env
	out := &syncBuffer{want: []byte(until), seen: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		s.tb.Fatal(err)
	}
	s.tb.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	select {
	case <-out.seen:
	case <-time.After(30 * time.Second):
		s.tb.Fatalf("mayfly %v did not say %q:\n%s", args, until, out.String())
	}
	return cmd, out
}

func (s *stand) folders() []string {
	s.tb.Helper()
	var tmp string
	for _, kv := range s.env {
		if v, ok := strings.CutPrefix(kv, "TMPDIR="); ok {
			tmp = v
		}
	}
	found, err := filepath.Glob(filepath.Join(tmp, "mayfly-*"))
	if err != nil {
		s.tb.Fatal(err)
	}
	return found
}

func TestExecPassesOnCodes(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	for _, tt := range []struct {
		code int
		argv []string
	}{
		{0, []string{"dialer", "exit", "0"}},
		{7, []string{"dialer", "exit", "7"}},
		{5, []string{"sh", "-c", "exit 5"}},
		{137, []string{"sh", "-c", "kill -KILL $$"}},
		{143, []string{"sh", "-c", "kill -TERM $$"}},
	} {
		if o := s.run(append([]string{"exec", "--"}, tt.argv...)...); o.code != tt.code {
			t.Errorf("%v: code %d, want %d\n%s", tt.argv, o.code, tt.code, o.stderr)
		}
	}
	s.run("exec", "--", "no-such-command").check(t, 1, "no-such-command")
	s.run("exec").check(t, 2, "no command")
	if left := s.folders(); len(left) > 0 {
		t.Errorf("folders were left: %v", left)
	}
}

// TestExecEnvironment checks that the command gets mayfly's environment and two variables.
func TestExecEnvironment(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	s.env = append(s.env, "BUILDKIT_HOST=tcp://elsewhere:1", "KEPT=1")
	o := s.run("exec", "--", "dialer", "env")
	o = outcome{o.stdout, o.stderr, o.code}
	got := strings.Split(strings.TrimSpace(o.stdout), "\n")
	var extra []string
	for _, kv := range got {
		if !slices.Contains(s.env, kv) && !strings.HasPrefix(kv, "PWD=") {
			extra = append(extra, kv)
		}
	}
	slices.Sort(extra)
	if len(extra) != 2 || !strings.HasPrefix(extra[0], "BUILDKIT_HOST=unix:///") || !strings.HasPrefix(extra[1], "_EXPERIMENTAL_DAGGER_RUNNER_HOST=unix:///") {
		t.Errorf("the command has beside ours: %q", extra)
	}
	if !slices.Contains(got, "KEPT=1") || slices.Contains(got, "BUILDKIT_HOST=tcp://elsewhere:1") {
		t.Errorf("environment: %q", got)
	}
}

func TestExecPassesOnSignals(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	cmd, out := s.start("ready", "exec", "--", "sh", "-c", `trap 'echo got TERM; exit 9' TERM; echo ready; while :; do sleep 0.05; done`)
	cmd.Process.Signal(syscall.SIGTERM)
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 9 || !strings.Contains(out.String(), "got TERM") {
		t.Errorf("code %d, output %s", code, out)
	}
}

// TestExecPassesOnEachSignal checks that without a terminal, the command and its
// children get mayfly's signals, also a stop and its end.
func TestExecPassesOnEachSignal(t *testing.T) {
	t.Parallel()
	for name, sig := range map[string]syscall.Signal{
		"INT": syscall.SIGINT, "HUP": syscall.SIGHUP, "QUIT": syscall.SIGQUIT, "USR1": syscall.SIGUSR1, "CONT": syscall.SIGCONT,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStand(t)
			cmd, out := s.start("ready", "exec", "--", "sh", "-c", `trap 'echo got `+name+`; exit 9' `+name+`; echo ready; while :; do sleep 0.05; done`)
			cmd.Process.Signal(sig)
			cmd.Wait()
			if code := cmd.ProcessState.ExitCode(); code != 9 || !strings.Contains(out.String(), "got "+name) {
				t.Errorf("code %d, output %s", code, out)
			}
		})
	}
	t.Run("TSTP", func(t *testing.T) {
		t.Parallel()
		s := newStand(t)
		// A shell that is stopped while it starts a program stays in state D.
		script := `sleep 300 >/dev/null 2>&1 & trap "kill $!; echo resumed; exit 9" CONT; echo $$ ready; wait`
		cmd, out := s.start("ready", "exec", "--", "sh", "-c", script)
		pid, _, _ := strings.Cut(lineWith(out.String(), "ready"), " ")
		cmd.Process.Signal(syscall.SIGTSTP)
		for _, p := range []string{pid, strconv.Itoa(cmd.Process.Pid)} {
			waitFor(t, func() bool { return processState(t, p) == "T" })
		}
		cmd.Process.Signal(syscall.SIGCONT)
		cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != 9 || !strings.Contains(out.String(), "resumed") {
			t.Errorf("code %d, output %s", code, out)
		}
	})
}

func lineWith(text, want string) string {
	for line := range strings.Lines(text) {
		if strings.Contains(line, want) {
			return line
		}
	}
	return ""
}

// processState returns the state letter of proc(5): R, S, T for stopped.
func processState(t *testing.T, pid string) string {
	t.Helper()
	if runtime.GOOS != "linux" {
		requireOrSkip(t, "it reads /proc, which is Linux's")
	}
	b, err := os.ReadFile(filepath.Join("/proc", pid, "stat"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	state, _, _ := strings.Cut(rest, " ")
	return state
}

// TestExecHandsOnStdin checks that the command gets all of stdin, and its end.
func TestExecHandsOnStdin(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	cmd := exec.Command("mayfly", "exec", "--", "cat")
	text := strings.Repeat("a line of input\n", 20_000)
	cmd.Env, cmd.Stdin = s.env, strings.NewReader(text)
	if o := finish(t, cmd); o.code != 0 || o.stdout != text {
		t.Errorf("code %d, %d bytes of %d came back\n%s", o.code, len(o.stdout), len(text), o.stderr)
	}
}

// TestMemoryIsKept checks that another process of the same user can read neither
// mayfly's memory nor its environment. It can read the command's own.
func TestMemoryIsKept(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" || os.Getuid() != 0 {
		requireOrSkip(t, "run it on Linux as root, which can become another user")
	}
	s := newStand(t)
	dialer := programForOthers(t, "dialer")
	mayfly := programForOthers(t, "mayfly")
	home := shortDir(t)
	if err := os.Chown(home, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	s.env = append(s.env, "TMPDIR="+home, "HOME="+home, "XDG_CONFIG_HOME="+home)
	cmd := exec.Command(mayfly, "exec", "--", "sh", "-c", "echo $$ ready; exec sleep 60")
	cmd.Dir, cmd.Env = "/", s.env
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	out := &syncBuffer{want: []byte("ready"), seen: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Signal(syscall.SIGTERM); cmd.Wait() })
	select {
	case <-out.seen:
	case <-time.After(time.Minute):
		t.Fatalf("it does not start:\n%s", out)
	}
	child, _, _ := strings.Cut(lineWith(out.String(), "ready"), " ")
	for _, tt := range []struct {
		pid  string
		read bool
	}{{strconv.Itoa(cmd.Process.Pid), false}, {child, true}} {
		for _, file := range []string{"environ", "maps"} {
			probe := exec.Command(dialer, "read", filepath.Join("/proc", tt.pid, file))
			probe.Dir, probe.SysProcAttr = "/", cmd.SysProcAttr
			if o := finish(t, probe); (o.code == 0) != tt.read {
				t.Errorf("%s of process %s: code %d, want it read: %v\n%s", file, tt.pid, o.code, tt.read, o.stderr)
			}
		}
	}
}

// TestExecKillsWhatDoesNotEnd checks that a command that ignores SIGTERM after a
// refusal is killed, with its child processes.
func TestExecKillsWhatDoesNotEnd(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	s.set(func() { s.verdict = wire.ReasonRevoked })
	begun := time.Now()
	s.run("exec", "--no-wait", "--", "sh", "-c", `trap '' TERM; dialer retry & while :; do sleep 0.1; done`).check(t, 5, "certificate revoked")
	if took := time.Since(begun); took > 20*time.Second {
		t.Errorf("it took %v", took)
	}
}

// TestExecBlames checks that mayfly prints the reason of a refusal even if the command
// ends by itself.
func TestExecBlames(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	s.set(func() { s.verdict = wire.ReasonRevoked })
	for range 5 {
		s.run("exec", "--no-wait", "--", "dialer", "echo").check(t, 5, "certificate revoked, serial ")
	}
}

// TestExecSweeps checks that a run removes the folder of a killed run, and not that
// of a living one.
func TestExecSweeps(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	killed, _ := s.start("ready", "exec", "--", "sh", "-c", "echo ready; exec sleep 60")
	living, _ := s.start("ready", "exec", "--", "sh", "-c", "echo ready; exec sleep 60")
	if n := len(s.folders()); n != 2 {
		t.Fatalf("%d folders, want 2", n)
	}
	killed.Process.Kill()
	killed.Wait()
	s.run("exec", "--", "true").check(t, 0)
	if n := len(s.folders()); n != 1 {
		t.Errorf("%d folders, want that of the living run", n)
	}
	living.Process.Signal(syscall.SIGTERM)
	living.Wait()
	if left := s.folders(); len(left) > 0 {
		t.Errorf("folders were left: %v", left)
	}
}

// TestOthersCannotUseTheSocket checks that other users cannot use the socket, even if
// its modes were changed (ATTACKS 46).
func TestOthersCannotUseTheSocket(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	_, _ = s.start("ready", "exec", "--", "sh", "-c", "echo ready; exec sleep 60")
	folder := s.folders()[0]
	socket := filepath.Join(folder, "engine.sock")
	for path, want := range map[string]fs.FileMode{folder: 0o700, socket: 0o600} {
		fi, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if fi.Mode().Perm() != want {
			t.Errorf("%s has mode %v, want %v", path, fi.Mode().Perm(), want)
		}
	}
	if err := echo(socket); err != nil {
		t.Errorf("its own user: %v", err)
	}
	if os.Getuid() != 0 {
		requireOrSkip(t, "run it as root, which can become another user")
	}
	if o := asNobody(t, socket); o.code == 0 {
		t.Error("another user used the socket")
	}
	// After the modes are opened to all users, Accept still checks the peer's user.
	for _, path := range []string{filepath.Dir(folder), folder, socket} {
		if err := os.Chmod(path, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	if o := asNobody(t, socket); o.code == 0 {
		t.Errorf("another user used the socket through open modes: %s", o.stdout)
	}
	if err := echo(socket); err != nil {
		t.Errorf("its own user: %v", err)
	}
}

// TestOthersCannotUseThePort checks the same for a TCP port on loopback.
func TestOthersCannotUseThePort(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	_, out := s.start("\n", "--json", "proxy", "--listen", "tcp:127.0.0.1:0")
	_ = out
	address := runnerHost(t, out)
	c, err := net.Dial("tcp", strings.TrimPrefix(address, "tcp://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := echoOver(c); err != nil {
		t.Errorf("its own user: %v", err)
	}
	if os.Getuid() != 0 {
		requireOrSkip(t, "run it as root, which can become another user")
	}
	if o := asNobodyTo(t, address); o.code == 0 {
		t.Errorf("another user used the port: %s", o.stdout)
	}
}

func echo(socket string) error {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	defer c.Close()
	return echoOver(c)
}

func echoOver(c net.Conn) error {
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write([]byte("x")); err != nil {
		return err
	}
	b := make([]byte, 1)
	if _, err := c.Read(b); err != nil {
		return err
	}
	if b[0] != 'x' {
		return errors.New("something else came back")
	}
	return nil
}

func asNobody(t *testing.T, socket string) outcome { return asNobodyTo(t, "unix://"+socket) }

// asNobodyTo runs the dialer as another user.
func asNobodyTo(t *testing.T, host string) outcome {
	t.Helper()
	cmd := exec.Command(programForOthers(t, "dialer"), "echo")
	cmd.Dir, cmd.Env = "/", []string{"BUILDKIT_HOST=" + host}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	return finish(t, cmd)
}

// nobody is a user who owns no files.
const nobody = 65534

// programForOthers copies one of the test's programs to a folder that any user can read.
func programForOthers(t *testing.T, name string) string {
	t.Helper()
	dir := shortDir(t)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, name)
	// Another process copies it: a file that this process has had open for writing may
	// stay busy in a child that it is forking.
	if out, err := exec.Command("cp", self, path).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v\n%s", err, out)
	}
	if err := os.Chmod(path, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// requireOrSkip skips a test that this machine cannot run, or fails it if
// MAYFLY_TEST_REQUIRE is all.
func requireOrSkip(t *testing.T, remedy string) {
	t.Helper()
	if os.Getenv("MAYFLY_TEST_REQUIRE") == "all" {
		t.Fatal(remedy)
	}
	t.Skip(remedy)
}

// TestCommandsOutput checks that mayfly does not change the command's output.
func TestCommandsOutput(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	o := s.run("exec", "--", "printf", `a\033[31m\r\nb`)
	if !bytes.Equal([]byte(o.stdout), []byte("a\x1b[31m\r\nb")) {
		t.Errorf("stdout %q", o.stdout)
	}
}
