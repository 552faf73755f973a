package e2e

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// stack is a running fly/local.
type stack struct {
	dir string
	env map[string]string
}

// need skips the test unless ok, and says what to install. It fails where no test
// may be skipped.
func need(t *testing.T, ok bool, what string) {
	t.Helper()
	switch {
	case ok:
	case os.Getenv("MAYFLY_TEST_REQUIRE") == "all":
		t.Fatal(what)
	default:
		t.Skip(what)
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	need(t, runtime.GOOS == "linux" && os.Geteuid() == 0, "a real engine wants root on Linux: run the tests with sudo")
}

// startStack runs fly/local until the test ends. It fails the test if fly/local
// does not end cleanly.
func startStack(t *testing.T, args ...string) *stack {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "stack")
	bin := programs(t)
	ctx, stop := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "local"), append([]string{"--keep", "--dir", dir}, args...)...)
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "MAYFLY_TEST_PROGRAMS="+bin)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = time.Minute
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		stop()
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		stop()
		var exit *exec.ExitError
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) || errors.As(err, &exit) {
			t.Errorf("fly/local: %v\n%s", err, said.String())
		}
	})
	s := &stack{dir: dir}
	for deadline := time.Now().Add(8 * time.Minute); ; {
		if s.load() {
			return s
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("fly/local ended before it was up: %v\n%s", err, said.String())
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("fly/local is not up:\n%s", said.String())
		}
	}
}

// load reads DIR/env as a shell does, and reports whether the file exists.
func (s *stack) load() bool {
	out, err := exec.Command("sh", "-c", `. "$0/env" 2>/dev/null && env -0`, s.dir).Output()
	if err != nil {
		return false
	}
	s.env = map[string]string{}
	for kv := range strings.SplitSeq(string(out), "\x00") {
		name, value, _ := strings.Cut(kv, "=")
		s.env[name] = value
	}
	return s.env["MAYFLY_ISSUER"] != ""
}

// engineTool returns the path of a program of fly/local/engine.
func engineTool(t *testing.T, name string) string {
	t.Helper()
	return tool(t, "../local/engine", name)
}

// tool returns the path of a program that a nested module pins. The first build
// takes minutes.
func tool(t *testing.T, module, name string) string {
	t.Helper()
	cmd := exec.Command("go", "-C", module, "tool", "-n", name)
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go tool -n %s: %v", name, err)
	}
	return strings.TrimSpace(string(out))
}
