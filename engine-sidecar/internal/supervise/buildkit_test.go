//go:build linux

package supervise

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// withoutSeccomp removes linux.seccomp from an OCI configuration.
func withoutSeccomp(file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var config map[string]any
	if err := json.Unmarshal(data, &config); err != nil {
		return err
	}
	if linux, ok := config["linux"].(map[string]any); ok {
		delete(linux, "seccomp")
	}
	if data, err = json.Marshal(config); err != nil {
		return err
	}
	return os.WriteFile(file, data, 0o600)
}

// engineTool returns a program of fly/local/engine from the build cache. The
// first build takes minutes.
func engineTool(t *testing.T, name string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "tool", "-n", name)
	cmd.Dir = filepath.Join("..", "..", "..", "fly", "local", "engine")
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go tool -n %s: %v", name, err)
	}
	return strings.TrimSpace(string(out))
}

// TestBuildStepCannotReachSidecar runs the probe in build steps of a real
// BuildKit, an ordinary and a privileged one. The builds themselves succeed,
// which is the allowed case.
func TestBuildStepCannotReachSidecar(t *testing.T) {
	needRoot(t)
	buildkitd, buildctl, runc := engineTool(t, "buildkitd"), engineTool(t, "buildctl"), engineTool(t, "runc")
	files := t.TempDir()
	buildProbe(t, files)
	shim := filepath.Join(files, "shim")
	script := fmt.Sprintf("#!/bin/sh\nexec %s __test shim %s \"$@\"\n", os.Args[0], runc)
	if err := os.WriteFile(shim, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	cgroup, base := cgroup2Base(t)
	m := newMachineBehind(t, actor("cgroup2", "rw", cgroup), true, "{dir}/s", buildkitd, "--addr", "unix://{dir}/s", "--root", "{dir}/state",
		"--oci-worker=true", "--oci-worker-binary", shim, "--oci-worker-snapshotter", "overlayfs", "--containerd-worker=false",
		"--allow-insecure-entitlement", "security.insecure", "--allow-insecure-entitlement", "network.host")
	child := m.child(t)
	for i, flags := range []string{"", "--security=insecure", "--network=host"} {
		t.Run("RUN "+flags, func(t *testing.T) {
			m.replaceToken(t, i%2 == 1)
			context := t.TempDir()
			dockerfile := fmt.Sprintf("FROM scratch AS step\nCOPY probe /probe\nRUN %s [\"/probe\", \"/report\", \"%s\", \"%s\"]\nFROM scratch\nCOPY --from=step /report /report\n", flags, m.reversed, m.token)
			if err := os.WriteFile(filepath.Join(context, "Dockerfile"), []byte(dockerfile), 0o600); err != nil {
				t.Fatal(err)
			}
			out := filepath.Join(context, "out")
			cmd := exec.CommandContext(patience(t), buildctl, "--addr", "unix://"+m.dir+"/s", "build",
				"--frontend", "dockerfile.v0", "--local", "context="+files, "--local", "dockerfile="+context,
				"--allow", "security.insecure", "--allow", "network.host", "--output", "type=local,dest="+out, "--progress", "plain")
			if log, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("build: %v\n%s", err, log)
			}
			report, err := os.ReadFile(filepath.Join(out, "report"))
			if err != nil {
				t.Fatal(err)
			}
			if string(report) != "done" {
				t.Errorf("a build step found:\n%s", report)
			}
		})
	}
	if made, _ := filepath.Glob(base + "/mayfly-engine-*/buildkit"); len(made) != 1 {
		t.Errorf("the engine's own cgroup is not where its builds run: %q", made)
	}
	began := time.Now()
	pids := descendants(child)
	if err := m.Stop(patience(t)); err != nil || m.ExitCode() != 0 {
		t.Errorf("stop: %v, exit code %d", err, m.ExitCode())
	}
	t.Logf("stopped in %s", time.Since(began))
	for _, pid := range pids {
		if alive(pid) {
			t.Errorf("process %d is left", pid)
		}
	}
	if left := foldersIn(t, base); len(left) > 0 {
		t.Errorf("cgroups are left: %q", left)
	}
}
