//go:build linux

package supervise

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMain lets the test binary run as the sidecar's hidden subcommand, and as
// the engines and sidecars of the tests.
func TestMain(m *testing.M) {
	if IsChild(os.Args[1:]) {
		os.Exit(Child(os.Args[1:]))
	}
	if len(os.Args) > 2 && os.Args[1] == "__test" {
		os.Exit(actors[os.Args[2]](os.Args[3:]))
	}
	os.Exit(m.Run())
}

// actors are the programs of the tests: `test.binary __test NAME ARGS...`.
var actors = map[string]func(args []string) int{}

func actor(name string, args ...string) []string {
	return append([]string{os.Args[0], "__test", name}, args...)
}

// needRoot skips the test without root, or fails it where all tests are
// required.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("MAYFLY_TEST_REQUIRE") == "all" {
		t.Fatal("isolation needs root")
	}
	t.Skip("isolation needs root: run the test as root")
}

func patience(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// start starts an engine and stops it at the end of the test.
func start(t *testing.T, o Options) *Engine {
	t.Helper()
	if o.Socket == "" {
		o.Socket = filepath.Join(t.TempDir(), "engine.sock")
	}
	e, err := Start(patience(t), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Kill() })
	return e
}

// both runs f for an isolated engine and for one without isolation.
func both(t *testing.T, f func(t *testing.T, isolate bool)) {
	for _, isolate := range []bool{true, false} {
		t.Run(fmt.Sprintf("isolate=%v", isolate), func(t *testing.T) {
			t.Parallel()
			if isolate {
				needRoot(t)
			}
			f(t, isolate)
		})
	}
}

func init() {
	// exit CODE
	actors["exit"] = func(args []string) int {
		var code int
		fmt.Sscan(args[0], &code)
		return code
	}
	// raise SIGNAL: dies from it
	actors["raise"] = func(args []string) int {
		var sig int
		fmt.Sscan(args[0], &sig)
		signal.Reset(syscall.Signal(sig))
		_ = syscall.Kill(os.Getpid(), syscall.Signal(sig))
		select {}
	}
	// echo SOCKET: an engine that echoes, and exits with 7 on SIGTERM and 8 on
	// SIGUSR1
	actors["echo"] = func(args []string) int {
		signals := make(chan os.Signal, 4)
		signal.Notify(signals, syscall.SIGTERM, syscall.SIGUSR1)
		ln, err := net.Listen("unix", args[0])
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		go func() {
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				go func() {
					buf := make([]byte, 1024)
					n, _ := conn.Read(buf)
					_, _ = conn.Write(buf[:n])
					conn.Close()
				}()
			}
		}()
		if <-signals == syscall.SIGTERM {
			return 7
		}
		return 8
	}
}

func TestExitCodes(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, isolate bool) {
		for _, c := range []struct {
			name string
			args []string
			want int
		}{
			{"clean", actor("exit", "0"), 0},
			{"crash", actor("exit", "42"), 42},
			{"killed", actor("raise", "9"), 137},
			{"aborted", []string{"sh", "-c", "kill -ABRT $$"}, 134},
		} {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				e := start(t, Options{Args: c.args, Isolate: isolate})
				if got := e.ExitCode(); got != c.want {
					t.Errorf("exit code %d, want %d", got, c.want)
				}
				var ended *ExitError
				if err := e.Ready(patience(t)); !errors.As(err, &ended) || ended.Code != c.want {
					t.Errorf("Ready of an ended engine: %v", err)
				}
				if err := e.Stop(patience(t)); err != nil {
					t.Errorf("Stop of an ended engine: %v", err)
				}
			})
		}
	})
}

func TestSignalsAndStop(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, isolate bool) {
		for _, c := range []struct {
			name string
			end  func(e *Engine) error
			want int
		}{
			{"stop is SIGTERM", func(e *Engine) error { return e.Stop(patience(t)) }, 7},
			{"stop with another", func(e *Engine) error { return e.Stop(patience(t), syscall.SIGUSR1) }, 8},
			{"signal", func(e *Engine) error { return e.Signal(syscall.SIGUSR1) }, 8},
		} {
			t.Run(c.name, func(t *testing.T) {
				socket := filepath.Join(t.TempDir(), "s")
				e := start(t, Options{Args: actor("echo", socket), Socket: socket, Isolate: isolate})
				if err := e.Ready(patience(t)); err != nil {
					t.Fatal(err)
				}
				if err := c.end(e); err != nil {
					t.Fatal(err)
				}
				if got := e.ExitCode(); got != c.want {
					t.Errorf("exit code %d, want %d", got, c.want)
				}
			})
		}
	})
}

func TestStartRefuses(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		o    Options
		want string
	}{
		{"no command", Options{Socket: "/s"}, "no engine command"},
		{"relative socket", Options{Args: []string{"true"}, Socket: "s"}, "not an absolute path"},
		{"no such program", Options{Args: []string{"/nonexistent/engine"}, Socket: "/s"}, "/nonexistent/engine"},
		{"hide root", Options{Args: []string{"true"}, Socket: "/s", Hide: []string{"/."}}, "cannot hide"},
		{"token", Options{Args: []string{"true"}, Socket: "/s", Env: []string{"FLY_API_TOKEN=x"}}, "FLY_API_TOKEN"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			e, err := Start(patience(t), c.o)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("Start: %v, %v; want an error with %q", e, err, c.want)
			}
		})
	}
}
