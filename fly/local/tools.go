package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// modulePath is the module's path, which finds the checkout from any folder below
// it.
const modulePath = "github.com/mayfly-ca/mayfly"

// programs are mayfly's own, built into tools.bin.
var programs = []string{"./client/cmd/mayfly", "./issuer/cmd/mayfly-issuer", "./engine-sidecar/cmd/mayfly-sidecar"}

// programsVariable names the folder of programs that were built before. It is for
// tests, which start several stacks and build the programs once.
const programsVariable = "MAYFLY_TEST_PROGRAMS"

// tools are the executables of the demonstration, all built from pinned modules.
// Only the Go build cache stays after a run.
type tools struct {
	bin       string // folder with mayfly, mayfly-issuer and mayfly-sidecar
	buildkitd string
	buildctl  string
	runc      string // the OCI runtime for buildkitd
	seccomp   string // how runc got seccomp, for the progress line
}

// moduleDir returns the folder of the checkout. It must be a clone, since a module
// zip does not have the nested module of the engine tools.
func moduleDir(ctx context.Context) (string, error) {
	out, err := goCommand(ctx, "", "list", "-m", "-f", "{{.Dir}}", modulePath)
	if err != nil {
		return "", remedy(err, "run it inside a clone of the repository: go run ./fly/local")
	}
	dir := strings.TrimSpace(out)
	if _, err := os.Stat(filepath.Join(dir, "fly", "local", "engine", "go.mod")); err != nil {
		return "", remedy(fmt.Errorf("no fly/local/engine/go.mod in %s", dir), "a clone is needed: nested modules are not in a module zip")
	}
	return dir, nil
}

// buildPrograms compiles mayfly's programs into dir.
func buildPrograms(ctx context.Context, module, dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	_, err := goCommand(ctx, module, append([]string{"build", "-o", dir + "/"}, programs...)...)
	return remedy(err, "the checkout must compile: go build ./...")
}

// buildEngine compiles BuildKit and runc from the nested module, or finds them in
// the build cache. Files that the cache cannot hold go into dir.
func buildEngine(ctx context.Context, module, dir string, r *report) (tools, error) {
	nested := filepath.Join(module, "fly", "local", "engine")
	var t tools
	for _, tool := range []struct {
		name string
		path *string
	}{{"buildkitd", &t.buildkitd}, {"buildctl", &t.buildctl}, {"runc", &t.runc}} {
		r.say("%s: from the build cache, or built now (two to five minutes the first time)", tool.name)
		out, err := goCommand(ctx, nested, "tool", "-n", tool.name)
		if err != nil {
			return tools{}, remedy(err, "the Go module proxy must be reachable the first time; behind a firewall set GOPROXY")
		}
		*tool.path = strings.TrimSpace(out)
	}
	runc, err := seccompRunc(ctx, nested, dir)
	if err == nil {
		t.runc, t.seccomp = runc, "runc with seccomp"
		return t, nil
	}
	shim, shimErr := installRuncShim(dir, t.runc)
	if shimErr != nil {
		return tools{}, shimErr
	}
	t.runc, t.seccomp = shim, "runc without seccomp ("+firstLine(err.Error())+")"
	return t, nil
}

// seccompRunc builds runc with seccomp, which needs cgo and libseccomp. go tool
// accepts no build tags, and buildkitd uses seccomp wherever the kernel has it.
func seccompRunc(ctx context.Context, nested, dir string) (string, error) {
	if err := exec.CommandContext(ctx, "pkg-config", "--exists", "libseccomp").Run(); err != nil {
		return "", errors.New("pkg-config finds no libseccomp; apt-get install libseccomp-dev pkg-config for it")
	}
	path := filepath.Join(dir, "runc")
	_, err := goCommand(ctx, nested, "build", "-tags", "seccomp", "-o", path, "github.com/opencontainers/runc")
	return path, err
}

// runcShimName is the name under which buildkitd runs this program as an OCI
// runtime. It then removes seccomp from a container's configuration and executes
// the plain runc next to it.
const runcShimName = "runc-without-seccomp"

func installRuncShim(dir, runc string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	shim := filepath.Join(dir, runcShimName)
	if err := os.Symlink(self, shim); err != nil {
		return "", err
	}
	return shim, os.Symlink(runc, shim+".runc")
}

// runcShim is the OCI runtime that installRuncShim installs. It does not return on
// success.
func runcShim(argv []string) error {
	for i, arg := range argv {
		bundle, found := strings.CutPrefix(arg, "--bundle=")
		if !found && (arg == "--bundle" || arg == "-b") && i+1 < len(argv) {
			bundle, found = argv[i+1], true
		}
		if found {
			if err := withoutSeccomp(filepath.Join(bundle, "config.json")); err != nil {
				return err
			}
		}
	}
	return syscall.Exec(argv[0]+".runc", argv, os.Environ())
}

// withoutSeccomp removes seccomp from one OCI runtime configuration, in place.
func withoutSeccomp(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var config map[string]json.RawMessage
	if err := json.Unmarshal(data, &config); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	var linux map[string]json.RawMessage
	if err := json.Unmarshal(config["linux"], &linux); err != nil {
		return fmt.Errorf("%s: linux: %w", path, err)
	}
	delete(linux, "seccomp")
	if config["linux"], err = json.Marshal(linux); err != nil {
		return err
	}
	if data, err = json.Marshal(config); err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}

// goCommand runs the go command in dir without a workspace, and returns its
// standard output.
func goCommand(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), nil
}
