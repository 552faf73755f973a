package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// daggerImage is the engine of --engine dagger if Docker is installed and PATH has
// no dagger-engine. Its version is that of the SDK in go.mod.
const daggerImage = "registry.dagger.io/engine:v0.21.8"

// engine is the command that the sidecar starts, with the unix socket that the
// command serves.
type engine struct {
	command []string
	socket  string
	// cgroup is the parent of the build containers' control groups. The engine
	// makes it and clean removes it. It is empty if the engine manages its own.
	cgroup string
}

// ownName begins the names of everything that this process makes outside of a given
// folder.
var ownName = fmt.Sprintf("mayfly-local-%d-", os.Getpid())

// engineFor prepares the engine of the options, with its files below dir.
func engineFor(o options, t tools, dir string) (engine, error) {
	switch o.engine {
	case "cmd":
		return engine{command: strings.Fields(o.engineCmd), socket: o.socket}, nil
	case "dagger":
		return daggerEngine(dir)
	}
	return buildkitEngine(t, dir)
}

func buildkitEngine(t tools, dir string) (engine, error) {
	e := engine{
		socket: filepath.Join(dir, "engine.sock"),
		cgroup: fmt.Sprintf("%s%.6x", ownName, sha256.Sum256([]byte(dir))), // another one for each run
	}
	config := filepath.Join(dir, "buildkitd.toml")
	// Without this setting, buildkitd has an OCI worker only if PATH has a runc,
	// whatever its configured runtime.
	text := fmt.Sprintf("[worker.oci]\n  enabled = true\n  defaultCgroupParent = %q\n[worker.containerd]\n  enabled = false\n", "/"+e.cgroup)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return engine{}, err
	}
	e.command = []string{t.buildkitd, "--config", config, "--addr", "unix://" + e.socket,
		"--root", filepath.Join(dir, "buildkit"), "--oci-worker-snapshotter", "overlayfs", "--oci-worker-binary", t.runc,
		"--otel-socket-path", filepath.Join(dir, "otel.sock")}
	return e, nil
}

func daggerEngine(dir string) (engine, error) {
	socket := filepath.Join(dir, "engine.sock")
	if path, err := exec.LookPath("dagger-engine"); err == nil {
		return engine{socket: socket, command: []string{path, "--addr", "unix://" + socket, "--root", filepath.Join(dir, "dagger")}}, nil
	}
	docker, err := exec.LookPath("docker")
	if err == nil {
		err = exec.Command(docker, "info", "--format", "{{.ServerVersion}}").Run()
	}
	if err != nil {
		return engine{}, remedy(errors.New("no dagger-engine in PATH and no Docker engine that answers"),
			"install Docker, or name an engine: --engine-cmd CMD --engine-socket PATH")
	}
	return engine{socket: socket, command: []string{docker, "run", "--rm", "--privileged",
		"--volume", dir + ":/mayfly", daggerImage, "--addr", "unix:///mayfly/engine.sock"}}, nil
}

// clean removes the control groups that the engine's containers leave behind. runc
// removes a container's own group, but not the parent.
func (e engine) clean() error {
	if e.cgroup == "" {
		return nil
	}
	var all error
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/", "/sys/fs/cgroup/*/*/", "/sys/fs/cgroup/*/*/*/"} {
		found, err := filepath.Glob(pattern + e.cgroup)
		all = errors.Join(all, err)
		for _, dir := range found {
			all = errors.Join(all, removeCgroup(dir))
		}
	}
	return all
}

// removeCgroup removes a control group and those below it, innermost first. Only
// rmdir works on control groups.
func removeCgroup(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	for i := len(dirs) - 1; i >= 0; i-- {
		if rm := syscall.Rmdir(dirs[i]); rm != nil && !errors.Is(rm, syscall.ENOENT) {
			err = errors.Join(err, fmt.Errorf("rmdir %s: %w", dirs[i], rm))
		}
	}
	return err
}

// demoContext writes the build context of the demonstration: a program compiled
// here, so that the build pulls nothing.
func demoContext(ctx context.Context, module, dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, "demo"), "./fly/local/demo")
	cmd.Dir = module
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=", "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the demonstration's program: %w\n%s", err, out)
	}
	for name, text := range map[string]string{
		"Dockerfile": "FROM scratch AS build\nCOPY demo /demo\nARG STAMP\nRUN [\"/demo\", \"build\", \"/artifact\"]\n" +
			"FROM scratch\nCOPY --from=build /artifact /artifact\n",
		"Dockerfile.long": "FROM scratch\nCOPY demo /demo\nRUN [\"/demo\", \"tick\"]\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}
