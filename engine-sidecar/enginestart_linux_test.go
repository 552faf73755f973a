package sidecar_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestEngineCannotStart: the sidecar exits with 1, and one line names the
// program and the cause.
func TestEngineCannotStart(t *testing.T) {
	t.Parallel()
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("no program"), 0o600); err != nil {
		t.Fatal(err)
	}
	for program, cause := range map[string]string{
		"no-such-engine":      "executable file not found in $PATH",
		"/nonexistent/engine": "no such file or directory",
		text:                  "permission denied",
	} {
		w := setUp(t).supervised()
		w.cfg.Program.Command = []string{program, "--debug"}
		w.launch(nil)
		select {
		case out := <-w.done:
			if out.exit != 1 || out.err == nil {
				t.Fatalf("%s: ended with %d, %v", program, out.exit, out.err)
			}
			line := out.err.Error()
			if !strings.Contains(line, fmt.Sprintf("start engine %q: ", program)) || !strings.Contains(line, cause) || strings.Contains(line, "\n") {
				t.Errorf("%s: %q", program, line)
			}
		case <-t.Context().Done():
		}
	}
}

// TestEngineCannotBeIsolated: the same for a sidecar that may not create
// namespaces, as root without CAP_SYS_ADMIN and as an ordinary user.
func TestEngineCannotBeIsolated(t *testing.T) {
	t.Parallel()
	w := setUp(t)
	config := filepath.Join(t.TempDir(), "sidecar.yaml")
	doc := fmt.Sprintf("issuer: %s\nengine: default\nlisten: 127.0.0.1:0\nengine_socket: %s\ntoken_source: %q\n",
		w.cfg.Issuer, filepath.Join(t.TempDir(), "e.sock"), w.cfg.TokenSource)
	if err := os.WriteFile(config, []byte(doc), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "__without_sys_admin", config, "/bin/true")
	stdin, err := cmd.StdinPipe() // its end would stop the sidecar
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	out, err := cmd.CombinedOutput()
	code := 0
	if exit, ok := err.(*exec.ExitError); ok {
		code = exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	line := strings.TrimSuffix(string(out), "\n")
	if code != 1 || !strings.Contains(line, `start engine "/bin/true": isolate engine: namespaces: `) ||
		!strings.HasSuffix(line, "(isolation needs root with CAP_SYS_ADMIN)") || strings.Contains(line, "\n") {
		t.Errorf("exit %d:\n%s", code, out)
	}
}

// withoutSysAdmin runs the sidecar of a test without CAP_SYS_ADMIN.
func withoutSysAdmin(config, engine string) int {
	runtime.LockOSThread()
	if os.Geteuid() == 0 {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_SYS_ADMIN, 0, 0, 0); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 2
		}
	}
	err := syscall.Exec("/proc/self/exe", []string{os.Args[0], "__sidecar_of_test", config, engine}, os.Environ())
	fmt.Fprintln(os.Stderr, err)
	return 2
}
