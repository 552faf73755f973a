//go:build linux

package supervise

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func init() {
	// wait SOCKET FILE: on SIGTERM it ends only once FILE exists, as Dagger
	// ends once its clients are gone.
	actors["wait"] = func(args []string) int {
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, syscall.SIGTERM)
		ln, err := net.Listen("unix", args[0])
		if err != nil {
			return complain(err)
		}
		defer ln.Close()
		<-stop
		for {
			if _, err := os.Stat(args[1]); err == nil {
				return 0
			}
			time.Sleep(time.Millisecond)
		}
	}
	// slow SOCKET: listens at once, answers after SIGUSR1, and then sends
	// READY=1.
	actors["slow"] = func(args []string) int {
		begin := make(chan os.Signal, 1)
		signal.Notify(begin, syscall.SIGUSR1)
		ln, err := net.Listen("unix", args[0])
		if err != nil {
			return complain(err)
		}
		<-begin
		go func() {
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				_, _ = conn.Write([]byte{0, 0, 0, 4, 0, 0, 0, 0, 0})
			}
		}()
		conn, err := net.Dial("unixgram", os.Getenv(notifyVariable))
		if err != nil {
			return complain(err)
		}
		_, _ = io.WriteString(conn, "STATUS=up\nREADY=1\n")
		select {}
	}
	// orphans DIR: a subreaper that reaps orphans, and also its own children.
	actors["orphans"] = func(args []string) int {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			return complain(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		done := make(chan struct{})
		go func() { defer close(done); ReapOrphans(ctx) }()
		own := exec.Command("sh", "-c", "(sh -c 'exit 3' & echo $! > "+args[0]+"/orphan) & wait; exit 5")
		err := own.Run()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 5 {
			return complain(fmt.Errorf("own child: %v", err))
		}
		var pid int
		data, _ := os.ReadFile(filepath.Join(args[0], "orphan"))
		fmt.Sscan(string(data), &pid)
		for unix.Kill(pid, 0) == nil { // a dead child exists until it is reaped
			time.Sleep(10 * time.Millisecond)
		}
		cancel()
		<-done
		return 0
	}
}

func TestStopCutsAfterTheSignal(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, isolate bool) {
		dir := t.TempDir()
		socket, gone := filepath.Join(dir, "s"), filepath.Join(dir, "gone")
		var cuts atomic.Int32
		e := start(t, Options{
			Args: actor("wait", socket, gone), Socket: socket, Probe: ProbeConnect, Isolate: isolate,
			CutAfter: 20 * time.Millisecond,
			Cut: func() {
				cuts.Add(1)
				_ = os.WriteFile(gone, nil, 0o600)
			},
		})
		if err := e.Ready(patience(t)); err != nil {
			t.Fatal(err)
		}
		stopped := make(chan error, 2)
		for range 2 {
			go func() { stopped <- e.Stop(patience(t)) }()
		}
		for range 2 {
			if err := <-stopped; err != nil {
				t.Error(err)
			}
		}
		if e.ExitCode() != 0 || cuts.Load() != 1 {
			t.Errorf("exit code %d after %d cuts", e.ExitCode(), cuts.Load())
		}
	})
}

func TestStopKillsWhatDoesNotStop(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, isolate bool) {
		dir := t.TempDir()
		socket := filepath.Join(dir, "s")
		e := start(t, Options{Args: actor("wait", socket, filepath.Join(dir, "never")), Socket: socket, Probe: ProbeConnect, Isolate: isolate})
		if err := e.Ready(patience(t)); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if err := e.Stop(ctx); !errors.Is(err, ErrKilled) || e.ExitCode() != 137 {
			t.Errorf("%v, exit code %d", err, e.ExitCode())
		}
	})
}

// TestReady: a listening engine that does not answer is not ready. READY=1
// triggers a probe at once.
func TestReady(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, isolate bool) {
		socket := filepath.Join(t.TempDir(), "s")
		e := start(t, Options{Args: actor("slow", socket), Socket: socket, Isolate: isolate})
		await(t, "the socket", func() bool { _, err := os.Stat(socket); return err == nil })
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if err := e.Ready(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("a silent engine: %v", err)
		}
		if err := e.Signal(syscall.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		if err := e.Ready(patience(t)); err != nil {
			t.Error(err)
		}
		select {
		case <-e.ready:
		case <-patience(t).Done():
			t.Error("READY=1 was not heard")
		}
	})
}

func TestProbe(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		serve func(net.Conn)
		ready bool
	}{
		{"settings", func(c net.Conn) { _, _ = c.Write([]byte{0, 0, 0, 4, 0, 0, 0, 0, 0}) }, true},
		{"another protocol", func(c net.Conn) { _, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n") }, true},
		{"short answer", func(c net.Conn) {
			_, _ = io.CopyN(io.Discard, c, int64(len(greeting)))
			_, _ = io.WriteString(c, "no")
			c.Close()
		}, true},
		{"hangs up", func(c net.Conn) { _, _ = io.CopyN(io.Discard, c, int64(len(greeting))); c.Close() }, true},
		{"silence", func(net.Conn) {}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			socket := filepath.Join(t.TempDir(), "s")
			ln, err := net.Listen("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { ln.Close() })
			go func() {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				t.Cleanup(func() { conn.Close() })
				c.serve(conn)
			}()
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			if err := ProbeAnswer.Ask(ctx, socket); (err == nil) != c.ready {
				t.Errorf("probe: %v", err)
			}
			if err := ProbeConnect.Ask(t.Context(), socket); err != nil {
				t.Errorf("connect: %v", err)
			}
		})
	}
	if err := ProbeConnect.Ask(t.Context(), filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("an absent socket is ready")
	}
}

func TestReapOrphans(t *testing.T) {
	t.Parallel()
	args := actor("orphans", t.TempDir())
	if out, err := exec.CommandContext(patience(t), args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	ReapOrphans(t.Context()) // returns at once: this process adopts no children
}

// TestIsolationNeedsRoot runs the actor as an unprivileged user.
func TestIsolationNeedsRoot(t *testing.T) {
	t.Parallel()
	needRoot(t)
	dir, err := os.MkdirTemp("", "supervise-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	program := filepath.Join(dir, "program")
	copyFile(t, os.Args[0], program)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	for mode, want := range map[string]int{"isolate": 1, "unsafe": 0} {
		cmd := exec.CommandContext(patience(t), program, "__test", "sidecar", mode, "-", filepath.Join(dir, mode), "true")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		cmd.Dir = dir
		out, _ := cmd.CombinedOutput()
		if cmd.ProcessState.ExitCode() != want {
			t.Errorf("%s: exit code %d\n%s", mode, cmd.ProcessState.ExitCode(), out)
		}
		if want == 1 && !strings.Contains(string(out), "isolation needs root") {
			t.Errorf("%s: does not say why: %s", mode, out)
		}
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, data, 0o755); err != nil {
		t.Fatal(err)
	}
}

// TestHide hides a folder and a file from an engine. An engine without
// isolation sees both.
func TestHide(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, isolate bool) {
		dir := t.TempDir()
		for _, sub := range []string{"folder", "open"} {
			if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range []string{"folder/secret", "file", "open/report"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte("hidden"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		script := "cd " + dir + "; { cat folder/secret file; ls folder; touch folder/x && echo written; } > open/report 2>/dev/null; exit 0"
		e := start(t, Options{
			Args: []string{"sh", "-c", script}, Isolate: isolate,
			Hide: []string{filepath.Join(dir, "folder"), filepath.Join(dir, "file"), filepath.Join(dir, "absent")},
		})
		if code := e.ExitCode(); code != 0 {
			t.Fatalf("exit code %d", code)
		}
		report, err := os.ReadFile(filepath.Join(dir, "open", "report"))
		if err != nil {
			t.Fatal(err)
		}
		want := "hiddenhiddensecret\nwritten\n"
		if isolate {
			want = ""
		}
		if string(report) != want {
			t.Errorf("the engine saw %q, want %q", report, want)
		}
	})
}

func FuzzIsReady(f *testing.F) {
	f.Add([]byte("STATUS=x\nREADY=1\n"))
	f.Add([]byte("READY=10"))
	f.Fuzz(func(t *testing.T, message []byte) {
		want := strings.Contains("\n"+string(message)+"\n", "\nREADY=1\n")
		if isReady(message) != want {
			t.Errorf("%q", message)
		}
	})
}
