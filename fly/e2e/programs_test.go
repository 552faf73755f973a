package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// programsDir is the folder of the built programs. TestMain makes and removes it.
var programsDir string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "mayfly-e2e")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	programsDir = dir
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

var buildPrograms = sync.OnceValue(func() error {
	if err := goCommand("-C", "../..", "build", "-o", programsDir+"/", "./client/cmd/mayfly", "./issuer/cmd/mayfly-issuer", "./engine-sidecar/cmd/mayfly-sidecar", "./fly/local"); err != nil {
		return err
	}
	return goCommand("-C", "../..", "build", "-o", programsDir+"/", "./fly/local/demo")
})

var buildRunc = sync.OnceValue(func() error {
	return goCommand("-C", "../local/engine", "build", "-tags", "seccomp", "-o", programsDir+"/runc", "github.com/opencontainers/runc")
})

func goCommand(args ...string) error {
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=")
	if strings.HasSuffix(args[len(args)-1], "/demo") {
		cmd.Env = append(cmd.Env, "CGO_ENABLED=0") // the image has no C library
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// programs returns a folder with mayfly's three programs, fly/local, and the
// program of the demonstration's build step.
func programs(t *testing.T) string {
	t.Helper()
	if err := buildPrograms(); err != nil {
		t.Fatal(err)
	}
	return programsDir
}

// programsWithRunc returns the same folder with a runc that has seccomp.
func programsWithRunc(t *testing.T) string {
	t.Helper()
	need(t, exec.Command("pkg-config", "--exists", "libseccomp").Run() == nil, "runc needs libseccomp: apt-get install libseccomp-dev pkg-config")
	if err := buildRunc(); err != nil {
		t.Fatal(err)
	}
	return programs(t)
}

// output runs one of mayfly's programs. It returns the exit code, the standard
// output and the standard error.
func output(t *testing.T, program string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(programs(t), program), args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}
